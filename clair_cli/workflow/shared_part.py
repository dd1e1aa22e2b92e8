"""What the members of a minority share with the other clients: that part of them is merged.

In every module a member's delta weight (less the previous adapter's) is projected, from both
sides, on the leading singular vectors of the other clients' weighted mean: as many as hold the
share of the mean's energy that lies between clients, sum_{j != k} w_j w_k <D_j, D_k> over
|sum_k w_k D_k|^2. The rest of its energy is what clients have alone. A member's weight is
multiplied by the share of its own energy that the projection keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors, naming_module
from clair_cli.maths.factors.lowrank import svd
from clair_cli.maths.merge.mean import weighted_sum
from clair_cli.remark import note
from clair_cli.text import quoted, some_of
from clair_cli.workflow.judge import JudgedRound, normalised

# Most directions of one side: of all modules together they stay in memory.
MAX_DIRECTIONS = 64


@dataclass(frozen=True)
class Sharing:
    """What is projected on what.

    Attributes:
        others: indices of the clients outside all minorities, and their weights, which sum to 1.
        members: indices of the minorities' members.
        shares: by module, the share of the mean's energy that lies between clients, 0 to 1.
        room: bytes of one module's factors that may be kept for the merge.
    """

    others: tuple[int, ...]
    weights: tuple[float, ...]
    members: tuple[int, ...]
    shares: Mapping[str, float]
    room: int = 0


@dataclass(frozen=True)
class Projections:
    """Members' delta weights in one module, left @ core @ right each, weight units.

    Attributes:
        left: orthonormal columns, (out_features, r), float32. right: orthonormal rows,
            (r, in_features).
        cores: one per member, (r, r), float32.
        inner: inner products of the members' projections with all clients' delta weights,
            (n_members, n_clients), float64.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Tensor, ...]
    inner: Tensor


@dataclass(frozen=True, kw_only=True)
class ProjectedAdapter(Adapter):
    """A member's adapter with what it shares with the others in place of its delta weights.

    Attributes:
        parts: by module: left, core and right; see `Projections`.
        previous: the adapter that the projections are differences to, or None.
        own_content: of the adapter as it was sent.
    """

    parts: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    previous: Adapter | None
    own_content: str

    def content(self) -> str:
        """See `Adapter.content`: of the adapter as it was sent."""
        return self.own_content

    def stored_factors(self, module: str) -> tuple[Tensor, Tensor]:
        """See `Adapter.stored_factors`; scaling is 1."""
        left, core, right = self.parts[module]
        lora_A, lora_B = right, left @ core
        if self.previous is not None and module in self.previous.modules:
            before = self.previous.factors(module)
            lora_A = torch.cat([lora_A, before[0].float()])
            scaled = before[1].float() * self.previous.modules[module].scaling
            lora_B = torch.cat([lora_B, scaled], dim=1)
        return lora_A, lora_B


def merge_shared_parts(judged: JudgedRound, factors: RoundFactors, engine: Engine) -> JudgedRound:
    """A round with minorities, whose members are merged by what they share with the others.

    Raises:
        ClientLost: a tensor changed since it was checked.
    """
    members = judged.minority
    others = judged.merged
    weights = tuple(judged.weights[k] for k in others)
    modules = judged.merged_modules
    room = engine.stores // max(1, len(modules))
    task = Sharing(others, weights, members, _shares(judged), room)
    factors.forget()  # what is kept is for a merge of the clients as they were sent
    work = partial(project, task)
    looked = engine.map("sharing", work, modules, factors, on_device=False, keeping=True)
    found = dict(zip(modules, looked, strict=True))
    adapters, raw, kept = list(judged.round.adapters), list(judged.ordinary_weights), {}
    for i, k in enumerate(members):
        parts = {m: (p.left, p.cores[i], p.right) for m, p in found.items()}
        energy = sum(float(p.inner[i, k]) for p in found.values())  # |projection|^2
        kept[k] = min(1.0, energy / max(_energy(judged, k, modules), 1e-300))
        adapters[k] = _projected(adapters[k], parts, judged.round.previous)
        raw[k] *= kept[k]
    ordered = sorted(members, key=lambda k: adapters[k].name)
    said = some_of([f"{100 * kept[k]:.0f} % of {quoted(adapters[k].name)}" for k in ordered])
    text = f"of a minority the part is merged that it shares with the others: {said} (squared norm)"
    return replace(
        judged,
        round=replace(judged.round, adapters=tuple(adapters)),
        weights=normalised(raw),
        projected={m: p.inner for m, p in found.items()},
        warnings=(*judged.warnings, note("minority_shared", text)),
    )


def project(task: Sharing, factors: RoundFactors, module: str) -> Projections:
    """The members' projections in one module."""
    round_ = factors.round
    with naming_module(module):
        factors.keep_read(module, task.others, task.room)
        differences = factors.differences(module, range(len(round_.adapters)))
        shape = round_.module_shapes[module]
        mean = svd(weighted_sum([differences[k] for k in task.others], task.weights, shape))
        energy = mean.values.square().cumsum(0)
        share = task.shares[module]
        n = int((energy < share * energy[-1]).sum()) + 1 if share > 0 and len(energy) else 0
        n = min(n, MAX_DIRECTIONS)
        left, right = mean.left[:, :n], mean.right[:n]
        products = [weighted_sum([difference], [1.0], shape) for difference in differences]
        cores = torch.stack(
            [(left.mT @ p.lora_B) @ (p.lora_A @ right.mT) for p in products]
        ).flatten(1)
        own = cores[list(task.members)]
        parts = tuple(core.float() for core in own.view(len(task.members), n, n))
        return Projections(left.float(), right.float(), parts, own @ cores.mT)


def _projected(
    adapter: Adapter, parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], previous: Adapter | None
) -> ProjectedAdapter:
    modules = {}
    for name, entry in adapter.modules.items():
        rank = parts[name][1].shape[0] if name in parts else 0
        if name in parts and previous is not None and name in previous.modules:
            rank += previous.modules[name].components
        if rank:
            modules[name] = replace(entry, rank=rank, alpha=float(rank), scaling=1.0)
    fields = {**vars(adapter), "modules": modules}
    return ProjectedAdapter(**fields, parts=parts, previous=previous, own_content=adapter.content())


def _shares(judged: JudgedRound) -> dict[str, float]:
    """See `Sharing.shares`."""
    evidence = judged.evidence
    assert evidence is not None
    weights, found = torch.tensor(judged.weights, dtype=torch.float64), {}
    for name, inner in zip(judged.round.module_shapes, evidence.inner_products(), strict=True):
        total = float(weights @ inner @ weights)
        between = total - float(weights.square() @ inner.diagonal())
        found[name] = min(1.0, max(0.0, between / total)) if total > 0 else 0.0
    return found


def _energy(judged: JudgedRound, client: int, modules: Sequence[str]) -> float:
    """Squared norm of a client's delta weights (less the previous adapter's) in some modules."""
    assert judged.evidence is not None
    norms = dict(zip(judged.round.module_shapes, judged.evidence.norms[:, client].tolist(),
                     strict=True))  # fmt: skip
    return float(sum(norms[m] ** 2 for m in modules))
