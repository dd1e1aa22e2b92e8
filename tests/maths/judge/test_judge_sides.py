"""Verdicts where one side is shared, as in the paper's model, and what must not change them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from clair_cli.maths.factors.stack import Factors
from clair_cli.maths.judge.judge import Judgement
from tests.planted import (
    RANK,
    SHAPES,
    aligned,
    codes,
    factor_all,
    judge_deltas,
    judge_factors,
    judged,
    orthonormal,
    paper_model,
    planted,
    verdicts_of,
    words,
)

STACKINGS = ["matrix", "output"]


# The paper's model: only the output subspace is shared


@pytest.mark.parametrize(("outlier_norm", "decaying"), [(1.0, True), (10.0, False)])
@pytest.mark.parametrize(("n_clients", "n_bad"), [(12, 3), (20, 8), (20, 10)])
def test_a_shared_output_subspace_is_found(
    n_clients: int, n_bad: int, outlier_norm: float, decaying: bool
) -> None:
    deltas = paper_model(n_clients, n_bad, 5, seed=2, decaying=decaying, outlier_norm=outlier_norm)
    result = judged(deltas, 4)
    assert result.structure.stacking == "output"
    verdicts_of(result, set(range(n_clients - n_bad, n_clients)))
    assert result.collaborative is None


@pytest.mark.parametrize(("n_bad", "code"), [(0, "one_side"), (12, "little_shared")])
def test_a_side_alone_is_no_verdict_without_contrast_or_where_most_lack_it(
    n_bad: int, code: str
) -> None:
    result = judge_deltas(paper_model(20, n_bad, 5, seed=2), 4)
    assert (result.outcome, result.code) == ("undetermined", code)
    assert (result.structure.side is not None) == (code == "one_side")


def test_adapters_of_rank_one_are_judged_on_all_modules() -> None:
    """One column per client does not make the output stacking the matrix one."""
    g = torch.Generator().manual_seed(0)
    deltas = []
    for _ in range(5):
        shared = orthonormal(48, 1, g)
        own = [shared] * 7 + [orthonormal(48, 1, g) for _ in range(3)]
        rows = torch.randn(10, 1, 32, generator=g, dtype=torch.float64)
        deltas.append(torch.stack(own) @ rows)
    result = judged(deltas, 1)
    assert result.structure.stacking == "output"
    verdicts_of(result, {7, 8, 9})


def test_a_shared_input_subspace_is_found() -> None:
    deltas = [m.mT.contiguous() for m in paper_model(12, 3, 5, seed=2)]
    result = judged(deltas, 4)
    assert result.structure.stacking == "input"
    verdicts_of(result, {9, 10, 11})


def single_module_outcomes(n_clients: int, n_bad: int, seeds: Sequence[int]) -> list[str]:
    bad = set(range(n_clients - n_bad, n_clients))
    outcomes = []
    for seed in seeds:
        result = judge_deltas(paper_model(n_clients, n_bad, 1, seed=seed), 4, seed)
        accused = {k for k, word in enumerate(words(result)) if word == "contaminated"}
        if result.structure.stacking == "output":
            outcomes.append("right" if accused == bad else "wrong")
        else:
            outcomes.append("wrong" if result.outcome == "judged" else "abstained")
    return outcomes


@pytest.mark.parametrize(("n_clients", "n_bad"), [(12, 3), (20, 8)])
def test_a_single_module_of_the_papers_model_is_exact_in_the_output_stacking(
    n_clients: int, n_bad: int
) -> None:
    outcomes = single_module_outcomes(n_clients, n_bad, range(4))
    assert outcomes == ["right"] * 4


def test_no_cohort_of_the_papers_model_is_judged_wrongly() -> None:
    """Abstaining is allowed; naming benign clients for chance cosines is not."""
    wrong = 0
    for n_bad in (0, 2, 5):
        for n_modules in (1, 2):
            for seed in range(3):
                problems = [planted(12, n_bad, seed=100 * seed + m) for m in range(n_modules)]
                result = judge_deltas([p.deltas for p in problems], 4, seed)
                accused = {k for k, word in enumerate(words(result)) if word == "contaminated"}
                wrong += result.outcome == "judged" and accused != problems[0].contaminated
    assert wrong == 0


# Invariance


def number(value: float) -> float:
    return 1e9 if math.isnan(value) else value


def scores_of(result: Judgement) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    assert result.scores is not None
    return np.array([
        [
            number(x) for x in (
                s.loading, s.loading_se, s.p_line, s.p_odd, s.power, s.over, s["norm_ratio"],
                s["module_norm_ratio"], s["effective_rank_ratio"], *s.module_similarity.tolist(),
                *s.module_chance.tolist(),
            )
        ]
        for s in result.scores
    ])  # fmt: skip


@functools.cache
def mixed_cohort(stacking: str) -> tuple[list[list[Factors]], Sequence[tuple[int, int]]]:
    """Benign, unrelated, opposite and large clients."""
    if stacking == "matrix":
        deltas = aligned([0.25] * 8 + [0.0] * 2, seed=9)
        for module in deltas:
            module[6] *= -1
            module[7] *= 20
        return factor_all(deltas, RANK, seed=9), SHAPES
    deltas = paper_model(11, 3, 5, seed=2)
    return factor_all(deltas, 4, seed=9), [(64, 48)] * 5


@functools.cache
def judged_mixed(stacking: str) -> Judgement:
    return judge_factors(*mixed_cohort(stacking))


def turned(modules: list[list[Factors]], scale: float, seed: int) -> list[list[Factors]]:
    """Every client in another gauge of condition 1e2, and all times `scale`."""
    g = torch.Generator().manual_seed(seed)
    result: list[list[Factors]] = []
    for clients in modules:
        row: list[Factors] = []
        for factors in clients:
            assert factors is not None
            lora_A, lora_B, scaling = factors
            n = len(lora_A)
            left, _, right = torch.linalg.svd(torch.randn(n, n, generator=g, dtype=torch.float64))
            R = left * torch.logspace(0, -2, n, dtype=torch.float64) @ right
            row.append((torch.linalg.solve(R, lora_A), lora_B @ R, scaling * scale))
        result.append(row)
    return result


@pytest.mark.parametrize("stacking", STACKINGS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gauge_and_common_scale_change_no_score_and_no_verdict(stacking: str, scale: float) -> None:
    modules, shapes = mixed_cohort(stacking)
    before = judged_mixed(stacking)
    after = judge_factors(turned(modules, scale, seed=1), shapes)
    assert before.structure.stacking == after.structure.stacking == stacking
    np.testing.assert_allclose(scores_of(after), scores_of(before), atol=1e-6, rtol=1e-6)
    assert words(after) == words(before)
    assert set(words(before)) == {"benign", "contaminated"}
    for k in range(len(before.verdicts)):
        assert codes(after, k) == codes(before, k)
    assert before.scores is not None
    assert after.scores is not None
    for one, other in zip(before.scores, after.scores, strict=True):
        assert other["norm"] == pytest.approx(scale * one["norm"], rel=1e-9)


@pytest.mark.parametrize("stacking", STACKINGS)
@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_clients_changes_no_score_and_no_verdict(stacking: str, seed: int) -> None:
    modules, shapes = mixed_cohort(stacking)
    n = len(modules[0])
    order = np.random.default_rng(seed).permutation(n).tolist()
    names = [f"c{k}" for k in range(n)]
    before = judged_mixed(stacking)
    after = judge_factors(
        [[clients[k] for k in order] for clients in modules], shapes, [names[k] for k in order]
    )
    np.testing.assert_allclose(scores_of(after), scores_of(before)[order], atol=1e-6, rtol=1e-6)
    assert words(after) == [words(before)[k] for k in order]
    for position, k in enumerate(order):
        assert after.verdicts[position].findings[0:1] == before.verdicts[k].findings[0:1]


def test_names_are_words_only() -> None:
    modules, shapes = mixed_cohort("matrix")
    before = judged_mixed("matrix")
    after = judge_factors(modules, shapes, [f"z{9 - k}" for k in range(10)])
    assert words(after) == words(before)
    np.testing.assert_array_equal(scores_of(after), scores_of(before))
