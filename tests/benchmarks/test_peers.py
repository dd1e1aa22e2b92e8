"""The peers: small cases by hand, byzfl where it is installed, and what the rules promise."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest
import torch
from torch import Tensor

from benchmarks import peers

NAMES = [
    "mean",
    "geometric-median",
    "coordinate-median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "centered-clipping",
    "norm-z-score",
    "pooled-pca",
]


def column(*values: float) -> Tensor:
    """Points on a line, (K, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def cloud(count: int, size: int, seed: int = 0) -> Tensor:
    """Standard normal points, (count, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def member(name: str, b: Tensor, a: Tensor, **config: object) -> tuple:
    """One client with a single module "m"; the scale is 1 unless lora_alpha says otherwise."""
    settings = {"r": a.shape[0], "lora_alpha": a.shape[0], **config}
    return name, {"m.lora_A.weight": a.float(), "m.lora_B.weight": b.float()}, settings, False


def test_the_tables_have_the_agreed_names() -> None:
    assert list(peers.PEERS) == NAMES
    assert list(peers.LORA_PEERS) == ["factor-mean", "fedrpca"]


def test_flatten_and_back_keeps_modules_that_are_not_square() -> None:
    deltas = {"z": cloud(3, 10).view(3, 2, 5), "a": cloud(3, 6, 1).view(3, 3, 2)}
    points = peers.flatten(deltas)
    assert points.shape == (3, 16)
    assert points[1, :6].equal(deltas["a"][1].flatten())
    back = peers.unflatten(points[2], deltas)
    assert all(back[name].equal(deltas[name][2]) for name in deltas)


def test_error_is_relative_to_the_target() -> None:
    point, target = column(3, 4)[:, 0], column(0, 2)[:, 0]
    assert peers.error(point, target) == pytest.approx(13**0.5 / 2)


def test_geometric_median_of_three() -> None:
    assert peers.geometric_median(column(0, 1, 10)).item() == pytest.approx(1, abs=1e-6)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    torch.testing.assert_close(peers.geometric_median(corners), corners.mean(0))


def test_coordinate_median_of_odd_and_even_counts() -> None:
    points = torch.tensor([[1.0, 9.0], [5.0, 7.0], [2.0, 8.0]], dtype=torch.float64)
    assert peers.coordinate_median(points).tolist() == [2, 8]
    assert peers.coordinate_median(column(1, 100, 2, 5)).item() == 3.5


@pytest.mark.parametrize(("bad", "expected"), [(0, 22), (1, 3.0), (2, 3), (4, 3)])
def test_trimmed_mean(bad: int, expected: float) -> None:
    assert peers.trimmed_mean(column(100, 2, 3, 4, 1), bad).item() == expected


def test_trimmed_mean_told_too_many_of_an_even_count_keeps_the_middle_two() -> None:
    assert peers.trimmed_mean(column(1, 100, 2, 5), 3).item() == 3.5


def test_krum_and_multi_krum() -> None:
    points = column(0, 1, 1.5, 4, 20)
    assert peers.krum_scores(points, 1)[:4].tolist() == pytest.approx([3.25, 1.25, 2.5, 15.25])
    assert peers.krum(points, 1).item() == 1
    assert peers.multi_krum(points, 1).item() == pytest.approx(6.5 / 4)
    assert peers.multi_krum(points, 2).item() == pytest.approx(2.5 / 3)


def test_centered_clipping_one_step() -> None:
    points = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, -0.5]], dtype=torch.float64)
    made = peers.centered_clipping(points, torch.zeros(2).double(), radius=1.0, steps=1)
    assert made.tolist() == pytest.approx([0.4, 1.1 / 3])


def test_centered_clipping_ends_where_the_clipped_offsets_cancel() -> None:
    points = cloud(11, 40)
    points[:3] += 1e3
    honest = points[3:].mean(0)
    made = peers.centered_clipping(points)
    assert (made - honest).norm() < 0.01 * (points.mean(0) - honest).norm()
    radius = 6.0
    from_median = peers.centered_clipping(points, radius=radius)
    from_zero = peers.centered_clipping(points, torch.zeros(40).double(), radius)
    torch.testing.assert_close(from_median, from_zero, rtol=0, atol=1e-5)
    offsets = points - from_median
    clipped = offsets * (radius / offsets.norm(dim=1, keepdim=True)).clamp_max(1)
    assert clipped.mean(0).norm() < 1e-6


def test_centered_clipping_stays_where_more_than_half_agree() -> None:
    assert peers.centered_clipping(column(2, 2, 2, 7, 9)).item() == pytest.approx(2)


def test_z_scores() -> None:
    values = column(*[1] * 9, 11)[:, 0]
    assert peers.z_scores(values)[9].item() == pytest.approx(9 / 10**0.5)
    assert peers.z_scores(values, robust=True).tolist() == [0] * 9 + [torch.inf]
    spread = column(0, 1, 2, 3, 10)[:, 0]
    assert peers.z_scores(spread, robust=True)[4].item() == pytest.approx(8 / 1.4826)


def test_norm_z_score_drops_one_and_misses_three() -> None:
    assert peers.norm_z_score(column(*[1] * 9, 11)).item() == 1
    assert peers.norm_z_score(column(*[1] * 9, 0.01)).item() == 1
    three = column(*[1] * 7, 11, 11, 11)
    assert peers.norm_z_score(three).item() == 4
    assert peers.norm_z_score(three, robust=True).item() == 1
    assert peers.norm_z_score(column(1, 1, 1, 1, 1e6)).item() > 1e5  # five: no score exceeds 1.8


def test_pooled_pca_drops_one_off_the_leading_component_and_misses_three() -> None:
    first, second = torch.eye(2, dtype=torch.float64)
    one = torch.stack([first] * 9 + [second])
    assert peers.pooled_residuals(one).tolist() == pytest.approx([0] * 9 + [1])
    assert peers.pooled_residuals(one, components=2).tolist() == pytest.approx([0] * 10)
    assert peers.pooled_pca(one).tolist() == [1, 0]
    three = torch.stack([first] * 7 + [second] * 3)
    assert peers.pooled_pca(three).tolist() == pytest.approx([0.7, 0.3])


def test_pooled_residuals_are_the_energy_off_the_leading_singular_vectors() -> None:
    points = cloud(8, 30) * torch.arange(1.0, 9)[:, None]
    leading = torch.linalg.svd(points, full_matrices=False)[2][:3]
    off = 1 - (points @ leading.T).square().sum(1) / points.square().sum(1)
    torch.testing.assert_close(peers.pooled_residuals(points, 3), off)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, 2, 5])
def test_rules_do_not_depend_on_the_order_of_clients(name: str, bad: int) -> None:
    points = cloud(9, 50) + 1
    before = points.clone()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    made = peers.PEERS[name](points, bad)
    assert made.shape == (50,)
    torch.testing.assert_close(peers.PEERS[name](points[order], bad), made, rtol=0, atol=1e-7)
    assert points.equal(before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e-3])
def test_rules_return_what_all_clients_agree_on(name: str, size: float) -> None:
    point = size * cloud(1, 20)
    made = peers.PEERS[name](point.repeat(6, 1), 2)
    torch.testing.assert_close(made, point[0])


@pytest.fixture
def byzfl_aggregators(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """byzfl.aggregators without byzfl's own __init__, which imports torchvision and more."""
    found = importlib.util.find_spec("byzfl")
    if found is None:
        pytest.skip("needs byzfl")
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or [])
    for name in [one for one in sys.modules if one.split(".")[0] == "byzfl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "byzfl", package)
    module = importlib.import_module("byzfl.aggregators")
    for name in [one for one in sys.modules if one.startswith("byzfl.")]:
        monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))
    return module


