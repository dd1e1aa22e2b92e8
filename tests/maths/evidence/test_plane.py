"""The map of the clients: its inner products, its origin, its signs."""

from __future__ import annotations

import torch

from clair_cli.maths.evidence.plane import plane, spectrum


def similarities(points: list[list[float]]) -> torch.Tensor:
    given = torch.tensor(points, dtype=torch.float64)
    return given @ given.T


def test_inner_products_are_the_similarities_of_two_kinds_of_clients() -> None:
    given = [[0.5, 0.0]] * 6 + [[0.0, 0.4]] * 4 + [[0.0, 0.0]]
    found = plane(similarities(given))
    torch.testing.assert_close(found, torch.tensor(given).double(), atol=2e-6, rtol=0)


def test_who_shares_nothing_lies_at_the_origin_and_an_opposite_client_opposite() -> None:
    found = plane(similarities([[0.5], [0.5], [0.5], [0.5], [0.0], [-0.5]]))
    assert found[4].abs().max() < 1e-6
    torch.testing.assert_close(found[5], -found[0], atol=2e-6, rtol=0)


def test_signs_and_order_follow_the_clients_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    table = table + table.T
    found, order = plane(table), torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(plane(table[order][:, order]), found[order])
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()


def test_of_two_largest_entries_the_first_is_positive() -> None:
    found = plane(similarities([[1.0, 0.5], [1.0, 0.5], [1.0, -0.5], [1.0, -0.5]]))
    assert found[0, 0] > 0
    assert found[0, 1] > 0


def test_unknown_pairs_and_the_diagonal_do_not_count() -> None:
    table = similarities([[0.5], [0.5], [0.5], [0.5]])
    same = table.clone().fill_diagonal_(float("nan"))
    assert plane(same).equal(plane(table))
    assert plane(torch.full((3, 3), float("nan"))).equal(torch.zeros(3, 2).double())
    assert plane(torch.ones(1, 1)).equal(torch.zeros(1, 2).double())


def test_each_thing_shared_is_one_value_above_one() -> None:
    found = spectrum(similarities([[0.5, 0.0]] * 6 + [[0.0, 0.4]] * 4 + [[0.0, 0.0]]))
    wanted = [0.75 + 6 * 0.25, 0.84 + 4 * 0.16, 1.0, *[0.84] * 3, *[0.75] * 5]
    torch.testing.assert_close(found, torch.tensor(wanted).double(), atol=2e-6, rtol=0)


def test_of_clients_that_share_nothing_all_values_are_one() -> None:
    assert spectrum(torch.full((4, 4), float("nan"))).equal(torch.ones(4).double())
    assert spectrum(torch.zeros(0, 0)).shape == (0,)
