"""`--earlier`: reports of earlier rounds make verdicts surer; those of other rounds are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.errors import UsageError
from clair_cli.report.earlier import read_earlier
from clair_cli.store.address import place_of
from tests import cohorts
from tests.cohorts import clair
from tests.pages import PAGES
from tests.workflow.rounds import MERGED, play

WEAK: dict[str, Any] = {"n": 4, "cosine": 0.12}
EARLIER = ("--earlier", MERGED)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of four clients who share little: round1, round2, round3, and rounds/1, /2, /3,
    merged without --earlier."""
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in (1, 2, 3):
            play(number, **WEAK)
    return folder


@pytest.fixture
def work(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the three rounds, as the working folder."""
    shutil.copytree(three, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"


def third(*options: object) -> dict[str, Any]:
    """The report of the third round, judged again."""
    given = options or EARLIER
    done = clair("inspect", "round3", "-o", "r.json", "-f", "--previous", MERGED / "2", *given)
    assert done.exit_code == 0, done.stderr
    return cohorts.read_report(Path("r.json"))


def sure(report: dict[str, Any]) -> list[str]:
    return [client["confidence"] for client in report["clients"]]


def remarks(report: dict[str, Any]) -> dict[str, str]:
    """Texts of the remarks on earlier reports, by code and class."""
    return {
        f"{one['code']} {one['class']}": one["text"]
        for one in report["warnings"]
        if one["code"].startswith("earlier")
    }


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a report, named as in `clients__0__verdict`."""
    report = json.loads(path.read_text())
    for name, value in changes.items():
        *steps, last = name.split("__")
        inside = report
        for step in steps:
            inside = inside[int(step) if step.isdigit() else step]
        inside[int(last) if last.isdigit() else last] = value
    path.write_text(json.dumps(report))


def report_of(number: int) -> Path:
    return MERGED / str(number) / "report.json"


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_round_before_makes_the_third_surer(work: Path) -> None:
    alone, found = cohorts.read_report(report_of(3)), third()
    assert sure(alone) == ["likely"] * 4 and sure(found) == ["clear"] * 4
    for client in found["clients"]:
        earlier = client["earlier"]
        assert (earlier["rounds"], earlier["agrees"], earlier["alone"]) == (1, True, "likely")
        assert earlier["power"] > 0.99 > client["power"]
        assert earlier["loading_se"] < client["scores"]["loading_se"]
    assert [c["weight"] for c in found["clients"]] == [c["weight"] for c in alone["clients"]]
    assert found["inputs"] == {
        "previous": hash_of(MERGED / "2" / "adapter_model.safetensors"),
        "earlier_1": hash_of(report_of(2)),
        "earlier_2": hash_of(report_of(1)),
    }
    assert remarks(found) == {
        "earlier_first note": "report '1/report.json' is of a first round, which shows too little "
        "of a client to count",
        "earlier_counted note": "what 1 earlier round saw of each client counts: report "
        "'2/report.json'",
    }


def test_it_is_said_where_people_read(work: Path) -> None:
    third()
    shown = clair("explain", "c0", "--report", "r.json").stdout
    assert "(with 1 earlier round; by this one alone it is likely)" in " ".join(shown.split())
    assert "over this round and 1 earlier round it has" in " ".join(shown.lower().split())
    for form in ("markdown", "html"):
        options = ("--previous", MERGED / "2", *EARLIER, "--report", f"{form}=x.{form}")
        assert clair("inspect", "round3", *options).exit_code == 0
    assert clair("diff", report_of(3), "r.json").exit_code == 0


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGES["docs/rounds.md"].split("\n## Earlier rounds\n")[1]
    commands = page.split("```text\n")[1].split("```")[0].splitlines()
    assert commands.pop(0) == f"mkdir {MERGED}"
    for number, command in enumerate(commands, 1):
        words = command.split()
        assert words[:3] == ["clair", "merge", f"round{number}"] and words[4] == f"rounds/{number}"
        play(number, *words[5:], **WEAK)
    assert sure(cohorts.read_report(report_of(3))) == ["clear"] * 4


def test_reports_beside_files_in_any_order(work: Path) -> None:
    """Named so that the last round comes first, and with other JSON beside them."""
    Path("reports").mkdir()
    for number, name in ((1, "z"), (2, "a")):
        shutil.copy(report_of(number), f"reports/{name}.report.json")
    shutil.copy(MERGED / "1" / "adapter_config.json", "reports")
    Path("reports/.hidden.json").write_text("{")
    Path("reports/notes.txt").write_text("x")
    found = third("--earlier", "reports")
    assert sure(found) == ["clear"] * 4
    assert found["inputs"]["earlier_1"] == hash_of(report_of(2))
    assert set(remarks(found)) == {"earlier_first note", "earlier_counted note"}


def test_reports_of_this_round_and_of_later_ones_change_nothing(work: Path) -> None:
    shutil.rmtree(MERGED / "3")
    before = third()
    play(3, **WEAK)
    play(4, **WEAK)
    shutil.copy("r.json", MERGED / "inspected.json")  # of this round, merging nothing
    assert third() == before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"merged__sha256": 64 * "a"}, "no later round here started from what it merged"),
        ({"schema": "clair.report/9"}, "has schema 'clair.report/9'"),
        ({"clients__0__weight": "much"}, "is damaged: clients[0].weight is"),
        ({"clients__0__name": "c1", "cohort__names": ["c1", "c1", "c2", "c3"]}, "have one name"),
        ({"clients__0__earlier": {"rounds": 1}}, "is damaged: clients[0].earlier has no loading"),
        ({"inputs": []}, "is damaged: inputs is"),
    ],
)
def test_a_report_that_leads_nowhere_is_refused_by_name(
    work: Path, changes: dict[str, Any], why: str
) -> None:
    edit(report_of(2), **changes)
    found = third()
    texts = [one["text"] for one in found["warnings"] if one["code"] == "earlier_refused"]
    (text,) = (text for text in texts if text.startswith("report '2/report.json' is not counted"))
    assert why in text
    assert "earlier_none warning" in remarks(found)
    assert sure(found) == ["likely"] * 4
    assert not any(name.startswith("earlier") for name in found["inputs"])
    assert all(client["earlier"] is None for client in found["clients"])


