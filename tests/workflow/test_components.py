"""Delta weights hidden behind components that cancel, and exponents that no training gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.errors import UsageError
from clair_cli.workflow.bounds import check_sum
from tests import cohorts

MODULE = next(iter(cohorts.MODULES))
LAST = "c7"


def cancelling(client: cohorts.Client, size: float, rest: float = 0.0) -> cohorts.Client:
    """In one module two components of that size, which leave `rest` of each other."""
    A, B = client.A[MODULE].copy(), client.B[MODULE].copy()
    A[1], B[:, 0], B[:, 1] = A[0], size, rest - size
    return replace(client, A={**client.A, MODULE: A}, B={**client.B, MODULE: B})


def with_share(client: cohorts.Client, share: float) -> cohorts.Client:
    """The client's delta weight in one module, as that share of its components' size."""
    A, B = client.A[MODULE], client.B[MODULE]
    left, values, right = np.linalg.svd(B @ A, full_matrices=False)
    n = len(A) - 1
    size = np.linalg.norm(values[:n]) / share / 2**0.5
    new_A = np.vstack([right[:n], right[n - 1]])
    new_B = np.hstack([left[:, :n] * values[:n], size * left[:, :1]])
    new_B[:, n - 1] -= size * left[:, 0]
    return replace(client, A={**client.A, MODULE: new_A}, B={**client.B, MODULE: new_B})


def merged(folder: Path, output: Path, **options: Any) -> tuple[Any, cohorts.Deltas]:
    result = clair_cli.merge(folder, output, rank="full", dtype="float32", **options)
    return result.report, cohorts.read_dense(output)


@pytest.mark.parametrize(
    ("dtype", "size", "rest"),
    [("F64", 1e16, 0.0), ("F64", 1e16, 40.0), ("F32", 1e20, 0.0), ("F32", 1e6, 0.5)],
)
def test_what_hides_behind_cancelling_components_is_refused(
    tmp_path: Path, dtype: str, size: float, rest: float
) -> None:
    clients = cohorts.honest(8)
    folder = cohorts.save(tmp_path / "clients", clients, dtype="F32")
    cohorts.save_peft(folder / LAST, cancelling(clients[LAST], size, rest), dtype)
    report, result = merged(folder, tmp_path / "merged.safetensors")
    (hostile,) = (c for c in report.clients if c.name == LAST)
    assert (report.exit_code, hostile.verdict, hostile.weight) == (0, "rejected", 0.0)
    assert MODULE in hostile.reasons[0].text and "cancel" in hostile.reasons[0].text
    honest = [clients[f"c{k}"].deltas() for k in range(7)]
    assert cohorts.relative(result, cohorts.mean(honest)) < 1e-5
    assert not clair_cli.verify(tmp_path / "merged.safetensors", folder).differences


@pytest.mark.parametrize(("share", "verdict"), [(1.2e-4, "benign"), (0.8e-4, "rejected")])
def test_the_bound_on_what_may_cancel(tmp_path: Path, share: float, verdict: str) -> None:
    """Just above it, all that is told is that of the delta weights as they are."""
    clients = cohorts.honest(8)
    clients["c0"] = cohorts.scaled(clients["c0"], -1.0)  # left out: so there is a distance
    clients[LAST] = with_share(clients[LAST], share)
    folder = cohorts.save(tmp_path / "clients", clients, dtype="F64")
    report, result = merged(folder, tmp_path / "merged.safetensors")
    assert cohorts.verdicts({"clients": [vars(c) for c in report.clients]})[LAST] == verdict
    comparable = [c.deltas() for n, c in clients.items() if n != LAST or verdict == "benign"]
    merged_of = [c.deltas() for n, c in clients.items() if report_weight(report, n) > 0]
    assert cohorts.relative(result, cohorts.mean(merged_of)) < 1e-5
    plain = cohorts.mean(comparable)
    assert report.merged.plain_mean_distance == pytest.approx(
        cohorts.relative(result, plain), rel=1e-4
    )


def report_weight(report: Any, name: str) -> float:
    return next(float(c.weight) for c in report.clients if c.name == name)


def test_a_previous_adapter_that_hides_something_is_a_wrong_option(tmp_path: Path) -> None:
    before = cohorts.unrelated(3)
    clients = cohorts.on_top(cohorts.honest(6), before.deltas())
    folder = cohorts.save(tmp_path / "clients", clients)
    for share, name in ((1.2e-4, "mild"), (0.8e-4, "wild")):
        cohorts.save_peft(tmp_path / name, with_share(before, share), "F64")
    assert clair_cli.inspect(folder, previous=tmp_path / "mild").report.exit_code == 0
    with pytest.raises(UsageError, match=f"--previous: module '{MODULE}': .* cancel"):
        clair_cli.inspect(folder, previous=tmp_path / "wild")


def test_a_previous_adapter_is_looked_at_where_nobody_has_the_module(tmp_path: Path) -> None:
    before = cohorts.unrelated(3)
    whole = cohorts.on_top(cohorts.honest(6), before.deltas())
    clients = {n: cohorts.without(c, [MODULE]) for n, c in whole.items()}
    folder = cohorts.save(tmp_path / "clients", clients)
    cohorts.save_peft(tmp_path / "mild", before, "F64")
    cohorts.save_peft(tmp_path / "wild", cancelling(before, 1e16), "F64")
    _, result = merged(folder, tmp_path / "merged.safetensors", previous=tmp_path / "mild")
    np.testing.assert_allclose(result[MODULE], before.deltas()[MODULE], atol=1e-6)
    with pytest.raises(UsageError, match=f"--previous: module '{MODULE}': .* cancel"):
        clair_cli.inspect(folder, previous=tmp_path / "wild")


def test_what_is_judged_zero_beside_the_previous_adapter_is_merged_as_zero(tmp_path: Path) -> None:
    """The previous adapter's components are 8,000 times its size: what is below 1e-7 of them, and
    1e-3 of it, can't be told from rounding. It is not merged either."""
    before = with_share(cohorts.unrelated(3), 1.2e-4)
    dense = before.deltas()
    clients: cohorts.Clients = {}
    for k, delta in enumerate(cohorts.honest_deltas(6)):
        added = dict(delta)
        if k == 5:
            added[MODULE] = 2e-4 * added[MODULE]
        clients[f"c{k}"] = cohorts.factored(cohorts.plus(added, dense), 14, seed=k)
    folder = cohorts.save(tmp_path / "clients", clients, dtype="F64")
    previous = cohorts.save_peft(tmp_path / "previous", before, "F64")
    report, result = merged(folder, tmp_path / "merged.safetensors", previous=previous)
    (last,) = (c for c in report.clients if c.name == "c5")
    assert last.modules[MODULE].norm == 0.0 and last.weight > 0
    others = sum(
        report_weight(report, f"c{k}") * clients[f"c{k}"].deltas()[MODULE] for k in range(5)
    )
    expected = others + last.weight * dense[MODULE]
    assert np.linalg.norm(result[MODULE] - expected) < 2e-6 * np.linalg.norm(expected)


