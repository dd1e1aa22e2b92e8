"""The same verdicts and the same merge on a CUDA device as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import clair_cli

CLIENTS = Path(__file__).parent.parent / "sample_adapters" / "clients"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_and_cpu_agree() -> None:
    cpu = clair_cli.merge(CLIENTS, device="cpu", rank="full", dtype="float32")
    cuda = clair_cli.merge(CLIENTS, device="cuda", rank="full", dtype="float32")
    assert [c.verdict for c in cpu.report.clients] == [c.verdict for c in cuda.report.clients]
    assert cpu.tensors is not None
    assert cuda.tensors is not None
    for name, tensor in cpu.tensors.items():
        torch.testing.assert_close(cuda.tensors[name], tensor, rtol=1e-5, atol=1e-7)
    for one, other in zip(cpu.report.clients, cuda.report.clients, strict=True):
        assert one.scores.alignment == pytest.approx(other.scores.alignment, rel=1e-9)
