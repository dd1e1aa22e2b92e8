"""Tables that are worked on in blocks of clients give the numbers of whole ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.maths.evidence import tables
from clair_cli.maths.evidence.gather import Evidence, collected
from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.evidence.similarity import PairTable, mean_similarity
from clair_cli.maths.judge.collaborate import joint_columns
from clair_cli.maths.judge.pairs import pairs_of
from clair_cli.maths.judge.structure import joint_cosine

MODULES, CLIENTS = 37, 23


@pytest.fixture
def evidence() -> Evidence:
    """Random numbers; some clients lack some modules."""
    g = torch.Generator().manual_seed(5)
    missing = torch.rand(MODULES, CLIENTS, generator=g) < 0.1

    def table() -> torch.Tensor:
        value = torch.rand(MODULES, CLIENTS, CLIENTS, generator=g, dtype=torch.float64)
        value = (value + value.mT) / 2
        value[missing[:, :, None] | missing[:, None, :]] = torch.nan
        return value

    norms = torch.rand(MODULES, CLIENTS, generator=g, dtype=torch.float64)
    pairs = [PairTable(table(), 0.1 * table()) for _ in range(3)]
    return Evidence(norms.masked_fill(missing, 0.0), *pairs, 1.0 + norms)


def levels(evidence: Evidence) -> list[Any]:
    found = PairLevels(evidence.matrix)
    return [found.mean, found.between([0, 3], range(CLIENTS)), found.without_lowest(2, range(9))]


@pytest.mark.parametrize(
    "work",
    [
        levels,
        lambda e: [joint_cosine(e)],
        lambda e: [joint_columns(e.matrix.value)],
        lambda e: vars(pairs_of(e)).values(),
        lambda e: vars(pairs_of(e, "output")).values(),
        lambda e: list(vars(mean_similarity("input", e.input)).values())[1:],
    ],
)
def test_blocks_change_nothing_but_rounding(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch, work: Callable[[Evidence], Any]
) -> None:
    whole = [np.asarray(x) for x in work(evidence)]
    for most in (1, 5 * MODULES * CLIENTS, 22 * MODULES * CLIENTS):
        monkeypatch.setattr(tables, "_MOST_NUMBERS", most)
        for found, expected in zip(work(evidence), whole, strict=True):
            np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-13)


def test_a_block_is_as_large_as_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MOST_NUMBERS", 3 * 4 * 10)
    assert list(tables.blocks((4, 10, 10))) == [
        slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)
    ]  # fmt: skip
    assert list(tables.blocks((4, 0, 0))) == []


def test_batches_are_put_where_they_belong(evidence: Evidence) -> None:
    def part(rows: list[int]) -> Evidence:
        def of(table: PairTable) -> PairTable:
            return PairTable(table.value[rows], table.null[rows])

        pairs = (of(evidence.table(s)) for s in ("matrix", "output", "input"))
        return Evidence(evidence.norms[rows], *pairs, evidence.effective_ranks[rows])

    batches = [[5, 2], [0], [1, 3, 4], list(range(6, MODULES))]
    found = collected(((rows, part(rows)) for rows in batches), MODULES)
    for stacking in ("matrix", "output", "input"):
        for name, tensor in vars(evidence.table(stacking)).items():
            assert torch.equal(
                getattr(found.table(stacking), name).nan_to_num(-1.0), tensor.nan_to_num(-1.0)
            )
    assert torch.equal(found.norms, evidence.norms)
    assert torch.equal(found.effective_ranks, evidence.effective_ranks)
