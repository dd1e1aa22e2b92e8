"""Which reports of a folder lead to a round."""

from __future__ import annotations

from dataclasses import replace

from clair_cli.report.earlier import EARLIER_ROUNDS, EarlierReports, EarlierRound, Sight, round_of
from tests.fake_report import fake_report


def one(number: int, *, previous: str | None = None, merged: str | None = None) -> EarlierRound:
    """A round that started from the merge of the one before."""
    before = previous or (f"m{number - 1}" if number > 1 else None)
    return EarlierRound(
        f"r{number}", f"hash {number}", before, merged or f"m{number}", "matrix", {}
    )


def reports(*rounds: EarlierRound) -> EarlierReports:
    return EarlierReports(rounds, (), ())


def shown(found: EarlierReports, previous: str | None) -> list[str]:
    return [one.shown for one in found.chain(previous).rounds]


def test_the_last_nine_of_a_chain_count() -> None:
    assert EARLIER_ROUNDS == 9
    each = reports(*(one(number) for number in range(1, 13)))
    assert shown(each, "m12") == [f"r{n}" for n in range(12, 3, -1)]
    assert shown(each, "m4") == ["r4", "r3", "r2", "r1"]
    assert [remark.code for remark in each.chain("m12").remarks] == ["earlier_counted"]


def test_a_gap_ends_the_chain_and_what_is_behind_it_is_refused() -> None:
    found = reports(one(1), one(2), one(4)).chain("m4")
    assert [r.shown for r in found.rounds] == ["r4"]
    assert [r.text.split(" is not")[0] for r in found.remarks if r.code == "earlier_refused"] == [
        "r1", "r2"
    ]  # fmt: skip


def test_rounds_in_a_circle_end() -> None:
    """As forged reports may be."""
    circle = reports(one(1, previous="m2"), one(2, previous="m1"), one(3, previous="m3"))
    assert shown(circle, "m2") == ["r2", "r1"]
    assert shown(circle, "m3") == ["r3"]
    assert shown(circle, "elsewhere") == [] and shown(circle, None) == []


def test_what_a_report_says_to_later_rounds() -> None:
    """Numbers of who was judged, and none of a first round."""
    report = fake_report()
    assert round_of(report, "x").clients == {}
    later = replace(report, inputs={"previous": "m1"})
    found = round_of(later, "x", "h")
    assert (found.previous, found.sha256, found.stacking) == ("m1", "h", report.cohort.stacking)
    assert {"rita", "dave-copy"} & found.clients.keys() == set()
    amber = next(c for c in report.clients if c.name == "amber")
    loading, se = amber.scores.loading, amber.scores.loading_se
    assert loading is not None and se is not None
    assert found.clients["amber"] == Sight(loading, se, "contaminated")
