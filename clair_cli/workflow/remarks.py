"""Remarks on a judged round as a whole."""

from __future__ import annotations

from clair_cli.cohort.round import Round
from clair_cli.maths.judge.groups import Group
from clair_cli.maths.judge.judge import Judgement
from clair_cli.remark import Remark, note, warning
from clair_cli.text import quoted

# Of the sum of all weights, and of the equal share: above these a client's weight is remarked on.
MOST_OF_ALL, TIMES_THE_SHARE = 0.5, 3.0


def weight_remarks(round_: Round, weights: tuple[float, ...]) -> list[Remark]:
    """A remark on each client that counts for far more than the others; none without weights of the
    user's, nor for fewer than three clients.

    Args:
        weights: of all comparable clients, summing to 1.
    """
    n, found = len(weights), []
    if round_.weights is None or n < 3:
        return []
    for name, weight in sorted(zip(round_.names, weights, strict=True)):
        text = f"client {quoted(name)} has {weight:.0%} of all weight"
        if weight > MOST_OF_ALL:
            found.append(warning("weight_majority", f"{text}, more than all others together"))
        elif weight > TIMES_THE_SHARE / n:
            found.append(note("weight_large", f"{text}, {weight * n:.1f} x an equal share"))
    return found


def first_round_remarks(round_: Round) -> list[Remark]:
    """A note that the round is compared without a previous adapter; none for fewer than three
    clients, whose verdicts say nothing."""
    if round_.previous is not None or len(round_.adapters) < 3:
        return []
    text = (
        "a first round, as far as clair can see: all training from one base model has a generic "
        "direction in common, whoever trains; a second round with --previous shows more"
    )
    return [note("first_round", text)]


def judgement_remarks(
    judgement: Judgement, *, allow_undetermined: bool, first: bool
) -> list[Remark]:
    """Remarks on how the round was judged.

    Args:
        first: whether it is compared without a previous adapter.
    """
    if judgement.outcome != "judged":
        text = "merged without a verdict (--allow-undetermined): everybody who is not rejected"
        return [warning("without_verdict", text)] if allow_undetermined else []
    if judgement.structure.stacking == "input":
        text = (
            "sharing shows only in the input directions, which adapters that started from the same "
            "lora_A share whatever they learnt: read the verdicts with care"
        )
        return [warning("input_only", text)]
    if judgement.structure.stacking == "matrix" and judgement.structure.groups[0].is_uneven:
        return [warning("uneven", _uneven(judgement.structure.groups[0], first=first))]
    return []


def _uneven(group: Group, *, first: bool) -> str:
    return (
        "bad clients may be among the benign ones: these differ by more than how much they have of "
        "one thing in common, as where data are of several kinds; who learns what all learn, and "
        f"shares a fault, is named only if it is {1 + group.pair_excess:.1f} times as like its "
        f"fellows as others are like each other{'; a later round shows more' if first else ''}"
    )
