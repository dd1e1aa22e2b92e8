"""One bad client among three good ones: named, left out, and the others' round goes on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests import cohorts
from tests.bad_input.bad_clients import BAD
from tests.bad_input.clients import CONFIG, WEIGHTS, client, loop
from tests.bad_input.running import GOOD, OUT, REPORT, merge, run
from tests.bad_input.table import ROWS, Bad, cases, covers
from tests.work import at_most

FIRST = {case.row: case for case in reversed(BAD)}
CALLS = 120_000  # half more than for the costliest


@pytest.fixture(scope="module")
def good_alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The merged bytes of the good clients."""
    folder = tmp_path_factory.mktemp("good")
    cohorts.save(folder / "clients", GOOD)
    result = cohorts.clair("merge", folder / "clients", "-o", folder / OUT)
    assert result.exit_code == 0
    return (folder / OUT).read_bytes()


def check(case: Bad, good_alone: bytes) -> None:
    """What is promised for every bad client: the code, its reason, and the others' very bytes."""
    with at_most(CALLS):
        ran = merge("--force")
    assert ran.code == ROWS[case.row].code, ran.words
    assert ran.verdicts == {**dict.fromkeys(GOOD, "benign"), case.entry: case.verdict}
    for words in case.says:
        assert words in ran.reason(case.entry), words
    shown = ran.words.replace("\n", " ")
    assert all(words in shown for words in case.says)
    assert Path(OUT).read_bytes() == good_alone
    for name in (OUT, REPORT):
        Path(name).unlink()

    if case is not FIRST.get(case.row, case):
        return  # what the other commands do depends on the row
    strict = ROWS[case.row].strict
    if case.verdict == "rejected":
        refused = merge("--strict")
        assert (refused.code, Path(OUT).exists()) == (strict, False)
        assert case.entry in refused.words
        assert "1 client rejected, and --strict allows none" in refused.words
    assert run("inspect", "clients").code == 3, "not judged is not clean"


@cases(BAD)
def test_the_round_goes_on_without_it(work: Path, good_alone: bytes, case: Bad) -> None:
    cohorts.save(Path("clients"), GOOD)
    case.make(Path("clients"))
    entries = sorted(os.listdir("clients"))
    check(case, good_alone)
    assert sorted(os.listdir("clients")) == entries
    assert {p.name for p in work.iterdir()} <= {"clients", "secret", REPORT}, "nothing ran"


@covers(60)
def test_two_links_to_each_other(work: Path, row: int) -> None:
    cohorts.save(Path("clients"), GOOD)
    loop(Path("clients"))
    ran = merge()
    assert ran.code == ROWS[row].code
    for name in ("bad", "worse"):
        assert ran.verdicts[name] == "rejected"
        assert f"link '{name}'" in ran.reason(name) and "can't be followed" in ran.reason(name)


@covers(62)
def test_a_device(work: Path, row: int, good_alone: bytes) -> None:
    cohorts.save(Path("clients"), GOOD)
    file = client(Path("clients")) / WEIGHTS
    file.unlink()
    try:
        os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # a zero device of our own
    except PermissionError:
        pytest.skip("may not make a device node here")
    check(Bad(row, "device", lambda _: None, ("a character device",)), good_alone)


@covers(63)
@pytest.mark.parametrize("what", [WEIGHTS, CONFIG, ""])
def test_what_may_not_be_read(unprivileged: Path, row: int, what: str, good_alone: bytes) -> None:
    cohorts.save(Path("clients"), GOOD)
    path = client(Path("clients")) / what
    path.chmod(0)
    check(Bad(row, "denied", lambda _: None, ("unreadable", "Permission denied")), good_alone)


@covers(25)
@pytest.mark.parametrize("alpha", ["12", "rank"])
def test_an_assumed_alpha_is_said(work: Path, row: int, alpha: str) -> None:
    cohorts.save(Path("clients"), GOOD)
    (client(Path("clients")) / CONFIG).unlink()
    ran = merge("--assume-alpha", alpha)
    assert ran.code == ROWS[row].code and ran.verdicts["bad"] == "benign"
    assert "client 'bad': no config: alpha = " in ran.words and "assumed" in ran.words


@covers(7)
def test_too_few_are_left(work: Path, row: int) -> None:
    cohorts.save(Path("clients"), cohorts.honest(2))
    client(Path("clients"), b"")
    ran = merge()
    assert (ran.code, Path(OUT).exists()) == (ROWS[row].code, False)
    assert "2 usable clients (1 rejected), 3 needed" in ran.words
    assert "--min-clients" in ran.words
