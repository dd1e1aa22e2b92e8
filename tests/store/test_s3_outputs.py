"""Results in S3: each object whole or not there, the weights last, nothing replaced unasked."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import clair_cli
from clair_cli.errors import OutputError
from clair_cli.store import connect, upload
from tests import cohorts
from tests.store.s3 import Answer, Endpoint, Request, s3

__all__ = ["s3"]
pytestmark = pytest.mark.remote

WEIGHTS, CONFIG, REPORT = "adapter_model.safetensors", "adapter_config.json", "report.json"
FOLDER = [f"merged/{name}" for name in sorted((WEIGHTS, CONFIG, REPORT, "README.md"))]


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    return cohorts.save(tmp_path / "clients", cohorts.honest(4))


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return cohorts.save(tmp_path / "others", cohorts.honest(4, seed=3))


@pytest.fixture(params=["one request", "in parts"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How weights are written: they are small here, and large ones go another way."""
    if request.param == "in parts":
        monkeypatch.setattr(upload, "SINGLE_BYTES", 4096)
    return str(request.param)


def writes(s3: Endpoint) -> list[str]:
    """What each writing request was about, in order."""
    return [f"{r.method} {r.key}" for r in s3.requests if r.method in ("PUT", "POST", "DELETE")]


def test_a_folder_has_the_same_files_as_on_a_disk(
    s3: Endpoint, clients: Path, tmp_path: Path, way: str
) -> None:
    clair_cli.merge(clients, tmp_path / "merged")
    clair_cli.merge(clients, s3.at("merged/"))
    assert s3.keys() == FOLDER
    for name in (WEIGHTS, CONFIG, "README.md"):
        assert s3.get(f"merged/{name}") == (tmp_path / "merged" / name).read_bytes()
    there = s3.get(f"merged/{REPORT}").decode().replace(s3.at("merged"), "PLACE")
    here = (tmp_path / "merged" / REPORT).read_text().replace(str(tmp_path / "merged"), "PLACE")
    assert json.loads(there) == json.loads(here)


def test_the_report_is_first_and_the_weights_are_last(
    s3: Endpoint, clients: Path, way: str
) -> None:
    clair_cli.merge(clients, s3.at("merged"))
    keys = [key.partition(" ")[2] for key in writes(s3)]
    places = [i for i, key in enumerate(keys) if key and ".tmp" not in key]
    order = [f"merged/{name}" for name in (REPORT, "README.md", CONFIG, WEIGHTS)]
    assert list(dict.fromkeys(keys[i] for i in places)) == order
    if way == "in parts":  # all of it lies under other names before the first object appears
        assert len(set(keys[: places[0]])) == 2  # report and weights


def test_one_file_and_its_report(s3: Endpoint, clients: Path, tmp_path: Path, way: str) -> None:
    result = clair_cli.merge(clients, s3.at("m.safetensors"))
    assert result.report_path == s3.at("m.report.json")
    clair_cli.merge(clients, tmp_path / "m.safetensors")
    assert s3.keys() == ["m.report.json", "m.safetensors"]
    assert s3.get("m.safetensors") == (tmp_path / "m.safetensors").read_bytes()


def test_nothing_is_replaced_without_force(
    s3: Endpoint, clients: Path, others: Path, way: str
) -> None:
    for output in ("merged", "one.safetensors"):
        clair_cli.merge(clients, s3.at(output))
        before = {key: s3.get(key) for key in s3.keys(output.partition(".")[0])}
        ran = cohorts.clair("merge", others, "-o", s3.at(output))
        assert ran.exit_code == 6
        assert "exists" in ran.stderr and "--force" in ran.stderr
        assert {key: s3.get(key) for key in before} == before
        cohorts.clair("merge", others, "-o", s3.at(output), "--force")
        after = {key: s3.get(key) for key in s3.keys(output.partition(".")[0])}
        assert after.keys() == before.keys()
        assert all(after[key] != before[key] for key in before if key != f"merged/{CONFIG}")
        assert cohorts.clair("verify", s3.at(output)).exit_code == 0


