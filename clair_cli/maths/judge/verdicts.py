"""Verdicts with reasons, by one rule.

For a distinct client, in this order:

    contaminated  unlike      clearly less than LINE of what the others share (ERROR_RATE): in
                              another group, opposite, or by itself
                  size        norm beyond the fourth power of what the round allows
                  noise       spread over SPREAD_RATIO times the others' directions or more, and
                              clearly less of what they share than they have
    minority                  shares with some others what all the rest lack (chance MINORITY_P)
    suspicious    not shown   nothing shows that it shares anything, though it might
                  less        less than LINE of what the others share, likely (LIKELY) or where
                              somebody else clearly has
                  odd         sizes and directions unlike the others' (chance LEFT_P)
                  odd module  a member as a whole, unlike the others in single modules
                  size        norm beyond the third power of what the round allows
    benign                    else

A duplicate takes no vote; clients that are nearly the same, or tied, share one vote and are
suspicious; a zero delta weight has nothing to merge. Whatever the verdict, a delta weight counts as
no larger than the round allows. No fraction of bad clients is asked for, and nobody need cross a
line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clair_cli.maths.judge.rounds import OverRounds
from clair_cli.maths.judge.scores import Scores
from clair_cli.maths.judge.sizes import VANISHING, Sizes
from clair_cli.maths.judge.thresholds import LEFT_P, LINE, SPREAD_RATIO

# Log sizes over what is allowed from which on a client is suspicious, and contaminated.
SUSPICIOUS_SIZE, CONTAMINATED_SIZE = 3.0, 4.0
# No probability is stated below this.
LEAST_P = 1e-3
# Probabilities of a verdict's evidence: below the first it is clear, below the second likely.
CLEAR, LIKELY = 1e-3, 0.05


@dataclass(frozen=True)
class Finding:
    """A reason: a stable code and a phrase with the numbers."""

    code: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """One client's verdict ("benign", "suspicious", "minority" or "contaminated") and its reasons.

    Attributes:
        influence: factor on the client's weight, 0 to 1; 1 for a benign client of ordinary size.
        p_honest: probability that an honest client of this round looks at least as unlike the
            others, LEAST_P to 1; NaN where the verdict is not about that.
        confidence: "clear", "likely" or "open".
        if_merged: what `influence` would be if the client were merged as a suspicious one.
        if_benign: the same as a benign one.
        over_rounds: what earlier rounds add, or None.
    """

    verdict: str
    findings: tuple[Finding, ...]
    influence: float
    p_honest: float = math.nan
    confidence: str = "clear"
    if_merged: float = 0.0
    if_benign: float = 0.0
    over_rounds: OverRounds | None = None


def _shared(scores: Scores) -> str:
    if math.isnan(scores.loading):
        return "what it shares with the others is unknown"
    loading = 0.0 if abs(scores.loading) < 0.005 else scores.loading  # never "-0.00"
    return f"has {loading:.2f} of what two of the others share"


def _norm(ratio: float, where: str = "") -> str:
    if math.isnan(ratio):
        return "norm not comparable"
    return f"norm {ratio:.3g} x the median{where}"


def likeness(scores: Scores, apart: str) -> tuple[str, list[Finding]]:
    """Verdict and reasons of what the client shares with the cohort.

    Args:
        apart: names of the other members of the client's own group or minority; "" if none.
    """
    if scores.is_below:
        found = []
        if apart:
            text = f"in a group with {apart}, apart from the others ({_shared(scores)})"
            found.append(Finding("in_a_group", text))
        if scores.is_opposite:
            found.append(Finding("opposite", f"opposite to the others: {_shared(scores)}"))
        if not found:
            found.append(Finding("unlike_the_others", f"unlike the others: {_shared(scores)}"))
        return "contaminated", found
    if apart:
        text = f"shares with {apart} what all others lack"
        return "minority", [Finding("minority", text)]
    if not scores.is_shown:
        text = f"{_shared(scores)}, too uncertain to tell it from an unrelated client"
        return "suspicious", [Finding("weakly_alike", text)]
    if scores.p_line < LIKELY or (scores.has_below and scores.loading < LINE):
        return "suspicious", [Finding("less_alike", f"less like the others: {_shared(scores)}")]
    if scores.p_odd < LEFT_P:
        text = "sizes over the modules, number of directions and what it shares unlike the others'"
        return "suspicious", [Finding("odd_signature", text)]
    return "benign", []


def size_findings(scores: Scores, sizes: Sizes) -> tuple[str, list[Finding]]:
    """Verdict and reasons of the norms."""
    whole, module = scores["norm_ratio"], scores["module_norm_ratio"]
    if whole < VANISHING:
        return "suspicious", [Finding("no_update", f"almost no update: {_norm(whole)}")]
    if not scores.over > SUSPICIOUS_SIZE:
        return "benign", []
    verdict = "contaminated" if scores.over > CONTAMINATED_SIZE else "suspicious"
    by_whole = not math.log(whole) / math.log(sizes.whole_cap) < scores.over if whole > 0 else True
    if by_whole or math.isnan(whole):
        agrees = "" if scores.is_below else ", though its direction agrees"
        return verdict, [Finding("norm", _norm(whole) + agrees)]
    return verdict, [Finding("module_norm", _norm(module, " in one module"))]


def noise_findings(scores: Scores) -> tuple[str, list[Finding]]:
    """Verdict and reasons of the number of directions that a delta weight is spread over."""
    spread = scores["effective_rank_ratio"]
    if not spread > SPREAD_RATIO:
        return "benign", []
    text = f"like noise: spread over {spread:.3g} x as many directions as the others"
    finding = Finding("noise", f"{text}, {_shared(scores)}")
    return "contaminated" if scores.is_less else "suspicious", [finding]


# Findings of suspicious clients that count only as much as LINE.
_PARTLY_UNLIKE = {"weakly_alike", "less_alike", "odd_signature", "odd_module"}
ORDER = ("benign", "suspicious", "minority", "contaminated")


def decide(
    scores: Scores, sizes: Sizes, client: int, apart: str, modules: Sequence[str]
) -> Verdict:
    """The verdict on one distinct client, by the rule at the top of this file.

    Args:
        scores: of the client.
        sizes: of all clients; `client` is its index.
        apart: see `likeness`.
        modules: names of all modules, in the order of the evidence.
    """
    verdict, findings = likeness(scores, apart)
    sized, more = size_findings(scores, sizes)
    verdict, findings = max(verdict, sized, key=ORDER.index), findings + more
    if not findings:
        verdict, findings = noise_findings(scores)
    if scores.odd_modules and not findings:
        verdict = "suspicious"  # an honest client's data may want something else of one module
        named = ", ".join(modules[m] for m in scores.odd_modules[:3])
        findings.append(Finding("odd_module", f"unlike the others in {named}"))
    influence = _influence(verdict, scores, sizes, client, findings)
    if verdict == "benign" and influence < 1.0:
        findings.append(Finding("large", f"large: counts {influence:.2f} of its weight"))
    if_merged = _influence("suspicious", scores, sizes, client, findings)
    if_benign = _influence("benign", scores, sizes, client, findings)
    found = Verdict(verdict, tuple(findings), influence, if_merged=if_merged, if_benign=if_benign)
    return sure(found, scores)


def sure(verdict: Verdict, scores: Scores, p_minority: float = 1.0) -> Verdict:
    """The verdict with its probability and confidence.

    Args:
        p_minority: bound on the probability of the client's minority, if it is in one.
    """
    p = min(scores.p_line, scores.p_odd, p_minority)
    if verdict.verdict == "benign":
        confidence = "open" if p < LIKELY else of_power(scores.power)
    elif any(
        f.code in ("norm", "module_norm", "no_update", "noise", "odd_module")
        for f in verdict.findings
    ):
        p, confidence = min(p, LEAST_P), "clear"
    else:
        confidence = of_p(p)
    return replace(verdict, p_honest=max(p, LEAST_P), confidence=confidence)


def of_p(p: float) -> str:
    """Confidence of a verdict against a client."""
    return "clear" if p < CLEAR else "likely" if p < LIKELY else "open"


def of_power(power: float) -> str:
    """Confidence of a benign verdict."""
    return "clear" if power > 0.99 else "likely" if power > 0.9 else "open"


def as_trusted(old: Verdict) -> Verdict:
    """The verdict on a trusted client; see `merged_anyway`."""
    return merged_anyway(
        old, Finding("trusted", f"trusted, and merged for that: else {old.verdict}")
    )


def merged_anyway(old: Verdict, why: Finding) -> Verdict:
    """The verdict on a client that a person wants merged: one that would leave it out is
    "suspicious", so that it is merged within the bounds of one, and what was found stays."""
    if old.verdict not in ("contaminated", "minority"):
        return old
    findings = (*old.findings, why)
    return replace(old, verdict="suspicious", findings=findings, influence=old.if_merged)


def _influence(
    verdict: str, scores: Scores, sizes: Sizes, client: int, findings: Sequence[Finding]
) -> float:
    """Factor on the weight, 0 to 1. A benign client moves the merge little further than a typical
    one would; a suspicious one at most as far; and one that may be unrelated, or that is unlike by
    its signature or in some modules, only by a part of it."""
    if verdict == "contaminated" or scores["norm_ratio"] < VANISHING:
        return 0.0  # a zero delta weight would only dilute the mean
    if verdict in ("benign", "minority"):
        return sizes.factor(client, sizes.whole_cap, sizes.module_cap)
    factor = sizes.factor(client, 1.0, 2.0)
    codes = {f.code for f in findings}
    return factor * LINE if codes & _PARTLY_UNLIKE else factor
