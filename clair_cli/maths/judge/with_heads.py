"""A judgement by the LoRA and the verdicts on the dense tensors beside it, as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clair_cli.maths.judge.heads import HeadVerdict, JudgedHeads
from clair_cli.maths.judge.judge import MERGED, Judgement, too_few_left
from clair_cli.maths.judge.outcome import some_names
from clair_cli.maths.judge.verdicts import LEAST_P, ORDER, Finding, Verdict

_DROP = "give --heads drop to merge the LoRA alone, or let all clients start from one head"


def with_heads(judgement: Judgement, heads: JudgedHeads, trusted: Sequence[int] = ()) -> Judgement:
    """The judgement in which a client has the worse of its two verdicts.

    A head alone can condemn, and where the members' have nothing in common nothing is judged, as
    their mean would be no head.

    Args:
        trusted: indices of clients that are merged whatever is found.
    """
    if heads.unrelated:
        names = some_names(heads.unrelated)
        text = (
            f"what was trained beside the LoRA ({names}) has nothing in common between the "
            "clients, as heads that each began at random, so their mean is no head"
        )
        return replace(
            judgement, outcome="undetermined", code="heads_unrelated", text=text, remedy=_DROP
        )
    if judgement.outcome != "judged":
        return judgement
    verdicts = tuple(
        _worse(old, head, trusted=k in trusted)
        for k, (old, head) in enumerate(zip(judgement.verdicts, heads.verdicts, strict=True))
    )
    members = tuple(k for k in judgement.members if verdicts[k].verdict in MERGED)
    found = replace(judgement, verdicts=verdicts, members=members)
    blocked = too_few_left(found.structure, verdicts, members, trusted)
    if blocked is None:
        return found
    code, text, remedy = blocked
    return replace(found, outcome="undetermined", code=code, text=text, remedy=remedy)


def _worse(old: Verdict, head: HeadVerdict, *, trusted: bool) -> Verdict:
    if not head.findings:
        return old
    verdict, findings = head.verdict, (*old.findings, *head.findings)
    if trusted and verdict == "contaminated":
        verdict = "suspicious"
        findings += (Finding("trusted", "trusted, and merged for that: else contaminated"),)
    if old.verdict not in ORDER:  # a duplicate, which has no weight
        return replace(old, findings=findings)
    if verdict != "contaminated":
        worse = max(old.verdict, verdict, key=ORDER.index)
        return replace(old, verdict=worse, findings=findings)
    p = LEAST_P if math.isnan(old.p_honest) else min(old.p_honest, LEAST_P)
    return replace(
        old,
        verdict="contaminated",
        findings=findings,
        influence=0.0,
        p_honest=p,
        confidence="clear",
    )
