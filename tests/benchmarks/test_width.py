"""The simulated layers: gradients, targets, pools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.width import simulate
from benchmarks.width.simulate import Noise, Root, Setting, Targets

KINDS = ["honest", "honest", "lone", "noise", "other", "other"]


pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(factor: Root | Targets | Noise, width: int, clients: int) -> Tensor:
    """The matrices that `factor` multiplies with, (clients, width, width)."""
    unit = torch.eye(width)[:, None].expand(-1, clients, -1)
    return (factor @ unit).permute(1, 0, 2)


@pytest.mark.parametrize("width", [2, 8, 32])
def test_hadamard_is_orthogonal_with_entries_of_one_size(width: int) -> None:
    matrix = simulate.hadamard(torch.eye(width))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width))
    torch.testing.assert_close(matrix.abs(), torch.full((width, width), width**-0.5))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_square_of_the_root_has_the_spectrum(power: float) -> None:
    root = dense(Root(16, power, generator()), 16, 1)[0]
    torch.testing.assert_close(root, root.T, rtol=0, atol=1e-6)
    wanted = torch.arange(16, 0, -1.0) ** -power
    torch.testing.assert_close(torch.linalg.eigvalsh(root @ root), wanted, rtol=0, atol=1e-5)


def test_who_has_which_part_of_the_target() -> None:
    target = Targets(KINDS, 32, generator())
    T = dense(target, 32, 6)
    torch.testing.assert_close(dense(target.T, 32, 6), T.mT)
    assert torch.linalg.matrix_rank(T, rtol=1e-3).tolist() == [8, 8, 4, 0, 8, 8]
    common = simulate.SIZE**2 * simulate.PART_RANK
    inner = T.flatten(1) @ T.flatten(1).T / common
    for pair in [(0, 1), (4, 5)]:
        assert inner[pair] == pytest.approx(1, abs=0.5)
    assert inner[:2, 2:].abs().max() < 0.5


def test_noise_is_orthogonal_and_each_clients_own() -> None:
    noise = Noise(3, 32, generator())
    E = dense(noise, 32, 3) / (simulate.SIZE * simulate.NOISE)
    torch.testing.assert_close(E @ E.mT, torch.eye(32).expand(3, 32, 32))
    torch.testing.assert_close(dense(noise.T, 32, 3), dense(noise, 32, 3).mT)
    assert (E[0] * E[1]).sum().abs() < 16


@pytest.mark.parametrize("side", ["output", "input"])
def test_gradients_are_those_of_the_loss(side: str) -> None:
    chance = generator()
    powers = (1.0, 0.0) if side == "output" else (0.0, 1.0)
    out, inside = (Root(16, power, chance) for power in powers)
    target, noise = Targets(KINDS, 16, chance), Noise(6, 16, chance)
    A, B = torch.randn(2, 16, 6, 8, generator=chance)
    roots = [dense(root, 16, 1)[0].double() for root in (out, inside)]
    T, E = dense(target, 16, 6).double(), dense(noise, 16, 6).double()
    a, b = (x.double().requires_grad_() for x in (A, B))
    D = 2 * b.permute(1, 0, 2) @ a.permute(1, 2, 0)
    square = (roots[0] @ (D - T) @ roots[1]).square().sum() / 2
    (square - (D * (roots[0] @ E @ roots[1])).sum()).backward()
    for found, wanted in zip(
        simulate.gradients(A, B, target, noise, out, inside), (a.grad, b.grad), strict=True
    ):
        assert wanted is not None
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("init", ["own", "same"])
def test_lora_a_starts_as_told_and_b_learns(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "STEPS", 0)
    A, B = simulate.train_module(Setting(16, 1, 1.0, init, 2e-3, 3, 1), 0)
    assert A.shape == (6, 8, 16) and B.shape == (6, 16, 8)
    assert not B.any() and A.abs().max() <= 0.25
    assert A[0].equal(A[1]) == (init == "same")


def test_a_pool_is_made_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    setting = Setting(16, 3, 1.0, "own", 2e-3, 3, 1)
    assert simulate.make_pool(setting, tmp_path) == 3
    path = tmp_path / "d16-m3-p1-own-2e-3-3+1" / "module-001.safetensors"
    before = path.read_bytes()
    path.unlink()
    assert simulate.make_pool(setting, tmp_path) == 1
    assert path.read_bytes() == before
