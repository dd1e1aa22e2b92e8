"""Delta weights less one adapter that all have in common, against the differences themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence, gather
from clair_cli.maths.evidence.overcomplete import overcomplete_evidence
from clair_cli.maths.factors.common_components import differences_to_last, sides
from clair_cli.maths.factors.grams import delta_norms_over_scale, grams
from clair_cli.maths.factors.stack import Factors, FactorStack, stack_factors

OUT, IN = 300, 280
RANKS, COMMON = (4, 6, 4, 5, 4, 4, 4), 5
LACKS, UNSCALED, FRESH = 1, 2, 3  # no such module in every other one; scaling 0; lora_B 0


def cohort(seed: int, dtype: torch.dtype) -> tuple[list[Factors], Factors]:
    """Clients that share two directions, and the adapter that they started from."""
    g = torch.Generator().manual_seed(seed)

    def factors(rank: int, scaling: float) -> tuple[Tensor, Tensor, float]:
        A = torch.randn(rank, IN, generator=g)
        return A.to(dtype), torch.randn(OUT, rank, generator=g).to(dtype), scaling

    shared_A, shared_B, _ = factors(2, 1.0)
    clients: list[Factors] = []
    for k, rank in enumerate(RANKS):
        A, B, scaling = factors(rank, 0.25 * (k + 1) * (-1) ** (k // 6))
        A[:2] += shared_A
        B[:, :2] += shared_B
        clients.append((A, B, 0.0 if k == UNSCALED else scaling))
        if k == FRESH:
            B.zero_()
    if seed % 2 == 0:
        clients[LACKS] = None
    return clients, factors(COMMON, -1.5)


def dense(factors: Factors) -> Tensor:
    if factors is None:
        return torch.zeros(OUT, IN, dtype=torch.float64)
    A, B, scaling = factors
    return scaling * B.double() @ A.double()


def differences(modules: list[tuple[list[Factors], Factors]]) -> FactorStack:
    """The same laid out whole, the common components again for each client."""
    apart: list[list[Factors]] = []
    for clients, last in modules:
        assert last is not None
        rows: list[Factors] = []
        for f in clients:
            if f is None:
                rows.append(None)
                continue
            A = torch.cat([f[0].double(), last[0].double()])
            B = torch.cat([f[1].double() * f[2], -last[1].double() * last[2]], dim=1)
            rows.append((A, B, 1.0))
        apart.append(rows)
    return stack_factors(apart, (OUT, IN))


def common(
    modules: list[tuple[list[Factors], Factors]], dtype: torch.dtype = torch.float64
) -> FactorStack:
    both = [[*clients, last] for clients, last in modules]
    present = [[f is not None for f in clients] for clients, _ in modules]
    return differences_to_last(stack_factors(both, (OUT, IN), dtype=dtype), torch.tensor(present))


def assert_alike(found: Evidence, exact: Evidence, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(found.norms, exact.norms, rtol=rtol, atol=0.0)
    for stacking in ("matrix", "output", "input"):
        for name in ("value", "null"):
            pair = (getattr(e.table(stacking), name) for e in (found, exact))
            torch.testing.assert_close(*pair, rtol=rtol, atol=rtol, equal_nan=True)
    ranks = found.effective_ranks, exact.effective_ranks
    torch.testing.assert_close(*ranks, rtol=rtol, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_components_are_the_differences(dtype: torch.dtype) -> None:
    """As matrices, of every client; one that lacks the module has no delta weight."""
    modules = [cohort(seed, dtype) for seed in (0, 1)]
    stack = common(modules)
    assert stack.lora_A.shape[1] == sum(RANKS) + COMMON
    assert sum(stack.ranks) == sum(RANKS) + len(RANKS) * COMMON
    assert sum(common(modules[:1]).ranks) == sum(stack.ranks) - RANKS[LACKS] - COMMON
    output, input_ = sides(stack)
    for i, (clients, last) in enumerate(modules):
        B = output.spread(output.rows.double())[i].mT.split(list(stack.ranks), dim=1)
        A = input_.spread(input_.rows.double())[i].split(list(stack.ranks))
        for k, factors in enumerate(clients):
            found = float(stack.scaling[i, k]) * B[k] @ A[k]
            exact = dense(factors) - dense(last) if factors is not None else dense(None)
            torch.testing.assert_close(found, exact, rtol=0.0, atol=1e-10)


def test_gathering_is_the_transpose_of_spreading() -> None:
    g = torch.Generator().manual_seed(0)
    stack = common([cohort(0, torch.float64), cohort(1, torch.float64)])
    for side in sides(stack):
        stored = torch.randn(2, side.rows.shape[1], 3, generator=g, dtype=torch.float64)
        values = torch.randn(2, sum(stack.ranks), 3, generator=g, dtype=torch.float64)
        one, other = (side.spread(stored) * values).sum(), (stored * side.gathered(values)).sum()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_grams_and_evidence(dtype: torch.dtype) -> None:
    modules = [cohort(seed, dtype) for seed in (0, 1)]
    found, exact = grams(common(modules)), grams(differences(modules))
    assert_alike(gather(found), gather(exact))


def test_what_balances_a_component_is_of_its_columns_in_the_stack() -> None:
    """Of all clients: what the Grams' multipliers make of them is the delta weight."""
    clients, last = cohort(0, torch.float32)
    stack = common([(clients, last)])
    assert stack.common is not None
    pair, columns, ranks = grams(stack), stack.common.columns, list(stack.ranks)
    B = (stack.lora_B[0, :, columns].double() * pair.by_B[0]).split(ranks, dim=1)
    A = (stack.lora_A[0, columns].double() * pair.by_A[0][:, None]).split(ranks)
    for k, factors in enumerate(clients):
        exact = dense(factors) - dense(last) if factors is not None else dense(None)
        found = float(pair.scale[0, k]) * B[k] @ A[k]
        torch.testing.assert_close(found, exact, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_evidence_of_overcomplete_stacks(dtype: torch.dtype) -> None:
    for seed in (0, 1):
        modules = [cohort(seed, dtype)]
        found, exact = (
            overcomplete_evidence(common(modules)),
            overcomplete_evidence(differences(modules)),
        )
        assert_alike(found.evidence, exact.evidence)


def test_products_in_float32() -> None:
    modules = [cohort(0, torch.float32)]
    found, exact = grams(common(modules, torch.float32)), grams(differences(modules))
    assert_alike(gather(found), gather(exact), rtol=2e-5)


def test_without_one_that_is_subtracted_nothing_is() -> None:
    clients, _ = cohort(0, torch.float32)
    found, exact = grams(common([(clients, None)])), grams(stack_factors([clients], (OUT, IN)))
    assert_alike(gather(found), gather(exact))


@pytest.mark.parametrize(
    ("dtype", "rank"), [(torch.float64, 64), (torch.float64, 12), (torch.float32, 10)]
)
def test_the_same_as_what_is_subtracted_is_no_update(dtype: torch.dtype, rank: int) -> None:
    """Whatever the machine makes of rows that are equal and lie apart."""
    g = torch.Generator().manual_seed(rank)

    def made() -> tuple[list[Factors], Factors]:
        shapes = ((rank, IN), (OUT, rank))
        clients: list[Factors] = [
            (torch.randn(shapes[0], generator=g), torch.randn(shapes[1], generator=g), 1.3)
            for _ in range(6)
        ]
        return clients, clients[-1]

    modules = [made() for _ in range(4)]
    norms = grams(common(modules, dtype)).norms
    assert (norms > 0).tolist() == [[True] * 5 + [False]] * 4
    if dtype == torch.float64:
        found = overcomplete_evidence(common(modules[:1])).evidence
        assert (found.norms[0] > 0).tolist() == [True] * 5 + [False]


def test_what_rounding_may_leave_grows_with_the_terms_and_is_no_update() -> None:
    size, scale = torch.tensor([1.0, 256.0], dtype=torch.float64), torch.ones(2)
    for dtype, largest in ((torch.float64, 0.9e-7), (torch.float32, 1.8e-3)):
        left, more = ((by * largest) ** 2 * size for by in (1.0, 1.25))
        assert delta_norms_over_scale(left, size, scale, dtype).tolist() == [0.0, 0.0]
        assert delta_norms_over_scale(more, size, scale, dtype).tolist() == pytest.approx(
            [1.25 * largest, 20.0 * largest]
        )
    assert delta_norms_over_scale(size, size, torch.zeros(2), torch.float64).tolist() == [0.0, 0.0]
    one = torch.ones(2, dtype=torch.float64)
    scales = torch.tensor([0.9e-92, 1.1e-92], dtype=torch.float64)
    assert delta_norms_over_scale(one, one, scales, torch.float64).tolist() == [0.0, 1.0]


def test_a_previous_adapter_of_nothing_hides_nothing() -> None:
    """However large its scaling is: no client's is small beside that."""
    clients, _ = cohort(1, torch.float32)
    nothing = (torch.ones(2, IN), torch.zeros(OUT, 2), 1e200)
    small: list[Factors] = [(A, B, 1e-60 * s) for A, B, s in clients]  # type: ignore[misc]
    found = grams(common([(small, nothing)])).delta_norms
    exact = grams(stack_factors([small], (OUT, IN))).delta_norms
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0.0)
