"""The adaptive attacks: their search on known functions, and one small cohort end to end."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")  # benchmarks/copying/cohorts.py imports it

from benchmarks.adaptive import adaptive, framing, hijack
from benchmarks.adaptive.crafts import (
    BASES,
    DIRECTIONS,
    Scene,
    base,
    craft,
    direction,
    make_scene,
    typical,
)
from benchmarks.adaptive.judge import crafted_clients, judge
from benchmarks.adaptive.search import BENIGN, FLAGGED, MERGED, REFUSED, Search, Trial, geometric
from benchmarks.attacks.attacks import as_lora
from benchmarks.copying.cohorts import Member, stack
from benchmarks.copying.task import seeded

pytestmark = pytest.mark.loaders  # see tests/conftest.py

GRID = geometric(0.25, 4.0, 9)
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["a", "b"]}


class Oracle:
    """Damage is the strength; its level is that of the last edge at or below it."""

    def __init__(self, *edges: tuple[float, int]) -> None:
        self.edges, self.asked = edges, []  # type: ignore[var-annotated]

    def __call__(self, gamma: float) -> Trial:
        self.asked.append(gamma)
        level = [one for start, one in self.edges if gamma >= start][-1]
        return Trial(gamma, level, 0.0 if level >= FLAGGED else gamma)


def test_the_threshold_of_a_monotone_oracle_is_found() -> None:
    oracle = Oracle((0.0, BENIGN), (1.3, MERGED), (2.2, FLAGGED))
    search = Search(oracle, GRID, halvings=10)
    benign, merged = search.worst(BENIGN), search.worst(MERGED)
    assert benign is not None and merged is not None
    assert 1.3 * 0.999 < benign.gamma < 1.3
    assert 2.2 * 0.999 < merged.gamma < 2.2
    assert len(oracle.asked) == len(set(oracle.asked)) == len(GRID) + 20


def test_an_attack_that_slips_through_again_when_stronger_is_found() -> None:
    oracle = Oracle((0.0, BENIGN), (0.4, FLAGGED), (1.9, MERGED), (3.1, REFUSED))
    search = Search(oracle, GRID, halvings=10)
    benign, merged = search.worst(BENIGN), search.worst(MERGED)
    assert benign is not None and merged is not None
    assert 0.4 * 0.999 < benign.gamma < 0.4
    assert 3.1 * 0.999 < merged.gamma < 3.1


def test_the_most_damaging_strength_need_not_be_the_last_one_let_through() -> None:
    def oracle(gamma: float) -> Trial:  # caps shrink what a strong attack does
        level = FLAGGED if 1.1 <= gamma < 2.0 else MERGED
        return Trial(gamma, level, gamma if gamma < 1.1 else 0.1)

    worst = Search(oracle, GRID, halvings=10).worst(MERGED)
    assert worst is not None and 1.1 * 0.999 < worst.gamma < 1.1


def test_nothing_is_found_where_everything_is_noticed() -> None:
    assert Search(Oracle((0.0, FLAGGED)), GRID, halvings=3).worst(MERGED) is None


def test_everything_let_through_needs_no_bisection() -> None:
    oracle = Oracle((0.0, BENIGN))
    worst = Search(oracle, GRID, halvings=5).worst(BENIGN)
    assert worst is not None and worst.gamma == GRID[-1] and len(oracle.asked) == len(GRID)


def planted(size: int = 6) -> list[Member]:
    """Honest clients: a common update and own noise of the same size, six small modules."""
    generator = seeded("test-adaptive", 0)
    shapes = {f"layers.{i}.{name}": (12, 8) for i in range(3) for name in ("a", "b")}
    common = {
        n: torch.randn(*s, generator=generator, dtype=torch.float64) for n, s in shapes.items()
    }
    members = []
    for index in range(size):
        made = {
            n: c + torch.randn(*c.shape, generator=generator, dtype=torch.float64)
            for n, c in common.items()
        }
        members.append((f"honest-{index}", *as_lora(made, CONFIG), False))
    return members


@pytest.fixture(scope="module")
def scene() -> Scene:
    members = planted()
    harm = {n: torch.ones_like(d[0]) for n, d in stack(members).items()}
    return make_scene(members, 1, harm, seed=1)


def test_crafted_updates_are_what_the_formula_says(scene: Scene) -> None:
    for towards_name in DIRECTIONS:
        towards = direction(scene, towards_name)
        for base_name, (mean_part, own_part) in BASES.items():
            made = craft(scene, base(scene, base_name), towards, 2.0)
            state, config = crafted_clients(made, scene.members[0], None)[0][1:3]
            read = stack([("x", state, config, True)])
            for name, honest in scene.honest.items():
                mean = honest.mean(0)
                rest = scene.own[name][0] - mean
                moved = read[name][0] - mean_part * mean - own_part * rest
                assert float(moved.norm()) == pytest.approx(2.0 * float(typical(honest)), rel=1e-5)


def test_directions_stand_as_told(scene: Scene) -> None:
    for name, cosine in (("reverse", -1.0), ("inside", 0.0), ("backdoor", 0.0)):
        for module, one in direction(scene, name).items():
            mean = scene.honest[module].mean(0)
            found = float((one[0] * mean).sum() / mean.norm())
            assert found == pytest.approx(cosine, abs=1e-9), name


def test_one_attack_end_to_end(scene: Scene) -> None:
    found = adaptive.attack(scene, "planted", 1, ("reverse", "own"), (0.1, 8.0))
    assert found.any is not None and found.unnoticed is not None
    assert found.unnoticed.gamma < 8.0, "-7 times the mean must not pass for benign"
    assert found.unnoticed.damage <= found.any.damage
    assert 0 < found.honest < 1 and found.peers["mean"] > 0
    text = adaptive.line([found])
    assert text.startswith("reverse own") and f"{found.unnoticed.damage:7.3f}" in text


def test_damage_is_that_of_the_reported_weights(scene: Scene) -> None:
    judged = judge(scene.members[:-1], scene.members[-1:])
    assert judged.verdicts == ("benign",) * 6 and judged.level == BENIGN
    points = judged.points
    target, merged = points[:5].mean(0), points.mean(0)
    expected = float((merged - target).norm() / target.norm())
    assert judged.damage == pytest.approx(expected, rel=1e-6)
    assert judged.moved_along(merged - target) == pytest.approx(expected, rel=1e-6)


def test_one_colluder_is_no_group_and_a_framed_client_is_the_first(scene: Scene) -> None:
    made = hijack.colluders(scene, 0.9, 1.0)
    judged = judge(scene.members[:-1], crafted_clients(made, scene.members[0]))
    assert hijack.outcome(judged) == "found" and judged.damage == pytest.approx(0, abs=1e-6)
    copied = framing.copies(scene, 2.0)
    for name, honest in scene.honest.items():
        assert torch.equal(copied[name][0], 2.0 * honest[0])
    judged = judge(scene.members[:-1], crafted_clients(copied, scene.members[0]))
    assert "duplicate" in (judged.verdicts[0], judged.verdicts[-1])
    assert framing.share_of_victim(judged) == pytest.approx(6 / 5, rel=0.5)
