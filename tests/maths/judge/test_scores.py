"""Scores of single clients from tables of pairs."""

from __future__ import annotations

import pytest
import torch

from clair_cli.maths.evidence.gather import CORE_DIM, Evidence
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.judge.client_scores import core_distance
from clair_cli.maths.judge.scores import captured_by_mean


@pytest.mark.parametrize("members", [(0, 1, 2, 5), (0, 1, 2, 3, 4, 5, 6)])
def test_energy_along_the_mean_of_the_others(members: tuple[int, ...]) -> None:
    """From the delta weights themselves. One client has none, and one is opposite to the others."""
    g = torch.Generator().manual_seed(0)
    columns = torch.randn(3, 40, 7, generator=g, dtype=torch.float64)
    columns += 0.5 * torch.randn(3, 40, 1, generator=g, dtype=torch.float64)
    columns[:, :, 4] *= -1
    columns /= torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    columns[1, :, 2] = 0.0
    found = captured_by_mean(columns.mT @ columns, members)
    for m in range(3):
        for k in range(7):
            line = columns[m][:, [j for j in members if j != k]].sum(1)
            cosine = torch.cosine_similarity(line, columns[m][:, k], dim=0)
            exact = float(cosine.clamp_min(0.0)) ** 2
            assert float(found[m, k]) == pytest.approx(exact, abs=1e-13)
    assert not found[:, 4].any() and found[1, 2] == 0.0


def test_nothing_lies_along_nobody() -> None:
    same = torch.ones(1, 3, 3, dtype=torch.float64)
    assert captured_by_mean(same, [1]).tolist() == [[1.0, 0.0, 1.0]]
    assert captured_by_mean(same, []).tolist() == [[0.0, 0.0, 0.0]]


def test_places_are_unknown_where_no_core_holds_anything() -> None:
    nothing = torch.zeros(5, 4, CORE_DIM, CORE_DIM, dtype=torch.float64)
    norms, tables = torch.ones(5, 4, dtype=torch.float64), torch.zeros(5, 4, 4, dtype=torch.float64)
    pairs = PairTable(tables, tables)
    evidence = Evidence(norms, pairs, pairs, pairs, nothing, norms)
    assert core_distance(evidence, range(4)).isnan().all()
