"""Scores of single clients from tables of pairs."""

from __future__ import annotations

import pytest
import torch

from clair_cli.maths.judge.collaborate import captured_by_mean
from clair_cli.maths.judge.scores import odd_modules


@pytest.mark.parametrize("members", [(0, 1, 2, 5), (0, 1, 2, 3, 4, 5, 6)])
def test_energy_along_the_mean_of_the_others(members: tuple[int, ...]) -> None:
    """From the delta weights themselves. One client has none, and one is opposite to the others."""
    g = torch.Generator().manual_seed(0)
    columns = torch.randn(3, 40, 7, generator=g, dtype=torch.float64)
    columns += 0.5 * torch.randn(3, 40, 1, generator=g, dtype=torch.float64)
    columns[:, :, 4] *= -1
    columns /= torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    columns[:, :, 5] = 0.0
    found = captured_by_mean(columns.mT @ columns, members)
    for k in range(7):
        mean = columns[:, :, [j for j in members if j != k]].sum(-1)
        line = mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True)
        inside = (line * columns[:, :, k]).sum(1).clamp_min(0.0).square()
        assert torch.allclose(found[:, k], inside, atol=1e-12)
    assert found[:, 4].max() == 0.0
    assert found[:, 5].max() == 0.0


def test_nothing_lies_along_nobody() -> None:
    assert captured_by_mean(torch.eye(3, dtype=torch.float64)[None], [1]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("value", "odd"), [(0.14, ()), (0.11, (2,))])
def test_a_module_is_odd_below_a_quarter_of_what_is_expected(
    value: float, odd: tuple[int, ...]
) -> None:
    similar = torch.full((6, 8), 0.5, dtype=torch.float64)
    similar += 0.001 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    similar[2, 7] = value
    assert odd_modules(similar, 7, range(8)) == odd
    assert odd_modules(similar, 7, (0, 1, 2, 3, 4, 7)) == ()  # five others
    assert odd_modules(similar[:3], 7, range(8)) == ()  # three modules
