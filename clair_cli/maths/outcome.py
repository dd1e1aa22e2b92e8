"""When a cohort can't be judged: the cases, in words and with a remedy each."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.maths.decompose import Decomposition
from clair_cli.maths.groups import SEPARATION, PairLevels, over_modules, tighter
from clair_cli.maths.loadings import stand_apart
from clair_cli.maths.structure import MIN_LEVEL, SECOND_GROUP_SHARE, Structure

# Below MIN_LEVEL a cohort is judged only if somebody stands out; below this one never.
LEAST_LEVEL = 0.03
# A relative duality gap above this is "did not converge".
MAX_GAP = 1e-3
# A smaller group this similar to the main one, over the main one's level, does the same and
# something besides; a less similar one is another population. Backdoored clients measured 0.44
# and more, unrelated groups at most 0.4.
RELATED = 0.42

# A stable code, a sentence, a remedy.
Blocked = tuple[str, str, str]
NOTHING_SHARED: Blocked = (
    "nothing_shared",
    "nothing is shared: no three clients are more alike than chance",
    "train fewer local steps per round, or merge by hand with --allow-undetermined",
)


def without_verdict(
    levels: PairLevels, structure: Structure, names: Sequence[str]
) -> Blocked | None:
    n = len(structure.distinct)
    allow = "merge everybody who is not rejected with --allow-undetermined"
    if not n:
        return "no_updates", "no client has any update: every delta weight is zero", allow
    if n == 1:
        return "too_few", "1 client: nothing to compare with", allow
    if n == 2:
        return "too_few", "2 clients: can't tell which is wrong", allow
    if structure.stacking is None:
        return NOTHING_SHARED
    two = _two_groups(levels, structure)
    if two is None:
        return None
    other, text = two
    return (
        "two_groups",
        text.format(main=_listed(structure.group, names), other=_listed(other, names)),
        "look at both groups, then leave the members of one out with --exclude",
    )


def _two_groups(levels: PairLevels, structure: Structure) -> tuple[tuple[int, ...], str] | None:
    """Another group that leaves the largest one no clear majority, and how."""
    main = structure.group
    level = levels.level(main).mean
    for group in structure.others:
        apart = levels.separation(main, group) >= SEPARATION or stand_apart(levels, group, main)
        if not apart and tighter(levels, group, main):
            text = "the largest group, {main}, shares far less than {other}, and does not stand "
            return group, text + "apart from it"
        energy = (len(group) - 1) * levels.level(group).mean
        between = over_modules(levels.between(main, group)).mean
        if len(group) > 2 and energy > (len(main) - 1) * level and between < RELATED * level:
            return group, "the largest group, {main}, shares less in all than {other}"
    second = max(structure.others, key=len, default=())
    if len(second) > SECOND_GROUP_SHARE * len(main):
        return second, "two coherent groups of similar size: {main} and {other}"
    return None


def unsolved(solution: Decomposition) -> Blocked | None:
    if solution.gap <= MAX_GAP:
        return None
    return (
        "not_converged",
        f"the decomposition did not converge (duality gap {solution.gap:.1e})",
        "report this cohort: it should not happen",
    )


def little_shared(levels: PairLevels, structure: Structure, contrast: bool) -> Blocked | None:
    """Too little in common to vouch for anybody."""
    level = levels.level(structure.group).mean
    if level >= (LEAST_LEVEL if contrast else MIN_LEVEL):
        return None
    return (
        "little_shared",
        f"the clients have almost nothing in common (similarity {level:.3f})"
        f"{'' if contrast else ', and nobody stands out'}",
        NOTHING_SHARED[2],
    )


def _listed(group: Sequence[int], names: Sequence[str]) -> str:
    shown = sorted(names[k] for k in group)
    return f"{len(shown)} ({', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''})"