@pytest.mark.parametrize("key", ["merged/report.json", f"merged/{WEIGHTS}"])
def test_what_appears_during_the_run_is_not_replaced(
    s3: Endpoint, clients: Path, key: str, way: str
) -> None:
    """Between the last look and the write: the store itself refuses, and what is new goes."""

    def before(request: Request) -> None:
        written = request.method == "PUT" or "uploadId" in request.query
        if written and request.key == key and not request.range:
            s3.put(key, b"another run's")

    s3.before = before
    with pytest.raises(OutputError, match="appeared during the run"):
        clair_cli.merge(clients, s3.at("merged"))
    assert s3.keys() == [key]
    assert s3.get(key) == b"another run's"


def test_a_folder_with_foreign_objects_is_left_alone(s3: Endpoint, clients: Path) -> None:
    s3.put("merged/notes.txt", b"mine")
    ran = cohorts.clair("merge", clients, "-o", s3.at("merged"), "--force")
    assert ran.exit_code == 6
    assert "notes.txt" in ran.stderr
    s3.put("m.safetensors/x", b"mine")
    ran = cohorts.clair("merge", clients, "-o", s3.at("m.safetensors"), "--force")
    assert ran.exit_code == 6
    assert "is a folder" in ran.stderr
    assert s3.keys() == ["m.safetensors/x", "merged/notes.txt"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("clients/merged", "lies inside the input"),
        ("clients", "is the input"),
        ("", "can't be written"),
    ],
)
def test_an_output_among_the_inputs(s3: Endpoint, clients: Path, output: str, said: str) -> None:
    ran = cohorts.clair("merge", s3.upload(clients), "-o", s3.at(output), "--force")
    assert ran.exit_code == 2
    assert said in ran.stderr


def test_an_output_that_holds_the_input(s3: Endpoint, clients: Path) -> None:
    address = s3.upload(clients, "round/clients")
    ran = cohorts.clair("refine", address, "-o", s3.at("round"), "--force")
    assert ran.exit_code == 2
    assert "holds the input" in ran.stderr


@pytest.mark.parametrize("name", [REPORT, CONFIG, WEIGHTS])
def test_a_write_that_fails_leaves_nothing(
    s3: Endpoint, clients: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)

    def before(request: Request) -> Answer | None:
        if request.method in ("PUT", "POST") and request.key == f"merged/{name}":
            return "403 Forbidden", b"<Error>secret-words</Error>"
        return None

    s3.before = before
    ran = cohorts.clair("merge", clients, "-o", s3.at("merged"))
    assert ran.exit_code == 6
    assert "Permission denied" in ran.stderr
    assert "secret" not in ran.stderr
    assert s3.keys() == []


def test_what_another_run_put_there_meanwhile_stays(
    s3: Endpoint, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)

    def before(request: Request) -> Answer | None:
        if request.method != "PUT" or request.key != f"merged/{WEIGHTS}":
            return None
        s3.put(f"merged/{REPORT}", b"of another run")
        return "403 Forbidden", b""

    s3.before = before
    assert cohorts.clair("merge", clients, "-o", s3.at("merged")).exit_code == 6
    assert s3.keys() == [f"merged/{REPORT}"]
    assert s3.get(f"merged/{REPORT}") == b"of another run"


