"""Whole rounds with one hostile client, made from fixed seeds; and that the checks notice."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fuzz.fuzz_rounds import check_round, generator, merge, run_round
from fuzz.hostile_changes import CHANGES
from fuzz.round_checks import (
    Oracle,
    check_end,
    check_merged,
    deltas_of,
    exact_product,
    read_written,
    reported,
)
from fuzz.small_clients import N_HONEST, Round, bfloat16, honest_round, rounded, write_round

ROUNDS = range(1, 13)


@pytest.mark.parametrize("number", ROUNDS)
def test_nothing_is_found(tmp_path: Path, number: int) -> None:
    made, _, found = run_round(0, number, tmp_path / "round")
    assert not found, made.words


def test_every_change_leaves_a_round_that_can_be_written(tmp_path: Path) -> None:
    for number, change in enumerate(dict.fromkeys(CHANGES)):
        for again in range(3):
            rng = generator(7, 10 * number + again)
            made = honest_round(rng)
            change(made.clients[-1], rng)
            write_round(tmp_path / f"{number}-{again}", made)


class Judged:
    """An honest round, merged and understood."""

    def __init__(self, folder: Path) -> None:
        self.made = next(
            made
            for made in (honest_round(generator(1, number)) for number in range(99))
            if made.previous is None
        )
        self.made.options |= {"rank": "full", "dtype": "float32", "fail_on": "never"}
        write_round(folder, self.made)
        self.merged = merge(folder, self.made)
        assert not list(check_round(self.made, folder, self.merged))
        self.report = self.merged.report
        self.folder = folder / "clients"
        self.written = read_written(folder / "out.safetensors")
        self.module = next(iter(self.written))

    def kinds(self, report: object = None, **changed: np.ndarray) -> set[str]:
        """The kinds of findings with other written modules, or with another report."""
        report = self.report if report is None else report
        clients = reported(report, self.made, self.folder)
        deltas = {k: deltas_of(client) for k, client in enumerate(self.made.clients)}
        oracle = Oracle(report, clients, deltas, {})
        return {f.kind for f in check_merged(oracle, {**self.written, **changed})}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return Judged(tmp_path_factory.mktemp("judged") / "round")


def test_a_written_module_that_is_slightly_larger_is_noticed(judged: Judged) -> None:
    module = judged.module
    assert judged.kinds() == set()
    assert judged.kinds(**{module: 1.001 * judged.written[module]}) == {"error"}
    assert judged.kinds(**{module: (1 + 1e-7) * judged.written[module]}) == set()


def test_a_written_module_above_what_was_judged_is_noticed(judged: Judged) -> None:
    """The bound is the weighted sum of the clients' norms in that module."""
    module = judged.module
    clients = judged.report.clients
    allowed = sum(c.weight * c.modules[module].norm for c in clients)
    delta = judged.written[module] / np.linalg.norm(judged.written[module])
    assert {"bound", "true bound"} <= judged.kinds(**{module: 1.002 * allowed * delta})
    assert {"bound", "true bound"} & judged.kinds(**{module: 1.0001 * allowed * delta}) == {"bound"}
    assert not {"bound", "true bound"} & judged.kinds(**{module: 0.9999 * allowed * delta})


def test_other_things_that_must_not_be_are_noticed(judged: Judged) -> None:
    module, merged = judged.module, judged.report.merged
    spoiled = judged.written[module].copy()
    spoiled[0, 0] = np.nan
    assert judged.kinds(**{module: spoiled}) == {"not finite"}
    assert judged.kinds(more=np.zeros((2, 2))) == {"modules"}
    said = {
        "plain distance": replace(merged, plain_mean_distance=merged.plain_mean_distance + 0.01),
        "error": replace(merged, error=merged.error + 1e-3),
    }
    for kind, other in said.items():
        assert judged.kinds(replace(judged.report, merged=other)) == {kind}
    assert "total" in judged.kinds(replace(judged.report, merged=replace(merged, norm=2.0)))
    first = judged.report.clients[0]
    larger = replace(first.modules[module], norm=1.01 * first.modules[module].norm)
    first = replace(first, modules={**first.modules, module: larger})
    clients = (first, *judged.report.clients[1:])
    assert judged.kinds(replace(judged.report, clients=clients)) == {"norm"}


def test_how_a_round_ends_is_checked(judged: Judged) -> None:
    def kinds(made: Round = judged.made, **changed: object) -> set[str]:
        report = replace(judged.report, **changed)  # type: ignore[arg-type]
        return {f.kind for f in check_end(made, report, judged.folder)}

    clients = judged.report.clients
    turned_down = replace(clients[0], verdict="rejected", reasons=clients[0].reasons or (_Why(),))
    assert kinds() == set()
    assert kinds(exit_code=5) == set()
    assert kinds(exit_code=4) == {"refused"}
    assert kinds(exit_code=6) == kinds(exit_code=3) == {"exit"}
    assert kinds(clients=clients[1:]) == {"lost"}
    assert kinds(clients=clients[:N_HONEST]) == set()
    assert kinds(clients=(turned_down, *clients[1:])) == {"rejected"}
    assert kinds(replace(judged.made, hostile_previous=True), exit_code=4) == set()


class _Why:
    text = "made up"


@pytest.mark.parametrize("power", [0, 8, 16, 30, 150])
def test_the_exact_product_is_that_of_fractions(power: int) -> None:
    rng = np.random.default_rng(power)
    B, A = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    A[1], B[:, 0] = A[0], 10.0**power * B[:, 0]
    B[:, 1] = -B[:, 0] + 1e-3
    A, B = A * 1e-155, B * 1e155  # a gauge
    exact = [
        [float(sum(Fraction(b) * Fraction(a) for b, a in zip(row, column, strict=True)))
         for column in A.T.tolist()]
        for row in B.tolist()
    ]  # fmt: skip
    np.testing.assert_array_equal(exact_product(B, A), np.array(exact))


def test_numbers_are_rounded_as_the_files_hold_them() -> None:
    torch = pytest.importorskip("torch")
    values = np.array([1.0, 1 / 3, -2.7e38, 1e-40, 65504.0, 1.00390625, 1.01171875, 3.4e38])
    for dtype, kind in (("BF16", torch.bfloat16), ("F32", torch.float32), ("F64", torch.float64)):
        expected = torch.tensor(values).to(torch.float32 if dtype == "BF16" else kind).to(kind)
        np.testing.assert_array_equal(rounded(values, dtype), expected.double().numpy())
    assert bfloat16(np.array([np.nan]))[0] & 0x7FC0 == 0x7FC0
