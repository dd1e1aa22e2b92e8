"""Remarks on a missing or wrong previous adapter: cohorts just above and just below each limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import MODULES, Client, factored, texts

N_DIRECTIONS = 6


def client(amounts: Sequence[float]) -> Client:
    """A delta weight of so much of each of six orthonormal directions, in every module."""
    deltas = {}
    for module, shape in MODULES.items():
        rng = np.random.default_rng(0)
        left, right = (cohorts.orthonormal(n, N_DIRECTIONS, rng) for n in shape)
        deltas[module] = left * np.asarray(amounts) @ right.T
    return factored(deltas, N_DIRECTIONS)


def warnings(folder: Path, clients: np.ndarray, previous: np.ndarray | None = None) -> str:
    """What `inspect` remarks on clients of so much of each direction, (n_clients, at most 6)."""
    made = {
        f"c{k}": client([*row, *[0.0] * (N_DIRECTIONS - len(row))]) for k, row in enumerate(clients)
    }
    before = None
    cohorts.save(folder / "clients", made, dtype="F64")
    if previous is not None:
        before = folder / "before"
        cohorts.save_peft(before, client(list(previous)))
    return " ".join(texts(clair_cli.inspect(folder / "clients", previous=before).report.warnings))


def with_cosine(n_clients: int, cosine: float) -> np.ndarray:
    """Vectors of norm one of which each two have this cosine, (n_clients, n_clients)."""
    gram = np.full((n_clients, n_clients), cosine)
    np.fill_diagonal(gram, 1.0)
    return np.linalg.cholesky(gram)


@pytest.mark.parametrize(("cosine", "said"), [(0.74, False), (0.76, True)])
def test_clients_that_are_nearly_the_same(tmp_path: Path, cosine: float, said: bool) -> None:
    assert ("nearly the same" in warnings(tmp_path, with_cosine(5, cosine))) is said


@pytest.mark.parametrize(("total", "said"), [(-0.48, False), (-0.52, True)])
def test_updates_that_cancel_out(tmp_path: Path, total: float, said: bool) -> None:
    """Sum of each client's cosines to the three others."""
    previous = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    clients = np.zeros((4, N_DIRECTIONS))
    clients[:, :4] = with_cosine(4, total / 3)
    assert ("cancels out" in warnings(tmp_path, clients + previous, previous)) is said


@pytest.mark.parametrize(("share", "said"), [(0.52, False), (0.48, True)])
def test_clients_with_little_of_the_previous_adapter(
    tmp_path: Path, share: float, said: bool
) -> None:
    previous = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    clients = np.zeros((4, N_DIRECTIONS))
    clients[:, :4] = with_cosine(4, 0.3)
    clients += share * previous
    assert ("have little of" in warnings(tmp_path, clients, previous)) is said
