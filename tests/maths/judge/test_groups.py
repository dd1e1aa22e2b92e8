"""From planted pairwise tables to groups and alignments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from clair_cli.maths.evidence.pair_levels import PairLevels, excess_table, over_modules
from clair_cli.maths.judge.groups import alignment, coherent, coherent_groups


def table(
    blocks: Sequence[Sequence[int]],
    inside: Sequence[float],
    mixed: float = 0.0,
    *,
    n_modules: int = 8,
    noise: float = 0.02,
    seed: int = 0,
) -> PairLevels:
    """Levels of clients in blocks, with independent noise per module and pair."""
    rng = np.random.default_rng(seed)
    n = sum(len(b) for b in blocks)
    mean = np.full((n, n), mixed)
    for block, level in zip(blocks, inside, strict=True):
        mean[np.ix_(block, block)] = level
    error = rng.normal(0, noise, (n_modules, n, n))
    upper = np.triu(mean + error, 1)
    return PairLevels(torch.from_numpy(upper + upper.transpose(0, 2, 1) + np.eye(n)))


def test_levels_are_plain_means_over_pairs_and_modules() -> None:
    levels = table([[0, 1, 2], [3, 4]], [0.4, 0.2], noise=0.1, n_modules=5)
    values = levels._table
    between = values[:, :3, 3:].mean((1, 2))
    np.testing.assert_allclose(levels.between([0, 1, 2], [3, 4]), between)
    inside = (values[:, 0, 1] + values[:, 0, 2] + values[:, 1, 2]) / 3
    np.testing.assert_allclose(levels.within([0, 1, 2]), inside)
    level = levels.level([0, 1, 2])
    assert level.mean == pytest.approx(inside.mean())
    assert level.se == pytest.approx(inside.std(ddof=1) / 5**0.5)
    assert level.high - level.mean == pytest.approx(2 * level.se)
    assert level.mean - level.low == pytest.approx(2 * level.se)


def test_alignment_leaves_the_client_out() -> None:
    levels = table([[0, 1, 2, 3], [4]], [0.4, 0.0], noise=0.05)
    values = levels._table
    others = (values[:, 1, 2] + values[:, 1, 3] + values[:, 2, 3]) / 3
    own = values[:, 0, 1:4].mean(1)
    got = alignment(levels, 0, [0, 1, 2, 3])
    assert got.similarity == pytest.approx(own.mean())
    assert got.ratio == pytest.approx(own.mean() / others.mean())
    paired = own - got.ratio * others
    assert got.se == pytest.approx(paired.std(ddof=1) / 8**0.5 / others.mean())
    assert abs(alignment(levels, 4, [0, 1, 2, 3]).ratio) < 0.2


def test_missing_modules_are_left_out_of_the_means() -> None:
    value = torch.full((3, 2, 2), 0.5, dtype=torch.float64)
    value[0] = torch.nan
    value[1, 0, 1] = value[1, 1, 0] = 0.7
    levels = PairLevels(excess_table([value], [torch.zeros_like(value)]))
    level = levels.level([0, 1])
    assert level.mean == pytest.approx(0.6)
    assert level.se == pytest.approx(0.1)
    assert math.isnan(over_modules(np.array([np.nan])).mean)


def test_excess_is_zero_at_the_null_and_one_at_one() -> None:
    value = torch.tensor([[[1.0, 0.3], [0.3, 1.0]]], dtype=torch.float64)
    null = torch.full_like(value, 0.3)
    excess = excess_table([value], [null])
    assert excess[0, 0, 1] == 0.0
    assert excess[0, 0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("n_modules", [1, 6])
@pytest.mark.parametrize("seed", range(4))
def test_one_block_is_one_group(n_modules: int, seed: int) -> None:
    levels = table([range(9)], [0.2], n_modules=n_modules, seed=seed)
    assert coherent_groups(levels, range(9)) == [tuple(range(9))]


@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_found_whatever_their_sizes(seed: int) -> None:
    blocks = [[0, 3, 5, 7, 9], [1, 2, 4], [6], [8]]
    groups = coherent_groups(table(blocks, [0.3, 0.25, 0, 0], seed=seed), range(10))
    assert groups[:2] == [(0, 3, 5, 7, 9), (1, 2, 4)]
    assert {k for g in groups[2:] for k in g} == {6, 8}


def test_blocks_that_share_a_part_are_apart_by_what_they_do_not_share() -> None:
    """A backdoor: 0.38 inside, 0.36 among the bad, 0.22 between (measured on adapters)."""
    levels = table([range(6), range(6, 10)], [0.38, 0.36], mixed=0.22)
    assert coherent_groups(levels, range(10)) == [tuple(range(6)), (6, 7, 8, 9)]
    assert not coherent(levels, [0, 1, 2], [6, 7, 8])
    assert coherent(levels, [0, 1, 2], [3, 4, 5])


def test_a_weak_client_belongs_and_an_unrelated_one_does_not() -> None:
    levels = table([range(6), [6], [7]], [0.3, 0.0, 0.0], mixed=0.0, noise=0.01)
    weak = levels._table.copy()
    weak[:, 6, :6] = weak[:, :6, 6] = 0.2
    weak[:, np.arange(8), np.arange(8)] = 1.0
    groups = coherent_groups(PairLevels(torch.from_numpy(weak)), range(8))
    assert groups[0] == (0, 1, 2, 3, 4, 5, 6)
    assert groups[1:] == [(7,)]


def test_groups_do_not_depend_on_the_order_of_clients() -> None:
    levels = table([range(6), range(6, 10)], [0.38, 0.36], mixed=0.22)
    order = [7, 2, 9, 0, 4, 1, 8, 6, 3, 5]
    assert coherent_groups(levels, order) == coherent_groups(levels, range(10))


def test_no_clients_make_no_group() -> None:
    levels = table([range(3)], [0.3])
    assert coherent_groups(levels, []) == []
    assert coherent_groups(levels, [2]) == [(2,)]
