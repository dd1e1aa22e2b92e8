"""How much hangs on each threshold: verdicts and errors with each 30 % lower and 30 % higher.

    python -m benchmarks.calibration.thresholds [--seed 0] [--widths 64 256] [--modules 6 28] \\
        [--sizes 8 16] [--only simulated] \\
        [--powers 1 0.5] [--inits own same] [--rates 2e-4 2e-3]

The cohorts are fixed: those of the pretrained model's seed that are on disk (`pools/cohorts.py`,
without formulas), and of the simulated pools (`width/cohorts.py`). One line for each threshold of
`clair_cli/maths/judge/thresholds.py` at 0.7 and 1.3 of its value; of DUPLICATE_COSINE and POWER it
is the distance from one that is changed. Columns, of cohorts with an honest majority if not said:

- hits: bad clients that are contaminated or in a minority, of those in judged cohorts;
- false: honest clients of judged cohorts that are contaminated or in a minority; susp: suspicious;
- undet: cohorts without a verdict;
- silent: judged, and the merge (weights by influence, none for a minority) is more than 0.2 off the
  mean of the honest clients;
- bad: silent ones of those without an honest majority; without any honest client, judged ones;
- error: mean of the merge's, over judged cohorts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.calibration import pools
from benchmarks.calibration.pools import Pool
from benchmarks.pools.cohorts import cohorts_of
from benchmarks.pools.score import OFF
from benchmarks.pretrained.clients import SETTINGS
from benchmarks.width import simulate
from benchmarks.width.cohorts import cases, draw
from clair_cli.maths.judge import factor, groups, judge, minority, thresholds
from clair_cli.maths.judge.judge import Judgement

FACTORS = (0.7, 1.3)
NAMES = [name for name in vars(thresholds) if name.isupper()]
# Thresholds whose distance from one is changed.
_NEAR_ONE = ("DUPLICATE_COSINE", "POWER")
# Thresholds that come after the groups.
_NOT_OF_STRUCTURE = ("SPREAD_RATIO", "MODULE_NORM_CAP", "SECOND_GROUP_SHARE")
_OF_MINORITIES = ("MINORITY_P", "OWN_SHARE", "LEFT_P", "ERROR_RATE")
_FOUND = ("contaminated", "minority")
HEADER = (
    f"{'':26} {'hits':>5} {'of':>5} {'false':>6} {'susp':>5} {'of':>5} {'undet':>6} "
    f"{'silent':>6} {'of':>5} {'bad':>4} {'of':>4} {'error':>6}"
)


@dataclass(frozen=True)
class Cohort:
    """Some clients of a pool."""

    pool: Pool
    clients: tuple[int, ...]

    @property
    def bad(self) -> list[bool]:
        """For each client, whether it is bad."""
        return [self.pool.kinds[k] != "honest" for k in self.clients]

    @property
    def has_majority(self) -> bool:
        """Whether more than half are honest."""
        return 2 * sum(self.bad) < len(self.clients)


@dataclass(frozen=True)
class Found:
    """What came out for one cohort; `error` is None where nobody is honest or nothing judged."""

    cohort: Cohort
    judged: bool
    verdicts: tuple[str, ...]
    error: float | None

    @property
    def silent(self) -> bool:
        """Judged, and wrong without a word."""
        return self.judged and (self.error is None or self.error > OFF)


def changed(name: str, factor: float) -> float:
    """A threshold at a factor of its value."""
    value: float = getattr(thresholds, name)
    return 1.0 - factor * (1.0 - value) if name in _NEAR_ONE else factor * value


@contextmanager
def threshold(name: str, value: float) -> Iterator[None]:
    """A threshold's value, in every module of the judge that uses it."""
    with ExitStack() as stack:  # thresholds.py itself is one of them
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("clair_cli.maths.") and hasattr(module, name):
                stack.enter_context(patch.object(module, name, value))
        yield


