"""The two programs: factor space, duals, influence, exact and stable recovery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.theory.noiseless import solve_noiseless
from benchmarks.theory.stable_blocks import recover_stable
from clair_cli.maths.evidence.similarity import unit_side
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.factors.roots import core_from_gram
from clair_cli.maths.factors.stack import block_norms, client_columns, stack_factors
from clair_cli.maths.judge.decompose import Decomposition, solve_stable
from clair_cli.maths.refine.refine import stacked_basis
from tests.planted import Planted, low_rank, planted, subspace_error

Matrix = NDArray[np.float64]


def dense_stack(problem: Planted) -> tuple[Tensor, list[int]]:
    """[D_1 ... D_K] at unit norm, as one module, and its blocks' widths."""
    units = problem.deltas / torch.linalg.matrix_norm(problem.deltas)[:, None, None]
    return torch.cat(list(units), dim=1)[None], [units.shape[2]] * len(units)


def unit_gram(problem: Planted) -> Tensor:
    """Of the unit delta weights seen from the output side, through our code."""
    shape = (problem.deltas.shape[1], problem.deltas.shape[2])
    pair = grams(stack_factors([problem.factors], shape))
    return unit_side(pair.B, pair.A, pair)


def core_stack(problem: Planted) -> tuple[Tensor, list[int]]:
    """The same in factor space, through our code."""
    return core_from_gram(unit_gram(problem)), [problem.rank] * len(problem.deltas)


def leading_error(solution: Decomposition, problem: Planted) -> float:
    """Error of L's own leading column space (dense stacks only)."""
    dim = problem.shared_subspace.shape[1]
    left = torch.linalg.svd(solution.low_rank[0], full_matrices=False)[0][:, :dim]
    return subspace_error(left, problem.shared_subspace)


def small_blocks(solution: Decomposition) -> set[int]:
    """Kept clients up to rounding: a Gram's square root carries half the digits."""
    return {k for k, size in enumerate(solution.block_norms.flatten().tolist()) if size < 1e-6}


def benign(problem: Planted) -> set[int]:
    return set(range(len(problem.deltas))) - problem.contaminated


def refit_error(problem: Planted, clients: set[int]) -> float:
    """Subspace refitted on the kept clients against the truth."""
    products = [
        Product(B * scaling, A)
        for k, (A, B, scaling) in enumerate(problem.factors) if k in clients
    ]  # fmt: skip
    weights = [float(1 / problem.deltas[k].norm()) for k in sorted(clients)]
    dim = problem.shared_subspace.shape[1]
    U = stacked_basis(products, weights, dim, transpose=False)
    return subspace_error(U, problem.shared_subspace)


# Fact 1: factor space


def own_core(problem: Planted) -> tuple[Tensor, list[int], Matrix, list[Matrix]]:
    """Q, C_k and V_k of M = Q [C_1 V_1' ... C_K V_K'] from numpy's QR."""
    units = problem.deltas / torch.linalg.matrix_norm(problem.deltas)[:, None, None]
    Q, _ = np.linalg.qr(np.hstack([B.numpy() for _, B, _ in problem.factors]))
    bases = [np.linalg.qr(A.numpy().T)[0] for A, _, _ in problem.factors]
    cores = [Q.T @ D.numpy() @ V for D, V in zip(units, bases, strict=True)]
    ranks = [c.shape[1] for c in cores]
    return torch.from_numpy(np.hstack(cores))[None], ranks, Q, bases


def lift(core: Tensor, ranks: list[int], Q: Matrix, bases: list[Matrix]) -> Matrix:
    parts = np.split(core[0].numpy(), np.cumsum(ranks)[:-1], axis=1)
    return np.hstack([Q @ part @ V.T for part, V in zip(parts, bases, strict=True)])


SMALL = {"n_clients": 8, "n_bad": 2, "out": 30, "in_": 14, "dim": 3}