def test_a_folder_replaced_in_part_is_told_and_found(
    s3: Endpoint, clients: Path, others: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)
    clair_cli.merge(clients, s3.at("merged"))

    def before(request: Request) -> Answer | None:
        wanted = request.method in ("PUT", "POST") and request.key == f"merged/{WEIGHTS}"
        return ("503 Slow Down", b"") if wanted else None

    s3.before = before
    ran = cohorts.clair("merge", others, "-o", s3.at("merged"), "--force")
    assert ran.exit_code == 6
    assert "replaced in part: the store answers with status 503" in ran.stderr
    s3.before = None
    assert s3.keys() == FOLDER
    ran = cohorts.clair("verify", s3.at("merged"))
    assert ran.exit_code == 3
    assert "the report says" in ran.stdout
    cohorts.clair("merge", others, "-o", s3.at("merged"), "--force")
    assert cohorts.clair("verify", s3.at("merged")).exit_code == 0


def test_an_upload_that_fails_leaves_no_temporary_name(
    s3: Endpoint, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "SINGLE_BYTES", 4096)
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)
    s3.before = lambda r: ("500 No", b"") if r.key == "merged/report.json" else None
    assert cohorts.clair("merge", clients, "-o", s3.at("merged")).exit_code == 6
    assert any(".tmp" in key for key in writes(s3))
    s3.before = None
    assert s3.keys() == []