@pytest.mark.parametrize("count", [9, 12])
def test_rules_equal_byzfl(byzfl_aggregators: types.ModuleType, count: int) -> None:
    """byzfl 0.0.11. Krum takes a neighbour more there, the geometric median three steps, and
    centered clipping a radius of 100 unless told; its tensors' median takes the lower middle."""
    points = cloud(count, 30) + 1
    points[:3] *= 5
    array = points.numpy()
    best = peers.krum_scores(points, 2).argsort()[: count - 3]
    pairs = [
        (byzfl_aggregators.Average()(array), peers.mean(points)),
        (byzfl_aggregators.Median()(array), peers.coordinate_median(points)),
        (byzfl_aggregators.TrMean(3)(array), peers.trimmed_mean(points, 3)),
        (byzfl_aggregators.Krum(3)(array), peers.krum(points, 2)),
        (byzfl_aggregators.MultiKrum(3)(array), points[best].mean(0)),
        (byzfl_aggregators.GeometricMedian(1e-9, 2000)(array), peers.geometric_median(points)),
        (
            byzfl_aggregators.CenteredClipping(L=7, tau=4.0)(array),
            peers.centered_clipping(points, torch.zeros(30).double(), radius=4.0, steps=7),
        ),
    ]
    for theirs, ours in pairs:
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=1e-7)


