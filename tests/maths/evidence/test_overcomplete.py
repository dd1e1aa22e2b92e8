"""Evidence of over-complete stacks compared with evidence from whole Grams."""

from __future__ import annotations

import pytest
import torch

from clair_cli.maths.evidence import overcomplete as module
from clair_cli.maths.evidence.gather import Evidence, gather
from clair_cli.maths.evidence.overcomplete import COMPARED_DIM, overcomplete_evidence
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import Factors, is_overcomplete, stack_factors

OUT, IN, RANK, CLIENTS = 330, 290, 12, 40
STRANGERS = (3, 17)


def cohort(seed: int = 0) -> list[Factors]:
    """Clients that share four directions, a pair of near copies of each other among them, and
    two that share nothing."""
    g = torch.Generator().manual_seed(seed)
    shared_A = torch.randn(4, IN, generator=g, dtype=torch.float64)
    shared_B = torch.randn(OUT, 4, generator=g, dtype=torch.float64)
    clients: list[Factors] = []
    for k in range(CLIENTS):
        A = 0.4 * torch.randn(RANK, IN, generator=g, dtype=torch.float64)
        B = 0.4 * torch.randn(OUT, RANK, generator=g, dtype=torch.float64)
        if k not in STRANGERS:
            A[:4] += shared_A
            B[:, :4] += shared_B
        clients.append((A.float(), B.float(), 0.5 + k))
    return clients


def overcomplete(clients: list[Factors]) -> Evidence:
    return overcomplete_evidence(stack_factors([clients], (OUT, IN))).evidence


def test_where_it_is_used() -> None:
    assert is_overcomplete(257, (300, 256)) and is_overcomplete(300, (256, 4096))
    assert not is_overcomplete(256, (300, 256)) and not is_overcomplete(300, (4096, 255))


