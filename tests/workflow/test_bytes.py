"""The same bytes in give the same bytes out: order, names, threads and folders play no part."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from tests import cohorts
from tests.cohorts import clair


def cohort() -> cohorts.Clients:
    clients = cohorts.honest(6)
    return {
        **clients,
        "odd": cohorts.unrelated(),
        **dict(zip("xy", cohorts.colluders(2), strict=True)),
    }


def renamed(report: Any, back: Mapping[str, str], folder: str) -> Any:
    """A report with the clients' names put back, and lists of names sorted anew."""
    report = json.loads(json.dumps(report))
    index = {n: k for k, n in enumerate(report["cohort"]["names"])}
    order = sorted(index, key=lambda n: back[n])
    for key in ("similarity", "similarity_se"):
        table = report["cohort"][key]
        report["cohort"][key] = [[table[index[j]][index[k]] for k in order] for j in order]
    places = report["cohort"]["coordinates"]
    report["cohort"]["coordinates"] = [places[index[n]] for n in order]
    for client in report["clients"]:
        for reason in client["reasons"]:
            for old, new in back.items():  # new names look like no other word
                reason["text"] = reason["text"].replace(old, new)

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            if value and all(isinstance(v, str) and v in back for v in value):
                return sorted(back[v] for v in value)
            return [walk(item) for item in value]
        return back.get(value, value) if isinstance(value, str) else value

    report = walk(report)
    report["clients"].sort(key=lambda c: c["name"])
    for client in report["clients"]:
        client["path"] = ""
    groups = report["cohort"]["groups"]
    report["cohort"]["groups"] = sorted(groups, key=lambda g: (g["role"], g["members"]))
    report["options"]["clients"] = folder
    return report


def run(
    folder: Path,
    clients: cohorts.Clients,
    layout: str = "peft",
    weights: Mapping[str, float] | None = None,
) -> tuple[bytes, dict[str, Any]]:
    cohorts.save(folder, clients, layout)
    options = []
    if weights is not None:
        (folder.parent / "weights.json").write_text(json.dumps(dict(weights)))
        options = ["--weights", "weights.json"]
    before = Path.cwd()
    os.chdir(folder.parent)
    try:
        result = clair("merge", folder.name, "-o", "m.safetensors", "--force", *options)
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.stderr
    out = folder.parent
    return (out / "m.safetensors").read_bytes(), cohorts.read_report(out / "m.report.json")


