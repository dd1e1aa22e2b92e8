"""What clients trained as a whole beside the LoRA: judged, and merged as a weighted mean.

Both looks read the tensors in slices of all clients at once, so that no whole tensor of all clients
is in memory; an engine works on some tensors at once. A tensor that is the same in all clients is
not read before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.dense import DenseTensor
from clair_cli.cohort.heads import HeadTensor, head_tensors
from clair_cli.cohort.round import Round, losing
from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.formats.safetensors.source import pieces_of
from clair_cli.maths.judge.heads import DenseEvidence, JudgedHeads, judge_heads
from clair_cli.maths.merge.dense import middle

# Numbers in float64 of all clients together in one slice: 16 MiB, a few times over.
_NUMBERS = 2**21


@dataclass(frozen=True)
class RoundHeads:
    """The dense tensors of a round, judged.

    Attributes:
        tensors: of all comparable clients, those that are the same in all of them included.
        judged: the verdicts; None where no tensor differs.
        names: of the tensors that were judged, in the order of `judged.alike`.
        members: clients whose median is the reference where there is no previous tensor.
        previous: the previous adapter's tensors, by the names of `tensors`.
    """

    tensors: tuple[HeadTensor, ...]
    judged: JudgedHeads | None
    names: tuple[str, ...]
    members: tuple[int, ...]
    previous: Mapping[str, DenseTensor]

    def factor(self, client: int) -> float:
        """By which a client's differences count at most, 0 to 1."""
        return 1.0 if self.judged is None else self.judged.verdicts[client].factor


NO_HEADS = RoundHeads((), None, (), (), {})


@dataclass(frozen=True)
class SlicedHead:
    """A dense tensor that is to be read slice by slice.

    Attributes:
        tensor: over the round's clients.
        before: the previous adapter's, or None.
        members: clients whose median is the reference where there is no previous tensor.
    """

    tensor: HeadTensor
    before: DenseTensor | None
    members: tuple[int, ...]


def look_at_heads(factors: RoundFactors, members: Sequence[int], engine: Engine) -> RoundHeads:
    """Read and judge the dense tensors of all comparable clients that at least half of the members
    have. Others are not merged (see `plan_heads`), and a few clients may have any number of them.

    Args:
        members: see `judge_heads`.

    Raises:
        ClientLost: a tensor changed since it was checked.
    """
    round_ = factors.round
    tensors = head_tensors(round_.adapters)
    if not tensors:
        return NO_HEADS
    previous = _previous(round_, tensors)
    voters = set(members)
    differing = [
        tensor
        for tensor in tensors
        if not tensor.equal and 2 * len(tensor.own.keys() & voters) >= len(members)
    ]
    if not differing:
        return RoundHeads(tensors, None, (), tuple(members), previous)
    n = len(round_.adapters)
    holders = torch.zeros(len(differing), n, dtype=torch.bool)
    whole = torch.zeros(len(differing), n, n, dtype=torch.float64)
    difference = torch.zeros_like(whole)
    items = [SlicedHead(t, previous.get(t.name), tuple(members)) for t in differing]
    found = engine.map("heads", compare_head, items, factors, on_device=False)
    for t, both in enumerate(found):
        own = torch.tensor(list(differing[t].own))
        holders[t, own] = True
        whole[t][own[:, None], own], difference[t][own[:, None], own] = both
    evidence = DenseEvidence(
        tuple(t.name for t in differing),
        tuple(math.prod(t.shape) for t in differing),
        tuple(len(t.shape) > 1 for t in differing),
        tuple(t.name in previous for t in differing),
        holders, whole, difference,
    )  # fmt: skip
    judged = judge_heads(evidence, members)
    return RoundHeads(tensors, judged, evidence.names, tuple(members), previous)


def _previous(round_: Round, tensors: Sequence[HeadTensor]) -> dict[str, DenseTensor]:
    """The previous adapter's tensors of the same form."""
    if round_.previous is None:
        return {}
    own = {t.name: t.own[0] for t in head_tensors([round_.previous])}
    return {
        t.name: own[t.name]
        for t in tensors
        if t.name in own and own[t.name].form == (t.shape, t.rows)
    }


def compare_head(factors: RoundFactors, head: SlicedHead) -> tuple[Tensor, Tensor]:
    """Inner products of the clients' own tensors, and of their differences to the reference,
    (n_own, n_own) both, float64.

    Raises:
        ClientLost: a tensor changed since it was checked.
    """
    own = list(head.tensor.own)
    whole = torch.zeros(len(own), len(own), dtype=torch.float64)
    difference = torch.zeros_like(whole)
    for values, reference in slices(factors.round, head, own):
        off = values - reference
        whole += values @ values.mT
        difference += off @ off.mT
    return whole, difference


def slices(
    round_: Round, head: SlicedHead, clients: Sequence[int], *, bounded: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of one tensor: of some clients (n_clients, n_numbers), and of the reference
    (n_numbers,), scalings applied, float64.

    Args:
        bounded: whether the reference counts; else there is none, and zeros stand for it.
    """
    tensor = head.tensor
    members = [k for k in head.members if k in tensor.own] or list(tensor.own)
    before = head.before if bounded else None
    by_median = bounded and before is None
    needed = sorted({*clients, *(members if by_median else ())})
    elements = max(1, min(math.prod(tensor.shape), _NUMBERS // (len(needed) + 1)))
    readers = [_pieces(round_.adapters[k], tensor.own[k], elements) for k in needed]
    if before is not None:
        assert round_.previous is not None
        readers.append(_pieces(round_.previous, before, elements))
    at = [needed.index(k) for k in clients]
    inside = [needed.index(k) for k in members if k in needed]
    for parts in zip(*readers, strict=True):
        values = torch.stack(parts[: len(needed)])
        if by_median:
            reference = middle(values[inside])
        else:
            reference = torch.zeros_like(values[0]) if before is None else parts[-1]
        yield values[at], reference


def _pieces(adapter: Adapter, own: DenseTensor, elements: int) -> Iterator[Tensor]:
    """One client's tensor in pieces, its scaling applied, float64."""
    with losing(adapter):
        for piece in pieces_of(adapter.source, own.key, elements):
            yield piece.double() * own.scaling


@dataclass(frozen=True)
class MergedHead:
    """A dense tensor of the result.

    Attributes:
        tensor: over the round's clients.
        clients: indices of those that are averaged, ascending. weights: theirs, summing to 1.
        dtype: that is written.
        factors: by which the clients' differences count at most, 0 to 1.
    """

    tensor: HeadTensor
    clients: tuple[int, ...]
    weights: tuple[float, ...]
    dtype: str
    factors: tuple[float, ...]

    @property
    def bounded(self) -> bool:
        """Whether any client counts for less than its whole difference."""
        return any(factor < 1.0 for factor in self.factors)
