"""A device that is none: its tensors lie in main memory, but don't mix with the CPU's.

What runs on it would run on a GPU as far as devices go: an operation on tensors of both raises, as
there. Moving is allowed with `to`, `cpu` and `copy_`; numbers with no axes mix, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
MOVES = ("copy_", "_to_copy")


class PretendTensor(Tensor):
    """A tensor that says it is on the device, around one on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        counted.append(func.overloadpacket.__name__)
        return _run(func, args, kwargs or {})


counted: list[str] = []
"""Operations on the device so far."""


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    far = [x for x in leaves if isinstance(x, PretendTensor)]
    near = [x for x in leaves if not isinstance(x, PretendTensor) and x.dim()]
    if far and near and name not in MOVES:
        raise RuntimeError(f"{func}: tensors on two devices")
    plain = dict(kwargs)
    stays = True
    if plain.get("device") is not None:
        stays = torch.device(plain["device"]).type == NAME
        plain["device"] = "cpu"

    def inside(x: Any) -> Any:
        return x.inner if isinstance(x, PretendTensor) else x

    result = func(*tree_map(inside, args), **tree_map(inside, plain))
    if name == "copy_":
        return args[0]
    same = {id(x.inner): x for x in far}  # an operation in place

    def outside(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return same.get(id(x)) if id(x) in same else PretendTensor(x) if stays else x

    return tree_map(outside, result)


def _made(func: Any) -> Callable[..., PretendTensor]:
    def make(*args: Any, **kwargs: Any) -> PretendTensor:
        return PretendTensor(func(*args, **{**kwargs, "device": "cpu", "pin_memory": False}))

    return make


def register() -> None:
    """Tell torch of the device, once and for the life of the process.

    Raises:
        ImportError: this torch has no such devices.
    """
    global _library
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    _library = torch.library.Library("aten", "IMPL")
    for name, func in (
        ("empty.memory_format", torch.ops.aten.empty.memory_format),
        ("empty_strided", torch.ops.aten.empty_strided.default),
    ):
        _library.impl(name, _made(func), "PrivateUse1")


_library: Any = None


def same(one: Any, other: Any, rtol: float = 1e-6) -> None:
    """Whether two merges say the same: verdicts, scores, error, and about the same tensors."""
    assert [c.verdict for c in one.report.clients] == [c.verdict for c in other.report.clients]
    for first, second in zip(one.report.clients, other.report.clients, strict=True):
        if first.scores.loading is not None:
            assert second.scores.loading == pytest.approx(first.scores.loading, rel=1e-9)
    assert one.report.merged.error == pytest.approx(other.report.merged.error, rel=rtol, abs=1e-12)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert type(other.tensors[name]) is torch.Tensor
        torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-2, atol=1e-4)
