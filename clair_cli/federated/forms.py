"""The form in which one client's model has its adapter, and an adapter brought into that form.

A model takes a state dict only with its own names, ranks, alphas and dtypes. What the server sends
is cut to them, and it knows exactly what the client then starts from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter, LoraModule
from clair_cli.adapters.config import AdapterConfig
from clair_cli.adapters.layout import Layout
from clair_cli.formats.safetensors.source import tensor_of


@dataclass(frozen=True)
class Pair:
    """One module's two tensors, as a client's state dict has them.

    Attributes:
        key_A, key_B: their names.
        layout: what their shapes mean.
        rank: at least 1. scaling: what the client's model multiplies B @ A with.
        dtype: of both, "float32", "float16", "bfloat16" or "float64".
    """

    key_A: str
    key_B: str
    layout: Layout
    rank: int
    scaling: float
    dtype: str


@dataclass(frozen=True)
class Form:
    """Everything that a state dict must have for a client's model to take it.

    Attributes:
        pairs: by module, sorted.
        dense: what is trained as a whole beside the LoRA, by name, to (tensor name, dtype).
    """

    pairs: Mapping[str, Pair]
    dense: Mapping[str, tuple[str, str]]

    def plain(self) -> dict[str, Any]:
        """As JSON has it; `form_from` is the inverse."""
        pairs = {
            m: [p.key_A, p.key_B, p.layout.kind, list(p.layout.weight), p.rank, p.scaling, p.dtype]
            for m, p in self.pairs.items()
        }
        return {"pairs": pairs, "dense": {name: list(both) for name, both in self.dense.items()}}


def form_from(plain: Mapping[str, Any]) -> Form:
    """A form from what `Form.plain` gave.

    Raises:
        KeyError, TypeError, ValueError: something else.
    """
    pairs = {}
    for module, (key_A, key_B, kind, weight, rank, scaling, dtype) in plain["pairs"].items():
        layout = Layout(kind, tuple(map(int, weight)))
        pairs[module] = Pair(str(key_A), str(key_B), layout, int(rank), float(scaling), str(dtype))
    dense = {name: (str(key), str(dtype)) for name, (key, dtype) in plain["dense"].items()}
    return Form(pairs, dense)


def form_of(adapter: Adapter) -> Form | None:
    """The form of a client's state dict. None where the tensors alone do not give it: alphas among
    the tensors (kohya), layers of fused experts, mlx-lm's transposed factors."""
    fused = any(module.expert is not None for module in adapter.modules.values())
    if fused or adapter.alpha_tensors or adapter.format not in ("peft", "diffusers"):
        return None
    pairs = {
        name: Pair(m.key_A, m.key_B, m.layout, m.rank, m.scaling, m.dtype)
        for name, m in adapter.modules.items()
    }
    return Form(pairs, {name: (d.key, d.dtype) for name, d in adapter.dense.items()})


def form_for(config: AdapterConfig, like: Form) -> Form:
    """The form of a client that has not sent anything: the others' names and dtypes, and the ranks
    and scales that its own config gives."""
    pairs = {}
    for module, pair in like.pairs.items():
        rank = config.rank_for(module) or pair.rank
        pairs[module] = replace(pair, rank=rank, scaling=config.scaling(module, rank))
    return replace(like, pairs=pairs)


def cut(bank: Adapter, form: Form) -> dict[str, Tensor]:
    """An adapter in a client's form: its leading components as far as the client's rank goes.

    Args:
        bank: an adapter that a merge wrote: its components come by falling singular value.

    Returns:
        Tensors by the client's names. A component that the adapter has not is zero in B alone, so
        that it can be trained; modules that it has not likewise. Dense tensors that it has not are
        left out.
    """
    found: dict[str, Tensor] = {}
    for name, pair in form.pairs.items():
        module = bank.modules.get(name)
        if module is None or module.layout != pair.layout:
            lora_A, lora_B = torch.zeros(0, pair.layout.matrix[1]), torch.zeros(0)
            lora_B = torch.zeros(pair.layout.matrix[0], 0)
        else:
            lora_A, lora_B = bank.stored_factors(name)
            scale = _ratio(module.scaling, pair.scaling)
            lora_A, lora_B = lora_A[: pair.rank], lora_B[:, : pair.rank]
            lora_B = lora_B if scale == 1.0 else (lora_B.double() * scale).to(lora_B.dtype)
        dtype = getattr(torch, pair.dtype)
        lora_A, lora_B = _filled(name, lora_A, lora_B, pair)
        stored = pair.layout.stored(lora_A.to(dtype), lora_B.to(dtype))
        found[pair.key_A], found[pair.key_B] = (t.contiguous().clone() for t in stored)
    for name, (key, kind) in form.dense.items():
        if name in bank.dense:
            value = tensor_of(bank.source, bank.dense[name].key)
            found[key] = value.to(getattr(torch, kind)).clone()
    return found


def _ratio(have: float, want: float) -> float:
    return have / want if want else 0.0


