"""One cohort judged and merged: verdicts against the truth, and the error of the merge.

`clair_cli.merge` runs on adapters in memory with `--fresh` (in a second round `--previous`) and the
defaults of the command line, except rank full and dtype float32: errors are those of the set of
clients, not of truncation. All errors are distances of delta weights from the
mean of the truly benign clients, relative to the norm of that mean; in a second round the
previous adapter is subtracted from everything first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import clair_cli
from benchmarks import peers
from benchmarks.attacks.base import as_lora
from benchmarks.attacks.simple import SIMPLE
from benchmarks.pools import store
from benchmarks.pools.cohorts import Cohort
from benchmarks.pools.store import Adapter

Deltas = dict[str, Tensor]
Task = Callable[[Deltas, int], Mapping[str, float]]
OFF = 0.2  # of a merge that is called wrong


@dataclass(frozen=True)
class Result:
    """What came out for one cohort.

    Attributes:
        bad, honest: verdicts of the bad and of the honest clients, verdict to number.
        outcome: "judged", "undetermined" or "refused"; exit_code: of the command.
        errors: rule to error; "clair" is missing where it wrote no adapter, and "multi-krum", told
            the true number, where that number leaves it nothing to do.
        task: of "benign" (their mean), "mean" (of everybody) and "clair", where asked for: loss
            and backdoor success.
        unnamed: bad clients that nothing is said of: benign, and not `open`.
        agrees: whether the decomposition keeps the same clients; None where there is none.
        warned: whether the round has a warning.
    """

    row: str
    seed: int
    setting: str
    kinds: str
    bad: Mapping[str, int]
    honest: Mapping[str, int]
    outcome: str
    exit_code: int
    errors: Mapping[str, float]
    task: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unnamed: int = 0
    agrees: bool | None = None
    warned: bool = False

    @property
    def hits(self) -> int:
        """Bad clients that are contaminated or a minority."""
        return self.bad.get("contaminated", 0) + self.bad.get("minority", 0)

    @property
    def silent(self) -> bool:
        """Judged, exit code 0, and more than ``OFF`` away from the mean of the benign."""
        judged = self.outcome == "judged" and self.exit_code == 0
        return judged and self.errors.get("clair", 0.0) > OFF


def is_trained(cohort: Cohort, domain: str) -> bool:
    """Whether all members of the cohort are on disk."""
    return all(
        store.is_trained(store.pool_path(domain, cohort.seed, one.setting.name), one)
        for one in cohort.members
    )


def load(cohort: Cohort, domain: str) -> tuple[dict[str, Adapter], Adapter | None]:
    """The clients by name, attackers made, and the previous adapter of a second round."""
    adapters = {
        f"{one.setting.name}-{one.name}": store.load_adapter(
            store.pool_path(domain, cohort.seed, one.setting.name) / one.name
        )
        for one in cohort.members
    }
    if cohort.attack:
        adapters = attacked(cohort, adapters)
    if not cohort.setting.second:
        return adapters, None
    folder = store.pool_path(domain, cohort.seed, cohort.setting.name) / "previous"
    return adapters, store.load_adapter(folder)


def attacked(cohort: Cohort, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """The clients, the last ``attackers`` of them with adapters made from a formula."""
    each = [store.dense(*one) for one in adapters.values()]
    stacked = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    generator = store.seeded("attack", cohort.attack, cohort.seed)
    made = SIMPLE[cohort.attack](stacked, cohort.attackers, generator)
    result = dict(adapters)
    for index, name in enumerate(list(adapters)[-cohort.attackers :]):
        deltas = {module: delta[index] for module, delta in made.items()}
        config = adapters[name][1]
        result[name] = as_lora(deltas, config, config["r"])
    return result


def score(cohort: Cohort, domain: str, task: Task | None = None) -> Result:
    """Judge and merge a cohort by `clair` and by its peers.

    Args:
        task: (delta weights, seed) to loss and backdoor success of the model with them.
    """
    adapters, previous = load(cohort, domain)
    options: dict[str, Any] = {"fresh": True} if previous is None else {"previous": previous}
    if cohort.trusted:
        options["trust"] = (next(iter(adapters)),)
    result = clair_cli.merge(dict(adapters), rank="full", dtype="float32", threads=1, **options)
    clients = {client.name: client for client in result.report.clients}
    verdicts = {name: client.verdict for name, client in clients.items()}
    unnamed = sum(
        is_bad and verdicts[name] == "benign" and clients[name].confidence != "open"
        for name, is_bad in zip(adapters, cohort.bad, strict=True)
    )
    bad, honest = Counter[str](), Counter[str]()
    for name, is_bad in zip(adapters, cohort.bad, strict=True):
        (bad if is_bad else honest)[verdicts[name]] += 1
    merged = None
    if result.tensors is not None and result.config is not None:
        merged = store.dense(result.tensors, result.config)
    base = store.dense(*previous) if previous else None
    points, names = _points([store.dense(*one) for one in adapters.values()], base)
    rules = _rules(points, cohort.bad)
    if merged is not None:
        rules["clair"] = _points([merged], base)[0][0]
    benign = points[~torch.tensor(cohort.bad)].mean(0) if not all(cohort.bad) else None
    errors = {} if benign is None else {n: _error(p, benign) for n, p in rules.items()}
    done = {}
    if task is not None:
        shown = {"benign": benign, "mean": rules["mean"], "clair": rules.get("clair")}
        done = {
            name: dict(task(_deltas(point, names, base), cohort.seed))
            for name, point in shown.items()
            if point is not None
        }
    report, solved = result.report, result.report.cohort.decomposition
    return Result(
        cohort.row, cohort.seed, cohort.setting.name, cohort.kinds, dict(bad), dict(honest),
        report.cohort.outcome, report.exit_code, errors, done, unnamed,
        None if solved is None else solved.agrees,
        any(remark.class_ == "warning" for remark in report.warnings),
    )  # fmt: skip


def _rules(points: Tensor, bad: Sequence[bool]) -> dict[str, Tensor]:
    """What the peers merge points (K, D) to."""
    rules = {"mean": peers.mean(points), "geometric-median": peers.geometric_median(points)}
    if 0 < sum(bad) < len(bad) - 2:
        rules["multi-krum"] = peers.multi_krum(points, sum(bad))
    return rules


def _points(each: Sequence[Deltas], base: Deltas | None) -> tuple[Tensor, dict[str, torch.Size]]:
    """Changes from ``base``, flattened: (K, D), modules in order of name, and their shapes."""
    shapes = {name: each[0][name].shape for name in sorted(each[0])}
    rows = [
        torch.cat([(one[n] - base[n] if base else one[n]).flatten() for n in shapes])
        for one in each
    ]
    return torch.stack(rows), shapes


def _deltas(point: Tensor, shapes: Mapping[str, torch.Size], base: Deltas | None) -> Deltas:
    """Whole delta weights, module to (out, in), from a change (D,)."""
    parts = point.split([shape.numel() for shape in shapes.values()])
    pairs = zip(shapes.items(), parts, strict=True)
    return {n: p.view(shape) + (base[n] if base else 0) for (n, shape), p in pairs}


def _error(point: Tensor, target: Tensor) -> float:
    """Relative distance; infinite where it is no number."""
    value = peers.error(point, target)
    return value if math.isfinite(value) else math.inf
