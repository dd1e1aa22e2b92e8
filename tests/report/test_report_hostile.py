"""A report from a stranger: bounded memory, no limit taken from it, no name of any length."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.errors import UsageError
from clair_cli.formats.limits import LARGEST, Limits, capped_limits
from clair_cli.formats.strict_json import parse_strict
from clair_cli.report import encode as report_json
from clair_cli.report.encode import is_dense, records_nothing
from clair_cli.report.read import OldReport, read_report
from clair_cli.verification import files as result_check
from tests import cohorts
from tests.cohorts import clair
from tests.fake_report import fake_report

SHA = "0" * 64


def plain(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report_json.report_json(fake_report()))
    return {**found, **changes}


def refined(**client: Any) -> dict[str, Any]:
    """The report of a refinement of one client."""
    fields = {"name": "c", "sha256": SHA, "rank": 1, "config_sha256": None}
    (one,) = [{**fields, **client}]
    shown = {"name": one["name"], "name_bytes": one.pop("name_bytes", None)}
    return plain(command="refine", clients=[shown], refined={"clients": [one]})


def read(folder: Path, report: dict[str, Any] | str) -> OldReport:
    path = folder / "r.json"
    path.write_text(report if isinstance(report, str) else json.dumps(report))
    return read_report(path, "1.0")


def refused(folder: Path, report: dict[str, Any] | str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read(folder, report)
    assert len(caught.value.message) < 500


# Memory


def test_an_honest_report_is_not_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where somebody took its white space away."""
    monkeypatch.setattr(report_json, "_ANY_VALUES", 0)
    text = report_json.report_json(fake_report())
    assert not is_dense(text.encode())
    modules = {
        f"model.layers.{k}.self_attn.q_proj": {
            "norm": 1.92102763911613 + k,
            "off_line_ratio": 0.5913208735772193,
            "rank": 8,
            "scaling": 2.0,
            "similarity": 0.6661318032966665,
        }
        for k in range(99)
    }
    assert not is_dense(json.dumps(modules, separators=(",", ":")).encode())


@pytest.mark.parametrize(("length", "dense"), [(98, True), (99, False)])
def test_how_dense_is_dense(monkeypatch: pytest.MonkeyPatch, length: int, dense: bool) -> None:
    monkeypatch.setattr(report_json, "_ANY_VALUES", 10)
    data = b"[" + b"0," * 20 + b"0"  # 21 values: 10, and one for each 9 bytes
    data = data.ljust(length - 1) + b"]"
    assert is_dense(data) == dense


