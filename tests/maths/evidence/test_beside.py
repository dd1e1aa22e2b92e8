"""What pairs share beside the leading output direction, against dense matrices."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.beside import BesideSums, beside_cores, beside_sums
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import Factors, stack_factors

OUT, IN, RANK, N = 18, 14, 3, 5


def clients(seed: int = 0, n: int = N) -> list[tuple[Tensor, Tensor, float]]:
    """Factors whose delta weights have one strong direction in common."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    u, v, made = normal(OUT, 1), normal(1, IN), []
    for k in range(n):
        A, B = torch.cat([v + 0.3 * normal(1, IN), normal(RANK - 1, IN)]), normal(OUT, RANK)
        B[:, :1] = 3.0 * u
        made.append((A, B, 0.5 + k))
    return made


def sums(stack: Sequence[Factors]) -> BesideSums:
    return beside_sums(grams(stack_factors([list(stack)], (OUT, IN))))


def dense(stack: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Value and variance by the definition, in deviations of the median pair."""
    deltas = torch.stack([s * B @ A for A, B, s in stack])
    deltas = deltas / torch.linalg.matrix_norm(deltas)[:, None, None]
    u = torch.linalg.svd(deltas.mean(0)).U[:, :1]
    rest = deltas - u @ u.mT @ deltas
    value = torch.einsum("jab,kab->jk", rest, rest)
    energy = torch.outer(value.diagonal(), value.diagonal())
    sides = [torch.einsum("jab,kab->jk", side, side) for side in (rest @ rest.mT, rest.mT @ rest)]
    variance = torch.maximum(sides[0], energy / OUT) * torch.maximum(sides[1], energy / IN)
    off = ~torch.eye(len(value), dtype=torch.bool)
    unit = variance[off].median()
    return torch.where(off, value / unit.sqrt(), 0.0), torch.where(off, variance / unit, 0.0)


def test_it_is_the_dense_definition() -> None:
    found = sums(clients())
    value, variance = dense(clients())
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.variance, variance, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.count, 1.0 - torch.eye(N, dtype=torch.float64))


def test_small_matrices_in_orthonormal_coordinates_give_the_same() -> None:
    g = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(OUT, OUT, generator=g, dtype=torch.float64)).Q
    deltas = torch.stack([left @ (s * B @ A) for A, B, s in clients()])
    cores = deltas / torch.linalg.matrix_norm(deltas)[:, None, None]
    found = beside_cores(cores, torch.ones(N, dtype=torch.bool), (OUT, IN))
    torch.testing.assert_close(found.value, sums(clients()).value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_neither_gauge_nor_scale_matters(scale: float) -> None:
    g = torch.Generator().manual_seed(2)
    turned = []
    for A, B, s in clients():
        R = torch.randn(RANK, RANK, generator=g, dtype=torch.float64) + 3 * torch.eye(RANK)
        turned.append((torch.linalg.solve(R, A), B @ R, scale * s))
    torch.testing.assert_close(sums(turned).value, sums(clients()).value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lacks", [None, (torch.zeros(RANK, IN), torch.ones(OUT, RANK), 1.0)])
def test_a_client_without_a_delta_weight_counts_in_no_pair(lacks: Factors) -> None:
    four = clients(n=4)
    found = sums([*four[:2], lacks, *four[2:]])
    assert found.count[2].sum() == 0 == found.value[2].abs().sum()
    there = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(found.of(there).value, sums(four).value, rtol=1e-9, atol=1e-9)


def test_a_module_that_nobody_has_counts_in_no_pair() -> None:
    found = sums([None, None, None])
    assert found.value.shape == (3, 3) and not found.count.any() and not found.value.any()


def test_batches_add_up() -> None:
    one, two = sums(clients(0)), sums(clients(1))
    both = beside_sums(grams(stack_factors([clients(0), clients(1)], (OUT, IN))))
    added = one.plus(two).plus(None)
    torch.testing.assert_close(both.value, added.value, rtol=1e-9, atol=1e-9)
    assert float(added.count[0, 1]) == 2.0
    assert torch.equal(one.value, sums(clients(0)).value)  # the parts are as they were