def test_refined_adapters_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clair_cli.workflow import refine as refining

    clients, before = cohorts.honest(6), cohorts.unrelated(3)
    first = cohorts.save(tmp_path / "first", clients)
    second = cohorts.save(tmp_path / "second", cohorts.on_top(clients, before.deltas()))
    seen: list[tuple[float, float]] = []

    def look(module: str, values: torch.Tensor, most: float) -> None:
        seen.append((float(values.norm()), most))
        check_sum(module, values, most)

    monkeypatch.setattr(refining, "check_sum", look)
    previous = cohorts.save_peft(tmp_path / "previous", before)
    for folder, given in ((first, None), (second, previous)):
        clair_cli.refine(folder, previous=given)
    assert len(seen) == 2 * 6 * len(cohorts.MODULES)
    assert all(norm <= most for norm, most in seen)


def test_a_sum_above_what_was_judged_is_a_fault() -> None:
    values = torch.tensor([3.0, 4.0], dtype=torch.float64)
    check_sum("q", values, 5.0 * (1 - 0.9e-6))
    with pytest.raises(ArithmeticError, match="module 'q': the result's norm is 5"):
        check_sum("q", values, 5.0 * (1 - 1.1e-6))
    check_sum("q", torch.zeros(2), 0.0)
    with pytest.raises(ArithmeticError):
        check_sum("q", torch.tensor([float("nan")]), 1.0)


def regauged(client: cohorts.Client, by: float) -> cohorts.Client:
    """A / by and B * by in one module."""
    A, B = client.A[MODULE] / by, client.B[MODULE] * by
    return replace(client, A={**client.A, MODULE: A}, B={**client.B, MODULE: B})


@pytest.mark.parametrize("by", [1e37, 1e-37])
def test_gauges_within_float32_change_nothing(tmp_path: Path, by: float) -> None:
    clients = cohorts.honest(6)
    for name, client in (("one", clients["c5"]), ("other", regauged(clients["c5"], by))):
        cohorts.save(tmp_path / name, {**clients, "c5": client}, dtype="F64")
    one, other = (clair_cli.inspect(tmp_path / name).report for name in ("one", "other"))
    for a, b in zip(one.clients, other.clients, strict=True):
        assert a.verdict == b.verdict
        assert a.scores.loading == pytest.approx(b.scores.loading, rel=1e-6)
        assert a.scores.measures["norm"] == pytest.approx(b.scores.measures["norm"], rel=1e-9)


