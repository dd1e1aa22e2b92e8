"""Exact and stable recovery, and the regression example, in small."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import clair_cli
from benchmarks.theory import (
    exact_recovery,
    linear_regression,
    recovery,
    stable_blocks,
    stable_recovery,
)
from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.factors.stack import block_norms


@pytest.mark.parametrize(
    ("kind", "n_bad", "spectrum"),
    [("unrelated", 8, "decaying"), ("unrelated", 12, "decaying"), ("colluding", 8, "flat")],
)
def test_recovery_is_exact_without_being_told_dimension_or_number(
    kind: str, n_bad: int, spectrum: str
) -> None:
    problem = exact_recovery.plant(20, n_bad, 4, kind, spectrum, seed=11)
    found = recovery.recover(problem.stack, problem.ranks)
    assert found.kept == problem.benign
    assert exact_recovery.subspace_error(found.basis, problem.subspace) <= 1e-6
    assert found.lam > (4 / len(problem.benign)) ** 0.5


def test_a_cohort_without_outliers_is_kept_whole() -> None:
    assert exact_recovery.succeeds(exact_recovery.plant(20, 0, 4, "unrelated", "flat"))


@pytest.mark.parametrize("norm", [0.1, 100.0])
def test_the_outliers_norm_does_not_matter(norm: float) -> None:
    usual, other = (
        exact_recovery.plant(12, 6, 2, "unrelated", "decaying", size) for size in (1.0, norm)
    )
    sizes = block_norms(other.stack[None], other.ranks, joint=True)
    assert sizes[-1] / sizes[0] == pytest.approx(norm)
    first = recovery.recover(usual.stack, usual.ranks)
    second = recovery.recover(other.stack, other.ranks)
    assert first.kept == second.kept == other.benign
    assert second.lam == pytest.approx(first.lam)


def test_more_colluders_than_benign_clients_are_taken_for_them() -> None:
    problem = exact_recovery.plant(20, 12, 4, "colluding", "flat")
    assert recovery.recover(problem.stack, problem.ranks).kept == tuple(range(8, 20))


def test_a_fixed_lam_below_the_window_fails_where_the_rule_succeeds() -> None:
    problem = exact_recovery.plant(20, 12, 4, "unrelated", "flat")  # opens at 0.71
    assert exact_recovery.succeeds(problem)
    assert not exact_recovery.succeeds(problem, exact_recovery.by_fixed(0.6))


def test_clients_that_share_nothing_have_no_shared_subspace() -> None:
    problem = exact_recovery.plant(8, 8, 2, "unrelated", "flat")
    found = recovery.recover(problem.stack, problem.ranks)
    assert found.kept == ()
    assert found.basis.shape == (48, 0)


def test_a_set_is_consistent_only_if_nobody_outside_is_explained() -> None:
    problem = exact_recovery.plant(10, 2, 2, "unrelated", "flat")
    stack, basis = recovery.unit_blocks(problem.stack, problem.ranks), problem.subspace
    kept = problem.benign
    assert recovery.consistent(stack, problem.ranks, kept, basis, 0.51, 1e-6)
    assert not recovery.consistent(stack, problem.ranks, kept, basis, 0.49, 1e-6)
    assert not recovery.consistent(stack, problem.ranks, kept[1:], basis, 0.9, 1e-6)
    assert not recovery.consistent(stack, problem.ranks, (*kept, 8), basis, 0.9, 1e-6)


def test_boundaries_of_a_map() -> None:
    assert exact_recovery.closes_at(20, 4, "unrelated") == pytest.approx(0.8)
    assert exact_recovery.closes_at(20, 4, "colluding") == 0.5
    assert exact_recovery.last_success((0.0, 0.1, 0.2), (1.0, 0.5, 1.0)) == 0.0
    assert exact_recovery.last_success((0.0, 0.1), (0.5, 1.0)) is None
    assert stable_recovery.smallest((0.2, 0.5, 0.8, 1.0), (1.0, 0.9, 0.95, 1.0)) == 0.8
    assert stable_recovery.smallest((0.2, 1.0), (1.0, 0.9)) is None


def test_subspace_error_is_linear_in_noise_with_the_constant_of_first_order() -> None:
    noises = (1e-5, 1e-3, 1e-1)
    found = [stable_recovery.subspace_errors(stable_recovery.plant(10, n, seed=2)) for n in noises]
    assert all(exact for _, _, exact in found)
    errors = [error for error, _, _ in found]
    assert stable_recovery.slope(noises, errors) == pytest.approx(1.0, abs=0.1)
    constant = errors[0] / noises[0]
    assert constant == pytest.approx(stable_recovery.predicted_constant(7), rel=0.3)


def test_blocks_are_the_unit_delta_weights_seen_from_the_output_side() -> None:
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    modules = [
        [Product(p.lora_B @ turn, torch.linalg.solve(turn, p.lora_A)) for p in clients]
        for clients in stable_recovery.plant(4, 0.3).modules
    ]
    stack, ranks = stable_blocks.output_blocks(modules)
    assert stack.shape == (6, 32, 16) and ranks == [4] * 4
    torch.testing.assert_close(block_norms(stack, ranks, joint=True), torch.ones(4).double())
    for found, clients in zip(stack, modules, strict=True):
        dense = [p.lora_B @ p.lora_A for p in clients]
        units = torch.cat([d / d.norm() for d in dense], dim=1) / 6**0.5
        torch.testing.assert_close(found @ found.mT, units @ units.mT)


def test_nobody_is_held_against_himself() -> None:
    """Of a client that alone has a direction nothing is captured, whoever else is a member."""
    stack = torch.zeros(1, 3, 5, dtype=torch.float64)
    stack[0, 0, :4], stack[0, 1, 4], stack[0, 2, 3] = 1.0, 1.0, 1.0
    got = stable_blocks.captured_by_space(stack, [1] * 5, [0, 1, 2, 4], [1])
    torch.testing.assert_close(got, torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.0]]).double())
    alone = stable_blocks.captured_by_space(stack, [1] * 5, [0], [1])
    torch.testing.assert_close(alone, torch.tensor([[0.0, 1.0, 1.0, 0.5, 0.0]]).double())
    stack[0, 1, 4] = 3.0  # the strongest direction of all, and nobody else's
    strong = stable_blocks.captured_by_space(stack, [1] * 5, [0, 1, 2, 4], [1])
    assert not strong.any()


@pytest.mark.parametrize("stacking", ["matrix", "output"])
def test_the_set_needs_separation(stacking: str) -> None:
    near, far = (
        stable_recovery.exact_rate(10, 0.5, separation, stacking, False, 2)
        for separation in (0.1, 1.0)
    )
    assert (near, far) == (0.0, 1.0)


@pytest.mark.parametrize("stacking", ["matrix", "output"])
def test_separation_is_one_minus_similarity(stacking: str) -> None:
    cohort = stable_recovery.plant(10, 0.0, 0.4, stacking=stacking)
    inside, across = [], []
    for clients in cohort.modules:
        first, second, bad = ((p.lora_B @ p.lora_A) for p in (clients[0], clients[1], clients[9]))
        if stacking == "output":
            first, second, bad = first @ first.T, second @ second.T, bad @ bad.T
        inside.append(torch.sum(first * second) / first.norm() / second.norm())
        across.append(torch.sum(first * bad) / first.norm() / bad.norm())
    assert float(sum(across) / sum(inside)) == pytest.approx(0.6, abs=0.05)


def test_planted_cohorts_are_judged_as_inspect_judges_them() -> None:
    cohort = stable_recovery.plant(10, 0.5, 0.6, seed=1)
    modules = [f"m{m}" for m in range(len(cohort.modules))]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": modules}
    clients = {
        f"c{k:02}": (
            {
                f"base_model.model.{name}.lora_{side}.weight": getattr(clients[k], f"lora_{side}")
                for name, clients in zip(modules, cohort.modules, strict=True)
                for side in "AB"
            },
            config,
        )
        for k in range(10)
    }
    report = clair_cli.inspect(clients).report
    verdicts = [v.verdict for v in stable_recovery.judged(cohort).verdicts]
    assert [c.verdict for c in report.clients] == verdicts
    assert len(set(verdicts)) > 1


def test_regression_finds_the_shuffled_sites_and_refining_beats_local() -> None:
    found, errors = linear_regression.compare(seed=0)
    assert tuple(found) == linear_regression.SHUFFLED
    assert errors["refined"] < 0.5 * min(errors["local"], errors["mean"])
    assert errors["merged"] < errors["mean"]


def test_the_example_runs_and_says_what_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(linear_regression.__file__).with_name("regression_example.py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 30
    runpy.run_path(str(path))
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "left out: site-2 site-5 site-8"
    errors = [tuple(map(float, re.findall(r"\d\.\d+", line))) for line in lines]
    assert len(errors) == 7
    assert all(refined < 0.5 * local for local, refined in errors)
