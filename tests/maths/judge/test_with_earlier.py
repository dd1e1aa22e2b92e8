"""How sure a verdict is with what earlier rounds showed: surer at most, and of the same verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.rounds import Seen
from clair_cli.maths.judge.thresholds import LINE
from clair_cli.maths.judge.verdicts import Finding, Verdict
from clair_cli.maths.judge.with_earlier import with_earlier
from tests.planted import RANK, SHAPES, aligned, judge_deltas

HONEST = Seen(1.0, 0.1, "benign")


def weak_round(seed: int = 1, cosines: tuple[float, ...] = (0.08,) * 5) -> Judgement:
    """Five clients and three modules: hardly enough to judge."""
    return judge_deltas(aligned(cosines, shapes=SHAPES[:3], seed=seed), RANK, seed)


def changed(judgement: Judgement, client: int, **scores: float | bool) -> Judgement:
    """The judgement with other scores of one client."""
    assert judgement.scores is not None
    each = list(judgement.scores)
    each[client] = replace(each[client], **scores)  # type: ignore[arg-type]
    return replace(judgement, scores=tuple(each))


def given(judgement: Judgement, client: int, **fields: object) -> Judgement:
    """The judgement with another verdict on one client."""
    each = list(judgement.verdicts)
    each[client] = replace(each[client], **fields)  # type: ignore[arg-type]
    return replace(judgement, verdicts=tuple(each))


def first(judgement: Judgement, *earlier: Seen) -> Verdict:
    """The first client's verdict with earlier rounds."""
    return with_earlier(judgement, {0: earlier}).verdicts[0]


def test_honest_clients_become_clear_and_nothing_else_changes() -> None:
    alone = weak_round()
    assert [v.confidence for v in alone.verdicts] == ["open", "likely", "likely", "likely", "open"]
    found = with_earlier(alone, dict.fromkeys(range(4), [HONEST] * 3))
    assert [v.confidence for v in found.verdicts] == ["clear"] * 4 + ["open"]
    for old, new in zip(alone.verdicts[:4], found.verdicts[:4], strict=True):
        assert new.over_rounds is not None and new.over_rounds.alone == old.confidence
        assert replace(new, confidence=old.confidence, over_rounds=None) == old
    assert found.verdicts[4] == alone.verdicts[4]
    assert replace(found, verdicts=alone.verdicts) == alone


@pytest.mark.parametrize(
    ("se", "confidence"), [(0.164, "clear"), (0.170, "likely"), (0.209, "likely"), (0.216, "open")]
)
def test_however_many_rounds_they_lift_this_ones_own_power_so_far(
    se: float, confidence: str
) -> None:
    """Three rounds like this one are asked for: 0.45 / (0.95 or 1.22 / the root of 3)."""
    alone = weak_round()
    held = alone.structure.loadings
    assert held is not None and 2.35 < held.bar < 2.65
    se *= (2.4 + 2.33) / (held.bar + 2.33)
    alone = changed(alone, 0, loading=1.0, loading_se=se)
    found = first(alone, *[Seen(1.0, 0.01, "benign")] * 10_000)
    assert found.confidence == confidence


@pytest.mark.parametrize(("loading", "lifted"), [(0.75, True), (0.35, False)])
def test_who_turns_bad_contradicts_its_own_record(loading: float, lifted: bool) -> None:
    """Benign by this round alone, as an attacker may be by luck: its record does not help it."""
    turned = changed(weak_round(), 0, loading=loading, loading_se=0.13)
    found = first(turned, *[HONEST] * 5)
    assert found.over_rounds is not None and found.over_rounds.agrees == lifted
    assert (found.confidence == "clear") == lifted


def test_what_speaks_against_a_client_now_is_not_outweighed() -> None:
    alone = weak_round()
    assert first(alone, *[HONEST] * 3).confidence == "clear"
    for against in (
        given(alone, 0, p_honest=0.049),
        given(alone, 0, findings=(Finding("large", "large"),)),
        given(alone, 0, verdict="suspicious", findings=(Finding("odd_signature", "odd"),)),
    ):
        assert first(against, *[HONEST] * 9).confidence == "open"
    assert first(given(alone, 0, p_honest=0.051), *[HONEST] * 3).confidence == "clear"


def test_who_was_accused_before_is_not_made_surer() -> None:
    alone = weak_round()
    assert first(alone, *[HONEST] * 2, replace(HONEST, verdict="contaminated")).confidence == "open"


def test_rounds_that_leave_it_at_the_line_make_nobody_clear() -> None:
    """Often seen, and as often just on the line: its power is large and its loading is not."""
    alone = changed(weak_round(), 0, loading=0.42, loading_se=0.13)
    low = first(alone, *[Seen(0.2, 0.13, "suspicious")] * 9)
    assert low.over_rounds is not None and low.over_rounds.agrees
    assert low.over_rounds.power > 0.99 and low.over_rounds.p_line < 0.05
    assert low.confidence == "open"


SUSPICIOUS = {
    "verdict": "suspicious", "findings": (Finding("weakly_alike", "too uncertain"),),
    "confidence": "open",
}  # fmt: skip


@pytest.mark.parametrize(
    ("loading", "rounds", "confidence"),
    [(0.15, 0, "open"), (0.15, 1, "likely"), (-0.1, 9, "clear"), (0.40, 9, "open")],
)
def test_suspicion_adds_up_and_stays_suspicion(
    loading: float, rounds: int, confidence: str
) -> None:
    weak = changed(given(weak_round(), 0, **SUSPICIOUS), 0, loading=loading, loading_se=0.2)
    found = first(weak, *[Seen(loading, 0.2, "suspicious")] * rounds)
    assert (found.verdict, found.confidence) == ("suspicious", confidence)
    assert found.influence == weak.verdicts[0].influence


def test_suspicion_of_this_round_alone_is_asked_for() -> None:
    """Above the line now: what an earlier round under this name saw does not count against it."""
    weak = changed(given(weak_round(), 0, **SUSPICIOUS), 0, loading=LINE + 0.01, loading_se=0.3)
    assert first(weak, *[Seen(-0.1, 0.3, "suspicious")] * 9).confidence == "open"


def test_earlier_rounds_never_condemn_and_never_acquit() -> None:
    """The worst record beside an honest round, and the best beside a bad one."""
    alone = judge_deltas(aligned([0.3] * 6 + [0.0], seed=4), RANK)
    found = with_earlier(alone, {
        0: [Seen(-1.0, 0.01, "contaminated")] * 9, 6: [Seen(1.0, 0.01, "benign")] * 9,
    })  # fmt: skip
    assert [v.verdict for v in found.verdicts] == ["benign"] * 6 + ["contaminated"]
    assert [v.confidence for v in found.verdicts] == [v.confidence for v in alone.verdicts]
    assert found.members == alone.members


def test_a_round_without_a_verdict_stays_without_one() -> None:
    two = judge_deltas(aligned([0.3] * 2), RANK)
    assert with_earlier(two, {0: [HONEST], 1: [HONEST]}) is two


def test_copies_gain_nothing() -> None:
    deltas = aligned([0.1] * 7, shapes=SHAPES[:3], seed=1)
    for module in deltas:
        module[6] = module[5]
    alone = judge_deltas(deltas, RANK, 1)
    assert alone.outcome == "judged" and alone.verdicts[6].verdict == "duplicate"
    assert with_earlier(alone, {6: [HONEST]}).verdicts[6] == alone.verdicts[6]