@pytest.mark.parametrize("by", [1e40, 1e-50, 1e155, 1e-155, 1e170])
def test_gauges_beyond_float32_are_refused(tmp_path: Path, by: float) -> None:
    clients = cohorts.honest(7)
    folder = cohorts.save(tmp_path / "clients", clients, dtype="F64")
    cohorts.save_peft(folder / "c6", regauged(clients["c6"], by), "F64")
    report, result = merged(folder, tmp_path / "merged.safetensors")
    (hostile,) = (c for c in report.clients if c.name == "c6")
    assert (report.exit_code, hostile.verdict) == (0, "rejected")
    assert "lora_" in hostile.reasons[0].text and "float32" in hostile.reasons[0].text
    honest = [clients[f"c{k}"].deltas() for k in range(6)]
    assert cohorts.relative(result, cohorts.mean(honest)) < 1e-5


def narrow(n_clients: int) -> cohorts.Clients:
    """Clients of rank 2, with fewer components together than a layer is wide, and no two alike; in
    so many modules that delta weights of nearly one direction can be told from chance."""
    rng = np.random.default_rng(8)
    shared = {
        f"model.layers.{layer}.{name}": [rng.standard_normal(n) for n in shape]
        for layer in range(8)
        for name, shape in (("attn.q_proj", (24, 16)), ("mlp.up", (40, 16)), ("mlp.down", (16, 40)))
    }

    def side(common: cohorts.Array) -> cohorts.Array:
        own = rng.standard_normal((2, len(common)))
        return np.stack([common + 0.3 * own[0], 0.5 * own[1]])

    return {
        f"c{k}": cohorts.Client(
            {m: side(a) for m, (_, a) in shared.items()},
            {m: side(b).T for m, (b, _) in shared.items()},
            {"r": 2, "lora_alpha": 4},
        )
        for k in range(n_clients)
    }


@pytest.mark.parametrize("kind", ["zero", "opposite", "rank above width"])
def test_a_client_in_float64_that_is_left_out_changes_nothing(tmp_path: Path, kind: str) -> None:
    """Its factors are stacked beside the others' when clients are compared, and are not when the
    others are merged."""
    clients = narrow(7)
    bad = cohorts.scaled(clients.pop("c6"), 0.0 if kind == "zero" else -1.0)
    folder = cohorts.save(tmp_path / "clients", clients)
    if kind == "rank above width":
        A = {m: np.vstack([a, np.zeros((18, a.shape[1]))]) for m, a in bad.A.items()}
        B = {m: np.hstack([b, np.zeros((len(b), 18))]) for m, b in bad.B.items()}
        bad = cohorts.Client(A, B, {"r": 20, "lora_alpha": 40})
    cohorts.save_peft(folder / "c6", bad, "F32" if kind == "rank above width" else "F64")
    report, result = merged(folder, tmp_path / "merged.safetensors", fresh=True)
    assert report_weight(report, "c6") == 0.0 and report.exit_code == 0
    honest = [client.deltas() for client in clients.values()]
    assert cohorts.relative(result, cohorts.mean(honest)) < 1e-6


@pytest.mark.parametrize(("size", "verdict"), [(2e3, "benign"), (2e4, "rejected")])
def test_components_that_cancel_in_a_rank_above_the_width(
    tmp_path: Path, size: float, verdict: str
) -> None:
    """Such factors are multiplied when they are read: what cancels in them must be seen before."""
    clients = cohorts.honest(7)
    rng = np.random.default_rng(2)
    A, B = {}, {}
    for m, a in clients["c6"].A.items():
        rows = rng.standard_normal((8, a.shape[1])) / a.shape[1] ** 0.5
        loud = size * rng.standard_normal((len(clients["c6"].B[m]), 8)) / 16
        A[m] = np.vstack([a, rows, rows])
        B[m] = np.hstack([clients["c6"].B[m], loud, -loud]) * 22 / 6
    wide = cohorts.Client(A, B, {"r": 22, "lora_alpha": 12})
    folder = cohorts.save(tmp_path / "clients", clients)
    cohorts.save_peft(folder / "c6", wide, "F64")
    report, result = merged(folder, tmp_path / "merged.safetensors")
    (last,) = (c for c in report.clients if c.name == "c6")
    assert last.verdict == verdict, last.reasons
    honest = [c.deltas() for n, c in clients.items() if n != "c6" or verdict == "benign"]
    assert cohorts.relative(result, cohorts.mean(honest)) < 1e-5
    if verdict == "rejected":
        assert "cancel" in last.reasons[0].text
        with pytest.raises(UsageError, match=r"--previous: .* cancel"):
            clair_cli.inspect(folder, previous=folder / "c6", exclude=["c6"])
