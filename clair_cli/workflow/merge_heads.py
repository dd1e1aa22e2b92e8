"""The dense tensors of a merge: which there are, and each as a weighted mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set

import torch
from torch import Tensor

from clair_cli.cohort.heads import HeadTensor
from clair_cli.cohort.selection import modules_to_merge
from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.errors import OutputError
from clair_cli.maths.judge.heads import LEAST_MEMBERS
from clair_cli.maths.merge.dense import bounded_mean
from clair_cli.remark import Remark, note, warning
from clair_cli.settings import Settings
from clair_cli.text import first_few
from clair_cli.workflow.heads import MergedHead, SlicedHead, slices
from clair_cli.workflow.judge import JudgedRound

# Most bytes of tensors that are merged at once, if no tensor is larger; of one number, at most.
_AT_ONCE, _BYTES = 256 * 2**20, 4


def plan_heads(
    judged: JudgedRound, settings: Settings
) -> tuple[tuple[MergedHead, ...], tuple[Remark, ...]]:
    """The dense tensors that are merged, and remarks.

    A tensor is merged where more than half of the merged clients have it: fewer would decide it
    alone. A client without it has no part in it, but the bias of a `lora_B` is zero there. A tensor
    that was not judged is that of the trusted clients, or nobody's; see `_who_counts`.

    A format without names for them has none.
    """
    round_, heads, weights = judged.round, judged.heads, judged.weights
    if heads.tensors and (round_.output is None or round_.output.format != "peft"):
        text = (
            f"{len(heads.tensors):,} tensors beside the LoRA "
            f"({first_few(t.name for t in heads.tensors)}) not written: only PEFT's format has "
            "names for them"
        )
        return (), (warning("heads_not_written", text),)
    merged = [k for k, weight in enumerate(weights) if weight > 0]
    weighty = set(merged)
    counts = {t.name: len(t.own.keys() & weighty) for t in heads.tensors}
    enough = set(modules_to_merge(counts, len(merged), settings.modules))
    enough -= {name for name, count in counts.items() if 2 * count <= len(merged)}
    found, notes, trusted = [], [], []
    for tensor in heads.tensors:
        if tensor.name not in enough or (tensor.module and tensor.module not in judged.written):
            continue
        having = tuple(k for k in merged if k in tensor.own)
        clients = _who_counts(judged, tensor, having)
        if not clients:
            enough.remove(tensor.name)
            continue
        if clients != having:
            trusted.append(tensor.name)
        absent = clients == having and bool(tensor.module)
        total = math.fsum(weights[k] for k in (merged if absent else clients))
        dtypes = {tensor.own[k].dtype for k in clients}
        dtype = settings.dtype if settings.dtype != "auto" else _written_dtype(dtypes)
        found.append(
            MergedHead(
                tensor, clients, tuple(weights[k] / total for k in clients), dtype,
                tuple(heads.factor(k) for k in clients),
            )
        )  # fmt: skip
    if few := sorted(name for name, count in counts.items() if count and name not in enough):
        text = (
            f"{len(few):,} tensors beside the LoRA ({first_few(few)}) not merged: too few of the "
            f"{len(merged)} merged clients have them"
        )
        notes.append(warning("heads_not_merged", text))
    if trusted:
        text = (
            f"{len(trusted):,} tensors beside the LoRA ({first_few(trusted)}) are the trusted "
            f"clients' alone: fewer than {LEAST_MEMBERS} clients have them, too few to be judged"
        )
        notes.append(warning("heads_of_trusted", text))
    if same := [m.tensor.name for m in found if m.tensor.equal]:
        text = (
            f"{len(same):,} tensors beside the LoRA ({first_few(same)}) are the same in all "
            "clients, and written as they are"
        )
        notes.append(note("heads_equal", text))
    return tuple(found), tuple(notes)


def _who_counts(
    judged: JudgedRound, tensor: HeadTensor, having: tuple[int, ...]
) -> tuple[int, ...]:
    """The merged clients whose tensor counts: all that have it, if it was judged or is the same in
    all of them; else the trusted ones among them, as the size of the others' is not bounded.

    Args:
        having: merged clients that have the tensor.
    """
    voters = sum(k in tensor.own for k in judged.heads.members)
    was_judged = tensor.name in judged.heads.names and voters >= LEAST_MEMBERS
    if tensor.equal or was_judged or judged.outcome != "judged":
        return having
    return tuple(k for k in having if k in judged.round.trusted_indices)


def _written_dtype(dtypes: Set[str]) -> str:
    """The clients' own, if they have one that is written; else float32."""
    own = next(iter(dtypes))
    return own if len(dtypes) == 1 and own != "float64" else "float32"


def merged_heads(
    judged: JudgedRound,
    heads: Sequence[tuple[MergedHead, float]],
    factors: RoundFactors,
    engine: Engine,
) -> Iterator[Tensor]:
    """Dense tensors as they are written, on the CPU, one by one. Large ones are made one after the
    other, small ones some at once.

    Args:
        heads: each with what a loader will multiply the bias of a `lora_B` with.
        factors: of the judged round.

    Raises:
        ClientLost: a tensor changed since it was judged.
        OutputError: it does not fit the dtype.
    """
    found, members = judged.heads, judged.heads.members
    items = [
        (head, SlicedHead(head.tensor, found.previous.get(head.tensor.name), members), scaling)
        for head, scaling in heads
    ]
    while items:
        size, count = 0, 0
        for head, _, _ in items:
            size += _BYTES * math.prod(head.tensor.shape)
            if count and size > _AT_ONCE:
                break
            count += 1
        yield from engine.map("heads", merge_head, items[:count], factors, on_device=False)
        items = items[count:]


def merge_head(factors: RoundFactors, item: tuple[MergedHead, SlicedHead, float]) -> Tensor:
    """One dense tensor; see `merged_heads`."""
    merged, sliced, scaling = item
    tensor, dtype = merged.tensor, getattr(torch, merged.dtype)
    result = torch.empty(math.prod(tensor.shape), dtype=dtype)
    clients = merged.clients[:1] if tensor.equal and not tensor.module else merged.clients
    weights = (1.0,) if clients != merged.clients else merged.weights
    by, done = scaling if tensor.module else 1.0, 0
    for values, reference in slices(factors.round, sliced, clients, bounded=merged.bounded):
        piece = bounded_mean(values, weights, merged.factors[: len(clients)], reference) / by
        result[done : done + len(piece)] = piece.to(dtype)
        done += len(piece)
    if not bool(torch.isfinite(result).all()):
        raise OutputError(
            f"{tensor.name!r} does not fit {merged.dtype}", hint="choose a wider --dtype"
        )
    return result.reshape(tensor.shape)
