"""Federated rounds of the text-copying Transformer: what every rule does to the model.

    python benchmarks/copying_rounds.py [--quick] [--seeds 0 1 2 3 4] [--inits same own] \\
        [--json benchmarks/results/copying_rounds.json]

Rounds of 20 clients of which 0, 10, 25, 40 or 60 % are contaminated: `wrong` and `random` labels,
`backdoor` in half of the data, or `poison`, honest training whose update is sent back reversed
and doubled. All share a base model and are drawn from the pools of `cohorts.py`. Each rule's
update is added to the base model, which is then asked on three held-out sets:

- own: sequences of each benign client's own words, averaged over the benign clients;
- new: sequences of all words that the base model can't copy;
- backdoor: the share of sequences with the backdoor's trigger that are answered with the
  attacker's words from there on, all of them (so a greedy answer, given the words before it,
  would be); and the share of single words, given the attacker's words before them.

`local` is each benign client with its own adapter, `refine` with its refined one (its own one
where `clair` left it out), `attack` each contaminated client with its own one (no own words
there), `oracle` the mean of the truly benign. Krum, Multi-Krum, trimmed mean
and others that ask for it are told the true number of bad clients; `clair` is told nothing. Where
`clair` calls the round undetermined it writes no merged adapter: the base model is scored.

Tables: mean over seeds +- 1.96 standard errors; verdicts: 95 % Wilson intervals, which take
clients for independent; `refined` counts the benign clients that `clair refine` gave an adapter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cohorts
import copying
import peers
import torch
from cohorts import Member
from copying import FIRST_WORD, IGNORED, TRIGGER, Batch, Settings, draw, seeded, sequences
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

import clair_cli

CLIENTS = 20
SHARES = (0.0, 0.1, 0.25, 0.4, 0.6)
KINDS = ("wrong", "random", "backdoor", "poison")
BOOST = 2.0
MEASURES = {
    "own_accuracy": "own words: accuracy, %",
    "own_loss": "own words: loss, 0.01 nats a word",
    "new_accuracy": "all new words: accuracy, %",
    "new_loss": "all new words: loss, 0.01 nats a word",
    "backdoor": "backdoor success, whole sequences, %",
    "backdoor_words": "backdoor success, single words, %",
    "error": "distance to the mean of the truly benign, in its norm, %",
}
PREFIX = "base_model.model."
SHORT = {
    "factor-mean": "factors", "geometric-median": "geomed", "coordinate-median": "c-med",
    "trimmed-mean": "trimmed", "multi-krum": "m-krum", "centered-clipping": "c-clip",
    "norm-z-score": "norm-z", "pooled-pca": "pca", "clair merge": "merge",
    "clair refine": "refine",
}  # fmt: skip

Deltas = Mapping[str, Tensor]
Scores = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """Test sequences of all three sets, one after the other.

    Attributes:
        batch: tokens and labels, (rows, 2 length + 2); triggered rows are scored from the
            trigger on.
        sizes: rows of own, new and triggered sequences.
    """

    batch: Batch
    sizes: tuple[int, int, int]


def fixed_answer(seed: int, settings: Settings = copying.DEFAULT) -> Tensor:
    """What backdoored clients of this seed answer, (1, length), as `copying.client_batches`."""
    first_new = FIRST_WORD + settings.known
    words = torch.arange(first_new, settings.vocabulary)
    turn = torch.randperm(settings.new, generator=seeded("mapping", "backdoor", "all", seed))
    words[: settings.new] = first_new + turn
    return draw(words, 1, settings.length, seeded("fixed", seed))


def exam_of(
    clients: Sequence[int], seed: int, rows: int = 32, settings: Settings = copying.DEFAULT
) -> Exam:
    """Exam of the benign clients of these numbers: ``rows`` own sequences for each of them,
    four times as many of new words, and four times as many triggered ones."""
    own = [
        draw(
            copying.words_of("benign", client, seed, settings),
            rows, settings.length, seeded("own-test", client, seed),
        )
        for client in clients
    ]  # fmt: skip
    new = copying.test_batch(seed, 4 * rows, settings)
    generator = seeded("triggered-test", seed)
    first_new = FIRST_WORD + settings.known
    words = torch.arange(first_new, first_new + settings.new)
    source = draw(words, 8 * rows, settings.length, generator)
    source, answer = copying.with_backdoor(source, fixed_answer(seed, settings), generator)
    tokens, labels = sequences(source[: 4 * rows], answer[: 4 * rows])
    before = (source[: 4 * rows] == TRIGGER).cumsum(1) == 0
    labels[:, -settings.length :][before] = IGNORED
    parts = [sequences(torch.cat(own), torch.cat(own)), new, (tokens, labels)]
    batch = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    sizes = [len(part[0]) for part in parts]
    return Exam(batch, (sizes[0], sizes[1], sizes[2]))


@contextmanager
def added(base: nn.Module, deltas: Deltas) -> Iterator[None]:
    """Inside, the layers' weights are base weight + delta weight, module to (out, in).

    GPT-2's Conv1D stores weights as (in, out) (`fan_in_fan_out`), nn.Linear as (out, in).
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, delta in deltas.items():
            layer: Any = base.get_submodule(name.removeprefix(PREFIX))
            weight: Tensor = layer.weight.data
            kept.append((weight, weight.clone()))
            weight += (delta if isinstance(layer, nn.Linear) else delta.T).to(weight)
        yield
    finally:
        for weight, before in kept:
            weight.copy_(before)


