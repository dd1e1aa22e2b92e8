"""The ways a module is merged (Grams, smaller side, QR) give the same exact mean."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clair_cli
from clair_cli.adapters.write import safetensors_bytes
from clair_cli.formats import files as regular_file
from clair_cli.formats import stores
from clair_cli.workflow import batches
from clair_cli.workflow import merge as merger
from clair_cli.workflow import merge_modules as looks
from clair_cli.workflow import read as reading

CASES = {  # (clients, rank, out, in): components against the smaller side
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
            monkeypatch.setattr(merger, "KEPT_BETWEEN_PASSES", room)
            monkeypatch.setattr(looks, "_KEPT_VECTORS", 2)
            result = clair_cli.merge(clients(case), rank=16, allow_undetermined=True)
            found.append({k: t.numpy().tobytes() for k, t in result.tensors.items()})
        assert found == [found[0]] * 3


def test_a_module_that_can_no_longer_be_merged_from_its_grams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Grams that are made again may differ in the last bit, and be refused: alone, not with those
    that it would have been cut with."""
    g = torch.Generator().manual_seed(3)
    given = {
        f"c{k}": (
            {
                f"{name}.q.lora_{side}.weight": torch.randn(*shape, generator=g)
                for name in "ab" for side, shape in (("A", (8, 300)), ("B", (400, 8)))
            },
            {"r": 8, "lora_alpha": 8},
        )
        for k in range(3)
    }  # fmt: skip
    expected = clair_cli.merge(given, rank=16, allow_undetermined=True)
    real, calls = looks.core_svds, []

    def once(pair: Any, weights: Any, n: int | None) -> Any:
        calls.append(len(pair.B))
        cores = real(pair, weights, n)
        return cores if len(calls) == 1 else [None, *cores[1:]]

    monkeypatch.setattr(merger, "KEPT_BETWEEN_PASSES", 10_000)
    monkeypatch.setattr(looks, "_KEPT_VECTORS", 8)
    monkeypatch.setattr(looks, "core_svds", once)
    result = clair_cli.merge(given, rank=16, allow_undetermined=True)
    assert calls == [2, 2]
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(result.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def save(folder: Path, bits: int) -> Path:
    """Six clients with three modules; the last one shares nothing with the others."""
    g = torch.Generator().manual_seed(8)
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    common = [(torch.randn(4, 300, generator=g), torch.randn(400, 4, generator=g)) for _ in "abc"]
    for k in range(6):
        (folder / f"c{k}").mkdir(parents=True)
        tensors = {}
        for name, (lora_A, lora_B) in zip("abc", common, strict=True):
            own = 0.3 if k < 5 else 30.0
            tensors[f"{name}.q.lora_A.weight"] = lora_A + own * torch.randn(4, 300, generator=g)
            tensors[f"{name}.q.lora_B.weight"] = lora_B + own * torch.randn(400, 4, generator=g)
        data = safetensors_bytes({name: t.to(dtype) for name, t in tensors.items()}, {})
        (folder / f"c{k}" / "adapter_model.safetensors").write_bytes(data)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
        (folder / f"c{k}" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("command", ["inspect", "merge", "refine"])
@pytest.mark.parametrize("held", [0, 3, 6])
def test_bytes_held_from_the_check_on_change_nothing(
    held: int, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of no client, of some or of all; also where a client is left out. What is held is not
    read again."""
    folder = save(tmp_path / "clients", 16)
    size = -(-(folder / "c0" / "adapter_model.safetensors").stat().st_size // 4096) * 4096
    found = []
    for room in (1, max(1, held * size)):
        monkeypatch.setattr(reading, "KEPT_BYTES", room)
        opens: list[str] = []

        def counted(path: Path, *args: Any, opens: list[str] = opens) -> Any:
            if str(path).endswith(".safetensors"):
                opens.append(str(path))
            return regular_file.open_regular(path, *args)

        monkeypatch.setattr(stores, "open_regular", counted)
        out = tmp_path / ("r.json" if command == "inspect" else "r")
        report = getattr(clair_cli, command)(folder, out, force=True, fresh=True).report
        assert len(report.with_verdict("contaminated")) == 1
        files = sorted(out.rglob("*")) if out.is_dir() else [out]
        found.append((len(opens), [f.read_bytes() for f in files if f.is_file()]))
    assert found[0][1] == found[1][1]
    assert (found[1][0] < found[0][0]) == (held > 0)
    assert held < 6 or found[1][0] == 6


def losing_c1(merge: Any, folder: Path, stage: str) -> None:
    """Merge, and change a client's file when a stage begins."""
    done, file = [], folder / "c1" / "adapter_model.safetensors"

    def change(now: str, count: int, total: int) -> None:
        if now == stage and not done:
            data = bytearray(file.read_bytes())
            data[-40:] = bytes(40)
            file.write_bytes(data)
            os.utime(file, ns=(1, 1))
            done.append(True)

    result = merge(folder, folder.with_name("m.safetensors"), progress=change, fresh=True)
    (lost,) = result.report.with_verdict("rejected")
    assert lost.name == "c1"
    assert "changed while reading" in str(lost.reasons)


@pytest.mark.parametrize("stage", ["merging", "writing"])
def test_a_change_is_noticed_although_its_bytes_are_held(tmp_path: Path, stage: str) -> None:
    losing_c1(clair_cli.merge, save(tmp_path / "clients", 16), stage)


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
    for name in ("core_svds", "overcomplete_svd"):
        real = getattr(looks, name)

        def counted(*args: Any, _real: Any = real, _name: str = name) -> Any:
            seen.append(_name)
            return _real(*args)

        monkeypatch.setattr(looks, name, counted)
    result = clair_cli.merge(given, rank=rank, dtype="float32", allow_undetermined=True)
    assert set(seen) == {"core_svds" if case == "few terms" else "overcomplete_svd"}
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
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", room)
    given = clients("few terms")
    result = clair_cli.merge(given, rank="full", allow_undetermined=True)
    mean = sum(
        (k + 1) * s["layer.q.lora_B.weight"].double() @ s["layer.q.lora_A.weight"].double()
        for k, (s, _) in enumerate(given.values())
    ) / len(given)
    exact = float(torch.linalg.matrix_norm(mean))
    assert result.report.merged is not None
    assert result.report.merged.norm == pytest.approx(exact, rel=1e-12)
