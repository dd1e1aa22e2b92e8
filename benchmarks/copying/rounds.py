"""Federated rounds of the text-copying Transformer: what every rule does to the model.

    python -m benchmarks.copying.rounds [--quick] [--seeds 0 1 2 3 4] [--inits same own] \\
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
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

import clair_cli
from benchmarks import peers
from benchmarks.copying import cohorts
from benchmarks.copying import task as copying
from benchmarks.copying.cohorts import Member
from benchmarks.copying.exam import Deltas, Scores, average, distance, evaluate, exam_of
from benchmarks.copying.tables import MEASURES, measure_table, summary, verdict_table

CLIENTS = 20
SHARES = (0.0, 0.1, 0.25, 0.4, 0.6)
KINDS = ("wrong", "random", "backdoor", "poison")
BOOST = 2.0


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
        merged = clair_cli.merge(clients, rank="full", dtype="float32", fresh=True)
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
    shares: Sequence[float] = SHARES
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
