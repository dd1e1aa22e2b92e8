"""The user's own adapter, the last of those compared, taken out of what was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.own_sizes import OwnSizes
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.judge.groups import Group
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.structure import Structure
from clair_cli.workflow.compare import Comparison


def first_clients(found: Comparison, n: int) -> Comparison:
    """The comparison of the first `n` clients."""
    return Comparison(found.modules, _evidence(found.evidence, n), _sizes(found.sizes, n))


def first_judged(judgement: Judgement, n: int) -> Judgement:
    """The judgement of the first `n` clients, which the others had a part in."""
    result, scores = judgement.collaborative, judgement.scores
    if result is not None:
        clients, kept = _below(result.clients, n), _below(result.kept, n)
        result = replace(result, clients=clients, kept=kept, captured=result.captured[:n])
    minorities = (replace(m, members=_below(m.members, n)) for m in judgement.minorities)
    return replace(
        judgement,
        structure=_structure(judgement.structure, n),
        collaborative=result,
        members=_below(judgement.members, n),
        scores=None if scores is None else scores[:n],
        verdicts=judgement.verdicts[:n],
        minorities=tuple(m for m in minorities if m.members),
    )


def _below(clients: Iterable[int], n: int) -> tuple[int, ...]:
    return tuple(k for k in clients if k < n)


def _structure(structure: Structure, n: int) -> Structure:
    return replace(
        structure,
        duplicates={k: first for k, first in structure.duplicates.items() if k < n},
        empty=_below(structure.empty, n),
        copies={k: first for k, first in structure.copies.items() if k < n},
        distinct=_below(structure.distinct, n),
        groups=tuple(_group(g, n) for g in structure.groups),
    )


def _group(group: Group, n: int) -> Group:
    minorities = (replace(m, members=_below(m.members, n)) for m in group.minorities)
    return replace(
        group,
        members=_below(group.members, n),
        minorities=tuple(m for m in minorities if m.members),
    )


def _evidence(evidence: Evidence, n: int) -> Evidence:
    def pairs(table: PairTable) -> PairTable:
        return PairTable(table.value[:, :n, :n], table.null[:, :n, :n])

    beside = evidence.beside
    return Evidence(
        evidence.norms[:, :n],
        pairs(evidence.matrix), pairs(evidence.output), pairs(evidence.input),
        evidence.effective_ranks[:, :n], beside and beside.of(torch.arange(n)), evidence.allocate,
    )  # fmt: skip


def _sizes(sizes: OwnSizes, n: int) -> OwnSizes:
    return replace(sizes, norms=sizes.norms[:, :n], components=sizes.components[:, :n])