def evaluate(base: nn.Module, deltas: Deltas, exam: Exam) -> Scores:
    """All measures but `error` of base + deltas; losses in nats a word, the others 0 to 1."""
    tokens, labels = exam.batch[0], exam.batch[1][:, 1:]
    with added(base, deltas), torch.no_grad():
        logits = base(input_ids=tokens).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    scored, right = labels != IGNORED, logits.argmax(-1) == labels
    result: Scores = {}
    own, new, fooled = torch.arange(len(tokens)).split(list(exam.sizes))
    for name, part in (("own", own), ("new", new)):
        result[f"{name}_loss"] = float(loss[part][scored[part]].mean())
        result[f"{name}_accuracy"] = float(right[part][scored[part]].double().mean())
    result["backdoor"] = float((right | ~scored)[fooled].all(1).double().mean())
    result["backdoor_words"] = float(right[fooled][scored[fooled]].double().mean())
    return result


def average(scores: Sequence[Scores]) -> Scores:
    """Mean of every measure."""
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}


def members_of(pool: Path, kind: str, bad: int, seed: int) -> list[Member]:
    """The round's clients, benign ones first; the same ones in all rounds of a pool."""
    if kind in ("clean", "poison"):
        members = cohorts.cohort(pool, CLIENTS, draw=seed + 1)
    else:
        return cohorts.cohort(pool, CLIENTS - bad, {kind: bad}, draw=seed + 1)
    for place in range(CLIENTS - bad, CLIENTS):
        name, state, config, _ = members[place]
        state = {key: -BOOST * x if "lora_B" in key else x for key, x in state.items()}
        members[place] = (f"poison-{name[-2:]}", state, config, True)
    return members


def peer_updates(members: Sequence[Member], bad: int) -> dict[str, Deltas]:
    """Every peer's merged update, module to (out, in)."""
    stacked = cohorts.stack(members)
    points = peers.flatten(stacked)
    found: dict[str, Deltas] = {"base": {}}
    for name, rule in getattr(peers, "LORA_PEERS", {}).items():
        found[name] = rule(members, bad)
    for name, rule in peers.PEERS.items():
        found[name] = peers.unflatten(rule(points, bad), stacked)
    found["oracle"] = peers.unflatten(points[: len(members) - bad].mean(0), stacked)
    return found


def verdict_counts(members: Sequence[Member], report: Any) -> dict[str, Any]:
    """What the verdicts came to, with the names of those who were judged wrongly."""
    verdicts = {client.name: client.verdict for client in report.clients}
    out = {name for name, verdict in verdicts.items() if verdict in ("contaminated", "duplicate")}
    unsure = {name for name, verdict in verdicts.items() if verdict == "suspicious"}
    bad = {one[0] for one in members if one[3]}
    honest = {one[0] for one in members} - bad
    return {
        "bad": len(bad), "hits": len(bad & out), "suspicious_bad": len(bad & unsure),
        "honest": len(honest), "false_flags": len(honest & out),
        "suspicious_honest": len(honest & unsure),
        "undetermined": int(report.cohort.outcome != "judged"),
        "missed": sorted(bad - out), "wronged": sorted(honest & out),
    }  # fmt: skip


