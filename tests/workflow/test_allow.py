"""The allow list: a person's word on one file, within bounds and for a time."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli import UsageError, allowed
from clair_cli.allowed import Allowed, parse_allowed
from clair_cli.report.model import ClientReport, Report, Review
from tests import cohorts

NAMES = ("odd", "odder")


def clients() -> Any:
    return {**cohorts.honest(6), **dict(zip(NAMES, cohorts.colluders(2), strict=True))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), clients())
    return Path("clients")


def row(report: Report, name: str) -> ClientReport:
    (found,) = (c for c in report.clients if c.name == name)
    return found


def entry(sha256: str | None, **more: object) -> dict[str, object]:
    given = {"client": "odd", "sha256": sha256, "reason": "looked at", "by": "ann"}
    return {**given, "until": "2999-01-01", **more}


def inspect(folder: Path, *entries: dict[str, object]) -> Report:
    return clair_cli.inspect(folder, allow=entries).report


def remarks(report: Report) -> dict[str, str]:
    return {r.code: r.class_ for r in report.warnings if r.code.startswith("allow")}


def test_an_allowed_client_is_merged_as_a_suspicious_one(folder: Path) -> None:
    before = inspect(folder)
    assert row(before, "odd").verdict == row(before, "odd").judged == "contaminated"
    sha = row(before, "odd").sha256
    found = inspect(folder, entry(sha))
    odd, odder = (row(found, name) for name in NAMES)
    assert (odd.verdict, odd.judged) == ("suspicious", "contaminated")
    assert odd.review == Review("looked at", "ann", "2999-01-01")
    assert odd.reasons[-1].text == "allowed, else contaminated: looked at (ann, until 2999-01-01)"
    assert 0 < odd.weight <= max(row(found, f"c{k}").weight for k in range(6))
    assert (odder.verdict, odder.weight, odder.review) == ("contaminated", 0.0, None)
    assert not remarks(found)
    assert found.options["allow"] == [
        {**entry(sha), "expired": False},
    ]


def test_it_is_no_anchor(folder: Path) -> None:
    """The verdicts and numbers of the others do not move, as those of a trusted client's do."""
    before = inspect(folder)
    found = inspect(folder, entry(row(before, "odd").sha256))
    for client in before.clients:
        if client.name != "odd":
            other = row(found, client.name)
            assert (other.verdict, other.scores) == (client.verdict, client.scores)
    assert found.cohort.groups == before.cohort.groups
    trusting = clair_cli.inspect(folder, trust=["odd"]).report
    assert trusting.cohort.groups != before.cohort.groups


def test_without_a_verdict_it_changes_nothing(folder: Path) -> None:
    exclude = [f"c{k}" for k in range(5)]
    found = clair_cli.inspect(folder, exclude=exclude).report
    assert found.cohort.outcome == "undetermined"
    again = clair_cli.inspect(
        folder, exclude=exclude, allow=[entry(row(found, "odd").sha256)]
    ).report
    assert row(again, "odd") == row(found, "odd") and again.exit_code == 5


def test_entries_without_effect_are_told(folder: Path) -> None:
    before = inspect(folder)
    sha = row(before, "odd").sha256
    assert sha is not None
    (folder / "broken.safetensors").write_bytes(b"x")
    cases = {
        "allow_expired": (entry(sha, until="2020-02-02"), "warning"),
        "allow_changed": (entry(64 * "a"), "warning"),
        "allow_rejected": (entry(sha, client="broken"), "warning"),
        "allow_unmatched": (entry(sha, client="nobody"), "note"),
    }
    for code, (one, class_) in cases.items():
        found = inspect(folder, one)
        assert remarks(found) == {code: class_}
        assert row(found, "odd").verdict == "contaminated" and row(found, "odd").review is None
    # a client may have two files in the list, of which it has one
    found = inspect(folder, entry(64 * "a"), entry(sha.upper()))
    assert not remarks(found) and row(found, "odd").weight > 0


def test_the_last_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "today", lambda: datetime.date(2031, 5, 6))
    for until, expired in (("2031-05-05", True), ("2031-05-06", False), ("2031-05-07", False)):
        for given in (until, datetime.date.fromisoformat(until)):
            (one,) = parse_allowed([entry(64 * "A", until=given)])
            assert one == Allowed("odd", 64 * "a", "looked at", "ann", until, expired)
    # a report says how it was, so that what was made with it can be verified later
    (one,) = parse_allowed([entry(64 * "a", until="2031-05-05", expired=False)])
    assert not one.expired


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (entry("ab"), "entry 1 has 'ab' as sha256, expected 64"),
        (entry(64 * "a", reason=" "), "entry 1 has ' ' as reason"),
        (entry(64 * "a", by=3), "entry 1 has 3 as by"),
        (entry(64 * "a", until="tomorrow"), "'tomorrow' as until, expected YYYY-MM-DD"),
        (entry(64 * "a", until="2031-02-30"), "as until, expected YYYY-MM-DD"),
        (entry(64 * "a", until=datetime.datetime(2031, 1, 1)), "as until"),
        (entry(64 * "a", who="x"), "unknown key 'who'"),
        (entry(64 * "a", expired=1), "as expired"),
        ({"client": "odd"}, "entry 1 lacks sha256"),
        ("odd", "entry 1 is 'odd'"),
    ],
)
def test_wrong_entries(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_allowed([given])
    with pytest.raises(UsageError, match="allow is "):
        clair_cli.inspect({}, allow=given)


def test_what_was_merged_so_can_be_verified(folder: Path) -> None:
    sha = row(inspect(folder), "odd").sha256
    Path("clair.toml").write_text(
        f'[[allow]]\nclient = "odd"\nsha256 = "{sha}"\nreason = "r"\nby = "b"\nuntil = 2999-01-01\n'
    )
    assert cohorts.clair("merge", folder, "-o", "m.safetensors").exit_code == 0
    report = cohorts.read_report(Path("m.report.json"))
    assert cohorts.verdicts(report)["odd"] == "suspicious"
    Path("clair.toml").unlink()
    assert cohorts.clair("verify", "m.safetensors", folder).exit_code == 0
    assert cohorts.clair("inspect", folder, "--allow", "x").exit_code == 2