def _filled(module: str, lora_A: Tensor, lora_B: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """Factors of the pair's full rank. Components that are zero on both sides would never train:
    their rows of A are drawn as PEFT draws a fresh adapter's, the same for the same module."""
    columns, lacking = lora_A.shape[1], pair.rank - lora_A.shape[0]
    lora_A = torch.cat([lora_A, lora_A.new_zeros(lacking, columns)])
    lora_B = torch.cat([lora_B, lora_B.new_zeros(lora_B.shape[0], lacking)], dim=1)
    dead = (lora_A == 0).all(1) & (lora_B == 0).all(0)
    if dead.any():
        seed = int.from_bytes(hashlib.sha256(module.encode("utf-8")).digest()[:7], "little")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(pair.rank, columns, generator=generator) * 2.0 - 1.0
        drawn = (drawn / math.sqrt(columns)).to(lora_A.dtype)
        lora_A = torch.where(dead[:, None], drawn, lora_A)
    return lora_A, lora_B


def loses_nothing(bank: Adapter, form: Form | None) -> bool:
    """Whether a client that got an adapter in its own form has all of it, but for float32's
    rounding."""
    if form is None:
        return True
    kept = ((bank.modules.get(name), pair) for name, pair in form.pairs.items())
    return all(m is None or (m.rank <= pair.rank and _exact(m, pair)) for m, pair in kept)


def _exact(module: LoraModule, pair: Pair) -> bool:
    """Whether a module's components are the same in a pair's scale and dtype."""
    ratio = _ratio(module.scaling, pair.scaling)
    wide = pair.dtype in ("float32", "float64")
    exact = wide or (pair.dtype == module.dtype and math.frexp(ratio)[0] in (0.5, -0.5))
    return ratio != 0.0 and exact


def with_the_rest(
    client: Adapter, form: Form, bank: Adapter
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A client that started from the bank's leading components, as if it had started from all of
    them: the others are appended, so that its difference from the bank is its difference from its
    start. None where scale or dtype do not allow that without loss.

    Returns:
        A state dict in the client's dtype and its config: one rank, no patterns.
    """
    scalings = {module.scaling for module in client.modules.values()}
    for name, pair in form.pairs.items():
        module = bank.modules.get(name)
        if module is not None and not (_exact(module, pair) and module.dtype == pair.dtype):
            return None
    if len(scalings) != 1:
        return None
    stacks = {}
    for name, own in client.modules.items():
        lora_A, lora_B = client.stored_factors(name)
        if name in bank.modules:
            rest_A, rest_B = bank.stored_factors(name)
            ratio = _ratio(bank.modules[name].scaling, own.scaling)
            lora_A = torch.cat([lora_A, rest_A[own.rank :]])
            lora_B = torch.cat([lora_B, rest_B[:, own.rank :] * ratio], dim=1)
        stacks[name] = lora_A, lora_B
    state, rank = _stored(client, stacks)
    state |= {dense.key: tensor_of(client.source, dense.key) for dense in client.dense.values()}
    return state, _one_rank(client, rank, scalings.pop() * rank)


def _stored(
    client: Adapter, stacks: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], int]:
    """Factors of one rank, filled up with zeros, under the client's own names; and that rank."""
    rank = max(lora_A.shape[0] for lora_A, _ in stacks.values())
    state: dict[str, Tensor] = {}
    for name, (lora_A, lora_B) in stacks.items():
        module, lacking = client.modules[name], rank - lora_A.shape[0]
        lora_A = torch.cat([lora_A, lora_A.new_zeros(lacking, lora_A.shape[1])])
        lora_B = torch.cat([lora_B, lora_B.new_zeros(lora_B.shape[0], lacking)], dim=1)
        state[module.key_A], state[module.key_B] = module.layout.stored(lora_A, lora_B)
    return state, rank


def _one_rank(client: Adapter, rank: int, alpha: float) -> dict[str, Any]:
    raw = {**client.config.raw, "rank_pattern": {}, "alpha_pattern": {}}
    return {**raw, "r": rank, "lora_alpha": alpha, "use_rslora": False}


def started_from_bank(
    client: Adapter, start: Mapping[str, Tensor], form: Form, bank: Adapter | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A client that started from another adapter, as if it had started from the bank: in every
    module its delta weight, less that of its start, plus the bank's, as stacked factors.

    Args:
        client: as it came.
        start: what it started from, in its own form; empty for a fresh adapter.
        bank: what the others started from; None for a fresh adapter.

    Returns:
        A state dict in float64 and its config: one rank, scaling 1, no patterns.
    """
    stacks = {}
    for name, module in client.modules.items():
        lora_A, lora_B = client.stored_factors(name)
        parts = [(lora_A, lora_B, module.scaling)]
        pair = form.pairs[name]
        if start:
            parts.append((*pair.layout.flat(start[pair.key_A], start[pair.key_B]), -pair.scaling))
        if bank is not None and name in bank.modules:
            parts.append((*bank.stored_factors(name), bank.modules[name].scaling))
        stacks[name] = (
            torch.cat([A.double() for A, _, _ in parts]),
            torch.cat([B.double() * scale for _, B, scale in parts], dim=1),
        )
    state, rank = _stored(client, stacks)
    for name, dense in client.dense.items():
        value = tensor_of(client.source, dense.key)
        before = start.get(dense.key)
        if before is not None and bank is not None and name in bank.dense:
            now = tensor_of(bank.source, bank.dense[name].key)
            if before.shape == value.shape == now.shape:
                value = (value.double() - before.double() + now.double()).to(value.dtype)
        state[dense.key] = value
    return state, _one_rank(client, rank, float(rank))


def usual_dtype(adapters: Iterable[Adapter]) -> str:
    """The dtype that more than half of the clients have, or float32."""
    each = [{m.dtype for m in a.modules.values()} for a in adapters]
    for dtype in ("bfloat16", "float16"):
        if 2 * sum(e == {dtype} for e in each) > len(each):
            return dtype
    return "float32"
