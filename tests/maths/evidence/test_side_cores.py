"""A side reduced to its leading directions: nothing that the judgement looks at is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence import side_cores as module
from clair_cli.maths.evidence.side_cores import SideCores, joint_cores, side_cores, unit_core
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import client_columns, stack_factors
from clair_cli.maths.judge.collaborate import captured_by_space, collaborate
from clair_cli.maths.judge.decompose import solve_stable
from clair_cli.maths.judge.prox import left_singular, singular_value_threshold, spectral_norms
from tests.planted import judge_factors, words

CLIENTS, RANK, OUT, IN, BAD = 12, 16, 300, 260, (3, 7)


def cohort(seed: int) -> list[tuple[Tensor, Tensor, float]]:
    """Clients that share three output directions, beside their own; two share nothing."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.linalg.qr(torch.randn(OUT, 3, generator=g)).Q
    found = []
    for k in range(CLIENTS):
        lora_B = 0.02 * torch.randn(OUT, RANK, generator=g)
        if k not in BAD:
            lora_B[:, :3] += shared
        found.append((torch.randn(RANK, IN, generator=g) / IN**0.5, lora_B, 1.0))
    return found


def norms(cores: SideCores) -> Tensor:
    """Whole norms of the clients' blocks, squared, (n_modules, n_clients)."""
    blocks = [cores.stack[:, :, client_columns(cores.ranks, [k])] for k in range(len(cores.ranks))]
    return torch.stack([b.square().sum((1, 2)) for b in blocks], dim=1) + cores.outside