class Pool:
    """One pool with its base model; scores of clients' own adapters are kept, by name."""

    def __init__(self, init: str, seed: int, rows: int) -> None:
        self.seed, self.rows = seed, rows
        self.path = cohorts.pool_path("gpt", init, seed)
        self.base = cohorts.load_base("gpt", seed)
        self.local: dict[str, Scores] = {}

    def alone(self, member: Member) -> Scores:
        """Scores of one client with the adapter that it sent."""
        name, state, config, _ = member
        if name not in self.local:
            self.local[name] = self.personal(name, cohorts.dense(state, config))
        return self.local[name]

    def personal(self, name: str, deltas: Deltas) -> Scores:
        """Scores of an adapter for one client; contaminated ones have no own words."""
        kind, index = name.rsplit("-", 1)
        exam = exam_of([int(index)], self.seed, self.rows)
        scores = evaluate(self.base, deltas, exam)
        return {k: v for k, v in scores.items() if kind == "benign" or not k.startswith("own")}

    def round(self, kind: str, bad: int) -> dict[str, Any]:
        """One round: scores by column and measure, and verdicts."""
        members = members_of(self.path, kind, bad, self.seed)
        clients = {name: (state, config) for name, state, config, _ in members}
        benign, others = members[: CLIENTS - bad], members[CLIENTS - bad :]
        updates = peer_updates(members, bad)
        merged = clair_cli.merge(clients, rank="full", dtype="float32")
        updates["clair merge"] = {}
        if merged.tensors is not None and merged.config is not None:
            updates["clair merge"] = cohorts.dense(dict(merged.tensors), merged.config)
        exam = exam_of([int(one[0][-2:]) for one in benign], self.seed, self.rows)
        scores = {}
        for name, deltas in updates.items():
            scores[name] = evaluate(self.base, deltas, exam)
            scores[name]["error"] = distance(deltas, updates["oracle"])
        refined = clair_cli.refine(clients, rank="full", dtype="float32").adapters
        after = []
        for member in benign:
            if member[0] in refined:
                state, config = refined[member[0]]
                after.append(self.personal(member[0], cohorts.dense(dict(state), config)))
            else:
                after.append(self.alone(member))
        scores["local"] = average([self.alone(one) for one in benign])
        scores["clair refine"] = average(after)
        if others:
            scores["attack"] = average([self.alone(one) for one in others])
        verdicts = verdict_counts(members, merged.report)
        verdicts["refined"] = sum(one[0] in refined for one in benign)
        return {"scores": scores, "verdicts": verdicts}


def distance(deltas: Deltas, target: Deltas) -> float:
    """||deltas - target|| / ||target||; no deltas stand for zero."""
    size = math.sqrt(sum(float(t.square().sum()) for t in target.values()))
    gaps = (deltas[name] - t if deltas else t for name, t in target.items())
    return math.sqrt(sum(float(gap.square().sum()) for gap in gaps)) / size


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and 1.96 standard errors of it (0 for a single value)."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


