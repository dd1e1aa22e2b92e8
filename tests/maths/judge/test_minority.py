"""Minorities behind a direction that all clients take."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence, collected, gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors
from clair_cli.maths.judge import minority
from clair_cli.maths.judge.minority import Minority, find_minority
from clair_cli.maths.judge.pairs import pairs_of
from clair_cli.maths.judge.signature import signatures_of
from clair_cli.maths.judge.thresholds import MINORITY_P

WIDTH, RANK, MODULES = 60, 4, 6


def evidence(
    own: dict[int, tuple[int, float]], n: int, *, seed: int = 0, noise: float = 0.4
) -> Evidence:
    """Clients with one generic direction, noise, and some with a direction of a group.

    Args:
        own: client to (group, size of the group's direction); the generic one has size 1.
        noise: of the clients of a group, over that of the others, in every other module: with less
            they use fewer directions, and have other sizes.
    """
    g = torch.Generator().manual_seed(seed)

    def direction() -> Tensor:
        return torch.randn(WIDTH, generator=g, dtype=torch.float64)

    parts = []
    for module in range(MODULES):
        generic = direction(), direction()
        groups = {i: (direction(), direction()) for i in sorted({i for i, _ in own.values()})}
        clients = []
        for k in range(n):
            group, size = own.get(k, (-1, 0.0))
            extra = groups.get(group, generic)
            rows = torch.randn(RANK, WIDTH, generator=g, dtype=torch.float64)
            mixed = torch.randn(WIDTH, RANK, generator=g, dtype=torch.float64)
            mixed = mixed * (noise if group >= 0 and module % 2 else 1.0)
            A = torch.cat([generic[1][None], extra[1][None], rows])
            B = torch.cat([generic[0][:, None], size * extra[0][:, None], mixed], dim=1)
            clients.append((A, B, 1.0))
        parts.append(gather(grams(stack_factors([clients], (WIDTH, WIDTH)))))
    return collected((([m], part) for m, part in enumerate(parts)), MODULES)


def find_minorities(found: Evidence, clients: Sequence[int]) -> tuple[Minority, ...]:
    """All of them, one after the other."""
    left, every = list(clients), list[Minority]()
    pairs, signatures = pairs_of(found), signatures_of(found)
    while (one := find_minority(pairs, signatures, left)) is not None:
        every.append(one)
        left = [k for k in left if k not in one.members]
    return tuple(every)


def members(found: Evidence, n: int) -> list[tuple[int, ...]]:
    return [one.members for one in find_minorities(found, range(n))]


@pytest.mark.parametrize("group", [(10, 11), (2, 5, 8), (0, 1, 2, 3)])
def test_clients_with_a_direction_of_their_own(group: tuple[int, ...]) -> None:
    found = evidence(dict.fromkeys(group, (0, 1.0)), 12)
    assert members(found, 12) == [group]


def test_one_client_of_another_rank_hides_no_minority() -> None:
    """These two need their signatures to be found, which are compared within a rank."""
    found = evidence(dict.fromkeys((10, 11), (0, 1.0)), 12)
    ranks = [RANK] * 12
    for other, expected in ((0, (10, 11)), (11, None)):
        mixed = signatures_of(found, [r + (k == other) for k, r in enumerate(ranks)])
        one = find_minority(pairs_of(found), mixed, range(12))
        assert (one and one.members) == expected


@pytest.mark.parametrize(("group", "is_one"), [((10, 11), False), ((2, 5, 8), True)])
def test_two_need_signatures_of_their_own(group: tuple[int, ...], is_one: bool) -> None:
    """One of two can bring about by itself what they share, and is no more unlike the others."""
    found = evidence(dict.fromkeys(group, (0, 0.6)), 12, noise=0.97)
    assert members(found, 12) == [group] * is_one


def test_a_signature_of_ones_own_is_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence(dict.fromkeys((10, 11), (0, 1.0)), 12)
    outside = torch.arange(12) < 10
    largest = max(signatures_of(found).alone(k, outside) for k in (10, 11))
    for bar, is_one in ((largest * 0.99, False), (largest * 1.01, True)):
        monkeypatch.setattr(minority, "ERROR_RATE", bar)
        assert members(found, 12) == [(10, 11)] * is_one


def test_a_set_shows_without_any_one_member(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence(dict.fromkeys((2, 5, 8), (0, 1.0)), 12)
    for bar, is_one in ((1e-60, False), (1e-3, True)):
        monkeypatch.setattr(minority, "LEFT_P", bar)
        assert members(found, 12) == [(2, 5, 8)] * is_one


def test_two_minorities_the_clearer_first() -> None:
    own = {**dict.fromkeys((0, 1, 2), (0, 0.8)), **dict.fromkeys((6, 7, 8), (1, 1.2))}
    assert members(evidence(own, 14, noise=0.7), 14) == [(6, 7, 8), (0, 1, 2)]


@pytest.mark.parametrize("seed", range(12))
def test_clients_of_one_kind_have_none(seed: int) -> None:
    """However many they are."""
    n = 6 + seed % 6
    assert members(evidence({}, n, seed=seed), n) == []


@pytest.mark.parametrize("seed", range(4))
def test_more_and_less_of_one_thing_is_no_minority(seed: int) -> None:
    """Clients on a line between two kinds of data."""
    own = {k: (0, 0.15 * k) for k in range(10)}
    assert members(evidence(own, 10, seed=seed), 10) == []


@pytest.mark.parametrize(("n", "found"), [(5, []), (6, [(4, 5)])])
def test_it_takes_four_others(n: int, found: list[tuple[int, ...]]) -> None:
    own = dict.fromkeys((n - 2, n - 1), (0, 2.0))
    assert members(evidence(own, n), n) == found


def test_the_bar_is_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    table = evidence(dict.fromkeys((8, 9), (0, 0.7)), 10)
    (one,) = find_minorities(table, range(10))
    assert one.p < MINORITY_P
    for bar, count in ((one.p * 0.99, 0), (one.p * 1.01, 1)):
        monkeypatch.setattr(minority, "MINORITY_P", bar)
        assert len(find_minorities(table, range(10))) == count


def test_only_the_clients_asked_for_are_compared() -> None:
    table = evidence(dict.fromkeys((0, 1), (0, 1.0)), 12)
    assert find_minorities(table, range(1, 12)) == ()
    assert [m.members for m in find_minorities(table, range(10))] == [(0, 1)]


def test_modules_that_a_client_lacks_count_as_nothing() -> None:
    table = evidence(dict.fromkeys((10, 11), (0, 1.0)), 12)
    for values in (table.matrix.value, table.output.value, table.input.value):
        values[0, 3], values[0, :, 3] = torch.nan, torch.nan
        values[1], table.effective_ranks[1] = torch.nan, torch.nan
    assert members(table, 12) == [(10, 11)]
    assert find_minorities(table, range(3)) == ()


@pytest.mark.parametrize("n_modules", [6, 28, 112])
@pytest.mark.parametrize("seed", range(3))
def test_a_generic_direction_makes_nobody_alike_beyond_it(n_modules: int, seed: int) -> None:
    """Unrelated clients with 2 % of their energy in a direction that all take: their pairs stand
    far above chance, the more the more modules there are, and no set of them stands out."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(n_modules):
        left, right = (torch.randn(64, 1, generator=g, dtype=torch.float64) for _ in "ab")
        clients = []
        for _ in range(8):
            A = torch.randn(4, 64, generator=g, dtype=torch.float64)
            B = torch.randn(64, 4, generator=g, dtype=torch.float64)
            size = (0.02 / 0.98) ** 0.5 * float(torch.linalg.matrix_norm(B @ A)) / 64
            clients.append((torch.cat([A, right.T]), torch.cat([B, size * left], dim=1), 1.0))
        parts.append(gather(grams(stack_factors([clients], (64, 64)))))
    found = collected((([m], part) for m, part in enumerate(parts)), n_modules)
    pairs = pairs_of(found)
    others = ~torch.eye(8, dtype=torch.bool)
    stands = pairs.value[others].mean() / pairs.chance[others].mean().sqrt()
    assert float(stands) > 0.5 * (n_modules / 6) ** 0.5
    assert find_minorities(found, range(8)) == ()