@pytest.mark.parametrize("program", ["stable", "noiseless"])
def test_solving_in_factor_space_is_solving_the_dense_stack(program: str) -> None:
    problem = planted(**SMALL, outlier_norm=3.0)  # type: ignore[arg-type]

    def solve(stack: Tensor, ranks: list[int]) -> Decomposition:
        if program == "stable":
            return solve_stable(stack, ranks, 1.05, 0.92, tol=1e-13, max_iter=3000)
        return solve_noiseless(stack, ranks, 0.85, tol=1e-11, max_iter=5000)

    dense, (core, ranks, Q, bases) = solve(*dense_stack(problem)), own_core(problem)
    small = solve(core, ranks)
    assert dense.outcome == small.outcome == "converged"
    np.testing.assert_allclose(
        lift(small.low_rank, ranks, Q, bases), dense.low_rank[0].numpy(), atol=1e-6
    )
    ours = solve(*core_stack(problem))
    for solution in (small, ours):
        assert solution.objective == pytest.approx(dense.objective, rel=1e-7)
        assert small_blocks(solution) == small_blocks(dense)
        torch.testing.assert_close(solution.residuals, dense.residuals, rtol=0, atol=1e-6)
    assert 0 < len(small_blocks(dense)) < 8  # the program decided something
    values = torch.linalg.svdvals(ours.low_rank[0])
    expected = torch.linalg.svdvals(dense.low_rank[0])
    torch.testing.assert_close(values[:14], expected[:14], rtol=0, atol=1e-6)


def test_core_is_a_square_root_of_the_gram() -> None:
    """Its rows are directions of the stack, the strongest first."""
    problem = planted(**SMALL)  # type: ignore[arg-type]
    gram = unit_gram(problem)
    core = core_from_gram(gram)
    torch.testing.assert_close(core.mT @ core, gram, rtol=0, atol=1e-12)
    singular = torch.linalg.svdvals(dense_stack(problem)[0][0])[:24]
    sizes = torch.linalg.vector_norm(core[0], dim=1)
    torch.testing.assert_close(sizes, singular, rtol=0, atol=1e-6)


# Duals


def nuclear(matrix: Matrix) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def blocks(matrix: Matrix, ranks: list[int]) -> Matrix:
    starts = np.cumsum([0, *ranks[:-1]])
    return np.asarray(np.sqrt(np.add.reduceat((matrix**2).sum(0), starts)))


def stable_value(
    M: Matrix, L: Matrix, S: Matrix, ranks: list[int], lams: tuple[float, float]
) -> float:
    fit = 0.5 * float(((M - L - S) ** 2).sum())
    return fit + lams[0] * nuclear(L) + lams[1] * float(blocks(S, ranks).sum())


def block_shrink(matrix: Matrix, ranks: list[int], threshold: float) -> Matrix:
    size = np.repeat(blocks(matrix, ranks), ranks)
    return matrix * np.maximum(0.0, 1 - threshold / np.maximum(size, 1e-300))


def singular_shrink(matrix: Matrix, threshold: float) -> Matrix:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left * np.maximum(values - threshold, 0.0) @ right)


def stable_optimum(M: Matrix, ranks: list[int], lams: tuple[float, float]) -> float:
    """Exact minimisation over L and S in turn: slow, simple, converges (the fit is smooth)."""
    S = np.zeros_like(M)
    for _ in range(20_000):
        L = singular_shrink(M - S, lams[0])
        new = block_shrink(M - L, ranks, lams[1])
        if np.abs(new - S).max() < 1e-13:
            break
        S = new
    return stable_value(M, L, S, ranks, lams)


def noiseless_optimum(M: Matrix, ranks: list[int], lam: float) -> float:
    """Douglas-Rachford splitting of ||L||_* + lam sum ||(M - L)_k||."""
    Z = L = np.zeros_like(M)
    for _ in range(6000):
        L = singular_shrink(Z, 0.3)
        reflected = 2 * L - Z
        X = M - block_shrink(M - reflected, ranks, 0.3 * lam)
        Z = Z + X - L
        if np.abs(X - L).max() < 1e-13:
            break
    return nuclear(L) + lam * float(blocks(M - L, ranks).sum())


def tiny(seed: int) -> tuple[Matrix, list[int]]:
    rng = np.random.default_rng(seed)
    ranks = [2, 3, 1, 2]
    M = rng.standard_normal((5, 8))
    M[:, :5] += 3 * rng.standard_normal((5, 1)) @ rng.standard_normal((1, 5))
    return M, ranks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lams", [(1.0, 1.0), (2.0, 0.7), (0.3, 2.0)])
