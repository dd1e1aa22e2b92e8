"""Typical norms of modules that not everybody has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clair_cli.maths.judge.client_scores import module_norm_ratio, typical_norms


def norms(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


ALL, OTHER = [1.0, 2.0, 3.0, 2.0, 2.0], [4.0, 5.0, 6.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("row", "typical"),
    [
        ([0.0, 0.0, 0.0, 9.0, 9.0], 5.0),  # two have it: the largest of the others' medians
        ([0.0, 0.0, 7.0, 9.0, 8.0], 8.0),  # three have a median of their own
        ([1.0, 1.0, 7.0, 9.0, 8.0], 7.0),
        ([0.0] * 5, 5.0),
    ],
)
def test_typical_norms(row: list[float], typical: float) -> None:
    found = typical_norms(norms(ALL, OTHER, row), range(5))
    assert found.tolist() == [2.0, 5.0, typical]


def ratio(table: torch.Tensor, members: Any) -> list[float]:
    evidence: Any = SimpleNamespace(norms=table)
    return module_norm_ratio(evidence, members).tolist()


def test_only_members_are_typical() -> None:
    """Whoever is left out has no say, however many they are."""
    table = norms([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 20.0, 20.0, 30.0])
    assert ratio(table, [0, 1, 2]) == [1.0, 1.0, 1.0, 20.0, 20.0, 30.0]
    assert ratio(table, range(6)) == [1.0, 1.0, 1.0, 1.0, 1.0, 1.5]


def test_two_members_have_their_own_median() -> None:
    """As long as no module has three."""
    assert ratio(norms([1.0, 2.0, 4.0]), [0, 1]) == [1.0, 2.0, 4.0]
    assert all(value != value for value in ratio(norms([0.0, 0.0, 0.0]), range(3)))
