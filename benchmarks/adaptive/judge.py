"""`clair_cli.inspect` in memory on honest clients and crafted ones, and what the merge would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import clair_cli
from benchmarks import peers
from benchmarks.adaptive.search import BENIGN, FLAGGED, MERGED, REFUSED, Trial
from benchmarks.attacks.attacks import Deltas, as_lora
from benchmarks.copying import cohorts
from benchmarks.copying.cohorts import Member

ATTACKER = "attacker"
LEFT_OUT = ("contaminated", "duplicate")
# LoRA rank of crafted updates: twice the honest one, so that a mean of others fits in mostly.
RANK = 16


@dataclass(frozen=True)
class Judged:
    """A judged cohort, honest clients first, attackers last.

    Attributes:
        outcome: "judged" or "undetermined".
        verdicts, codes, weights: one per client; codes are those of the reasons, joined by "+";
            weights sum to 1, or are all 0 where nothing is merged.
        points: exact delta weights of the clients, (K, D), float64; honest: how many come first.
    """

    outcome: str
    verdicts: tuple[str, ...]
    codes: tuple[str, ...]
    weights: tuple[float, ...]
    points: Tensor
    honest: int

    @property
    def target(self) -> Tensor:
        """Mean of the honest clients, (D,)."""
        return self.points[: self.honest].mean(0)

    @property
    def merged(self) -> Tensor | None:
        """The merged delta weight, (D,), or None where nothing is merged."""
        weights = torch.tensor(self.weights, dtype=self.points.dtype)
        return weights @ self.points if bool((weights > 0).any()) else None

    @property
    def damage(self) -> float:
        """Distance of the merge from the honest mean, relative; 0 where nothing is merged."""
        return 0.0 if self.merged is None else peers.error(self.merged, self.target)

    def moved_along(self, towards: Tensor) -> float:
        """The same along a direction (D,), signed."""
        if self.merged is None:
            return 0.0
        step = (self.merged - self.target) @ towards / towards.norm()
        return float(step / self.target.norm())

    @property
    def level(self) -> int:
        """Of `adaptive_search`: how far the attackers were noticed."""
        if self.outcome != "judged":
            return REFUSED
        found = self.verdicts[self.honest :]
        if any(v in LEFT_OUT for v in found):
            return FLAGGED
        return MERGED if "suspicious" in found else BENIGN

    @property
    def accused(self) -> int:
        """Honest clients left out."""
        return sum(v in LEFT_OUT for v in self.verdicts[: self.honest])

    @property
    def kinds(self) -> str:
        """Verdicts of the attackers, sorted, each once."""
        return "/".join(sorted(set(self.verdicts[self.honest :])))


def crafted_clients(
    made: Mapping[str, Tensor], like: Member, rank: int | None = RANK
) -> list[Member]:
    """Delta weights, module to (bad, out, in), as clients in memory, cut to a LoRA rank.

    Without `rank` they are exact to 1e-6. What is judged and measured is what is sent.
    """
    clients = []
    for index in range(len(next(iter(made.values())))):
        state, config = as_lora({name: delta[index] for name, delta in made.items()}, like[2], rank)
        clients.append((f"{ATTACKER}-{index:02d}", state, config, True))
    return clients


def judge(honest: Sequence[Member], attackers: Sequence[Member]) -> Judged:
    """Judge a cohort with `--fresh` and the defaults of the command line."""
    members = [*honest, *attackers]
    clients = {name: (state, config) for name, state, config, _ in members}
    report = clair_cli.inspect(clients, fresh=True).report
    found = {client.name: client for client in report.clients}
    each = [found[member[0]] for member in members]
    return Judged(
        report.cohort.outcome,
        tuple(client.verdict for client in each),
        tuple("+".join(reason.code for reason in client.reasons) for client in each),
        tuple(client.weight for client in each),
        peers.flatten(cohorts.stack(members)),
        len(honest),
    )


def trial(judged: Judged, gamma: float, towards: Deltas) -> Trial:
    """A judged attack in the words of the search; `towards`: module to (bad, out, in)."""
    line = peers.flatten(towards).mean(0)
    return Trial(
        gamma,
        judged.level,
        judged.damage,
        judged.moved_along(line),
        judged.kinds if judged.level != REFUSED else "undetermined",
        judged.accused,
    )


def peer_damages(points: Tensor, bad: int) -> dict[str, float]:
    """What the same clients, (K, D) with the `bad` ones last, do to other rules."""
    target = points[: len(points) - bad].mean(0)
    rules = ("mean", "geometric-median", "multi-krum")
    return {rule: peers.error(peers.PEERS[rule](points, bad), target) for rule in rules}