def test_factor_mean_is_not_the_mean_of_the_products() -> None:
    one = member("one", torch.tensor([[3.0]]), torch.tensor([[2.0]]))
    two = member("two", torch.tensor([[5.0]]), torch.tensor([[4.0]]))
    assert peers.factor_mean([one, two])["m"].item() == 12  # the products are 6 and 20
    wide = member("wide", torch.tensor([[5.0, 7.0]]), torch.tensor([[4.0], [1.0]]))
    assert peers.factor_mean([one, wide])["m"].item() == 13.75
    scaled = member("scaled", torch.tensor([[5.0]]), torch.tensor([[4.0]]), lora_alpha=3)
    assert peers.factor_mean([one, scaled])["m"].item() == 27


def test_factor_mean_of_one_client_is_its_own_delta() -> None:
    b, a = cloud(5, 4), cloud(4, 7, 1)
    made = peers.factor_mean([member("rs", b, a, lora_alpha=6, use_rslora=True)])["m"]
    assert made.shape == (5, 7)
    torch.testing.assert_close(made, 3 * b @ a, rtol=0, atol=1e-5)


def test_factor_mean_is_exact_with_one_common_lora_a_and_lost_without() -> None:
    shared = cloud(4, 50)
    clients = [cloud(30, 4, seed) for seed in range(1, 21)]
    exact = torch.stack(clients).mean(0) @ shared
    same = peers.factor_mean([member("x", b, shared) for b in clients])["m"]
    torch.testing.assert_close(same, exact, rtol=0, atol=1e-5)
    own = [member("x", clients[0], cloud(4, 50, 100 + seed)) for seed in range(20)]
    mean = torch.stack([clients[0] @ one[1]["m.lora_A.weight"].double() for one in own]).mean(0)
    torch.testing.assert_close(peers.factor_mean(own)["m"], mean, rtol=0, atol=1e-5)


def planted(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A rank-2 matrix and a sparse one with 5 % entries of size 5."""
    low = cloud(rows, 2) @ cloud(columns, 2, 1).T
    picked = torch.rand(rows, columns, generator=torch.Generator().manual_seed(2)) < 0.05
    return low, torch.where(picked, 5 * cloud(rows, columns, 3).sign(), 0.0)


@pytest.mark.parametrize("shape", [(300, 60), (60, 300)])
def test_robust_pca_splits_a_planted_matrix(shape: tuple[int, int]) -> None:
    low, sparse = planted(*shape)
    found, rest = peers.robust_pca(low + sparse, tolerance=1e-6)
    assert peers.error(found, low) < 1e-3
    assert peers.error(rest, sparse) < 1e-3
    assert peers.error(found + rest, low + sparse) < 1e-5
    assert torch.linalg.matrix_rank(found, rtol=1e-3) == 2
    assert (rest != 0).double().mean() < 0.1


@pytest.mark.parametrize(("spike", "is_sparse"), [(2.2, False), (2.3, True)])
def test_robust_pca_weighs_as_it_says(spike: float, is_sparse: bool) -> None:
    """Four equal columns (spike, 1, .. 1) of 16 are low-rank as long as spike <= sqrt(5).

    The optimum is S = 0 where no entry of U V^T exceeds the weight, which is 1 / 4.
    """
    matrix = torch.ones(16, 4, dtype=torch.float64)
    matrix[0] = spike
    low, sparse = peers.robust_pca(matrix, tolerance=1e-9)
    torch.testing.assert_close(low + sparse, matrix, rtol=0, atol=1e-6)
    assert not sparse[1:].any()
    assert (sparse[0].abs() > 1e-3).all() == is_sparse
    assert sparse[0].any() == is_sparse


def test_robust_pca_of_nothing() -> None:
    low, sparse = peers.robust_pca(torch.zeros(5, 3, dtype=torch.float64))
    assert not low.any() and not sparse.any()


def test_fedrpca_amplifies_the_sparse_parts_only() -> None:
    clients = [member("x", cloud(30, 4, s), cloud(4, 20, 50 + s)) for s in range(6)]
    plain, doubled = peers.fedrpca(clients, 1.0)["m"], peers.fedrpca(clients)["m"]
    assert peers.error(plain, peers.factor_mean(clients)["m"]) < 1e-3
    assert peers.error(doubled, plain) > 0.1
    b, a = cloud(30, 4).sign(), cloud(4, 20, 1).sign()
    assert peers.error(peers.fedrpca([member("x", b, a)] * 6)["m"], b @ a) < 1e-3  # nothing sparse


def test_lora_peers_take_mixed_ranks() -> None:
    clients = [member("x", cloud(6, r, r), cloud(r, 5, 50 + r)) for r in (1, 2, 4, 2)]
    for rule in peers.LORA_PEERS.values():
        made = rule(clients, 1)
        assert made["m"].shape == (6, 5)
        assert made["m"].isfinite().all()
