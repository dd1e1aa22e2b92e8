"""Exit codes by number, and the files that must and must not be there afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import cohorts
from tests.cohorts import clair

OUT, REPORT = "m.safetensors", "m.report.json"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which the cohort is `clients`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(work: Path) -> set[str]:
    """Everything but the clients; a temporary file left over would show here."""
    return {p.name for p in work.iterdir()} - {"clients"}


def written(report: str = REPORT) -> dict[str, Any]:
    return cohorts.read_report(Path(report))


CLEAN = cohorts.honest(5)
MIXED = {**cohorts.honest(4), "odd": cohorts.unrelated()}
SUSPECT = {**cohorts.honest(6), "c6": cohorts.scaled(cohorts.honest(7)["c6"], 4.0)}
NAN = {**cohorts.honest(5), "broken": cohorts.with_nan(cohorts.unrelated())}


# 0


def test_0_writes_adapter_and_report(work: Path) -> None:
    cohorts.save(Path("clients"), MIXED)
    result = clair("merge", "clients", "-o", OUT)
    assert (result.exit_code, result.stdout) == (0, "")
    assert outputs(work) == {OUT, REPORT}
    report = written()
    assert (report["exit_code"], report["merged"]["path"]) == (0, OUT)
    assert result.stderr.strip().splitlines()[-1].startswith("1 of 5 clients contaminated: odd")


def test_0_writes_a_folder_with_the_report_inside(work: Path) -> None:
    cohorts.save(Path("clients"), MIXED)
    assert clair("merge", "clients", "-o", "merged").exit_code == 0
    assert outputs(work) == {"merged"}
    assert {p.name for p in Path("merged").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "report.json", "README.md",
    }  # fmt: skip
    written("merged/report.json")


def test_0_report_elsewhere(work: Path) -> None:
    cohorts.save(Path("clients"), CLEAN)
    assert clair("merge", "clients", "-o", OUT, "--report", "r.json").exit_code == 0
    assert outputs(work) == {OUT, "r.json"}
    written("r.json")


def test_0_rejected_clients_do_not_stop_a_merge(work: Path) -> None:
    cohorts.save(Path("clients"), NAN)
    assert clair("merge", "clients", "-o", OUT).exit_code == 0
    assert cohorts.verdicts(written())["broken"] == "rejected"


# 2


@pytest.mark.parametrize(
    "args",
    [
        ("merge", "clients"),
        ("merge", "clients", "-o", OUT, "--rank", "0"),
        ("merge", "clients", "-o", OUT, "--rank", "-3"),
        ("merge", "clients", "-o", OUT, "--error-target", "1"),
        ("merge", "clients", "-o", OUT, "--error-target", "nan"),
        ("merge", "clients", "-o", OUT, "--min-clients", "0"),
        ("merge", "clients", "-o", OUT, "--fail-on", "benign"),
        ("merge", "clients", "-o", OUT, "--dtype", "int8"),
        ("merge", "clients", "-o", OUT, "--exclude", "nobody"),
        ("merge", "clients", "-o", OUT, "--weights", "absent.json"),
        ("merge", "clients", "-o", OUT, "--previous", "absent"),
        ("merge", "clients", "-o", OUT, "--report", OUT),
        ("merge", "clients", "-o", f"absent/{OUT}"),
        ("merge", "clients", "-o", f"clients/{OUT}"),
        ("merge", "clients", "-o", "clients"),
        ("merge", "client", "-o", OUT),
        ("merge", "clients/c0/adapter_config.json", "-o", OUT),
        ("merge", "clients", "-o", OUT, "--device", "cuda"),
        ("refine", "clients", "-o", "r", "--noise", "0"),
        ("inspect", "clients", "--json", "yaml"),
        ("inspect", "clients", "--rank", "4"),
    ],
    ids=" ".join,
)
def test_2_leaves_nothing(work: Path, args: tuple[str, ...]) -> None:
    if "cuda" in args:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("a CUDA device is there")
    cohorts.save(Path("clients"), CLEAN)
    before = cohorts.snapshot(work)
    result = clair(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert cohorts.snapshot(work) == before
    assert "Traceback" not in result.stderr and result.stderr


# 3


@pytest.mark.parametrize(
    ("clients", "fail_on", "code"),
    [
        (CLEAN, "suspicious", 0),
        (MIXED, "never", 0),
        (MIXED, "contaminated", 3),
        (MIXED, "suspicious", 3),
        (SUSPECT, "contaminated", 0),
        (SUSPECT, "suspicious", 3),
        (NAN, "never", 0),
        (NAN, "contaminated", 3),
        (NAN, "suspicious", 3),
    ],
)
def test_3_fail_on(work: Path, clients: cohorts.Clients, fail_on: str, code: int) -> None:
    cohorts.save(Path("clients"), clients)
    result = clair("merge", "clients", "-o", OUT, "--fail-on", fail_on)
    assert result.exit_code == code, result.stderr
    assert outputs(work) == ({OUT, REPORT} if code == 0 else {REPORT})
    report = written()
    assert report["exit_code"] == code
    assert (report["merged"] is None) == (code == 3)


@pytest.mark.parametrize(
    ("clients", "args", "code"),
    [
        (CLEAN, (), 0),
        (MIXED, (), 3),
        (NAN, (), 3),
        (SUSPECT, (), 0),
        (MIXED, ("--fail-on", "never"), 0),
        (SUSPECT, ("--fail-on", "suspicious"), 3),
    ],
)
def test_3_inspect(work: Path, clients: cohorts.Clients, args: tuple[str, ...], code: int) -> None:
    cohorts.save(Path("clients"), clients)
    result = clair("inspect", "clients", "--json", *args)
    assert (result.exit_code, cohorts.check_report(result.stdout)["exit_code"]) == (code, code)
    assert outputs(work) == set()
    shown = clair("inspect", "clients", "-o", "r.json", *args)
    assert shown.exit_code == code and shown.stdout and written("r.json")["exit_code"] == code


def test_3_of_a_folder_writes_the_report_beside_it(work: Path) -> None:
    cohorts.save(Path("clients"), MIXED)
    assert clair("merge", "clients", "-o", "merged", "--fail-on", "contaminated").exit_code == 3
    assert outputs(work) == {"merged.report.json"}
    written("merged.report.json")


def test_3_keeps_an_old_adapter(work: Path) -> None:
    cohorts.save(Path("clients"), MIXED)
    Path(OUT).write_bytes(b"old")
    result = clair("merge", "clients", "-o", OUT, "--fail-on", "contaminated", "--force")
    assert (result.exit_code, Path(OUT).read_bytes()) == (3, b"old")


def test_3_refine_writes_no_adapter(work: Path) -> None:
    cohorts.save(Path("clients"), MIXED)
    assert clair("refine", "clients", "-o", "r", "--fail-on", "contaminated").exit_code == 3
    assert outputs(work) == {"r.report.json"}


# 4


def different_shapes() -> cohorts.Clients:
    """Three clients of three base models."""
    clients = {}
    for k, client in enumerate(cohorts.honest(3).values()):
        import numpy as np

        clients[f"c{k}"] = cohorts.Client(
            {m: np.hstack([a] * (k + 1)) for m, a in client.A.items()}, client.B, client.config
        )
    return clients


REFUSED: dict[str, tuple[Mapping[str, cohorts.Client], tuple[str, ...], str]] = {
    "no usable client": (
        {f"c{k}": cohorts.with_nan(cohorts.unrelated(k)) for k in range(3)}, (),
        "0 usable clients (3 rejected)",
    ),
    "strict": (NAN, ("--strict",), "--strict"),
    "too few left": (
        {**cohorts.honest(2), "broken": cohorts.with_nan(cohorts.unrelated())}, (),
        "2 usable clients (1 rejected), 3 needed",
    ),
    "min-clients": (CLEAN, ("--min-clients", "6"), "5 usable clients (0 rejected), 6 needed"),
    "all shapes differ": (different_shapes(), (), "no majority for the shape"),
    "no config": (
        {n: cohorts.Client(c.A, c.B, {"lora_alpha": None}) for n, c in CLEAN.items()}, (),
        "0 usable clients (5 rejected)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_4(work: Path, kind: str) -> None:
    clients, args, text = REFUSED[kind]
    cohorts.save(Path("clients"), clients)
    Path(OUT).write_bytes(b"old")
    result = clair("merge", "clients", "-o", OUT, "--force", "--allow-undetermined", *args)
    assert result.exit_code == 4, result.stderr
    assert (outputs(work), Path(OUT).read_bytes()) == ({OUT, REPORT}, b"old")
    report = written()
    assert (report["exit_code"], report["cohort"]["outcome"]) == (4, "refused")
    assert text in report["cohort"]["outcome_text"] and text in result.stderr
    assert {c["name"] for c in report["clients"]} == set(clients)


def test_4_an_empty_folder_and_one_with_other_files(work: Path) -> None:
    Path("clients").mkdir()
    result = clair("merge", "clients", "-o", OUT)
    assert result.exit_code == 4 and "no client in 'clients'" in result.stderr
    Path("clients/README.md").write_text("nothing here")
    result = clair("merge", "clients", "-o", OUT, "--force")
    assert result.exit_code == 4 and "1 other entry ignored" in result.stderr
    assert outputs(work) == {REPORT} and written()["clients"] == []
    assert clair("inspect", "clients").exit_code == 4


# 5


NO_VERDICT: dict[str, tuple[cohorts.Clients, str]] = {
    "one client": (cohorts.honest(1), "1 client: nothing to compare with"),
    "two clients": (cohorts.honest(2), "2 clients: can't tell which is wrong"),
    "nothing shared": ({f"c{k}": cohorts.unrelated(k) for k in range(6)}, "nothing"),
    "two groups": (
        {**cohorts.honest(5), **dict(zip("wxyz", cohorts.colluders(4), strict=True))},
        "two coherent groups of similar size: 5 (c0, c1, c2, c3, c4) and 4 (w, x, y, z)",
    ),
    "all zero": ({n: cohorts.scaled(c, 0.0) for n, c in CLEAN.items()}, "zero"),
}


@pytest.mark.parametrize("kind", NO_VERDICT)
def test_5(work: Path, kind: str) -> None:
    clients, text = NO_VERDICT[kind]
    cohorts.save(Path("clients"), clients)
    result = clair("merge", "clients", "-o", OUT, "--fail-on", "contaminated")
    assert result.exit_code == 5, result.stderr
    assert outputs(work) == {REPORT}
    report = written()
    assert (report["exit_code"], report["merged"]) == (5, None)
    assert text in report["cohort"]["outcome_text"] and text in result.stderr
    assert clair("inspect", "clients").exit_code == 5
    assert clair("refine", "clients", "-o", "r").exit_code == 5
    assert not Path("r").exists()


@pytest.mark.parametrize("kind", NO_VERDICT)
def test_5_becomes_0_when_allowed(work: Path, kind: str) -> None:
    clients, _ = NO_VERDICT[kind]
    cohorts.save(Path("clients"), clients)
    result = clair("merge", "clients", "-o", OUT, "--rank", "full", "--allow-undetermined")
    assert result.exit_code == 0, result.stderr
    report = written()
    assert (report["cohort"]["outcome"], report["exit_code"]) == ("undetermined", 0)
    assert report["options"]["allow_undetermined"] is True
    merged, deltas = cohorts.read_dense(Path(OUT)), [c.deltas() for c in clients.values()]
    if kind == "all zero":
        assert all(not d.any() for d in merged.values())
    else:
        assert cohorts.relative(merged, cohorts.mean(deltas)) <= 1e-5


# 6


def test_6_exists_without_force(work: Path) -> None:
    cohorts.save(Path("clients"), CLEAN)
    for name in (OUT, REPORT):
        Path(name).write_bytes(b"old")
        result = clair("merge", "clients", "-o", OUT)
        assert result.exit_code == 6 and "--force" in result.stderr
        assert cohorts.snapshot(work)[name] == b"old"
        assert outputs(work) == {name}
        Path(name).unlink()


def test_6_force_replaces_both(work: Path) -> None:
    cohorts.save(Path("clients"), CLEAN)
    for out in (OUT, "folder"):
        first = clair("merge", "clients", "-o", out)
        before = cohorts.snapshot(work)
        second = clair("merge", "clients", "-o", out, "--force")
        assert (first.exit_code, second.exit_code) == (0, 0)
        assert cohorts.snapshot(work) == before


def test_6_a_float16_overflow_when_it_was_asked_for(work: Path) -> None:
    clients = {n: cohorts.scaled(c, 1e12) for n, c in CLEAN.items()}
    cohorts.save(Path("clients"), clients)
    Path(OUT).write_bytes(b"old")
    result = clair("merge", "clients", "-o", OUT, "--dtype", "float16", "--force")
    assert result.exit_code == 6 and "float16" in result.stderr and "--dtype" in result.stderr
    assert (outputs(work), Path(OUT).read_bytes()) == ({OUT}, b"old")


def test_6_read_only_folder(work: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    cohorts.save(Path("clients"), CLEAN)
    Path("out").mkdir(mode=0o500)
    assert clair("merge", "clients", "-o", f"out/{OUT}").exit_code == 6
    assert outputs(work) == {"out"} and not list(Path("out").iterdir())


@pytest.mark.parametrize("command", ["merge", "refine"])
def test_6_a_report_in_the_way_is_not_overwritten(work: Path, command: str) -> None:
    """Without a verdict the report goes beside a folder: an old one there is kept."""
    cohorts.save(Path("clients"), MIXED)
    Path("out.report.json").write_bytes(b"old")
    result = clair(command, "clients", "-o", "out", "--fail-on", "contaminated")
    assert result.exit_code == 6
    assert cohorts.snapshot(work)["out.report.json"] == b"old"
    assert outputs(work) == {"out.report.json"}


# Which one, when several hold: 2, 6, 4, 5, 3, 0


def test_precedence(work: Path) -> None:
    two = {**cohorts.honest(2), "broken": cohorts.with_nan(cohorts.unrelated())}
    cohorts.save(Path("clients"), two)
    fail = ("--fail-on", "suspicious")
    Path(OUT).write_bytes(b"old")
    assert clair("merge", "clients", "-o", OUT, "--rank", "0", *fail).exit_code == 2
    assert clair("merge", "clients", "-o", OUT, *fail).exit_code == 6
    Path(OUT).unlink()
    assert clair("merge", "clients", "-o", OUT, *fail).exit_code == 4
    lower = ("--min-clients", "1", "--force")
    assert clair("merge", "clients", "-o", OUT, *lower, *fail).exit_code == 5
    allowed = clair("merge", "clients", "-o", OUT, *lower, *fail, "--allow-undetermined")
    assert allowed.exit_code == 3 and not Path(OUT).exists()
    assert clair("merge", "clients", "-o", OUT, *lower, "--allow-undetermined").exit_code == 0


# What is said


def test_the_report_to_stdout_and_one_line(work: Path) -> None:
    cohorts.save(Path("clients"), {**MIXED, "broken": NAN["broken"]}, "mixed")
    done = clair("inspect", "clients", "--json")
    report = cohorts.check_report(done.stdout)
    assert (done.exit_code, report["exit_code"]) == (3, 3)
    assert len(done.stderr.splitlines()) == 1 and "odd" in done.stderr
    assert outputs(work) == set()


def test_quiet_is_one_line(work: Path) -> None:
    cohorts.save(Path("clients"), MIXED)
    result = clair("merge", "clients", "-o", OUT, "-q")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (0, "", 1)


def test_outputs_respect_the_umask_and_leave_the_clients_alone(work: Path) -> None:
    cohorts.save(Path("clients"), CLEAN, "mixed")
    before = cohorts.snapshot(Path("clients"))
    old = os.umask(0o027)
    try:
        assert clair("merge", "clients", "-o", OUT).exit_code == 0
    finally:
        os.umask(old)
    assert {oct(Path(name).stat().st_mode & 0o777) for name in (OUT, REPORT)} == {"0o640"}
    assert cohorts.snapshot(Path("clients")) == before


def test_a_linked_output_is_written_where_it_points(work: Path) -> None:
    cohorts.save(Path("clients"), CLEAN)
    Path("real").mkdir()
    Path("real/target.safetensors").write_bytes(b"old")
    Path(OUT).symlink_to("real/target.safetensors")
    assert clair("merge", "clients", "-o", OUT, "--force").exit_code == 0
    assert Path(OUT).is_symlink() and Path("real/target.safetensors").stat().st_size > 100


def test_5_then_0_with_the_same_report_path(work: Path) -> None:
    """The remedy that exit 5 names is not blocked by the report it wrote."""
    cohorts.save(Path("clients"), cohorts.honest(2))
    call = ("merge", "clients", "-o", OUT, "--report", "r.json")
    assert clair(*call).exit_code == 5
    assert clair(*call, "--allow-undetermined").exit_code == 0
    assert clair(*call, "--allow-undetermined").exit_code == 6
