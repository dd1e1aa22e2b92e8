"""When two results say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def same(one: Any, other: Any, rtol: float = 1e-6) -> None:
    assert [c.verdict for c in one.report.clients] == [c.verdict for c in other.report.clients]
    for first, second in zip(one.report.clients, other.report.clients, strict=True):
        if first.scores.alignment is not None:
            assert second.scores.alignment == pytest.approx(first.scores.alignment, rel=1e-9)
    assert one.report.merged.error == pytest.approx(other.report.merged.error, rel=rtol, abs=1e-12)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert type(other.tensors[name]) is torch.Tensor
        torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-2, atol=1e-4)
