"""Levels of groups of pairs, summed at once or one by one."""

from __future__ import annotations

import numpy as np
import torch

from clair_cli.maths.evidence.pair_levels import PairLevels


def levels(n: int = 50) -> PairLevels:
    g = torch.Generator().manual_seed(0)
    table = torch.rand(5, n, n, generator=g, dtype=torch.float64)
    table = table + table.mT
    table[2, 7] = table[2, :, 7] = torch.nan  # a client without a module
    table[4, :, 30:] = table[4, 30:, :] = torch.nan
    return PairLevels(table)


def test_a_large_group_without_one_of_its_clients() -> None:
    """From sums over the whole group, as if each pair had been looked at."""
    found, direct = levels(), levels()
    for group in (tuple(range(40)), tuple(range(3, 50)), tuple(range(45))):
        for client in (0, 7, 20, 44, 49):
            others = [k for k in group if k != client]
            np.testing.assert_allclose(
                found.within_others(group, client), direct.within(others), rtol=1e-12
            )


def test_a_small_group_without_one_of_its_clients() -> None:
    found = levels()
    np.testing.assert_array_equal(found.within_others((1, 2, 3, 4), 3), found.within((1, 2, 4)))
    np.testing.assert_array_equal(found.within_others((1, 2, 3, 4), 9), found.within((1, 2, 3, 4)))


def test_more_groups_than_are_kept() -> None:
    found, direct = levels(), levels()
    for start in (*range(10), *range(10)):
        group = tuple(range(start, start + 36))
        expected = direct.within([k for k in group if k != 12])
        np.testing.assert_allclose(found.within_others(group, 12), expected, rtol=1e-12)
