"""Rounds of over-complete stacks: the same verdicts and the same merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import clair_cli
from clair_cli.maths.factors import stack
from clair_cli.workflow import batches

SAMPLE = Path(__file__).parents[2] / "sample_adapters" / "clients"


@pytest.fixture
def always_overcomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every stack of the sample for an over-complete one."""
    monkeypatch.setattr(stack, "MIN_WIDTH", 1)
    monkeypatch.setattr(batches, "is_overcomplete", lambda n_components, shape: True)


def test_the_sample_is_judged_alike(
    always_overcomplete: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = clair_cli.merge(SAMPLE, rank="full", dtype="float32")
    monkeypatch.undo()
    exact = clair_cli.merge(SAMPLE, rank="full", dtype="float32")
    for one, other in zip(found.report.clients, exact.report.clients, strict=True):
        assert (one.name, one.verdict) == (other.name, other.verdict)
        assert one.scores.loading == pytest.approx(other.scores.loading, abs=0.02)
    assert found.tensors is not None and exact.tensors is not None
    for name in (n for n in exact.tensors if ".lora_A." in n):
        one, other = (
            t[name.replace(".lora_A.", ".lora_B.")].double() @ t[name].double()
            for t in (found.tensors, exact.tensors)
        )
        assert torch.linalg.matrix_norm(one - other) <= 1e-6 * torch.linalg.matrix_norm(other)


def test_threads_do_not_change_a_byte(always_overcomplete: None, tmp_path: Path) -> None:
    for threads in (1, 3):
        clair_cli.merge(SAMPLE, tmp_path / f"{threads}.safetensors", threads=threads)
    one, three = (tmp_path / f"{threads}.safetensors" for threads in (1, 3))
    assert one.read_bytes() == three.read_bytes()