def test_what_is_no_merge_and_what_is_there_twice(work: Path) -> None:
    shutil.copy(report_of(2), MERGED / "again.json")
    Path(MERGED / "other.json").write_text('{"a": 1}')
    clair("inspect", "round1", "-o", MERGED / "first.json")
    clair("merge", "round2", "-o", "lost", "--previous", MERGED / "1", "--fail-on", "1%",
          "--exclude", "c0", "--exclude", "c1", "--report", MERGED / "lost.json")  # fmt: skip
    found = third()
    texts = {one["text"] for one in found["warnings"] if one["code"].startswith("earlier_")}
    assert {
        "report '2/report.json' is not counted: it merged the same adapter as report 'again.json'",
        "report 'other.json' is not counted: it is no report of clair",
        "report 'first.json' is not counted: it is of clair inspect, which merges nothing",
        "report 'lost.json' is not counted: it merged nothing",
    } <= texts
    assert sure(found) == ["clear"] * 4


def test_who_changes_its_name_starts_afresh(work: Path) -> None:
    Path("round3/c0").rename("round3/anew")
    found = {client["name"]: client for client in third()["clients"]}
    assert found["anew"]["earlier"] is None and found["anew"]["confidence"] == "likely"
    assert found["c1"]["confidence"] == "clear"


def test_what_was_not_judged_and_who_had_no_vote_count_for_nothing(work: Path) -> None:
    edit(report_of(2), clients__0__verdict="duplicate", clients__0__judged="duplicate",
         clients__1__scores__loading_se=None, clients__2__scores__loading_se=0.0)  # fmt: skip
    found = third()["clients"]
    assert [client["earlier"] is None for client in found] == [True, True, True, False]
    before = report_of(2).read_text()
    for field, value in (("outcome", "undetermined"), ("stacking", "output")):
        report_of(2).write_text(before)
        edit(report_of(2), **{f"cohort__{field}": value})
        assert all(client["earlier"] is None for client in third()["clients"])


def test_hostile_numbers_in_a_report_are_no_evidence(work: Path) -> None:
    edit(report_of(2), clients__0__scores__loading=1e308, clients__1__scores__loading_se=1e-320,
         clients__2__scores__loading_se=None, clients__3__scores__loading=-5.0)  # fmt: skip
    found = third()
    assert [client["earlier"] is None for client in found["clients"]] == [True] * 3 + [False]
    assert found["clients"][3]["earlier"]["agrees"] is False
    assert sure(found) == ["likely"] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--earlier", "rounds"), "previous is not given"),
        (("--earlier", "rounds/2/report.json", "--previous", "rounds/2"), "is a file"),
        (("--earlier", "nowhere", "--previous", "rounds/2"), "--earlier 'nowhere' does not exist"),
        (("--earlier", "", "--previous", "rounds/2"), "empty"),
        (("--earlier", "rounds", "--initial", "rounds/2"), "previous is not given"),
    ],
)
def test_wrong_use_is_told_before_any_work(
    work: Path, options: tuple[str, ...], words: str
) -> None:
    done = clair("merge", "round3", "-o", "m", *options)
    assert done.exit_code == 2 and words in done.stderr
    assert not Path("m").exists()


