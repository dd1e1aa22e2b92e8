"""Verdicts with reasons: one documented rule joins alignment and decomposition.

For a distinct client, in this order:

    group apart      member of another coherent group                          contaminated
    opposite         alignment ratio below -OPPOSITE_RATIO and, by two standard
                     errors, below 0 (matrix stacking: others have no sign)    contaminated
    unlike           alignment ratio < LONER_RATIO, not kept by the decomposition
                     (energy inside the shared subspace), outside the members'
                     spread (pairs by SEPARATION, or its ratio by MEMBER_P),
                     and not doubtful                                          contaminated
    disagreement     only one of the two says that it does not share, both do
                     but it is doubtful (the ratio reaches DOUBT_RATIO within
                     two standard errors, is above DOUBT_FLOOR, and not every
                     pair of members is clearly more alike), or every pair is
                     and the ratio is below DOUBT_RATIO                        suspicious
    one module       aligned as a whole, unlike the others in single modules   contaminated
    size             norm (whole, or in a module) far from the set's median,   contaminated
                     or above NORM_CAP and every pair of members more alike    or suspicious
    spread           energy over far more directions than the others': noise   contaminated
                     (suspicious if its alignment does not suffer)             or suspicious
    place            core U' D V far from the others', or all but their mean   suspicious
    else                                                                       benign

A duplicate takes no vote; clients that are nearly the same share one vote and are suspicious; a
zero delta weight has nothing to merge. Whatever the verdict, a delta weight counts as no larger
than NORM_CAP median norms. No fraction of bad clients is asked for, and every line is an absolute
one: nobody may cross it, or most clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clair_cli.maths.evidence.pair_levels import N_SE
from clair_cli.maths.judge.scores import Scores
from clair_cli.maths.judge.thresholds import (
    CORE_FAR,
    CORE_NEAR,
    DOUBT_FLOOR,
    DOUBT_RATIO,
    LEAST_SHARE,
    LONER_RATIO,
    MEMBER_P,
    MODULE_NORM_CAP,
    MODULE_NORM_CONTAMINATED,
    MODULE_NORM_SUSPICIOUS,
    NORM_CAP,
    NORM_CONTAMINATED,
    NORM_SUSPICIOUS,
    NORM_VANISHING,
    OPPOSITE_RATIO,
    SEPARATION,
    SPREAD_ALIGNED,
    SPREAD_RATIO,
)


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
    """

    verdict: str
    findings: tuple[Finding, ...]
    influence: float


def _rounded(value: float) -> str:
    return f"{value:.2f}"


def _level(ratio: float) -> str:
    if math.isnan(ratio):
        return "similarity to the others unknown"
    return f"similarity to the others {_rounded(ratio)} of their own"


def _norm(ratio: float) -> str:
    return "norm not comparable" if math.isnan(ratio) else f"norm {ratio:.3g} x the median"


def _inside(ratio: float) -> str:
    """How much of a client the shared subspace holds; NaN where it holds nothing of most."""
    if math.isnan(ratio):
        return "it holds no more of anybody than chance would"
    return f"{_rounded(ratio)} of the typical share inside"


def alignment_findings(
    scores: Scores, kept: bool, apart: str, signed: bool
) -> tuple[str, list[Finding]]:
    """Verdict and reasons of alignment and decomposition together.

    Args:
        scores: of the client.
        kept: whether the decomposition left the client's block at zero.
        apart: names of the other members of the client's coherent group, if it is another one than
            the collaborative set; else "".
        signed: whether the stacking's similarities have a sign (`matrix`).
    """
    ratio, high = scores.alignment.ratio, scores.alignment.high
    turned = signed and high < 0 and ratio < -OPPOSITE_RATIO
    level = _level(ratio)
    if apart:
        finding = Finding("in_a_group", f"in a group with {apart}, apart from the others ({level})")
        opposite = [Finding("opposite", f"opposite to the others ({_rounded(ratio)})")]
        return "contaminated", [finding, *(opposite if turned else [])]
    if turned:  # inside the subspace or not: the decomposition can't see a sign
        return "contaminated", [Finding("opposite", f"opposite to the others: {level}")]
    below = not ratio >= LONER_RATIO  # also catches NaN
    doubtful = high >= DOUBT_RATIO and ratio >= DOUBT_FLOOR and not scores.clear
    outside = not scores.separation < SEPARATION or scores["member_p"] < MEMBER_P
    if below and not kept and not doubtful and outside:
        return "contaminated", [Finding("unlike_the_others", f"unlike the others: {level}")]
    if below and not kept:
        why = (
            f"within {N_SE:g} standard errors of belonging"
            if doubtful
            else "as some others are to each other"
        )
        return "suspicious", [Finding("weakly_alike", f"{level}, {why}")]
    if below and (math.isnan(ratio) or outside):
        return "suspicious", [
            Finding("weakly_alike", f"{level}, though the decomposition keeps it")
        ]
    if scores.clear and ratio < DOUBT_RATIO:
        return "suspicious", [Finding("weakly_alike", f"{level}, and clearly less alike than they")]
    if not kept:
        return "suspicious", [
            Finding(
                "off_subspace",
                f"off the shared subspace ({_inside(scores.captured_ratio)}), though {level}",
            )
        ]
    return "benign", []


