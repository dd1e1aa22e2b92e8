"""Error of local, mean, merged and refined adapters against benign heterogeneity, noise known.

    python -m benchmarks.theory.refinement [--quick] [--json PATH]

Rounds are planted (planted_rounds.py), D_k = D_0 + U C_k + H_k + noise. `apart` is ||H_k||^2 over
the noise energy off the subspace, sigma^2 d_off. All columns of errors are ratios to the client's
own local error ||D_k - truth_k||^2, averaged over benign clients and draws:

    mean      plain mean of the benign         merged   what `clair merge` gives everybody
    formula   Dbar + P(D_k - Dbar), always     choice   `clair refine` with the noise known
    part      for comparison, not in `clair`: a share of D_k - Dbar kept off P (James-Stein)

`better`: share of clients for whom the choice was the better side; `local`: share that kept their
adapter; `lost`: error above the better side, over the local error; `worst`: the largest
choice/local of any client in any draw. `odd`: contaminated clients left out, of those there are
(every second draw has some). `gone`: benign clients left out, which get no adapter; `undet`:
rounds without a verdict. `crossing`: the `apart` at which formula and local are equal, measured
(interpolated) and as clair_cli/maths/refine/gain.py predicts it with the true subspace dimensions.

Kinds: `noise` gives the noise level; `counts` gives sample counts only, which range over a factor
of 16, with noise sigma^2 n_mean / n_k; `uneven` gives the noise level, and one client in four is
eight times as far apart as the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.theory import planted_rounds as planted
from benchmarks.theory.planted_rounds import PlantedRound, dense, planted_round, squared_error
from benchmarks.theory.refinement_table import HEADER, Case, Row, line, measured_crossing, summary
from clair_cli.cohort.round import load_round
from clair_cli.engine.engine import make_engine
from clair_cli.engine.threads import one_thread_each
from clair_cli.settings import make_settings
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.judge import JudgedRound, judge_round
from clair_cli.workflow.read import read_cohort
from clair_cli.workflow.refine import Refined, RefinedAdapter, refine_round

APART = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 2.0, 4.0)
QUICK_APART = (0.0, 0.5, 1.25, 3.0)
FULL = (
    *(Case("noise", "output", k, noise, 12) for k, noise in ((5, 0.25), (5, 0.5))),
    *(Case("noise", "output", k, noise, 6) for k, noise in ((10, 0.25), (10, 0.5))),
    Case("noise", "output", 20, 0.5, 2),
    Case("noise", "input", 10, 0.25, 6),
    *(Case("noise", "both", k, noise, 12) for k, noise in ((5, 0.5), (10, 0.5), (10, 1.0))),
    Case("noise", "both", 20, 0.5, 6),
    Case("uneven", "output", 10, 0.25, 4),
    Case("uneven", "both", 10, 0.5, 12),
    Case("counts", "output", 10, 0.25, 4),
    *(Case("counts", "both", k, 0.25, draws) for k, draws in ((5, 12), (10, 12), (20, 6))),
)
QUICK = (
    *(Case("noise", side, 5, 0.25, 2) for side in ("output", "input")),
    *(Case(kind, "both", 10, 0.5, 2) for kind in ("noise", "uneven")),
    Case("counts", "both", 10, 0.25, 2),
)


def make_round(case: Case, apart: float, draw: int) -> PlantedRound:
    """One draw; every second one has contaminated clients besides the `n_clients` benign ones."""
    bad = max(1, case.n_clients // 5) if draw % 2 else 0
    total = case.n_clients + bad
    levels = [apart] * case.n_clients
    if case.kind == "uneven":
        levels = [apart * (8.0 if k % 4 == 3 else 1.0) for k in range(case.n_clients)]
    counts = None
    if case.kind == "counts":  # spread evenly on a log scale, in an order of their own
        order = torch.randperm(total, generator=torch.Generator().manual_seed(draw)).tolist()
        counts = [float(round(50 * 16 ** (i / (total - 1)))) for i in order]
    return planted_round(
        case.n_clients + bad, side=case.side, noise=case.noise, heterogeneity=levels,
        counts=counts, bad=bad, seed=1000 * draw + case.n_clients,
    )  # fmt: skip


def refined_both_ways(
    round_: PlantedRound, kind: str
) -> tuple[JudgedRound, Refined, Refined] | None:
    """The judged round, `clair refine` with the noise known, and the plain formula.

    The library's own steps, so that the round is judged once for both: the formula is what it
    writes where nothing is known of the noise.

    Returns:
        None for a round without a verdict.
    """
    adapters = round_.adapters()
    known: dict[str, object] = {"noise": round_.sigma}
    if kind == "counts":
        known = {"weights": round_.counts}
    options = {"rank": "full", "dtype": "float32", "fresh": True, "minority": "exclude", **known}
    settings = make_settings("refine", adapters, None, options)
    engine = make_engine(settings)
    with one_thread_each():
        loaded = load_round(settings, read_cohort(settings))
        factors = engine.load(loaded)
        judged = judge_round(factors, engine, settings)
        if judged.outcome != "judged":
            return None
        choice = refine_round(judged, factors, settings, engine, Destination())
        nothing = dataclasses.replace(judged, round=dataclasses.replace(judged.round, weights=None))
        unknown = dataclasses.replace(settings, noise=None)
        formula = refine_round(nothing, factors, unknown, engine, Destination())
    return judged, choice, formula


def part_kept(chosen: RefinedAdapter, away: float) -> float:
    """Share of D_k - Dbar to keep off the subspace: max(0, 1 - c / ||d_k||^2).

    c = sigma_k^2 ((1 - w_k) d_off - d_fit / K), from the estimate refined - local = d^2 - 2 c.

    Args:
        away: ||d_k||^2, squared distance of the formula's result to the local update.

    Source:
        W. James, C. Stein, Proc. 4th Berkeley Symposium, 1961 (positive part, towards the mean).
    """
    if chosen.gain is None or not away > 0:
        return 0.0
    c = (away - (chosen.gain.refined - chosen.gain.local)) / 2.0
    return min(1.0, max(0.0, 1.0 - c / away))


def add(row: Row, round_: PlantedRound) -> None:
    """Measure one round."""
    found = refined_both_ways(round_, row.case.kind)
    if found is None:
        row.undetermined += 1
        return
    judged, choice, formula = found
    weights = dict(zip(judged.round.names, judged.weights, strict=True))
    bad = [name for name in round_.local if name not in round_.truth]
    row.odd += len(bad)
    row.odd_out += sum(weights[name] == 0 for name in bad)
    row.gone += sum(weights[name] == 0 for name in round_.benign)
    plain = {name: 1.0 / len(round_.truth) for name in round_.truth}
    mean, merged = round_.mean(plain), round_.mean(weights)
    for chosen, always in zip(choice.clients, formula.clients, strict=True):
        if chosen.name not in round_.truth:
            continue
        local, truth = round_.local[chosen.name], round_.truth[chosen.name]
        refined = dense(always.adapter.tensors)
        away = planted.ENTRIES * squared_error(refined, local)
        share = part_kept(chosen, away)
        base = squared_error(local, truth)
        part = {m: refined[m] + share * (local[m] - refined[m]) for m in local}
        ratios = {
            "mean": squared_error(mean, truth) / base,
            "merged": squared_error(merged, truth) / base,
            "formula": squared_error(refined, truth) / base,
            "choice": squared_error(dense(chosen.adapter.tensors), truth) / base,
            "part": squared_error(part, truth) / base,
        }
        for name, value in ratios.items():
            row.errors[name].append(value)
        row.kept.append(chosen.kept_local)
        row.better.append((ratios["formula"] < 1.0) != chosen.kept_local)
        row.lost.append(max(0.0, ratios["choice"] - min(1.0, ratios["formula"])))


def measure(case: Case, apart: float) -> Row:
    """All draws of a case at one heterogeneity."""
    row = Row(case, apart)
    for draw in range(case.draws):
        add(row, make_round(case, apart, draw))
    return row


Crossing = dict[str, str | int | float | None]


def curve(case: Case, aparts: Sequence[float]) -> tuple[list[Row], list[Crossing]]:
    """All rows of one case, printed as they come, and its crossing (kind `noise` only)."""
    rows = []
    for apart in aparts:
        rows.append(measure(case, apart))
        print(line(rows[-1]), flush=True)
    if case.kind != "noise":
        return rows, []
    found = measured_crossing(rows)
    expected = planted.predicted_crossing(case.side, case.n_clients)
    shown = "none in this range" if found is None else f"{found:.3f}"
    print(f"{case.title:24} crossing: measured {shown}, predicted {expected:.3f}")
    return rows, [{
        "side": case.side, "clients": case.n_clients, "noise": case.noise, "measured": found,
        "predicted": expected,
    }]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five curves of four points")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(HEADER)
    rows: list[Row] = []
    crossings: list[Crossing] = []
    for case in QUICK if options.quick else FULL:
        made, crossing = curve(case, QUICK_APART if options.quick else APART)
        rows += made
        crossings += crossing
    print("\n".join(summary(rows)))
    if options.json is not None:
        numbers = {"rows": [row.numbers() for row in rows], "crossings": crossings}
        text = json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
