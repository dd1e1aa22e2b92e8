"""One cohort with known truth, judged and merged: who was found, and how far off the merge is.

`clair_cli.merge` runs on adapters in memory with `--fresh` and the defaults of the command line,
except rank full and dtype float32, so that errors are those of the set of clients and not of
truncation, and except that a cohort without a verdict is merged whole (its error is then that of
the plain mean). Errors are ||merged - mean of the truly benign|| / ||that mean|| on exact delta
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import clair_cli
from benchmarks import peers
from benchmarks.copying import cohorts
from benchmarks.copying.cohorts import Member
from clair_cli.report.model import Report

LEFT_OUT = ("contaminated", "duplicate", "rejected")
Rule = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Round:
    """What came out for one cohort.

    Attributes:
        report: of `clair_cli.merge`.
        outcome: "judged", "undetermined" or "refused".
        honest, bad: number of clients.
        hits: bad clients left out: contaminated, duplicate, rejected, or without any weight; or of
            which only what they share is merged: minority.
        suspicious_bad: suspicious ones, not among the hits.
        false_flags: honest clients contaminated, duplicate or rejected.
        suspicious_honest: honest ones that are suspicious or a minority.
        clear: see `is_clear`.
        error: of the merge; infinite where nothing could be merged.
        peer_errors: of other rules by name; infinite where a rule failed or gave no number.
    """

    report: Report
    outcome: str
    honest: int
    bad: int
    hits: int
    suspicious_bad: int
    false_flags: int
    suspicious_honest: int
    clear: bool
    error: float
    peer_errors: Mapping[str, float]

    @property
    def exact(self) -> bool:
        """Judged, everybody bad left out and everybody honest benign."""
        flagged = self.false_flags + self.suspicious_honest
        return self.outcome == "judged" and self.hits == self.bad and not flagged


def stack(members: Sequence[Member]) -> dict[str, Tensor]:
    """Delta weights as `cohorts.stack`, with alpha_pattern (whole module names) honoured."""
    stacked = cohorts.stack(members)
    for index, (_, _, config, _) in enumerate(members):
        for module, alpha in (config.get("alpha_pattern") or {}).items():
            for name in (n for n in stacked if n == module or n.endswith(f".{module}")):
                stacked[name][index] *= alpha / config["lora_alpha"]
    return stacked


def finite(members: Sequence[Member]) -> list[bool]:
    """For every member, whether all its tensors are finite."""
    return [all(bool(t.isfinite().all()) for t in state.values()) for _, state, _, _ in members]


def is_clear(members: Sequence[Member]) -> bool:
    """Whether the honest block stands out of all pairs by two standard errors.

    The smallest benign-benign cosine against the largest mixed one, means over modules; members
    that are not finite have no cosine and are left out.
    """
    members = [one for one, sound in zip(members, finite(members), strict=True) if sound]
    bad = torch.tensor([one[3] for one in members])
    if not bool(bad.any()):
        return True
    tables = cohorts.cosines(stack(members))
    mean, error = tables.mean(0), tables.std(0) / math.sqrt(len(tables))
    upper = torch.ones_like(mean, dtype=torch.bool).triu(1)
    honest, mixed = ~bad[:, None] & ~bad & upper, ~bad[:, None] & bad
    low, high = mean[honest].argmin(), mean[mixed].argmax()
    gap = mean[honest][low] - mean[mixed][high]
    return bool(gap > 2 * torch.hypot(error[honest][low], error[mixed][high]))


def judged(members: Sequence[Member], rules: Mapping[str, Rule] | None = None) -> Round:
    """Judge and merge one cohort, and merge it by other rules.

    Args:
        members: at least one honest one.
        rules: name to f(points (K, D), true number of bad ones), as `peers.PEERS`.
    """
    clients = {name: (state, config) for name, state, config, _ in members}
    result = clair_cli.merge(
        clients, rank="full", dtype="float32", allow_undetermined=True, fresh=True
    )
    found = {client.name: client for client in result.report.clients}
    good = [found[name] for name, _, _, bad in members if not bad]
    bad = [found[name] for name, _, _, bad in members if bad]
    caught = [c.verdict in (*LEFT_OUT, "minority") or c.weight == 0 for c in bad]
    points = peers.flatten(stack(members))
    target = points[torch.tensor([not one[3] for one in members])].mean(0)
    error = math.inf
    if result.tensors is not None and result.config is not None:
        merged = cohorts.dense(dict(result.tensors), result.config)
        stacked = {name: delta[None] for name, delta in merged.items()}
        error = _error(lambda: peers.flatten(stacked)[0], target)
    errors = {
        name: _error(lambda rule=rule: rule(points, len(bad)), target)  # type: ignore[misc]
        for name, rule in (rules or {}).items()
    }
    return Round(
        result.report, result.report.cohort.outcome, len(good), len(bad), sum(caught),
        sum(c.verdict == "suspicious" and not hit for c, hit in zip(bad, caught, strict=True)),
        sum(c.verdict in LEFT_OUT for c in good),
        sum(c.verdict in ("suspicious", "minority") for c in good),
        is_clear(members), error, errors,
    )  # fmt: skip


def _error(make: Callable[[], Tensor], target: Tensor) -> float:
    """Relative distance of what ``make`` gives; infinite if it gives no number."""
    try:
        value = peers.error(make(), target)
    except (
        ArithmeticError,
        RuntimeError,
        ValueError,
    ):  # factorisations of tensors that are not finite
        return math.inf
    return value if math.isfinite(value) else math.inf
