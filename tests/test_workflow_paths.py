"""The ways a module is merged (Grams, smaller side, QR) give the same exact mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.maths import core_merge, wide_merge
from clair_cli.workflow import merging, passes

CASES = {  # (clients, rank, out, in): terms against the smaller side
    "few terms": (3, 8, 400, 300),
    "more than the output is wide": (4, 90, 260, 520),
    "more than the input is wide": (4, 90, 520, 260),
}


def clients(case: str) -> dict[str, Any]:
    count, rank, out, in_ = CASES[case]
    g = torch.Generator().manual_seed(3)
    return {
        f"c{k}": (
            {
                "layer.q.lora_A.weight": torch.randn(rank, in_, generator=g),
                "layer.q.lora_B.weight": torch.randn(out, rank, generator=g),
            },
            {"r": rank, "lora_alpha": rank * (k + 1)},
        )
        for k in range(count)
    }


def test_what_is_kept_between_two_looks_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES:
        found = []
        for room in (2**28, 10_000, 1):
            monkeypatch.setattr(merging, "KEPT_BYTES", room)
            monkeypatch.setattr(merging, "_KEPT_VECTORS", 2)
            result = clair_cli.merge(clients(case), rank=16, allow_undetermined=True)
            found.append({k: t.numpy().tobytes() for k, t in result.tensors.items()})
        assert found == [found[0]] * 3


def dense(result: Any) -> np.ndarray:
    tensors = {k: t.double().numpy() for k, t in result.tensors.items()}
    (A,) = (t for k, t in tensors.items() if "lora_A" in k)
    (B,) = (t for k, t in tensors.items() if "lora_B" in k)
    config = result.config
    return config["lora_alpha"] / config["r"] * (B @ A)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", ["full", 16])
def test_exact_at_full_rank_and_the_best_below(
    case: str, rank: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, seen = clients(case), []
    for module, name in ((core_merge, "merged_core"), (wide_merge, "wide_core")):
        real = getattr(module, name)

        def counted(*args: Any, _real: Any = real, _name: str = name) -> Any:
            seen.append(_name)
            return _real(*args)

        monkeypatch.setattr(merging, name, counted)
    result = clair_cli.merge(given, rank=rank, dtype="float32", allow_undetermined=True)
    assert set(seen) == {"merged_core" if case == "few terms" else "wide_core"}
    mean = sum(
        (k + 1)
        * (s["layer.q.lora_B.weight"].double() @ s["layer.q.lora_A.weight"].double()).numpy()
        for k, (s, _) in enumerate(given.values())
    ) / len(given)
    error = np.linalg.norm(dense(result) - mean) / np.linalg.norm(mean)
    assert result.report.merged is not None
    if rank == "full":
        assert error <= 1e-6
    else:
        values = np.linalg.svd(mean, compute_uv=False)
        best = np.linalg.norm(values[16:]) / np.linalg.norm(values)
        assert error == pytest.approx(best, rel=1e-6)
        assert result.report.merged.error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("room", [2**28, 0])
def test_weights_are_not_rounded(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third in float32 is off by 3e-8, and so would be every update of the merge."""
    monkeypatch.setattr(passes, "KEPT_BYTES", room)
    given = clients("few terms")
    result = clair_cli.merge(given, rank="full", allow_undetermined=True)
    mean = sum(
        (k + 1) * s["layer.q.lora_B.weight"].double() @ s["layer.q.lora_A.weight"].double()
        for k, (s, _) in enumerate(given.values())
    ) / len(given)
    exact = float(torch.linalg.matrix_norm(mean))
    assert result.report.merged is not None
    assert result.report.merged.norm == pytest.approx(exact, rel=1e-12)
