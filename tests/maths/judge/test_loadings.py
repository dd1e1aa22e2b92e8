"""Gaps in the loadings, near copies and inner groups, on hand-made tables of similarities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.judge.loadings import inner_group, loadings, near_copies, stand_apart, trimmed
from clair_cli.maths.judge.thresholds import INNER_RATIO, MIN_INNER
from tests.work import at_most

Matrix = NDArray[np.float64]


def pairs(table: Matrix, n_modules: int = 4) -> PairLevels:
    """The same table (n, n) in every module."""
    return PairLevels(torch.from_numpy(np.repeat(table[None], n_modules, 0)))


def one_thing(holds: Sequence[float]) -> Matrix:
    """Clients that hold different amounts of one thing: similarity is the product."""
    table = np.outer(holds, holds)
    np.fill_diagonal(table, 1.0)
    return table


def blocks(sizes: Sequence[int], inside: Sequence[float], mixed: float) -> Matrix:
    """Blocks of equal similarity."""
    table = np.full((sum(sizes), sum(sizes)), mixed)
    start = 0
    for size, level in zip(sizes, inside, strict=True):
        table[start : start + size, start : start + size] = level
        start += size
    np.fill_diagonal(table, 1.0)
    return table


def noisy(table: Matrix, noise: float, seed: int) -> Matrix:
    """The table with symmetric noise off the diagonal."""
    error = np.tril(np.random.default_rng(seed).normal(0, noise, table.shape), -1)
    return np.asarray(table + error + error.T)


def split(found: dict[int, int], clients: Sequence[int]) -> set[frozenset[int]]:
    """Near copies as a partition of the clients."""
    return {
        frozenset(k for k in clients if found.get(k, k) == first)
        for first in {found.get(k, k) for k in clients}
    }


@st.composite
def tables(draw: st.DrawFn) -> tuple[Matrix, list[int]]:
    """A random table with some structure and a random order of its clients."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(3, 14))
    table = one_thing(rng.uniform(0.2, 1.0, n) ** draw(st.sampled_from([0.2, 1.0, 2.0])))
    part = draw(st.integers(0, n // 2))
    table[:part, :part] += draw(st.sampled_from([0.0, 0.2, 0.5]))
    table[part:, :part] *= draw(st.sampled_from([1.0, 0.5, 0.2]))
    table = np.tril(noisy(table, draw(st.sampled_from([0.01, 0.05, 0.2])), n), -1)
    table = np.clip(table + table.T, -1.0, 1.0)
    return table, rng.permutation(n).tolist()


# Loadings


def test_loadings_by_hand() -> None:
    table = one_thing([1.0, 0.8, 0.6, 0.5])
    np.fill_diagonal(table, 0.0)
    members = np.array([True, True, True, False])
    # similarities: 01 .8, 02 .6, 12 .48; client 3: .5 .4 .3
    expected = [0.7 / 0.48, 0.64 / 0.6, 0.54 / 0.8, 0.4 / (1.88 / 3)]
    np.testing.assert_allclose(loadings(table, members), expected)


def test_loadings_without_a_positive_level_are_nan() -> None:
    table = np.zeros((4, 4))
    assert np.isnan(loadings(table, np.array([True, True, True, False]))).all()
    table[0, 1] = table[1, 0] = -0.1
    assert np.isnan(loadings(table, np.ones(4, dtype=bool))).all()


# Trimmed


@pytest.mark.parametrize("n_low", [1, 2, 4])
def test_clients_below_a_gap_are_cut(n_low: int) -> None:
    holds = np.array([0.62, 0.6, 0.58, 0.55, 0.57, 0.61, *[0.3] * n_low])
    levels = pairs(noisy(one_thing(holds), 0.01, 0))
    assert trimmed(levels, range(len(holds))) == tuple(range(6))


def test_without_a_gap_nobody_is_cut() -> None:
    even = np.linspace(0.35, 0.75, 9)
    assert trimmed(pairs(one_thing(even)), range(9)) == tuple(range(9))


def test_a_gap_no_wider_than_the_spread_above_is_none() -> None:
    """0.45 below 0.7, but those above reach from 0.7 to 1.3."""
    holds = [1.3, 1.1, 0.9, 0.8, 0.7, 0.45]
    assert trimmed(pairs(one_thing(holds)), range(6)) == tuple(range(6))
    tight = [0.72, 0.7, 0.71, 0.73, 0.7, 0.45]
    assert trimmed(pairs(one_thing(tight)), range(6)) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("n", [12, 16, 24])
def test_at_least_half_stay_however_often_it_is_cut(n: int) -> None:
    """Three steps: a gap in what is left must not be the reason to go below half."""
    holds = [1.0] * (n // 4) + [0.64] * (n // 4) + [0.1] * (n // 2)
    assert trimmed(pairs(0.5 * one_thing(holds)), range(n)) == tuple(range(n // 2))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_three_clients_stay(n: int) -> None:
    holds = [0.6, 0.61, 0.62, 0.05, 0.05][:n]
    assert trimmed(pairs(one_thing(holds)), range(n)) == (0, 1, 2)


def test_pairs_that_never_met_cut_nobody() -> None:
    """Half of the clients train other modules than the other half; three train all."""
    table = blocks([3, 6, 3], [0.4] * 3, 0.4)
    table[3:9, 9:] = table[9:, 3:9] = np.nan
    assert trimmed(pairs(table), range(12)) == tuple(range(12))
    assert inner_group(pairs(table), range(12)) == ()


@pytest.mark.parametrize("level", [0.0, -0.1])
def test_where_nothing_is_shared_nobody_is_singled_out(level: float) -> None:
    levels = pairs(blocks([8], [level], level))
    assert trimmed(levels, range(8)) == tuple(range(8))
    assert inner_group(levels, range(8)) == ()
    assert near_copies(levels, range(8)) == {}


# Near copies


def test_copies_are_those_that_products_do_not_explain() -> None:
    table = one_thing([0.5] * 8)
    table[5:, 5:] = 0.9
    np.fill_diagonal(table, 1.0)
    assert near_copies(pairs(table), range(8)) == {6: 5, 7: 5}
    assert near_copies(pairs(table), [7, *range(7)]) == {5: 7, 6: 7}


def test_clients_with_much_of_one_thing_are_no_copies() -> None:
    """0.9 between two of them is what 0.95 x 0.95 gives."""
    assert near_copies(pairs(one_thing([0.95] * 3 + [0.5] * 6)), range(9)) == {}
    assert near_copies(pairs(one_thing([0.97] * 7)), range(7)) == {}


def test_the_bar_is_a_share_of_the_distance() -> None:
    """Expected 0.25, distance 0.75: copies from a similarity of 0.7 on."""
    for similarity, found in ((0.71, {6: 5}), (0.69, {})):
        table = one_thing([0.5] * 7)
        table[5, 6] = table[6, 5] = similarity
        assert near_copies(pairs(table), range(7)) == found


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]])
def test_a_chain_of_copies_is_one_voice_in_any_order(order: list[int]) -> None:
    """0 is like 1 and 1 like 2, but 0 is not quite like 2."""
    table = blocks([7], [0.2], 0.2)
    table[0, 1] = table[1, 0] = table[1, 2] = table[2, 1] = 0.75
    table[0, 2] = table[2, 0] = 0.5
    found = near_copies(pairs(table), [*order, 3, 4, 5, 6])
    assert found == {order[1]: order[0], order[2]: order[0]}


@pytest.mark.parametrize("n", [3, 4])
def test_among_few_clients_there_are_no_copies(n: int) -> None:
    table = one_thing([0.3] * n)
    table[0, 1] = table[1, 0] = 0.99
    assert near_copies(pairs(table), range(n)) == {}
    assert near_copies(pairs(blocks([5], [0.0], 0.0)), range(5)) == {}


def test_clients_of_other_modules_are_no_copies_of_each_other() -> None:
    """Four clients share no module with the other five: unknown is not unlike."""
    table = blocks([5, 4], [0.7, 0.7], np.nan)
    assert near_copies(pairs(table), range(9)) == {}


def test_opposites_are_no_copies() -> None:
    table = one_thing([0.5] * 6 + [-0.5])
    assert near_copies(pairs(table), range(7)) == {}
    table[0, 6] = table[6, 0] = -0.99
    assert near_copies(pairs(table), range(7)) == {}


# Inner groups


@pytest.mark.parametrize("n_inner", [3, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_a_minority_with_something_besides_is_found(n_inner: int, seed: int) -> None:
    """As backdoors measured: 0.4 inside both, 0.2 between."""
    table = noisy(blocks([9, n_inner], [0.38, 0.4], 0.2), 0.02, seed)
    assert inner_group(pairs(table), range(9 + n_inner)) == tuple(range(9, 9 + n_inner))


def test_of_two_halves_the_tighter_one_is_inner() -> None:
    for first, second, inner in ((0.35, 0.4, (4, 5, 6, 7)), (0.4, 0.35, (0, 1, 2, 3))):
        assert inner_group(pairs(blocks([4, 4], [first, second], 0.1)), range(8)) == inner


def test_a_mixed_client_is_not_enough_for_an_inner_group() -> None:
    """Every member must prefer the inner group: one who does not undoes it."""
    table = blocks([8, 4], [0.3, 0.5], 0.16)
    assert inner_group(pairs(table), range(12)) == (8, 9, 10, 11)
    torn = table.copy()
    torn[0, 8:] = torn[8:, 0] = 0.34  # a client of the rest who likes them better
    assert 0 not in inner_group(pairs(torn), range(12))
    assert not stand_apart(pairs(torn), [8, 9, 10, 11], range(8))
    assert stand_apart(pairs(table), [8, 9, 10, 11], range(8))
    assert not stand_apart(pairs(table), [8], range(8))


def test_more_of_the_same_is_no_inner_group() -> None:
    assert inner_group(pairs(one_thing([0.9] * 4 + [0.4] * 8)), range(12)) == ()
    assert inner_group(pairs(blocks([12], [0.3], 0.3)), range(12)) == ()


@pytest.mark.parametrize(("inner", "rest", "between", "found"), [
    (0.33, 0.29, 0.185, True),
    (0.33, 0.29, 0.2, False),  # 0.65 of the geometric mean of both levels
    (0.29, 0.4, 0.185, False),  # members prefer their own by 1.57 only
    (0.5, 0.18, 0.185, False),  # the rest does not prefer its own
    (0.5, 0.25, 0.185, False),  # 0.74 of the rest's level: they are one group
    (0.5, 0.27, 0.185, True),
])  # fmt: skip
def test_the_bars_of_an_inner_group(inner: float, rest: float, between: float, found: bool) -> None:
    assert (between / (inner * rest) ** 0.5 <= INNER_RATIO) == (between < 0.2)
    levels = pairs(blocks([8, 4], [rest, inner], between))
    assert inner_group(levels, range(12)) == ((8, 9, 10, 11) if found else ())


@pytest.mark.parametrize("n", [3, 4, 5])
def test_fewer_than_two_inner_groups_hold_none(n: int) -> None:
    assert n < 2 * MIN_INNER
    assert inner_group(pairs(blocks([n - 2, 2], [0.3, 0.9], 0.0)), range(n)) == ()


# In whatever order and scale


@settings(max_examples=120, deadline=None)
@given(tables())
def test_the_order_of_clients_does_not_matter(drawn: tuple[Matrix, list[int]]) -> None:
    table, order = drawn
    levels, clients = pairs(table), range(len(table))
    assert set(trimmed(levels, order)) == set(trimmed(levels, clients))
    assert set(inner_group(levels, order)) == set(inner_group(levels, clients))
    assert split(near_copies(levels, order), order) == split(near_copies(levels, clients), order)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_the_numbering_of_clients_does_not_matter(drawn: tuple[Matrix, list[int]]) -> None:
    table, order = drawn
    levels, moved = pairs(table), pairs(table[np.ix_(order, order)])
    clients = range(len(table))
    assert {order[k] for k in trimmed(moved, clients)} == set(trimmed(levels, clients))
    assert {order[k] for k in inner_group(moved, clients)} == set(inner_group(levels, clients))
    copies = {order[k]: order[j] for k, j in near_copies(moved, clients).items()}
    assert split(copies, clients) == split(near_copies(levels, clients), clients)


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from([2.0**-20, 0.5, 4.0, 3.0]))
def test_a_common_factor_of_the_similarities_does_not_matter(
    drawn: tuple[Matrix, list[int]], factor: float
) -> None:
    table, clients = drawn
    levels, scaled = pairs(table), pairs(factor * table)
    assert trimmed(scaled, clients) == trimmed(levels, clients)
    assert inner_group(scaled, clients) == inner_group(levels, clients)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_what_is_found_keeps_its_promises(drawn: tuple[Matrix, list[int]]) -> None:
    table, clients = drawn
    levels, n = pairs(table), len(table)
    kept = trimmed(levels, clients)
    assert set(kept) <= set(clients)
    assert len(kept) >= max(min(3, n), (n + 1) // 2)
    inner = inner_group(levels, clients)
    assert not inner or MIN_INNER <= len(inner) <= n // 2
    copies = near_copies(levels, clients)
    assert not set(copies) & set(copies.values())  # a first is nobody's copy
    assert all(clients.index(first) < clients.index(k) for k, first in copies.items())


def test_256_clients_are_little_work() -> None:
    """One move of one client at a time in plain loops takes too long here."""
    table = noisy(blocks([256], [0.3], 0.3), 0.2, 0)
    near_copies(pairs(table), range(256))  # nothing is left to be imported
    with at_most(50_000):
        inner_group(pairs(table), range(256))
        trimmed(pairs(table), range(256))
        near_copies(pairs(table), range(256))
