"""The same verdicts and the same merge on a CUDA device as on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clair_cli
from benchmarks.speed.cohorts import make_cohort
from clair_cli.engine.device import Device
from clair_cli.engine.engine import GpuEngine
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors

CLIENTS = Path(__file__).parents[2] / "sample_adapters" / "clients"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_and_cpu_agree() -> None:
    cpu = clair_cli.merge(CLIENTS, device="cpu", rank="full", dtype="float32")
    cuda = clair_cli.merge(CLIENTS, device="cuda", rank="full", dtype="float32")
    assert [c.verdict for c in cpu.report.clients] == [c.verdict for c in cuda.report.clients]
    assert cpu.report.options == cuda.report.options
    assert cpu.tensors is not None
    assert cuda.tensors is not None
    for name, tensor in cpu.tensors.items():
        torch.testing.assert_close(cuda.tensors[name], tensor, rtol=1e-5, atol=1e-7)
    for one, other in zip(cpu.report.clients, cuda.report.clients, strict=True):
        assert one.scores.loading == pytest.approx(other.scores.loading, rel=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_every_thread_has_a_stream_of_its_own() -> None:
    device = Device("cuda", torch.float64)

    def stream(_: object, __: int) -> int:
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
        return torch.cuda.current_stream().cuda_stream

    engine = GpuEngine(device, 2, lambda *_: None)
    factors: Any = SimpleNamespace(cache=None)
    assert len(set(engine.map("working", stream, range(50), factors))) <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_pinned_factors_arrive_whole() -> None:
    g = torch.Generator().manual_seed(0)
    clients = [
        (torch.randn(16, 4096, generator=g).bfloat16(), torch.randn(4096, 16, generator=g), 2.0)
        for _ in range(20)
    ]
    here = stack_factors([clients, clients[::-1]], (4096, 4096))
    there = stack_factors([clients, clients[::-1]], (4096, 4096), device="cuda", pinned=True)
    assert torch.equal(there.lora_A.cpu(), here.lora_A)
    assert torch.equal(there.lora_B.cpu(), here.lora_B)
    one, other = grams(here), grams(there)
    torch.testing.assert_close(other.B.cpu(), one.B, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("clients", "ranks"), [(10, "16"), (9, "mixed"), (24, "32")])
def test_batches_of_larger_layers_agree(tmp_path: Path, clients: int, ranks: str) -> None:
    """With one rank and with mixed ones, and with over-complete stacks."""
    make_cohort(tmp_path / "cohort", "small", clients, ranks)
    cpu, cuda = (
        clair_cli.merge(tmp_path / "cohort", device=device, rank=32, dtype="float32")
        for device in ("cpu", "cuda")
    )
    assert [c.verdict for c in cpu.report.clients] == [c.verdict for c in cuda.report.clients]
    assert cpu.report.options == cuda.report.options
    for one, other in zip(cpu.report.clients, cuda.report.clients, strict=True):
        assert one.scores.loading == pytest.approx(other.scores.loading, rel=1e-6)
    assert cpu.report.merged is not None and cuda.report.merged is not None
    assert cuda.report.merged.error == pytest.approx(cpu.report.merged.error, rel=1e-6)
    assert cuda.report.merged.norm == pytest.approx(cpu.report.merged.norm, rel=1e-9)
    assert cpu.tensors is not None and cuda.tensors is not None
    for name in (n for n in cpu.tensors if "lora_A" in n):
        other_name = name.replace("lora_A", "lora_B")
        one, other = (
            r[other_name].double() @ r[name].double() for r in (cpu.tensors, cuda.tensors)
        )
        assert float((one - other).norm() / one.norm()) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    make_cohort(tmp_path / "cohort", "small", 10, "16")
    found = []
    for threads in (1, 3, 8):
        out = tmp_path / f"{threads}.safetensors"
        clair_cli.merge(tmp_path / "cohort", out, device="cuda", threads=threads)
        found.append(out.read_bytes())
    assert found[0] == found[1] == found[2]