def test_norms_and_effective_ranks_are_exact() -> None:
    exact, found = gather(grams(stack_factors([cohort()], (OUT, IN)))), overcomplete(cohort())
    torch.testing.assert_close(found.norms, exact.norms, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.effective_ranks, exact.effective_ranks, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("stacking", ["matrix", "output", "input"])
def test_pairs_are_close_to_exact_ones(stacking: str) -> None:
    exact = gather(grams(stack_factors([cohort()], (OUT, IN)))).table(stacking)
    found = overcomplete(cohort()).table(stacking)
    torch.testing.assert_close(found.null, exact.null, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(found.value, exact.value, rtol=0.0, atol=0.035)
    off = (found.value - exact.value)[0][~torch.eye(CLIENTS, dtype=torch.bool)]
    assert float(off.square().mean().sqrt()) < 0.01 and float(off.mean().abs()) < 0.005
    assert torch.equal(found.value[0].diagonal(), torch.ones(CLIENTS, dtype=torch.float64))


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_sides_leading_directions_hold_the_stacks_leading_singular_values(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, found_of = cohort(), []
    real = module._leading_subspace
    monkeypatch.setattr(
        module, "_leading_subspace", lambda *given: found_of.append(real(*given)) or found_of[-1]
    )
    overcomplete(clients)
    units_of_side = found_of[("output", "input").index(side)].units
    deltas = [s * B.double() @ A.double() for A, B, s in clients]  # type: ignore[misc]
    units = [d / torch.linalg.matrix_norm(d) for d in deltas]
    dense = torch.cat([u if side == "output" else u.mT for u in units], dim=1)
    exact = torch.linalg.svdvals(dense)[:COMPARED_DIM]
    found = torch.linalg.svdvals(units_of_side)
    assert units_of_side.shape == (CLIENTS * RANK, COMPARED_DIM)
    torch.testing.assert_close(found[:4], exact[:4], rtol=1e-6, atol=0.0)
    assert (found <= exact * (1 + 1e-9)).all() and (found >= 0.85 * exact).all()


def tables(evidence: Evidence) -> torch.Tensor:
    return torch.cat([evidence.table(s).value for s in ("matrix", "output", "input")])


def test_gauge_order_and_scale_do_not_matter() -> None:
    clients, g = cohort(), torch.Generator().manual_seed(5)
    expected = tables(overcomplete(clients))
    turned: list[Factors] = []
    for A, B, scaling in clients:  # type: ignore[misc]
        turn = torch.randn(RANK, RANK, generator=g, dtype=torch.float64)
        turned.append((torch.linalg.inv(turn) @ A.double(), B.double() @ turn, 7 * scaling))
    torch.testing.assert_close(tables(overcomplete(turned)), expected, rtol=0.0, atol=1e-7)
    order = list(reversed(range(CLIENTS)))
    found = tables(overcomplete([clients[k] for k in order]))
    torch.testing.assert_close(found[:, order][:, :, order], expected, rtol=0.0, atol=1e-7)


def test_clients_without_a_delta_weight_have_no_similarity() -> None:
    clients = cohort()
    A, B, _ = clients[2]  # type: ignore[misc]
    clients[0], clients[1] = None, (A, B, 0.0)
    clients[2] = (torch.cat([A, A]), torch.cat([B, -B], dim=1), 1.0)
    clients[5] = (A[:3], B[:, :3], -1.0)
    found = overcomplete(clients)
    assert not found.norms[0, :3].any() and (found.norms[0, 3:] > 0).all()
    assert torch.isnan(found.effective_ranks[0, :3]).all()
    for stacking in ("matrix", "output", "input"):
        table = found.table(stacking)
        assert torch.isnan(table.value[0, :3]).all() and torch.isnan(table.value[0, :, :3]).all()
        assert torch.isfinite(table.value[0, 3:, 3:]).all()
    exact = gather(grams(stack_factors([clients], (OUT, IN))))
    difference = (tables(found) - tables(exact))[:, 3:, 3:]
    assert float(difference.abs().max()) < 0.035


@pytest.mark.parametrize(("count", "rank", "shape"), [(4, 90, (260, 520)), (40, 8, (300, 256))])
def test_unrelated_clients_are_as_similar_as_chance_has_it(
    count: int, rank: int, shape: tuple[int, int]
) -> None:
    """The leading directions are the clients' own: within them strangers look alike."""
    g = torch.Generator().manual_seed(3)
    clients: list[Factors] = [
        (torch.randn(rank, shape[1], generator=g), torch.randn(shape[0], rank, generator=g), 1.0)
        for _ in range(count)
    ]
    found = overcomplete_evidence(stack_factors([clients], shape)).evidence
    off = ~torch.eye(count, dtype=torch.bool)
    for stacking in ("matrix", "output", "input"):
        table = found.table(stacking)
        excess = (table.value - table.null)[0][off]
        assert abs(float(excess.mean())) < 0.005  # as good as the probes allow
        assert float(excess.abs().max()) < 0.03


@pytest.mark.parametrize("distance", [0.0, 0.05, 0.3])
def test_copies_and_near_copies_are_seen(distance: float) -> None:
    """Also where nobody else shares anything with them."""
    clients, g = cohort(), torch.Generator().manual_seed(8)
    A, B, scaling = clients[STRANGERS[0]]  # type: ignore[misc]
    other = B + distance * B.norm() / B.numel() ** 0.5 * torch.randn(B.shape, generator=g)
    turn = torch.randn(RANK, RANK, generator=g)
    clients[STRANGERS[1]] = (torch.linalg.inv(turn) @ A, other @ turn, 3 * scaling)
    exact = gather(grams(stack_factors([clients], (OUT, IN)))).matrix.value[0]
    found = overcomplete(clients).matrix.value[0]
    pair = 1.0 - exact[STRANGERS], 1.0 - found[STRANGERS]
    assert float(pair[1]) == pytest.approx(float(pair[0]), rel=0.25, abs=1e-6)
