"""A judgement of one round, and how sure it is with what earlier rounds showed of its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.rounds import OverRounds, Seen, over_rounds
from clair_cli.maths.judge.scores import Scores
from clair_cli.maths.judge.thresholds import LINE
from clair_cli.maths.judge.verdicts import LIKELY, Verdict, of_p, of_power

_ORDER = ("open", "likely", "clear")
# Findings about the loading, which is what is added up.
_OF_LOADING = {"weakly_alike", "less_alike", "unlike_the_others", "in_a_group", "opposite"}


def with_earlier(judgement: Judgement, earlier: Mapping[int, Sequence[Seen]]) -> Judgement:
    """The judgement with what earlier rounds showed: each verdict is the last round's own, and its
    confidence that or a higher one.

    Args:
        earlier: by the index of the client, what earlier rounds showed of it.
    """
    held = judgement.structure.loadings
    if judgement.outcome != "judged" or judgement.scores is None or held is None:
        return judgement
    verdicts = list(judgement.verdicts)
    for k, seen in earlier.items():
        old, scores = verdicts[k], judgement.scores[k]
        if old.verdict == "duplicate" or k in judgement.structure.empty:
            continue  # it has no vote of its own
        last = Seen(scores.loading, scores.loading_se, old.verdict)
        over = over_rounds(
            last, seen, bar=held.bar, degrees=held.degrees, alone=old.confidence
        )  # fmt: skip
        if over is not None:
            sure = max(old.confidence, _reached(old, scores, over), key=_ORDER.index)
            verdicts[k] = replace(old, confidence=sure, over_rounds=over)
    return replace(judgement, verdicts=tuple(verdicts))


def _reached(verdict: Verdict, scores: Scores, over: OverRounds) -> str:
    """The confidence by all rounds; "open" where the last one contradicts it by anything.

    A client that shares nothing in the last round is benign in it with the chance ERROR_RATE at
    most (`Scores.is_shown`), however honest it was before; so that is the chance that earlier
    rounds make such a client clear.
    """
    if not over.agrees:
        return "open"
    if verdict.verdict == "benign":
        against = verdict.findings or min(verdict.p_honest, over.p_line) < LIKELY
        return "open" if against else of_power(over.power)
    about = {finding.code for finding in verdict.findings} & _OF_LOADING
    return of_p(over.p_line) if about and scores.loading < LINE else "open"