def size_findings(scores: Scores) -> tuple[str, list[Finding]]:
    """Verdict and reasons of the norms. A client that is clearly less alike than the others are is
    held to NORM_CAP, everybody else to wider bounds."""
    ratio, module = scores["norm_ratio"], scores["module_norm_ratio"]
    text = _norm(ratio)
    if scores.clear and ratio > NORM_CAP:
        text += f", and clearly less alike ({_rounded(scores.alignment.ratio)}) than the others are"
        return "contaminated", [Finding("norm", text)]
    if scores.alignment.ratio >= LONER_RATIO and ratio >= NORM_SUSPICIOUS:
        text += ", though its direction agrees"
    if not ratio < NORM_CONTAMINATED:  # also catches NaN
        return "contaminated", [Finding("norm", text)]
    if not module < MODULE_NORM_CONTAMINATED:
        return "contaminated", [Finding("module_norm", f"{_norm(module)} in one module")]
    if ratio > NORM_SUSPICIOUS:
        return "suspicious", [Finding("norm", text)]
    if module > MODULE_NORM_SUSPICIOUS:
        return "suspicious", [Finding("module_norm", f"{_norm(module)} in one module")]
    if ratio < NORM_VANISHING:
        return "suspicious", [Finding("no_update", f"almost no update: {text}")]
    return "benign", []


def shape_findings(scores: Scores) -> tuple[str, list[Finding]]:
    """Verdict and reasons of the number of directions that a delta weight is spread over and of its
    place in the shared subspace; for a client without other findings."""
    spread, distance = scores["effective_rank_ratio"], scores["core_distance"]
    if spread > SPREAD_RATIO:
        low = scores.alignment.high < SPREAD_ALIGNED
        return "contaminated" if low else "suspicious", [
            Finding(
                "noise",
                f"like noise: spread over {spread:.3g} x as many directions as the others, "
                f"{_level(scores.alignment.ratio)}",
            )
        ]
    if distance > CORE_FAR:
        return "suspicious", [
            Finding(
                "far_inside",
                f"far out inside the shared subspace ({distance:.3g} x the typical distance)",
            )
        ]
    if distance < CORE_NEAR:
        return "suspicious", [
            Finding(
                "near_mean",
                f"unnaturally close to the others' mean ({distance:.3g} x the typical distance)",
            )
        ]
    return "benign", []


_ORDER = ("benign", "suspicious", "contaminated")
_NOT_A_MEMBER = ("weakly_alike",)


def decide(
    scores: Scores, kept: bool, apart: str, signed: bool, module_names: tuple[str, ...]
) -> Verdict:
    """The verdict on one distinct client, by the rule at the top of this file.

    Args:
        scores: of the client.
        kept, apart, signed: see `alignment_findings`.
        module_names: of all modules, in the order of the evidence.
    """
    verdict, findings = alignment_findings(scores, kept, apart, signed)
    sized, more = size_findings(scores)
    verdict, findings = max(verdict, sized, key=_ORDER.index), findings + more
    if scores.odd_modules and not findings:
        verdict = "contaminated"
        named = ", ".join(module_names[m] for m in scores.odd_modules[:3])
        findings.append(Finding("odd_module", f"unlike the others in {named}"))
    if verdict == "benign":
        verdict, findings = shape_findings(scores)
    influence = _influence(verdict, scores, findings)
    if verdict == "benign" and influence < 1.0:
        findings.append(Finding("large", f"large: counts {influence:.2f} of its weight"))
    return Verdict(verdict, tuple(findings), influence)


def as_trusted(old: Verdict, scores: Scores) -> Verdict:
    """The verdict on a trusted client: one that would leave it out is "suspicious", so that it is
    merged within the bounds of one, and what was found stays."""
    if old.verdict not in ("contaminated", "minority"):
        return old
    finding = Finding("trusted", f"trusted, and merged for that: else {old.verdict}")
    influence = old.influence
    if old.verdict == "contaminated":
        influence = _influence("suspicious", scores, old.findings)
    return Verdict("suspicious", (*old.findings, finding), influence)


def _influence(verdict: str, scores: Scores, findings: Sequence[Finding]) -> float:
    """Factor on the weight, 0 to 1. A benign client moves the merge little further than a typical
    client would; a suspicious one at most as far; and one that is not clearly a member only by the
    share of its energy that it has in common with the others."""
    if verdict == "contaminated" or scores["norm_ratio"] < NORM_VANISHING:
        return 0.0  # a zero delta weight would only dilute the mean
    whole, module = scores["norm_ratio"], scores["module_norm_ratio"]
    if verdict == "benign":
        return _capped(whole / NORM_CAP, module / MODULE_NORM_CAP)
    factor = _capped(whole, module / 2.0, scores["core_distance"] / CORE_FAR)
    if any(f.code in _NOT_A_MEMBER for f in findings) and not math.isnan(scores.captured_ratio):
        factor *= min(1.0, max(LEAST_SHARE, scores.captured_ratio))
    return factor


def _capped(*sizes: float) -> float:
    return 1.0 / max(x for x in (1.0, *sizes) if not math.isnan(x))