def test_stable_gap_bounds_the_distance_to_the_optimum(
    seed: int, lams: tuple[float, float]
) -> None:
    M, ranks = tiny(seed)
    optimum = stable_optimum(M, ranks, lams)
    stack = torch.from_numpy(M)[None]
    for max_iter in (1, 2, 5, 10, 50):
        got = solve_stable(stack, ranks, *lams, max_iter=max_iter, tol=1e-15)
        assert got.objective >= optimum * (1 - 1e-10)
        assert got.objective * (1 - got.gap) <= optimum * (1 + 1e-10)
    got = solve_stable(stack, ranks, *lams, max_iter=5000, tol=1e-12)
    assert got.outcome == "converged"
    assert got.objective == pytest.approx(optimum, rel=1e-9)
    L = got.low_rank[0].numpy()
    S = block_shrink(M - L, ranks, lams[1])
    assert got.objective == pytest.approx(stable_value(M, L, S, ranks, lams), rel=1e-12)
    np.testing.assert_allclose(got.block_norms.numpy(), blocks(S, ranks), atol=1e-12)
    assert got.subspace_dims == (int(np.linalg.matrix_rank(L, tol=1e-9)),)


@pytest.mark.parametrize(("lam", "seed"), [(0.5, 0), (0.8, 0), (0.8, 1), (1.2, 1), (1.2, 2)])
def test_noiseless_gap_bounds_the_distance_to_the_optimum(lam: float, seed: int) -> None:
    M, ranks = tiny(seed)
    optimum = noiseless_optimum(M, ranks, lam)
    stack = torch.from_numpy(M)[None]
    for max_iter in (10, 20, 50):
        got = solve_noiseless(stack, ranks, lam, max_iter=max_iter, tol=1e-15)
        assert got.objective >= optimum * (1 - 1e-6)
        assert got.objective * (1 - got.gap) <= optimum * (1 + 1e-10)
    got = solve_noiseless(stack, ranks, lam, max_iter=5000, tol=1e-10)
    assert got.outcome == "converged"
    assert got.objective == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("program", ["stable", "noiseless"])
def test_stopping_early_is_reported_with_its_gap(program: str) -> None:
    M, ranks = tiny(0)
    stack = torch.from_numpy(M)[None]
    if program == "stable":
        got = solve_stable(stack, ranks, 1.0, 1.0, max_iter=2)
    else:
        got = solve_noiseless(stack, ranks, 0.8, max_iter=10)
    assert got.outcome == "max_iter"
    assert got.n_iter in (2, 10)
    assert got.gap > 1e-6


def test_too_few_iterations_for_a_check_count_as_not_converged() -> None:
    M, ranks = tiny(0)
    got = solve_noiseless(torch.from_numpy(M)[None], ranks, 0.8, max_iter=3)
    assert got.outcome == "max_iter"
    assert got.gap > 1e-6


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_penalties_that_are_not_positive_are_refused(bad: float) -> None:
    stack = torch.ones(1, 2, 2, dtype=torch.float64)
    for lams in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(ValueError, match="penalties must be positive"):
            solve_stable(stack, [1, 1], *lams)
    with pytest.raises(ValueError, match="block_penalty must be positive"):
        solve_noiseless(stack, [1, 1], bad)


# Fact 3: block-Huber