def remembered(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A pure function that is not computed again for the same arguments and thresholds.

    Args:
        names: the thresholds that its result depends on.
    """
    results: dict[int, Any] = {}

    def key(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.contiguous().numpy().tobytes()
        if is_dataclass(value):
            return tuple(key(getattr(value, one.name)) for one in fields(value) if one.compare)
        return value if value is None or isinstance(value, float) else tuple(value)

    def call(*arguments: Any) -> Any:
        asked = hash((*map(key, arguments), *(getattr(thresholds, name) for name in names)))
        if asked not in results:
            results[asked] = function(*arguments)
        return results[asked]

    return call


@contextmanager
def remembering() -> Iterator[None]:
    """While this lasts, what a threshold has no part in is not computed anew for it."""
    structure = [name for name in NAMES if name not in _NOT_OF_STRUCTURE]
    factor_of = remembered(factor.one_factor)
    with ExitStack() as stack:
        for module, name, function in (
            (factor, "one_factor", factor_of),
            (minority, "one_factor", factor_of),
            (groups, "find_minority", remembered(groups.find_minority, *_OF_MINORITIES)),
            (judge, "find_structure", remembered(judge.find_structure, *structure)),
            (judge, "collaborate", remembered(judge.collaborate, "LINE")),
        ):
            stack.enter_context(patch.object(module, name, function))
        yield


def error(cohort: Cohort, found: Judgement) -> float | None:
    """||merge - mean of the honest|| / ||that mean||; None where nobody is honest."""
    good = torch.tensor([not bad for bad in cohort.bad], dtype=torch.float64)
    if not good.any():
        return None
    weights = torch.tensor(
        [v.influence if v.verdict in ("benign", "suspicious") else 0.0 for v in found.verdicts],
        dtype=torch.float64,
    )
    target = good / good.sum()
    off = weights / weights.sum() - target
    chosen = list(cohort.clients)
    gram = cohort.pool.gram[chosen][:, chosen].double()
    return float(((off @ gram @ off).clamp_min(0.0) / (target @ gram @ target)).sqrt())


def evaluate(cohort: Cohort) -> Found:
    """Judge a cohort."""
    found = cohort.pool.judge(cohort.clients)
    judged = found.outcome == "judged"
    verdicts = tuple(one.verdict for one in found.verdicts)
    return Found(cohort, judged, verdicts, error(cohort, found) if judged else None)


def row(title: str, found: Sequence[Found]) -> str:
    """One line of the table."""
    majority = [one for one in found if one.cohort.has_majority]
    others = [one for one in found if not one.cohort.has_majority]
    judged = [one for one in majority if one.judged]
    pairs = [(b, v) for one in judged for b, v in zip(one.cohort.bad, one.verdicts, strict=True)]
    bad, honest = [v for b, v in pairs if b], [v for b, v in pairs if not b]
    errors = [one.error for one in judged if one.error is not None]
    return (
        f"{title:26} {sum(v in _FOUND for v in bad):5} {len(bad):5} "
        f"{sum(v in _FOUND for v in honest):6} {honest.count('suspicious'):5} {len(honest):5} "
        f"{sum(not one.judged for one in majority):6} "
        f"{sum(one.silent for one in majority):6} {len(majority):5} "
        f"{sum(one.silent for one in others):4} {len(others):4} "
        f"{sum(errors) / max(1, len(errors)):6.3f}"
    )


def pretrained_cohorts(seed: int) -> Iterator[Cohort]:
    """The cohorts of the pretrained model that are on disk, without formulas."""
    made = pools.pretrained_pools(seed)
    for one in cohorts_of(SETTINGS, seed):
        names = sorted({member.setting.name for member in one.members})
        if one.attack or not set(names) <= set(made):
            continue
        pool = made[names[0]]
        if len(names) > 1:
            mixed = pools.pretrained_pool([SETTINGS[name] for name in names], seed)
            assert mixed is not None  # each of them is there
            pool = mixed
        wanted = [f"{member.setting.name}/{member.name}" for member in one.members]
        if set(wanted) <= set(pool.names):
            yield Cohort(pool, tuple(pool.names.index(name) for name in wanted))


def simulated_cohorts(options: argparse.Namespace) -> Iterator[Cohort]:
    """The cohorts of the simulated pools that are on disk."""
    for setting, pool in pools.width_pools(options):
        for _, counts in cases(setting, options.sizes):
            yield Cohort(pool, tuple(draw(setting, counts)))


def main() -> None:
    """Command line."""
    parser = simulate.parser(__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the pretrained model's cohorts")
    parser.add_argument("--only", choices=("pretrained", "simulated"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen: dict[str, list[Cohort]] = {"pretrained": [], "simulated": []}
    if options.only != "simulated":
        chosen["pretrained"] = list(pretrained_cohorts(options.seed))
    if options.only != "pretrained":
        chosen["simulated"] = list(simulated_cohorts(options))
    with remembering():
        for title, cohorts in chosen.items():
            if not cohorts:
                continue
            print(f"{title}\n{HEADER}")
            print(row("as it is", [evaluate(one) for one in cohorts]), flush=True)
            for name in NAMES:
                for factor in FACTORS:
                    value = changed(name, factor)
                    with threshold(name, value):
                        found = [evaluate(one) for one in cohorts]
                    print(row(f"{name} {value:.4g}", found), flush=True)


if __name__ == "__main__":
    main()
