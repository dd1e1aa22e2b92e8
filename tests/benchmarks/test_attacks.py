"""Every attack has the property that defines it, on small random cohorts."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

pytest.importorskip("peft")
pytest.importorskip("transformers")

from benchmarks import peers
from benchmarks.attacks import attacks, backdoor, optimised
from benchmarks.attacks.base import points_of

pytestmark = pytest.mark.loaders  # see tests/conftest.py

BAD = 3
SHAPES = {"base_model.model.x.a": (7, 5), "base_model.model.x.b": (6, 9)}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def deltas(count: int = 10, seed: int = 0) -> attacks.Deltas:
    """Clients with something in common: module to (count, out, in)."""
    return {
        name: random(1, *shape, seed=seed + 1) + random(count, *shape, seed=seed + 2)
        for name, shape in SHAPES.items()
    }


def run(name: str, seed: int = 0, bad: int = BAD) -> attacks.Deltas:
    generator = torch.Generator().manual_seed(seed)
    return attacks.ATTACKS[name](deltas(), bad, generator)


def honest_points(bad: int = BAD) -> Tensor:
    return points_of(attacks.parted(deltas(), bad)[0])


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_shape_finite_and_deterministic(name: str) -> None:
    made, again = run(name), run(name)
    assert {key: one.shape for key, one in made.items()} == {
        key: (BAD, *shape) for key, shape in SHAPES.items()
    }
    for key, one in made.items():
        assert one.dtype == torch.float64
        assert bool(one.isfinite().all())
        assert torch.equal(one, again[key])


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_the_cohort_itself_is_not_changed(name: str) -> None:
    given = deltas()
    attacks.ATTACKS[name](given, BAD, torch.Generator().manual_seed(0))
    assert all(torch.equal(given[key], one) for key, one in deltas().items())


@pytest.mark.parametrize("name", [f"min-max-{p}" for p in optimised.DIRECTIONS])
def test_min_max_touches_the_largest_honest_distance(name: str) -> None:
    honest, made = honest_points(), points_of(run(name))
    limit = torch.cdist(honest, honest).max()
    reach = torch.cdist(made[:1], honest).max()
    assert float(reach) == pytest.approx(float(limit), rel=1e-9)


@pytest.mark.parametrize("name", [f"min-sum-{p}" for p in optimised.DIRECTIONS])
def test_min_sum_touches_the_smallest_honest_sum(name: str) -> None:
    honest, made = honest_points(), points_of(run(name))
    limit = torch.cdist(honest, honest).square().sum(1).min()
    assert float((made[0] - honest).square().sum()) == pytest.approx(float(limit), rel=1e-9)


@pytest.mark.parametrize("kind", ["min-max", "min-sum"])
@pytest.mark.parametrize("name", optimised.DIRECTIONS)
def test_they_move_along_their_direction(kind: str, name: str) -> None:
    honest, made = honest_points(), points_of(run(f"{kind}-{name}"))
    moved, p = made[0] - honest.mean(0), optimised.DIRECTIONS[name](honest)
    assert float(moved @ p) == pytest.approx(float(moved.norm() * p.norm()), rel=1e-9)
    assert float(p @ honest.mean(0)) < 0 or name == "std"


@pytest.mark.parametrize(
    ("count", "bad", "expected"),
    [(10, 2, 0.0), (20, 4, NormalDist().inv_cdf(9 / 16)), (50, 10, NormalDist().inv_cdf(0.6)),
     (9, 4, NormalDist().inv_cdf(0.8))],
)  # fmt: skip
def test_strength_of_alie(count: int, bad: int, expected: float) -> None:
    assert optimised.alie_strength(count, bad) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "z"), [("alie-1.5", 1.5), ("alie-plus-0.5", -0.5)])
def test_alie_is_so_many_deviations_below_the_mean(name: str, z: float) -> None:
    honest = honest_points()
    expected = honest.mean(0) - z * (honest.square().mean(0) - honest.mean(0).square()).sqrt()
    assert torch.allclose(points_of(run(name)), expected.expand(BAD, -1), atol=1e-12)


@pytest.mark.parametrize(("name", "epsilon"), [("ipm-0.1", 0.1), ("ipm-10", 10.0)])
def test_ipm_turns_the_mean_round_only_if_it_is_strong(name: str, epsilon: float) -> None:
    honest = honest_points()
    merged = torch.cat([honest, points_of(run(name))]).mean(0)
    assert bool((merged @ honest.mean(0) < 0) == (BAD * epsilon > len(honest)))
    assert torch.allclose(points_of(run(name))[0], -epsilon * honest.mean(0))


def test_krum_picks_fang() -> None:
    honest, made = honest_points(), points_of(run("fang-krum"))

    def picked(points: Tensor) -> bool:
        scores = peers.krum_scores(torch.cat([honest, points]), BAD)
        return int(scores.argmin()) >= len(honest)

    assert picked(made)
    assert not picked(2 * made)
    magnitude = made.abs()
    assert torch.allclose(magnitude, magnitude[:, :1].expand_as(magnitude))
    assert bool((made[0] * honest.mean(0) <= 0).all())


def test_fang_on_trimmed_mean_lies_outside_the_honest_range() -> None:
    honest, made = honest_points(), points_of(run("fang-trim"))
    low, high, up = honest.amin(0), honest.amax(0), honest.mean(0) <= 0
    beyond = torch.where(up, made - high, low - made)
    assert bool((beyond >= 0).all())
    assert bool((beyond <= torch.where(up, high, low).abs()).all())


@pytest.mark.parametrize("name", ["agr-krum-unit", "agr-krum-std"])
def test_multi_krum_keeps_all_tailored_attackers_and_none_that_go_further(name: str) -> None:
    honest, made = honest_points(), points_of(run(name))

    def kept(points: Tensor) -> int:
        scores = peers.krum_scores(torch.cat([honest, points]), BAD)
        return int((scores.argsort(stable=True)[: len(honest)] >= len(honest)).sum())

    assert kept(made) == BAD
    assert kept(honest.mean(0) + 1.001 * (made - honest.mean(0))) < BAD


def test_optimal_strength_beats_every_other_one_on_a_grid() -> None:
    honest, made = honest_points(), points_of(run("opt-ipm-median"))
    strength = float(-(made[0] @ honest.mean(0)) / honest.mean(0).square().sum())

    def damage(factor: float) -> float:
        points = torch.cat([honest, (-factor * honest.mean(0)).expand(BAD, -1)])
        return float((peers.coordinate_median(points) - honest.mean(0)).norm())

    assert damage(strength) >= max(damage(0.5 * i) for i in range(40)) - 1e-9


def test_line_search_grows_then_shrinks_its_steps() -> None:
    tried = []

    def damage(strength: float) -> float:
        tried.append(strength)
        return -abs(strength - 41.0)

    best = optimised.line_search(damage)
    assert tried[:4] == [0.0, 10.0, 30.0, 70.0]
    assert len(tried) == 20
    assert abs(best - 41.0) < abs(30.0 - 41.0)  # growing alone stops at 30


def test_mimic_is_one_honest_client_the_one_furthest_out() -> None:
    honest, made = honest_points(), points_of(run("mimic"))
    matches = [int(torch.equal(one, made[0])) for one in honest]
    assert sum(matches) == 1
    centred = honest - honest.mean(0)
    along = (centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]).abs()
    assert int(along.argmax()) == matches.index(1)


@pytest.mark.parametrize("given", [False, True])
def test_exact_replacement_makes_the_mean_what_it_wants(given: bool) -> None:
    direction = {name: random(*shape, seed=9) for name, shape in SHAPES.items()} if given else None
    generator = torch.Generator().manual_seed(0)
    made = backdoor.replacement_exact(deltas(), BAD, generator, direction)
    honest = attacks.parted(deltas(), BAD)[0]
    goal = backdoor.target(honest, torch.Generator().manual_seed(0), direction)
    for name, one in made.items():
        merged = torch.cat([honest[name], one]).mean(0)
        assert torch.allclose(merged, goal[name][0], atol=1e-12)
        if direction is not None:
            cosine = (merged * direction[name]).sum() / merged.norm() / direction[name].norm()
            assert float(cosine) == pytest.approx(1.0)


def test_backdoor_has_the_median_norm() -> None:
    honest, made = attacks.parted(deltas(), BAD)[0], run("backdoor-bounded")
    for name, one in made.items():
        norms = honest[name].flatten(1).norm(dim=1)
        assert float(one[0].norm()) == pytest.approx(float(norms.median()), rel=1e-9)
        assert torch.linalg.matrix_rank(one[0]) == 1


@pytest.mark.parametrize("boosted", [False, True])
def test_distributed_parts_are_disjoint_and_sum_to_the_whole(boosted: bool) -> None:
    name = "dba-boosted" if boosted else "dba"
    honest, own = attacks.parted(deltas(), BAD)
    goal = backdoor.target(honest, torch.Generator().manual_seed(0), None)
    for key, one in run(name).items():
        parts = one - own[key]
        used = (parts.abs() > 1e-12).any(2).sum(0)
        assert bool((used <= 1).all())
        assert torch.allclose(parts.sum(0), (BAD if boosted else 1) * goal[key][0], atol=1e-12)


def test_masks_share_out_every_row() -> None:
    masks = backdoor.row_masks(11, 4, torch.Generator().manual_seed(0))
    assert torch.equal(masks.sum(0), torch.ones(11, 1, dtype=torch.float64))
    assert sorted(masks.sum((1, 2)).tolist()) == [2, 3, 3, 3]


def test_neurotoxin_keeps_off_the_coordinates_that_move_most() -> None:
    moved, made = honest_points().mean(0).abs(), points_of(run("neurotoxin"))[0]
    silent = made == 0
    assert int(silent.sum()) == round(0.1 * len(made))
    assert float(moved[silent].min()) >= float(moved[~silent].max())


@pytest.mark.parametrize("bad", [2, 3, 4])
def test_sybils_cancel(bad: int) -> None:
    made, base = (
        points_of(run("backdoor-pairs", bad=bad)),
        points_of(run("backdoor-bounded", bad=bad)),
    )
    assert torch.allclose(made.sum(0), base.sum(0), atol=1e-12)
    assert float((made[0] - made[1]).norm()) > 0.1 * float(base[0].norm())


def test_parts_are_inside_the_cloud_and_sum_to_the_goal() -> None:
    points, made = points_of(deltas()), points_of(run("collude-parts"))
    honest, own = points[:-BAD], points[-BAD:]
    reach = torch.cdist(made, honest).max()
    assert float(reach) == pytest.approx(float(torch.cdist(points, points).max()), rel=1e-9)
    goal = points_of(
        backdoor.target(attacks.parted(deltas(), BAD)[0], torch.Generator().manual_seed(0), None)
    )[0]
    total = (made - own).sum(0)
    cosine = float(total @ goal / total.norm() / goal.norm())
    assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "size"), [("hidden-0.2", 0.2), ("hidden-one-3", 3.0)])
def test_hidden_backdoor_is_one_direction_of_the_given_size(name: str, size: float) -> None:
    own, hit = attacks.parted(deltas(), BAD)[1], 0
    for key, one in run(name).items():
        extra = one - own[key]
        if float(extra.norm()) == 0:
            continue
        hit += 1
        assert torch.linalg.matrix_rank(extra.flatten(1)) == 1  # the same for all attackers
        assert torch.linalg.matrix_rank(extra[0]) == 1
        assert float(extra[0].norm() / own[key][0].norm()) == pytest.approx(size)
    assert hit == (1 if name == "hidden-one-3" else len(SHAPES))


def test_basic_attacks_exist() -> None:
    assert set(attacks.BASIC) <= set(attacks.ATTACKS)
    assert not set(attacks.ATTACKS) & set(attacks.FILES)