@pytest.mark.parametrize("block_penalty", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("joint", [True, False])
def test_a_block_is_zero_exactly_when_its_residual_is_at_most_lam2(
    block_penalty: float, joint: bool
) -> None:
    problems = [planted(8, 3, out=20, in_=12, dim=2, noise=0.3, seed=s) for s in (0, 1)]
    stacks = [dense_stack(p) for p in problems]
    stack = torch.cat([s for s, _ in stacks]) / 2**0.5
    ranks = stacks[0][1]
    got = solve_stable(stack, ranks, 0.8, block_penalty, joint=joint, tol=1e-10, max_iter=3000)
    residuals = block_norms(stack - got.low_rank, ranks, joint=joint)
    torch.testing.assert_close(got.residuals, residuals, rtol=1e-12, atol=0)
    assert torch.equal(got.block_norms == 0, residuals <= block_penalty)
    torch.testing.assert_close(
        got.block_norms, (residuals - block_penalty).clamp_min(0), rtol=0, atol=1e-12
    )


def test_one_client_of_any_size_moves_the_low_rank_part_only_so_far() -> None:
    problem = planted(10, 1, out=20, in_=12, dim=2, noise=0.1)
    stack, ranks = dense_stack(problem)
    solutions = {}
    for size in (0.0, 1.0, 1e2, 1e4, 1e6):
        grown = stack.clone()
        grown[:, :, client_columns(ranks, [9])] *= size
        solutions[size] = solve_stable(grown, ranks, 1.1, 0.9, tol=1e-13, max_iter=4000).low_rank
    without = solutions[0.0]
    base = float(torch.linalg.vector_norm(without))
    moved = {s: float(torch.linalg.vector_norm(L - without)) for s, L in solutions.items()}
    assert moved[1e6] == pytest.approx(moved[1e2], rel=0.02)
    assert moved[1e4] == pytest.approx(moved[1e2], rel=0.02)
    assert moved[1e6] < 0.5 * base
    unbounded = stack.clone()
    unbounded[:, :, client_columns(ranks, [9])] *= 1e6
    free = solve_stable(unbounded, ranks, 1.1, 1e9, tol=1e-9, max_iter=200).low_rank
    assert float(torch.linalg.vector_norm(free - without)) > 1e4 * base  # lam2 is what bounds


# Fact 4: the window for lam, noiseless


@pytest.mark.parametrize(
    ("n_clients", "n_bad", "lams", "outlier_norm"),
    [
        (20, 2, (0.5, 0.9), 1.0),
        (20, 4, (0.6, 0.9), 10.0),
        (20, 12, (0.8, 0.9), 1.0),
        (10, 4, (0.9,), 10.0),
        (10, 6, (1.05,), 1.0),
        (10, 6, (1.05,), 10.0),
    ],
)
def test_inside_the_window_set_and_subspace_are_exact(
    n_clients: int, n_bad: int, lams: tuple[float, ...], outlier_norm: float
) -> None:
    problem = planted(n_clients, n_bad, outlier_norm=outlier_norm)
    stack, ranks, Q, _ = own_core(problem)
    for lam in lams:
        got = solve_noiseless(stack, ranks, lam, tol=1e-8)
        assert got.outcome == "converged"
        assert got.subspace_dims == (4,)
        sizes = got.block_norms[0]
        outside = {k for k in range(n_clients) if float(sizes[k]) > 1e-5}
        assert outside == problem.contaminated
        U = Q @ np.linalg.svd(got.low_rank[0].numpy())[0][:, :4]
        assert subspace_error(torch.from_numpy(U), problem.shared_subspace) <= 1e-6


def test_below_the_window_benign_clients_leave() -> None:
    """lam must exceed sqrt(subspace_dim / n_benign), 0.5 here."""
    problem = planted(20, 4)
    stack, ranks, _, _ = own_core(problem)
    got = solve_noiseless(stack, ranks, 0.4, tol=1e-8)
    assert got.outcome == "converged"
    assert (got.block_norms[0, :16] > 1e-3).sum() >= 8


def test_decaying_outliers_bend_the_low_rank_part_and_refitting_mends_it() -> None:
    """The reason for the refit on the kept clients."""
    problem = planted(20, 12, decaying=True)
    stack, ranks, Q, _ = own_core(problem)
    got = solve_noiseless(stack, ranks, 0.85, tol=1e-8)
    sizes = got.block_norms[0]
    assert {k for k in range(20) if float(sizes[k]) > 1e-3} == problem.contaminated
    U = Q @ np.linalg.svd(got.low_rank[0].numpy())[0][:, :4]
    assert subspace_error(torch.from_numpy(U), problem.shared_subspace) > 1e-4
    assert refit_error(problem, benign(problem)) <= 1e-6


@pytest.mark.parametrize("decaying", [False, True])
@pytest.mark.parametrize("outlier_norm", [1.0, 10.0])
@pytest.mark.parametrize(
    ("n_clients", "n_bad", "seed"), [(20, 0, 5), (20, 4, 0), (20, 8, 1), (20, 12, 2), (10, 4, 3)]
)
def test_noiseless_recovery_up_to_60_percent(
    n_clients: int, n_bad: int, seed: int, outlier_norm: float, decaying: bool
) -> None:
    """With the penalties estimated from half of the benign clients or more."""
    problem = planted(n_clients, n_bad, outlier_norm=outlier_norm, decaying=decaying, seed=seed)
    stack, ranks = core_stack(problem)
    start = sorted(benign(problem))[: max(6, n_clients // 2 - n_bad)]
    got = recover_stable(stack, ranks, start)
    assert set(got.members) == benign(problem)
    assert got.penalties.block <= 1.0 <= got.penalties.low_rank
    assert got.penalties.subspace_dims == (4,)
    assert refit_error(problem, set(got.members)) <= 1e-6


# Noise


def test_subspace_error_grows_linearly_with_noise() -> None:
    noises = [1e-5, 1e-4, 1e-3, 1e-2]
    own, refitted = [], []
    for noise in noises:
        problem = planted(10, 3, out=24, in_=16, dim=3, noise=noise, seed=5)
        stack, ranks = dense_stack(problem)
        start = sorted(benign(problem))
        got = recover_stable(stack, ranks, start, tol=1e-9)
        assert set(got.members) == benign(problem)
        refitted.append(refit_error(problem, benign(problem)))
        clean = stack[:, :, client_columns(ranks, start)]
        alone = solve_stable(clean, [16] * 7, 1.1, 0.95, tol=1e-11, max_iter=3000)
        own.append(leading_error(alone, problem))
    for errors in (own, refitted):
        slope = np.polyfit(np.log(noises), np.log(errors), 1)[0]
        assert slope == pytest.approx(1.0, abs=0.1)
        assert errors[-1] < 0.05


# Joint blocks


def test_joint_blocks_add_up_over_modules_and_single_ones_do_not_meet() -> None:
    problems = [planted(8, 2, out=20, in_=12, dim=2, noise=0.2, seed=s) for s in (3, 4)]
    stack = torch.cat([dense_stack(p)[0] for p in problems])
    ranks = dense_stack(problems[0])[1]
    joint = solve_stable(stack, ranks, 1.1, 0.8, joint=True, tol=1e-11, max_iter=3000)
    single = solve_stable(stack, ranks, 1.1, 0.8, joint=False, tol=1e-11, max_iter=3000)
    assert joint.residuals.shape == (8,)
    assert single.residuals.shape == (2, 8)
    alone = [
        solve_stable(m[None], ranks, 1.1, 0.8, tol=1e-11, max_iter=3000).low_rank for m in stack
    ]
    torch.testing.assert_close(single.low_rank, torch.cat(alone), rtol=0, atol=1e-5)
    assert not torch.allclose(joint.low_rank, single.low_rank, atol=1e-3)
    M = stack.numpy()
    value = float(sum(1.1 * nuclear(L) for L in joint.low_rank.numpy()))
    for k in range(8):
        r = float(np.linalg.norm((M - joint.low_rank.numpy())[:, :, k * 12 : (k + 1) * 12]))
        value += r**2 / 2 if r <= 0.8 else 0.8 * r - 0.32
    assert joint.objective == pytest.approx(value, rel=1e-12)


def test_the_joint_gap_is_a_bound_too() -> None:
    g = torch.Generator().manual_seed(6)
    stack = torch.stack([low_rank(6, 8, 4, g) * 3 for _ in range(2)])
    ranks = [2, 3, 1, 2]
    best = solve_stable(stack, ranks, 0.5, 0.6, tol=1e-13, max_iter=20_000)
    assert best.gap <= 1e-12
    for max_iter in (1, 3, 10):
        got = solve_stable(stack, ranks, 0.5, 0.6, max_iter=max_iter, tol=1e-15)
        assert got.objective >= best.objective * (1 - 1e-12)
        assert got.objective * (1 - got.gap) <= best.objective * (1 + 1e-12)


def test_joint_noiseless_blocks_find_what_single_modules_find() -> None:
    problems = [planted(10, 3, out=24, in_=16, dim=2, seed=s) for s in (0, 1)]
    stack = torch.cat([own_core(p)[0] for p in problems])
    ranks = own_core(problems[0])[1]
    got = solve_noiseless(stack, ranks, 0.85 * 2**0.5, joint=True, tol=1e-8)
    assert got.outcome == "converged"
    assert got.block_norms.shape == (10,)
    outside = {k for k in range(10) if float(got.block_norms[k]) > 1e-5}
    assert outside == problems[0].contaminated