@pytest.mark.parametrize("where", ["round3/report.json", "round3/c0/report.json"])
def test_reports_that_a_client_may_have_written_are_refused(work: Path, where: str) -> None:
    shutil.copy(report_of(2), where)
    for given in {Path(where).parent, Path(where).parent.parent}:
        done = clair("inspect", "round3", "--previous", MERGED / "2", "--earlier", given)
        assert done.exit_code == 2
        assert f"'{where}' lies in CLIENTS, which strangers write to" in done.stderr
    Path("link.json").symlink_to(where)
    done = clair("inspect", "round3", "--previous", MERGED / "2", "--earlier", ".")
    assert done.exit_code == 2 and "lies in CLIENTS" in done.stderr


@pytest.mark.parametrize(("count", "code"), [(200, 0), (201, 2)])
def test_a_folder_of_very_many_files(work: Path, count: int, code: int) -> None:
    for number in range(count - 3):
        (MERGED / f"x{number}.json").write_text("{}")
    done = clair("inspect", "round3", "--previous", MERGED / "2", *EARLIER)
    assert done.exit_code == code
    assert code == 0 or "201 JSON files" in done.stderr


def test_verify_asks_for_them_again(work: Path) -> None:
    shutil.rmtree(MERGED / "3")
    play(3, *EARLIER, **WEAK)
    again = ("verify", MERGED / "3", "round3", "--previous", MERGED / "2")
    done = clair(*again)
    assert done.exit_code == 2 and "--earlier 'rounds'" in done.stderr
    shutil.copytree(MERGED, "elsewhere")
    done = clair(*again, "--earlier", "elsewhere")
    assert done.exit_code == 0, done.stdout
    edit(report_of(1), version="0.0.0")
    done = clair(*again, *EARLIER)
    assert done.exit_code == 3
    assert (
        f"--earlier, report 2, has sha256 {hash_of(report_of(1))}, the report says" in done.stdout
    )
    shutil.rmtree(MERGED / "1")
    done = clair(*again, *EARLIER)
    assert done.exit_code == 2 and "lacks the report of 2 rounds before" in done.stderr
    done = clair(*again, "--earlier", "round1")
    assert done.exit_code == 2 and "lacks the report of the round before" in done.stderr


def test_verdicts_that_were_reviewed_keep_what_earlier_rounds_added(work: Path) -> None:
    found = third()
    done = clair("merge", "round3", "-o", "m", "--verdicts", "r.json", "--previous", MERGED / "2")
    assert done.exit_code == 0
    merged = cohorts.read_report(Path("m/report.json"))
    assert [c["earlier"] for c in merged["clients"]] == [c["earlier"] for c in found["clients"]]
    assert sure(merged) == ["clear"] * 4
    done = clair("merge", "round3", "-o", "n", "--verdicts", "r.json", "--previous", MERGED / "2",
                 *EARLIER)  # fmt: skip
    assert done.exit_code == 2 and "earlier beside verdicts" in done.stderr


def test_from_python(work: Path) -> None:
    options: dict[str, Any] = {"previous": "rounds/2", "fail_on": "never"}
    report = clair_cli.inspect("round3", earlier="rounds", **options).report
    assert [client.confidence for client in report.clients] == ["clear"] * 4
    previous = clair_cli.merge("round2", previous="rounds/1").tensors
    given = (previous, json.loads((MERGED / "2" / "adapter_config.json").read_text()))
    report = clair_cli.inspect("round3", previous=given, earlier="rounds").report  # type: ignore[arg-type]
    assert "earlier_none" in {remark.code for remark in report.warnings}
    with pytest.raises(UsageError, match="empty path"):
        clair_cli.inspect("round3", earlier="", **options)


def test_reports_are_read_from_a_disk() -> None:
    with pytest.raises(UsageError, match="is in object storage"):
        read_earlier(place_of("s3://bucket/reports"))
