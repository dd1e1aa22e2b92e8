"""Verdicts on what clients trained as a whole beside the LoRA: heads, biases, rows of embeddings.

A dense tensor has no common null as a product of two factors has: honest heads of clients with
other shares of the labels differ more than those of one client and its opposite. So a client is
judged against the cohort's own spread, tensor by tensor:

    contaminated  unlike     the tensor itself has less than LINE of what two others have in common
                  opposite   its difference from the reference points against the others'
                  size       its difference is beyond the fourth power of what the round allows
    suspicious    unlike     its difference has less than LINE of what the others' have in common
                  size       its difference is beyond the third power of what the round allows

each with the probability ERROR_RATE, over all clients and tensors, that an honest one is said to be
unlike, by Student's t of the distance from the members' median. Whatever the verdict, a difference
counts as no larger than the round allows, should its client be merged (as a trusted one is). The
reference is the previous round's tensor, or else the members' median, entry by entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.judge.sizes import SIGMA, Sizes, sizes_of_norms
from clair_cli.maths.judge.thresholds import ERROR_RATE, LINE
from clair_cli.maths.judge.verdicts import CONTAMINATED_SIZE, SUSPICIOUS_SIZE, Finding

# Fewest members with a tensor for a median that no single one moves at will.
LEAST_MEMBERS = 3
# Standard deviations of a cosine by chance that tensors with something in common exceed.
_BY_CHANCE = 3.0


@dataclass(frozen=True)
class DenseEvidence:
    """The clients' dense tensors in products.

    Attributes:
        names: of the tensors.
        elements: how many numbers each has. is_matrix: whether it has two axes or more; of a
            vector, such as a bias, the size alone is judged.
        has_previous: whether the reference is the previous round's tensor.
        holders: who has the tensor, (n_tensors, n_clients), bool.
        whole: inner products of the tensors, (n_tensors, n_clients, n_clients), float64; 0 where a
            client lacks it. difference: of their differences from the reference, likewise.
    """

    names: tuple[str, ...]
    elements: tuple[int, ...]
    is_matrix: tuple[bool, ...]
    has_previous: tuple[bool, ...]
    holders: Tensor
    whole: Tensor
    difference: Tensor


@dataclass(frozen=True)
class HeadVerdict:
    """One client's.

    Attributes:
        verdict: "benign", "suspicious" or "contaminated".
        factor: by which its differences from the reference count at most, 0 to 1.
    """

    verdict: str
    findings: tuple[Finding, ...]
    factor: float


@dataclass(frozen=True)
class JudgedHeads:
    """All clients'.

    Attributes:
        verdicts: one per client.
        unrelated: names of the tensors in which the members have nothing in common.
        norms: of the differences, (n_tensors, n_clients).
        alike: median cosine of each client's difference to the members', (n_tensors, n_clients);
            whole_alike: of the tensors themselves. NaN where there is none.
    """

    verdicts: tuple[HeadVerdict, ...]
    unrelated: tuple[str, ...]
    norms: Tensor
    alike: Tensor
    whole_alike: Tensor


def judge_heads(evidence: DenseEvidence, members: Sequence[int]) -> JudgedHeads:
    """Judge all clients by their dense tensors.

    Args:
        members: clients that count in medians: one for each set of copies, and nobody who is left
            out for the LoRA.
    """
    alike = _median_cosines(evidence.difference, evidence.holders, members)
    whole = _median_cosines(evidence.whole, evidence.holders, members)
    n = evidence.holders.shape[1]
    enough = [sum(bool(h[k]) for k in members) >= LEAST_MEMBERS for h in evidence.holders]
    findings: list[list[tuple[str, Finding]]] = [[] for _ in range(n)]
    tests = max(1, n * sum(evidence.is_matrix))
    for t, name in enumerate(evidence.names):
        if not (enough[t] and evidence.is_matrix[t]):
            continue
        floor = evidence.elements[t] ** -0.5
        for k in torch.nonzero(evidence.holders[t]).flatten().tolist():
            own = [j for j in members if evidence.holders[t, j] and j != k]
            findings[k] += _unlike(name, whole[t], own, k, floor, tests)
            if not findings[k]:
                findings[k] += _against(name, alike[t], own, k, floor, tests)
    norms = evidence.difference.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    sizes = _sizes(norms, evidence, members, enough)
    judged = norms[torch.tensor(enough, dtype=torch.bool)].sum(0)
    verdicts = tuple(_verdict(findings[k], sizes, k, float(judged[k])) for k in range(n))
    unrelated = _unrelated(evidence, whole, members, enough)
    return JudgedHeads(verdicts, unrelated, norms, alike, whole)


def _median_cosines(products: Tensor, holders: Tensor, members: Sequence[int]) -> Tensor:
    """Median cosine of each client to the members other than itself, (n_tensors, n_clients)."""
    found = torch.full(holders.shape, torch.nan, dtype=torch.float64)
    for t, product in enumerate(products):
        norms = product.diagonal().clamp_min(0).sqrt()
        scale = norms[:, None] * norms
        cosines = torch.where(scale > 0, product / scale.clamp_min(1e-300), torch.nan)
        cosines.fill_diagonal_(torch.nan)
        own = [k for k in members if holders[t, k]]
        if own:
            found[t] = _median(cosines[:, own])
    return found


def _median(values: Tensor) -> Tensor:
    """Median over the last axis without NaN; of an even number, the mean of the middle two."""
    return torch.nanquantile(values, 0.5, dim=-1)


def _is_far(value: float, others: Tensor, floor: float, tests: int) -> bool:
    """Whether a value lies below others' median by more than their own spread explains.

    Args:
        floor: least standard deviation, that of a cosine by chance.
        tests: how many such questions are asked, for the probability of any error.
    """
    from scipy.special import stdtrit

    n = len(others)
    middle = _median(others)
    spread = max(floor, SIGMA * float(_median((others - middle).abs())))
    allowed = -float(stdtrit(n - 1, ERROR_RATE / tests))
    return n > 1 and float(middle) - value > allowed * spread


def _below(
    alike: Tensor, own: Sequence[int], k: int, least: float, floor: float, tests: int
) -> tuple[float, float] | None:
    """A client's cosine and the median of the other members', if it has less than LINE of that,
    and by more than their own spread explains; else None.

    Args:
        own: the other members.
        least: what the members' median must exceed.
        floor, tests: see `_is_far`.
    """
    others, value = alike[list(own)], float(alike[k])
    others = others[~others.isnan()]
    if math.isnan(value) or not len(others):
        return None
    typical = float(_median(others))
    if typical <= least or value >= LINE * typical or not _is_far(value, others, floor, tests):
        return None
    return value, typical


def _unlike(
    name: str, alike: Tensor, own: Sequence[int], k: int, floor: float, tests: int
) -> list[tuple[str, Finding]]:
    """The finding that a tensor itself is unlike the others'."""
    found = _below(alike, own, k, _BY_CHANCE * floor, floor, tests)
    if found is None:
        return []
    text = f"{name} itself is unlike the others': {_cosines(*found)}"
    return [("contaminated", Finding("head_unlike", text))]


