"""The cases in which a cohort cannot be judged, each in words and with a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clair_cli.maths.judge.decompose import Decomposition
from clair_cli.maths.judge.structure import Structure
from clair_cli.maths.judge.thresholds import DUPLICATE_COSINE, SECOND_GROUP_SHARE
from clair_cli.maths.judge.verdicts import Verdict

# Most client names in one sentence.
_NAMES_SHOWN = 8
# A relative duality gap above this is "did not converge".
MAX_GAP = 1e-3
# Findings that set a client apart from the group.
_UNLIKE = {"unlike_the_others", "in_a_group", "opposite"}
_TWO_GROUPS_REMEDY = (
    "look at both groups, then leave the members of one out with --exclude, or name a client that "
    "you trust with --trust"
)
# A stable code, a sentence, a remedy.
NoVerdict = tuple[str, str, str]
NOTHING_SHARED: NoVerdict = (
    "nothing_shared",
    "nothing is shared: no three clients are more alike than chance",
    "train fewer local steps per round, or merge by hand with --allow-undetermined",
)


def without_verdict(
    structure: Structure, names: Sequence[str], trusted: Sequence[int] = ()
) -> NoVerdict | None:
    """The reason why the clients' similarities allow no verdict; None if they allow one.

    Args:
        names: of the clients.
        trusted: clients whose group needs no majority.
    """
    n = len(structure.distinct)
    allow = "merge everybody who is not rejected with --allow-undetermined"
    if not n:
        return "no_updates", "no client has any update: every delta weight is zero", allow
    if n == 1 and structure.duplicates:
        return _same_update(structure)
    if n == 1:
        return "too_few", "1 client: nothing to compare with", allow
    if n == 2 and not trusted:
        return "too_few", f"{_two(structure)}: can't tell which is wrong", allow
    if structure.side is not None:
        return _one_side(structure.side)
    if not structure.groups:
        return NOTHING_SHARED
    if not structure.groups[0].is_sure:
        return _little_shared(structure, trusted)
    return None if trusted else _two_groups(structure, names)


def _one_side(side: str) -> NoVerdict:
    """The case that all clients share a side and nothing else."""
    return (
        "one_side",
        f"only the {side} directions of the updates are alike, as those of all training from one "
        "base model are, and nobody stands out from the others",
        NOTHING_SHARED[2],
    )


def _two(structure: Structure) -> str:
    """Two clients; or, of more, two updates, as of checkpoints of two runs."""
    more = len(structure.duplicates)
    return "2 clients" if not more else f"{2 + more:,} clients, but 2 different updates"


def _little_shared(structure: Structure, trusted: Sequence[int]) -> NoVerdict:
    """The case that an unrelated client might pass unnoticed."""
    power = structure.groups[0].power
    return (
        "little_shared",
        "too little in common to judge by: a client that shares nothing with the others would be "
        f"noticed with probability {power:.2f} only",
        "collect more clients, or train longer"
        if trusted
        else "collect more clients, train longer, or name one that you trust with --trust",
    )


def _two_groups(structure: Structure, names: Sequence[str]) -> NoVerdict | None:
    """The case of a second group, or a minority, nearly as large as the first."""
    first = structure.groups[0]
    most = SECOND_GROUP_SHARE * len(first.members)
    for group in structure.others:
        if len(group) > most:
            text = (
                f"two coherent groups of similar size: {_listed(first.members, names)} and "
                f"{_listed(group, names)}"
            )
            return "two_groups", text, _TWO_GROUPS_REMEDY
    for minority in structure.minorities:
        if len(minority.members) > most:
            text = (
                f"two groups of similar size: {_listed(first.members, names)}, and "
                f"{_listed(minority.members, names)}, which share something of their own"
            )
            return "two_groups", text, _TWO_GROUPS_REMEDY
    return None


def contradicting(
    trusted: Sequence[int], verdicts: Sequence[Verdict], names: Sequence[str]
) -> NoVerdict | None:
    """The reason for no verdict if a trusted client is unlike the group of the other trusted ones,
    or the only trusted one is unlike everybody; else None."""
    codes = {k: {f.code for f in verdicts[k].findings} for k in trusted}
    apart = [k for k in trusted if "trusted" in codes[k] and codes[k] & _UNLIKE]
    if not apart:
        return None
    distinct = [k for k in trusted if "duplicate" not in codes[k]]
    if len(distinct) == 1:
        return (
            "trusted_alone",
            f"nobody is like {names[apart[0]]}, which is trusted",
            "look at the trusted adapter, or judge by the largest group without --trust",
        )
    others = [k for k in distinct if k not in apart]
    return (
        "trusted_disagree",
        f"trusted clients contradict each other: {_listed(apart, names)} "
        + (f"against {_listed(others, names)}" if others else "are all unlike one another"),
        "find out which of them is wrong, and trust the others only",
    )


def _same_update(structure: Structure) -> NoVerdict:
    """The case that all clients with an update equal one another."""
    n = len(structure.duplicates) + 1
    having = " that have an update" if structure.empty else ""
    return (
        "same_update",
        f"all {n} clients{having} are the same update (cosine {DUPLICATE_COSINE} or more), as "
        "checkpoints or copies of one run are",
        "give one adapter per client, each of its own training; if all started from the last "
        "merged adapter and hardly moved, give that with --previous",
    )


def unsolved(solution: Decomposition) -> NoVerdict | None:
    """The reason for no verdict if the decomposition did not converge; else None."""
    if solution.gap <= MAX_GAP:
        return None
    return (
        "not_converged",
        f"the decomposition did not converge in {solution.n_iter} iterations (duality gap "
        f"{solution.gap:.1e}, at most {MAX_GAP:g} is trusted)",
        "report this cohort: it should not happen",
    )


def _listed(group: Sequence[int], names: Sequence[str]) -> str:
    return f"{len(group)} ({some_names(names[k] for k in group)})"


def some_names(names: Iterable[str]) -> str:
    """The first names in order, and the number of the others.

    >>> some_names("fbadceghij")
    'a, b, c, d, e, f, g, h and 2 more'
    """
    ordered = sorted(names)
    more = len(ordered) - _NAMES_SHOWN
    return ", ".join(ordered[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