def test_what_is_too_large_for_a_copy_is_refused_before_it_is_uploaded(
    s3: Endpoint, clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clair_cli.merge(clients, tmp_path / "m.safetensors")
    size = (tmp_path / "m.safetensors").stat().st_size
    monkeypatch.setattr(upload, "SINGLE_BYTES", size - 1)
    monkeypatch.setattr(upload, "S3_COPY_BYTES", size - 1)
    ran = cohorts.clair("merge", clients, "-o", s3.at("m.safetensors"))
    assert ran.exit_code == 6
    assert f"has {size:,} bytes, and S3 copies at most {size - 1:,}" in ran.stderr
    assert writes(s3) == [] == s3.keys()
    monkeypatch.setattr(upload, "S3_COPY_BYTES", size)
    assert cohorts.clair("merge", clients, "-o", s3.at("m.safetensors")).exit_code == 0


def test_of_two_runs_at_once_one_wins(s3: Endpoint, clients: Path, others: Path, way: str) -> None:
    ready, codes = threading.Barrier(2), []

    def before(request: Request) -> None:
        if request.method == "PUT" and request.key == "merged/report.json":
            ready.wait(30)

    s3.before = before

    def run(folder: Path) -> None:
        try:
            clair_cli.merge(folder, s3.at("merged"))
            codes.append(0)
        except OutputError as error:
            codes.append(error.exit_code)

    threads = [threading.Thread(target=run, args=(folder,)) for folder in (clients, others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(codes) == [0, 6]
    s3.before = None
    assert s3.keys() == FOLDER
    assert cohorts.clair("verify", s3.at("merged")).exit_code == 0


def test_a_run_without_an_adapter_writes_its_report_beside(s3: Endpoint, tmp_path: Path) -> None:
    two = cohorts.save(tmp_path / "two", cohorts.honest(2))
    ran = cohorts.clair("merge", two, "-o", s3.at("merged"))
    assert ran.exit_code == 5
    assert s3.keys() == ["merged.report.json"]
    cohorts.clair("merge", two, "-o", s3.at("merged"))  # replaces it unasked, as on a disk
    assert s3.keys() == ["merged.report.json"]
    more = cohorts.save(tmp_path / "more", cohorts.honest(4))
    assert cohorts.clair("merge", more, "-o", s3.at("merged")).exit_code == 0
    assert s3.keys() == FOLDER  # and the report without an adapter is gone


def test_reports_of_every_form_may_be_objects(s3: Endpoint, clients: Path, tmp_path: Path) -> None:
    places = [f"{s3.at('r.json')}", f"markdown={s3.at('r.md')}", f"junit={tmp_path / 'r.xml'}"]
    options = [x for place in places for x in ("--report", place)]
    ran = cohorts.clair("merge", clients, "-o", tmp_path / "m.safetensors", *options)
    assert ran.exit_code == 0
    assert s3.keys() == ["r.json", "r.md"]
    assert s3.at("r.json") in ran.stderr
    ran = cohorts.clair("merge", clients, "-o", s3.at("m.safetensors"), "--report",
                        s3.at("m.safetensors"))  # fmt: skip
    assert ran.exit_code == 2
    assert "name the same path" in ran.stderr


# verify, refine, convert, and what reads a report


def test_verify_reads_the_clients_again(s3: Endpoint, clients: Path) -> None:
    address = s3.upload(clients)
    clair_cli.merge(address, s3.at("merged"))
    for output in ("merged", f"merged/{WEIGHTS}"):
        ran = cohorts.clair("verify", s3.at(output), address)
        assert ran.exit_code == 0
        assert "merge of 4 clients again" in ran.stdout
    other = cohorts.client_bytes(cohorts.honest(5)["c4"])
    s3.put(f"clients/c1/{WEIGHTS}", other)
    ran = cohorts.clair("verify", s3.at("merged"), address)
    assert ran.exit_code == 3
    assert "client 'c1' has sha256" in ran.stdout


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "extra.txt"])
def test_verify_finds_what_is_not_the_reports(s3: Endpoint, clients: Path, name: str) -> None:
    clair_cli.merge(clients, s3.at("merged"))
    data = s3.get(f"merged/{name}") if name != "extra.txt" else b"x"
    s3.put(f"merged/{name}", data[:-1] + bytes([data[-1] ^ 1]))
    ran = cohorts.clair("verify", s3.at("merged"))
    assert ran.exit_code == 3
    assert name in ran.stdout


def test_verify_of_nothing(s3: Endpoint) -> None:
    ran = cohorts.clair("verify", s3.at("merged"))
    assert ran.exit_code == 2
    assert "does not exist" in ran.stderr
    s3.put("m.safetensors", b"x")
    ran = cohorts.clair("verify", s3.at("m.safetensors"))
    assert ran.exit_code == 2
    assert "no report" in ran.stderr


def test_refined_clients_are_folders(s3: Endpoint, clients: Path, tmp_path: Path) -> None:
    clair_cli.refine(clients, tmp_path / "refined")
    clair_cli.refine(clients, s3.at("refined"))
    names = [f"c{k}/{name}" for k in range(4) for name in ("README.md", CONFIG, WEIGHTS)]
    assert s3.keys() == [f"refined/{name}" for name in [*names, REPORT]]
    for name in names:
        assert s3.get(f"refined/{name}") == (tmp_path / "refined" / name).read_bytes()
    keys = [key.removeprefix("PUT ") for key in writes(s3)]
    assert keys[0] == "refined/report.json"
    assert all(key.endswith(WEIGHTS) for key in keys[-4:])
    ran = cohorts.clair("verify", s3.at("refined"), clients)
    assert ran.exit_code == 0, ran.stdout


def test_convert_reads_and_writes_objects(s3: Endpoint, clients: Path, tmp_path: Path) -> None:
    address = s3.upload(clients)
    for source, output in (
        (clients, tmp_path / "k.safetensors"),
        (address, s3.at("k.safetensors")),
    ):
        ran = cohorts.clair("convert", f"{source}/c0", "-o", output, "--tensor-names", "peft")
        assert ran.exit_code == 0, ran.stderr
    assert s3.get("k.safetensors") == (tmp_path / "k.safetensors").read_bytes()


def test_a_report_is_read_from_an_address(s3: Endpoint, clients: Path) -> None:
    assert cohorts.clair("inspect", clients, "-o", s3.at("i.json")).exit_code == 0
    for args in (("explain", "c1", "--report", s3.at("i.json")),
                 ("diff", s3.at("i.json"), s3.at("i.json"))):  # fmt: skip
        assert cohorts.clair(*args).exit_code == 0
    ran = cohorts.clair("explain", "c1", "--report", s3.at("none.json"))
    assert ran.exit_code == 2
    assert "none.json" in ran.stderr