def _against(
    name: str, alike: Tensor, own: Sequence[int], k: int, floor: float, tests: int
) -> list[tuple[str, Finding]]:
    """The finding that the difference of a tensor goes against, or not along with, the others'."""
    found = _below(alike, own, k, 0.0, floor, tests)
    if found is None:
        return []
    value, typical = found
    against = value <= -LINE * typical
    what = "points against the others'" if against else "does not go along with the others'"
    text = f"what changed in {name} {what}: {_cosines(value, typical)}"
    return [("contaminated" if against else "suspicious", Finding("head_against", text))]


def _cosines(own: float, theirs: float) -> str:
    return f"cosine {round(own, 2) + 0.0:.2f}, theirs {theirs:.2f}"  # + 0.0: never "-0.00"


def _sizes(
    norms: Tensor, evidence: DenseEvidence, members: Sequence[int], enough: Sequence[bool]
) -> Sizes | None:
    """Sizes of the differences in the tensors that enough members have. A layer's weight and bias
    are one: the norm of a bias of two or three numbers varies by chance alone."""
    kept = [t for t in range(len(norms)) if enough[t]]
    if not kept:
        return None
    layers = sorted({_layer(evidence.names[t]) for t in kept})
    each = torch.zeros(len(layers), norms.shape[1], dtype=torch.float64)
    for t in kept:
        row = layers.index(_layer(evidence.names[t]))
        each[row] = torch.hypot(each[row], norms[t])
    having = evidence.holders[kept].any(0)
    return sizes_of_norms(each, [k for k in members if having[k]])


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _verdict(
    findings: Sequence[tuple[str, Finding]], sizes: Sizes | None, k: int, norm: float
) -> HeadVerdict:
    """One client's verdict.

    Args:
        norm: of its differences, 0 if it has none.
    """
    if sizes is None or norm == 0.0:  # it has none, or it is the reference
        return HeadVerdict("benign", (), 1.0)
    found = list(findings)
    factor = sizes.factor(k, sizes.whole_cap, sizes.module_cap)
    over = sizes.over(k)
    if math.isinf(over):  # most members' tensors are the same, and this one is another
        text = "its head differs, and most clients' are the same"
        found.append(("suspicious", Finding("head_norm", text)))
        factor = 0.0
    elif over > SUSPICIOUS_SIZE:
        verdict = "contaminated" if over > CONTAMINATED_SIZE else "suspicious"
        largest = max(float(sizes.whole[k]), float(sizes.module[k]))
        text = f"its head differs from the others' by {largest:.3g} x the median difference"
        found.append((verdict, Finding("head_norm", text)))
    verdicts = {verdict for verdict, _ in found}
    worst = next((v for v in ("contaminated", "suspicious") if v in verdicts), "benign")
    return HeadVerdict(worst, tuple(finding for _, finding in found), factor)


def _unrelated(
    evidence: DenseEvidence, whole: Tensor, members: Sequence[int], enough: Sequence[bool]
) -> tuple[str, ...]:
    """Names of the matrices in which the members are no more alike than chance. A previous tensor
    is a common start, whatever the clients made of it, and so is one that most still have (zeros
    have no cosine)."""
    found = []
    for t, name in enumerate(evidence.names):
        if not (enough[t] and evidence.is_matrix[t]) or evidence.has_previous[t]:
            continue
        having = [k for k in members if evidence.holders[t, k]]
        off, own = evidence.difference[t].diagonal()[having], whole[t, having]
        if float(_median(off)) == 0.0:
            continue
        if not float(_median(own)) > _BY_CHANCE * evidence.elements[t] ** -0.5:
            found.append(name)
    return tuple(found)