@pytest.mark.parametrize("side", ["output", "input"])
def test_norms_stay_and_what_is_cut_off_is_small(side: str) -> None:
    pair = grams(stack_factors([cohort(0), cohort(1)], (OUT, IN)))
    cores, whole = side_cores(pair, side), unit_core(pair, side)
    rows = cores.stack.shape[1]
    assert 16 <= rows <= 64 < whole.shape[1] == CLIENTS * RANK
    torch.testing.assert_close(norms(cores), torch.ones(2, CLIENTS, dtype=torch.float64))
    assert torch.equal(cores.stack, whole[:, :rows])
    assert float(torch.linalg.svdvals(whole[:, rows:]).max()) <= 0.47
    joint = joint_cores([side_cores(pair.module(i), side) for i in range(2)])
    torch.testing.assert_close(
        norms(joint).sum(0), torch.ones(CLIENTS, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_small_stacks_are_kept_whole() -> None:
    pair = grams(stack_factors([cohort(0)[:8]], (OUT, IN)))
    cores = side_cores(pair, "output")
    assert torch.equal(cores.stack, unit_core(pair, "output")) and not cores.outside.any()


def test_columns_are_added_at_the_end_of_each_client() -> None:
    cores = SideCores(torch.arange(6.0).reshape(1, 2, 3), torch.ones(1, 2), (1, 2))
    padded = cores.widened([2, 3])
    assert padded.ranks == (2, 3) and padded.outside is cores.outside
    assert padded.stack[0].tolist() == [[0, 0, 1, 2, 0], [3, 0, 4, 5, 0]]
    assert cores.widened((1, 2)) is cores


def test_the_judgement_is_that_of_whole_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    modules, shapes = [cohort(seed) for seed in range(5)], [(OUT, IN)] * 5
    found = judge_factors(modules, shapes)
    monkeypatch.setattr(module, "_WHOLE", 10**6)
    whole = judge_factors(modules, shapes)
    assert found.structure.stacking == "output"
    assert words(found) == words(whole)
    assert {k for k, word in enumerate(words(found)) if word == "contaminated"} == set(BAD)
    assert found.collaborative is not None and whole.collaborative is not None
    assert found.collaborative.solution.outcome == "converged"
    assert found.collaborative.penalties.subspace_dims == (3,) * 5
    # the directions were found with everybody: each client's own part leads a little
    more = found.collaborative.captured - whole.collaborative.captured
    assert -1e-3 < float(more.min()) <= float(more.max()) < 0.02
    assert found.scores is not None and whole.scores is not None
    for mine, theirs in zip(found.scores, whole.scores, strict=True):
        assert mine.captured_ratio == pytest.approx(theirs.captured_ratio, abs=2e-3)
    for one, other in zip(found.collaborative.solution.block_norms,
                          whole.collaborative.solution.block_norms, strict=True):  # fmt: skip
        assert float(one) == pytest.approx(float(other), rel=1e-3, abs=1e-6)


def test_what_is_outside_counts_as_rows_that_nobody_shares() -> None:
    """Exactly: each client's outside as a row and a column of its own."""
    g = torch.Generator().manual_seed(4)
    ranks, rows = [3] * 6, 5
    shared = torch.randn(rows, 2, generator=g, dtype=torch.float64)
    inside = torch.cat(
        [shared @ torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in ranks], dim=1
    )[None]
    inside[:, :, -3:] = torch.randn(1, rows, 3, generator=g, dtype=torch.float64)
    inside /= torch.linalg.matrix_norm(inside.unflatten(2, (6, 3)).transpose(1, 2)).max()
    outside = torch.linspace(0.05, 0.8, 6, dtype=torch.float64)[None]
    blocks = []
    for k, block in enumerate(torch.split(inside, 3, dim=2)):
        own = torch.zeros(1, rows + 6, 4, dtype=torch.float64)
        own[:, :rows, :3], own[0, rows + k, 3] = block, outside[0, k].sqrt()
        blocks.append(own)
    whole = solve_stable(torch.cat(blocks, dim=2), [4] * 6, 1.0, 0.7, tol=1e-12, max_iter=5000)
    found = solve_stable(inside, ranks, 1.0, 0.7, outside=outside, tol=1e-12, max_iter=5000)
    assert whole.outcome == found.outcome == "converged"
    assert found.objective == pytest.approx(whole.objective, rel=1e-11)
    torch.testing.assert_close(found.residuals, whole.residuals, rtol=1e-6, atol=1e-9)
    without = solve_stable(inside, ranks, 1.0, 0.7, tol=1e-12, max_iter=5000)
    assert abs(without.objective - whole.objective) > 0.1
    early = solve_stable(inside, ranks, 1.0, 0.7, outside=outside, max_iter=1, tol=1e-12)
    assert early.objective * (1 - early.gap) <= found.objective * (1 + 1e-12) <= early.objective


@pytest.mark.parametrize("cols", [15, 40])
def test_far_more_columns_than_rows_make_no_difference(cols: int) -> None:
    g = torch.Generator().manual_seed(cols)
    stack = torch.randn(3, 5, cols, generator=g, dtype=torch.float64)
    u, values, vt = torch.linalg.svd(stack, full_matrices=False)
    left, found = left_singular(stack)
    torch.testing.assert_close(found, values)
    torch.testing.assert_close((u.mT @ left).abs(), torch.eye(5).double().expand(3, 5, 5))
    torch.testing.assert_close(spectral_norms(stack), values[:, 0])
    threshold = float(values[:, 2].mean())
    step = singular_value_threshold(stack, threshold)
    shrunk = (values - threshold).clamp_min(0.0)
    torch.testing.assert_close(step.value, u * shrunk[:, None, :] @ vt)
    torch.testing.assert_close(step.nuclear_norm, shrunk.sum(1))
    assert torch.equal(step.rank, (shrunk > 0).sum(1))


def test_nobody_is_held_against_himself() -> None:
    """Of a client that alone has a direction nothing is captured, whoever else is a member."""
    stack = torch.zeros(1, 3, 4, dtype=torch.float64)
    stack[0, 0, :3], stack[0, 1, 3] = 1.0, 1.0
    cores = SideCores(stack, torch.tensor([[0.0, 1.0, 3.0, 0.0]]).double(), (1, 1, 1, 1))
    got = captured_by_space(cores, range(4), [1])
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.5, 0.25, 0.0]]).double())
    alone = captured_by_space(cores, [0], [1])
    torch.testing.assert_close(alone, torch.tensor([[0.0, 0.5, 0.25, 0.0]]).double())
    joint = replace(cores, stack=stack / 2, outside=cores.outside / 4)
    assert collaborate(joint, range(3), range(4)).captured.shape == (1, 4)