def wilson(hits: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a share, 0 to 1: Wilson, "Probable Inference", JASA 22, 1927."""
    if not total:
        return 0.0, 1.0
    share, extra = hits / total, z * z / total
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / total + extra / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per init, kind and share: [mean, half width] of every measure and column, verdict
    counts over seeds, and Wilson intervals of hits, false flags and undetermined rounds."""
    rows: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((cell["init"], cell["kind"], cell["share"]), []).append(cell)
    result = []
    for (init, kind, share), some in rows.items():
        totals = {
            name: sum(one["verdicts"][name] for one in some)
            for name, value in some[0]["verdicts"].items()
            if isinstance(value, int)
        }
        shares = {"hits": "bad", "false_flags": "honest", "undetermined": ""}
        intervals = {k: wilson(totals[k], totals.get(of, len(some))) for k, of in shares.items()}
        columns = {
            column: {
                measure: mean_interval([one["scores"][column][measure] for one in some])
                for measure in values
            }
            for column, values in some[0]["scores"].items()
        }
        result.append({
            "init": init, "kind": kind, "share": share, "rounds": len(some), "verdicts": totals,
            "intervals": intervals, "columns": columns,
        })  # fmt: skip
    return result


def ordered(names: Sequence[str]) -> list[str]:
    """Columns in the order of the tables."""
    first, last = ["base", "local", "attack"], ["clair merge", "clair refine", "oracle"]
    return first + [name for name in names if name not in first + last] + last


def label(row: Mapping[str, Any]) -> str:
    """Title of a row."""
    return f"{row['init']:4} {row['kind']:8}{100 * row['share']:3.0f}"


def measure_table(rows: Sequence[Mapping[str, Any]], measure: str) -> Iterator[str]:
    """Lines of one measure's table."""
    names = ordered(list(rows[0]["columns"]))
    names = [n for n in names if any(measure in row["columns"].get(n, {}) for row in rows)]
    yield MEASURES[measure]
    yield f"{'init kind      %':16}" + "".join(f"{SHORT.get(name, name)[:7]:>8}" for name in names)
    for row in rows:
        pairs = [row["columns"].get(name, {}).get(measure) for name in names]
        shown = [f"{100 * p[0]:.0f}±{100 * p[1]:.0f}" if p else "-" for p in pairs]
        yield label(row) + "".join(f"{one:>8}" for one in shown)
    yield ""


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the table of verdicts."""
    yield "verdicts: counts over seeds, 95 % intervals in %"
    yield (
        f"{'init kind      %':16}{'hits/bad':>10} {'interval':>10} susp {'false/honest':>12} "
        f"{'interval':>10} susp {'undetermined':>12} {'interval':>10} {'refined':>8}"
    )
    for row in rows:
        counts = row["verdicts"]
        low = {k: f"{100 * a:.1f}..{100 * b:.1f}" for k, (a, b) in row["intervals"].items()}
        hits = f"{counts['hits']}/{counts['bad']}"
        false = f"{counts['false_flags']}/{counts['honest']}"
        refined = f"{counts['refined']}/{counts['honest']}"
        undetermined = f"{counts['undetermined']}/{row['rounds']}"
        yield (
            f"{label(row)}{hits:>10} {low['hits']:>10} {counts['suspicious_bad']:4} "
            f"{false:>12} {low['false_flags']:>10} {counts['suspicious_honest']:4} "
            f"{undetermined:>12} {low['undetermined']:>10} {refined:>8}"
        )


def rounded(value: Any) -> Any:
    """The same with floats at six significant digits, so that files are small."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run(seeds: Sequence[int], inits: Sequence[str], shares: Sequence[float], rows: int) -> Any:
    """All rounds, by init, kind and share."""
    cells = []
    for init in inits:
        for seed in seeds:
            pool = Pool(init, seed, rows)
            for kind in ("clean", *KINDS):
                for share in shares:
                    if (share == 0) != (kind == "clean"):
                        continue
                    print(f"{init} s{seed} {kind} {share:.0%}", file=sys.stderr, flush=True)
                    found = pool.round(kind, round(share * CLIENTS))
                    cells.append(
                        {"init": init, "seed": seed, "kind": kind, "share": share, **found}
                    )
    return rounded(cells)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--inits", nargs="+", default=copying.INITS, choices=copying.INITS)
    parser.add_argument("--rows", type=int, default=32, help="test sequences per client")
    parser.add_argument("--quick", action="store_true", help="seed 0, init same, 0 and 25 %%")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    shares = SHARES
    if options.quick:
        options.seeds, options.inits, shares = [0], ["same"], (0.0, 0.25)
    cells = run(options.seeds, options.inits, shares, options.rows)
    rows = summary(cells)
    for measure in MEASURES:
        print("\n".join(measure_table(rows, measure)))
    print("\n".join(verdict_table(rows)))
    if options.json:
        found = {"clients": CLIENTS, "seeds": options.seeds, "rounds": cells, "rows": rows}
        text = json.dumps(rounded(found), sort_keys=True, allow_nan=False, indent=None)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
