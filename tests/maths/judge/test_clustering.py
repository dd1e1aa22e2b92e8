"""Against scipy, which has the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from scipy.special import stdtr

from clair_cli.maths.judge.groups import average_linkage, components, student_cdf


def symmetric(values: np.ndarray) -> np.ndarray:
    table = np.triu(values, 1)
    return table + table.T


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 40, 150])
@pytest.mark.parametrize("levels", [0, 1, 2, 5])
def test_average_linkage_joins_as_scipy_does(n: int, levels: int) -> None:
    """Distances that are all different, or of so many sizes: ties fall the same way."""
    for seed in range(20 if n < 100 else 3):
        g = np.random.default_rng(seed)
        values = g.random((n, n)) if not levels else g.integers(1, levels + 1, (n, n)) / levels
        distance = symmetric(values)
        found = average_linkage(distance)
        if n == 1:
            assert found == []
            continue
        wanted = linkage(squareform(distance, checks=False), method="average")
        assert found == [(int(a), int(b)) for a, b, *_ in wanted]


def test_linkage_leaves_its_argument_as_it_is() -> None:
    distance = symmetric(np.random.default_rng(0).random((6, 6)))
    before = distance.copy()
    average_linkage(distance)
    assert np.array_equal(distance, before)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3, 1.0])
def test_components_are_scipys(share: float) -> None:
    for seed in range(10):
        joined = symmetric(np.random.default_rng(seed).random((50, 50)) < share).astype(bool)
        _, cluster = connected_components(joined, directed=False)
        _, first = np.unique(cluster, return_index=True)
        assert np.array_equal(components(joined), first[cluster])
    assert components(np.zeros((0, 0), bool)).tolist() == []


@pytest.mark.parametrize("df", [1, 2, 3, 7, 30, 255, 2000])
def test_students_t(df: int) -> None:
    """scipy's is off by 3e-10 for small t and one degree of freedom: Cauchy's distribution."""
    for t in (-1e6, -300.0, -40.0, -8.0, -2.5, -1.0, -0.3, -1e-9, 0.0, 1e-3, 0.7, 2.0, 9.0, 1e4):
        wanted = float(stdtr(df, t))
        if df == 1:
            wanted = math.atan2(1.0, -t) / math.pi
        assert student_cdf(t, df) == pytest.approx(wanted, rel=1e-11, abs=1e-300)
    assert student_cdf(-1e200, df) == pytest.approx(0.0, abs=1e-150)
    assert student_cdf(float("-inf"), df) == 0.0