KINDS = {
    "lists": b"[],", "dicts": b"{},", "numbers": b"999,", "strings": b'"ab",', "one": b'{"a":[]},'
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "keys"])
def test_what_is_not_dense_takes_little_memory(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As many values as there may be for the size, each of the costly kind."""
    monkeypatch.setattr(report_json, "_ANY_VALUES", 0)
    count = 10_000
    if kind == "keys":
        data = b"{" + b",".join(b'"%05d": 1' % k for k in range(count))
        values = 2 * count
    else:
        data = b"[" + KINDS[kind] * count + b"0"
        values = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    end = b"}" if kind == "keys" else b"]"
    data = data.ljust(9 * values) + end
    assert not is_dense(data)
    tracemalloc.start()
    try:
        parse_strict(data, "it", len(data))
        assert tracemalloc.get_traced_memory()[1] < 12 * len(data)
    finally:
        tracemalloc.stop()


def test_a_long_word_is_not_copied_again_and_again() -> None:
    data = b'["\\ud83d\\ude00' + b"a" * 1_000_000 + b'"]'
    tracemalloc.start()
    try:
        parse_strict(data, "it", len(data))
        assert tracemalloc.get_traced_memory()[1] < 11 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("where", ["value", "key", "inside"])
def test_half_a_surrogate_pair_is_seen(where: str) -> None:
    text = {"value": '["\\ud83d"]', "key": '{"\\uDE00": 1}', "inside": '[{"a": [["\\ud83dx"]]}]'}
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_strict(text[where].encode(), "it", 99)
    assert parse_strict(b'["\\ud83d\\ude00"]', "it", 99) == ["\U0001f600"]


def test_a_dense_report_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "[" + "[]," * 2_000_000 + "0]", "more values than a report of its size")
    assert not records_nothing(tmp_path / "r.json")


def test_what_records_nothing_is_not_parsed_where_it_is_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = plain(merged=None, refined=None)
    (tmp_path / "r.json").write_text(json.dumps(report))
    assert records_nothing(tmp_path / "r.json")
    monkeypatch.setattr(report_json, "is_dense", lambda _: True)
    assert not records_nothing(tmp_path / "r.json")


@pytest.mark.parametrize(("depth", "deep"), [(31, False), (32, True), (900, True)])
def test_nesting(tmp_path: Path, depth: int, deep: bool) -> None:
    report = plain(extra=json.loads("[" * depth + "]" * depth))
    if deep:
        refused(tmp_path, report, "nested too deeply")
    else:
        read(tmp_path, report)


# Numbers


def test_limits_are_taken_only_so_far() -> None:
    default = Limits()
    assert capped_limits(default) == default
    assert capped_limits(Limits(max_rank=8 * 1024)).max_rank == 8 * 1024
    assert capped_limits(Limits(max_rank=8 * 1024 + 1)).max_rank == 8 * 1024
    assert capped_limits(Limits(max_tensors=5)).max_tensors == 5


def test_a_result_is_read_within_limits_of_its_own() -> None:
    """Whatever the report says of modules and ranks."""
    most = result_check._own_limits(capped_limits(Limits(**dict.fromkeys(vars(Limits()), LARGEST))))
    assert most.max_header_bytes <= 64 * 2**20
    assert most.max_tensors <= 3 * 160_000
    usual = result_check._own_limits(Limits())
    assert (usual.max_header_bytes, usual.max_tensors) == (32 * 2**20, 60_000)
    assert result_check._own_limits(Limits(max_tensors=6)).max_tensors == 60_000


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), cohorts.honest(4))
    clair_cli.merge("clients", "m.safetensors")
    return tmp_path


def test_a_header_as_large_as_the_report_says_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_check, "_HEADER_BYTES", 100)
    monkeypatch.setattr(result_check, "Limits", lambda: Limits(max_header_bytes=100))
    report = json.loads(Path("m.report.json").read_text())
    report["options"]["limit"] = {"header": 100}
    report["modules"] = [{"name": f"m{k}", "written": f"m{k}", "shape": [1, 1]} for k in range(900)]
    Path("m.report.json").write_text(json.dumps(report))
    (line, *_) = clair_cli.verify("m.safetensors").differences
    assert "above the limit of 100 bytes" in line


def test_recorded_limits_are_used_and_a_cut_one_is_told(work: Path) -> None:
    report = json.loads(Path("m.report.json").read_text())
    report["options"]["limit"] = {"rank": 1}
    Path("m.report.json").write_text(json.dumps(report))
    assert clair_cli.verify("m.safetensors", "clients").differences
    report["options"]["limit"] = {"header": 2**62}
    Path("m.report.json").write_text(json.dumps(report))
    found = clair_cli.verify("m.safetensors", "clients")
    assert found.differences == ()
    assert any("--limit higher" in note for note in found.notes)


@pytest.mark.parametrize("limit", [{"telepathy": 1}, {"rank": 0}, {"rank": "much"}, 7, [3]])
def test_limits_that_are_none_are_damage(tmp_path: Path, limit: Any) -> None:
    refused(tmp_path, plain(options={**plain()["options"], "limit": limit}), "is damaged: .*limit")


@pytest.mark.parametrize("count", [999, 1001])
def test_more_clients_than_any_round_has(tmp_path: Path, count: int) -> None:
    report = plain(clients=[{"name": f"c{k}"} for k in range(count)])
    if count <= 1000:
        read(tmp_path, report)
    else:
        refused(tmp_path, report, "it has 1,001 clients")


def test_more_refined_clients_than_clients(tmp_path: Path) -> None:
    report = refined()
    report["refined"]["clients"] *= 2
    refused(tmp_path, report, "2 of 1 clients are refined")


@pytest.mark.parametrize("axes", [0, 1, 3, 10_000])
def test_shapes_are_those_of_matrices(tmp_path: Path, axes: int) -> None:
    module = {"name": "m", "written": "m", "shape": [1] * axes}
    refused(tmp_path, plain(modules=[module]), f"a shape has {axes:,} axes")


# Names


@pytest.mark.parametrize(("length", "good"), [(1020, True), (1021, False), (10_000_000, False)])
def test_names_are_as_long_as_folders_names_may_be(tmp_path: Path, length: int, good: bool) -> None:
    name = b"\xff" * length
    encoded = base64.b64encode(name).decode()
    if good:
        (adapter,) = read(tmp_path, refined(name_bytes=encoded)).adapters
        assert os.fsencode(adapter.folder) == name
        assert len(read(tmp_path, refined(name="n" * length)).adapters) == 1
    else:
        refused(
            tmp_path,
            refined(name_bytes=encoded),
            r"name.* has .* [0-9,]+ characters|name_bytes has",
        )
        refused(tmp_path, refined(name="n" * length), f"a name of {length:,} characters")


def test_a_name_that_no_disk_takes_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    read(Path("m"), refined(name="n" * 1000))
    result = clair("verify", "m", "--report", "m/r.json")
    assert result.exit_code == 3
    assert "can't be read: File name too long" in result.stdout