def weights_of(clients: cohorts.Clients) -> dict[str, float]:
    return {n: 10.0 + 7 * k % 11 for k, n in enumerate(clients)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cohort was merged once, as folders of PEFT's; nobody writes there."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder / "clients", cohort())
    return folder


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights."""
    folder = tmp_path_factory.mktemp("weighted")
    run(folder / "clients", cohort(), weights=weights_of(cohort()))
    return folder


def found_in(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """What `run` gave there."""
    return (folder / "m.safetensors").read_bytes(), cohorts.read_report(folder / "m.report.json")


NAMINGS: dict[str, list[str]] = {
    "site-7": [f"site-{7 * (k + 1) % 17:02d}" for k in range(9)],
    "site-13": [f"site-{13 * (k + 1) % 17:02d}" for k in range(9)],
    "reversed": [f"site-{9 - k}" for k in range(9)],
    "numbers": [f"s{10 ** (k % 3)}{'abc'[k // 3]}" for k in range(9)],  # "s100a" before "s1a"
    "alphabets": ["zz", "\u00e9a", "Zb", "a b", "_x1", "\u4e16\u754c", "-o", "qq,;", "9.safe"],
}


@pytest.mark.parametrize(
    ("naming", "before"),
    [
        *((naming, "plain") for naming in NAMINGS),
        ("reversed", "weighted"),
        ("alphabets", "weighted"),
    ],
)
def test_names_order_and_folder_change_no_byte(
    tmp_path: Path, request: pytest.FixtureRequest, naming: str, before: str
) -> None:
    clients = cohort()
    counts = weights_of(clients) if before == "weighted" else None
    adapter, report = found_in(request.getfixturevalue(before))
    names = dict(zip(clients, NAMINGS[naming], strict=True))
    assert len(set(names.values())) == len(clients)
    shuffled = {names[n]: clients[n] for n in sorted(clients, key=lambda n: names[n])}
    renamed_counts = None if counts is None else {names[n]: c for n, c in counts.items()}
    other, other_report = run(tmp_path / "b" / "another name", shuffled, weights=renamed_counts)
    assert other == adapter
    back = {new: old for old, new in names.items()}
    same = {n: n for n in clients}
    found, wanted = renamed(other_report, back, "x"), renamed(report, same, "x")
    # weights are given by name, and so is their hash
    assert (found["inputs"].pop("weights", "") != "") == (counts is not None)
    assert wanted["inputs"].pop("weights", "") != "" or counts is None
    assert found == wanted


def test_a_second_run_and_the_number_of_threads_change_no_byte(tmp_path: Path, plain: Path) -> None:
    folder = tmp_path / "clients"
    first = found_in(plain)
    report = (plain / "m.report.json").read_bytes()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert run(folder, cohort())[0] == first[0]
        assert (tmp_path / "m.report.json").read_bytes() == report
        assert torch.get_num_threads() == threads  # the caller's setting is put back


def test_threads_change_no_byte_where_products_would(tmp_path: Path) -> None:
    """Shapes and ranks large enough that two threads give other last bits (where any do)."""
    g = torch.Generator().manual_seed(0)
    clients = {}
    for k in range(3):
        state = {
            f"layer.{name}.lora_{side}.weight": torch.randn(*shape, generator=g)
            for name in ("q", "k", "v")
            for side, shape in (("A", (32, 512)), ("B", (2048, 32)))
        }
        clients[f"c{k}"] = (state, {"r": 32, "lora_alpha": 32})
    found = []
    for threads, side_by_side in ((1, 1), (2, 1), (2, 2), (1, 3)):
        torch.set_num_threads(threads)
        tensors = clair_cli.merge(clients, allow_undetermined=True, threads=side_by_side).tensors
        assert tensors is not None
        found.append(
            {k: hashlib.sha256(t.numpy().tobytes()).hexdigest() for k, t in tensors.items()}
        )
    assert found == [found[0]] * 4


def test_copies_that_differ_in_their_config_only_are_ordered_by_content(tmp_path: Path) -> None:
    """The weights files are equal byte by byte; names must not decide who keeps the vote."""
    honest = cohorts.honest(7)
    small = honest.pop("c0")
    large = cohorts.Client(small.A, small.B, {**small.config, "lora_alpha": 36})
    one, report = run(tmp_path / "one" / "clients", {**honest, "a": small, "b": large})
    two, other = run(tmp_path / "two" / "clients", {**honest, "a": large, "b": small})
    assert one == two
    verdicts, swapped = cohorts.verdicts(report), cohorts.verdicts(other)
    assert (verdicts["a"], verdicts["b"]) == (swapped["b"], swapped["a"])


def test_copies_that_differ_in_their_weight_only_are_ordered_by_weight(tmp_path: Path) -> None:
    honest = cohorts.honest(7)
    twin = honest.pop("c0")
    found = []
    for folder, (a, b) in (("one", (1.0, 3.0)), ("two", (3.0, 1.0))):
        weights = {**{n: 1.0 + k / 7 for k, n in enumerate(honest)}, "a": a, "b": b}
        found.append(
            run(tmp_path / folder / "c", {**honest, "a": twin, "b": twin}, "peft", weights)
        )
    assert found[0][0] == found[1][0]
    weights = [{c["name"]: c["weight"] for c in report["clients"]} for _, report in found]
    assert (weights[0]["a"], weights[0]["b"]) == (weights[1]["b"], weights[1]["a"])


def test_folders_files_and_headers_of_the_same_tensors_give_the_same_bytes(
    tmp_path: Path, plain: Path
) -> None:
    """The files differ byte by byte (one has the config in its header); what they say does not."""
    found = {"peft": found_in(plain)}
    for layout in ("file", "header", "mixed"):
        found[layout] = run(tmp_path / layout / "clients", cohort(), layout)
    hashes = {layout: {c["sha256"] for c in report["clients"]}
              for layout, (_, report) in found.items()}  # fmt: skip
    assert hashes["peft"] == hashes["file"] and not hashes["peft"] & hashes["header"]
    assert len({adapter for adapter, _ in found.values()}) == 1
    scores = [[(c["scores"], c["verdict"], c["weight"], c["modules"]) for c in report["clients"]]
              for _, report in found.values()]  # fmt: skip
    assert all(other == scores[0] for other in scores)
    assert (
        len({json.dumps([r["cohort"], r["merged"], r["modules"]]) for _, r in found.values()}) == 1
    )


def test_adapters_in_memory_give_the_bytes_of_their_files(plain: Path) -> None:
    clients = {}
    for name, client in cohort().items():
        state = {cohorts.peft_names("A", m): torch.tensor(a).float() for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b).float() for m, b in client.B.items()}
        clients[name] = (state, client.fields)
    stream = io.BytesIO()
    clair_cli.merge(dict(reversed(clients.items())), stream)
    assert stream.getvalue() == found_in(plain)[0]


def test_the_report_is_canonical_json(plain: Path) -> None:
    """Sorted keys, one form of every number: parsing and writing it again changes no byte."""
    text = (plain / "m.report.json").read_text(encoding="ascii")
    again = json.dumps(json.loads(text), sort_keys=True, indent=2, allow_nan=False) + "\n"
    assert text == again


def test_refined_folders_are_the_same_bytes_under_other_names(tmp_path: Path) -> None:
    clients = cohort()
    names = {n: f"z{9 - k}" for k, n in enumerate(clients)}
    one = cohorts.save(tmp_path / "one", clients)
    two = cohorts.save(tmp_path / "two", {names[n]: c for n, c in clients.items()}, "mixed")
    torch.set_num_threads(2)
    clair_cli.refine(one, tmp_path / "r1")
    torch.set_num_threads(1)
    clair_cli.refine(two, tmp_path / "r2")
    # the report and the cards have names
    first, second = (
        {n: d for n, d in cohorts.snapshot(tmp_path / out).items()
         if not n.endswith(("report.json", "README.md"))}
        for out in ("r1", "r2")
    )  # fmt: skip
    assert len(first) >= 12
    assert {f"{names[n.split('/')[0]]}/{n.split('/')[1]}": d for n, d in first.items()} == second


def test_the_header_is_canonical(plain: Path) -> None:
    adapter, report = found_in(plain)
    size = int.from_bytes(adapter[:8], "little")
    header = json.loads(adapter[8 : 8 + size])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert header["__metadata__"]["format"] == "pt"
    assert report["merged"]["sha256"] == hashlib.sha256(adapter).hexdigest()


def test_no_absolute_path_and_no_clock_in_the_report(plain: Path) -> None:
    text = (plain / "m.report.json").read_text()
    assert str(plain) not in text and "thread" not in text
    assert not re.search(r"\d{4}-\d\d|\d\d:\d\d", text)
