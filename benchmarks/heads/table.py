"""Heads trained on scikit-learn's digits: who is found, and what the merged head costs.

    python -m benchmarks.heads.table [--draws 12] [--seed 200]

A head is a linear layer on fixed features (random ReLU units of the pixels), trained by 30 steps of
stochastic gradient descent from a start that all clients have: drawn at random (start "random"),
or trained for 100 steps on all data first ("trained"). Twelve clients; three of them bad in every
row but the first of a block. The reference is the start itself (a round with `--previous`) or the
clients' median (a first round). Their LoRA counts as honest: nobody is left out for it.

Attacks: flip (twice the start less the head), turn (minus the head), scale (ten times what was
learnt), relabel (trained on labels moved by one), roll (the rows moved by one), random (trained on
random labels).

Columns: bad clients contaminated and suspicious, honest ones likewise; and the mean distance of
the merged head to the mean of the honest ones, over the norm of what the honest learnt on the
average, for clair and for the plain mean.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clair_cli.maths.judge.heads import DenseEvidence, judge_heads
from clair_cli.maths.merge.dense import bounded_mean, middle

N, BAD, WIDTH, STEPS, RATE, BATCH = 12, 3, 256, 30, 0.05, 16
KINDS = ("none", "flip", "turn", "scale", "relabel", "roll", "random")
# Name, number of classes, alpha of the Dirichlet distribution of labels (None: the same for all).
POPULATIONS = (
    ("ten classes, same shares", 10, None), ("ten classes, alpha 1", 10, 1.0),
    ("ten classes, alpha 0.3", 10, 0.3), ("two classes, same shares", 2, None),
    ("two classes, alpha 0.3", 2, 0.3),
)  # fmt: skip


@dataclass
class Row:
    """Sums over the cohorts of one row."""

    bad_contaminated: int = 0
    bad_suspicious: int = 0
    contaminated: int = 0
    suspicious: int = 0
    error: float = 0.0
    plain: float = 0.0


def features(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (n_images, WIDTH) of the digits, and their labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    drawn = torch.randn(64, WIDTH, generator=generator) / 8
    found = torch.relu(torch.tensor(pixels / 16, dtype=torch.float32) @ drawn)
    return (found - found.mean(0)) / (found.std(0) + 1e-6), torch.tensor(labels)


def train(
    x: Tensor, y: Tensor, head: tuple[Tensor, Tensor], steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A head (weight, bias) after some steps from another."""
    weight, bias = (t.clone().requires_grad_() for t in head)
    for _ in range(steps):
        some = torch.randint(len(x), (BATCH,), generator=generator)
        loss = torch.nn.functional.cross_entropy(x[some] @ weight.mT + bias, y[some])
        grads = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight -= RATE * grads[0]
            bias -= RATE * grads[1]
    return weight.detach(), bias.detach()


def shares(y: Tensor, classes: int, alpha: float | None, rng: np.random.Generator) -> list[Tensor]:
    """Each client's images; whoever would have fewer than eight gets sixteen of all."""
    own: list[list[int]] = [[] for _ in range(N)]
    if alpha is None:
        for k, image in enumerate(rng.permutation(len(y))):
            own[k % N].append(int(image))
    else:
        for label in range(classes):
            images = rng.permutation(np.flatnonzero(y.numpy() == label))
            ends = np.cumsum(rng.dirichlet([alpha] * N)) * len(images)
            for k, some in enumerate(np.split(images, ends.astype(int)[:-1])):
                own[k] += some.tolist()
    return [torch.tensor(some if len(some) >= 8 else rng.integers(len(y), size=16)) for some in own]


def cohort(
    seed: int, classes: int, alpha: float | None, kind: str, *, trained: bool
) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Twelve heads, the first three by an attack, and the start."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    x, y = features(generator)
    y = y % classes
    start = (torch.randn(classes, WIDTH, generator=generator) / WIDTH**0.5, torch.zeros(classes))
    if trained:
        start = train(x, y, start, 100, generator)
    heads = []
    for k, images in enumerate(shares(y, classes, alpha, rng)):
        labels, attack = y[images], kind if k < BAD else "none"
        if attack == "relabel":
            labels = (labels + 1) % classes
        elif attack == "random":
            labels = torch.randint(classes, (len(labels),), generator=generator)
        head = train(x[images], labels, start, STEPS, generator)
        heads.append(tuple(_attacked(h, s, attack) for h, s in zip(head, start, strict=True)))
    return heads, start  # type: ignore[return-value]


def _attacked(head: Tensor, start: Tensor, attack: str) -> Tensor:
    made = {
        "flip": 2 * start - head,
        "turn": -head,
        "scale": start + 10 * (head - start),
        "roll": head.roll(1, 0),
    }
    return made.get(attack, head)


def add_cohort(
    row: Row, heads: list[tuple[Tensor, Tensor]], start: tuple[Tensor, Tensor], *, bad: int,
    previous: bool,
) -> None:  # fmt: skip
    """Judge and merge one cohort and add what was found to a row."""
    stacked = [torch.stack([h[t].flatten() for h in heads]).double() for t in (0, 1)]
    references = [start[t].flatten().double() if previous else middle(stacked[t]) for t in (0, 1)]
    off = [values - reference for values, reference in zip(stacked, references, strict=True)]
    everybody = list(range(N))
    judged = judge_heads(
        DenseEvidence(
            ("weight", "bias"), tuple(v.shape[1] for v in stacked), (True, False),
            (previous, previous), torch.ones(2, N, dtype=torch.bool),
            torch.stack([v @ v.mT for v in stacked]), torch.stack([d @ d.mT for d in off]),
        ),
        everybody,
    )  # fmt: skip
    verdicts = [v.verdict for v in judged.verdicts]
    row.bad_contaminated += verdicts[:bad].count("contaminated")
    row.bad_suspicious += verdicts[:bad].count("suspicious")
    row.contaminated += verdicts[bad:].count("contaminated")
    row.suspicious += verdicts[bad:].count("suspicious")
    kept = [k for k in everybody if verdicts[k] != "contaminated"]
    wanted = stacked[0][bad:].mean(0)
    learnt = (wanted - start[0].flatten().double()).norm()
    merged = bounded_mean(
        stacked[0][kept], [1 / len(kept)] * len(kept), [judged.verdicts[k].factor for k in kept],
        references[0],
    )  # fmt: skip
    row.error += float((merged - wanted).norm() / learnt)
    row.plain += float((stacked[0].mean(0) - wanted).norm() / learnt)


HEADER = (
    f"{'attack':8} {'bad: cont':>9} {'susp':>5} {'of':>5} {'honest: cont':>12} {'susp':>5} "
    f"{'of':>5} {'clair':>6} {'mean':>6}"
)


def line(kind: str, row: Row, cohorts: int) -> str:
    """A row of the table.

    Args:
        cohorts: how many it is the sum of.
    """
    bad = 0 if kind == "none" else BAD
    return (
        f"{kind:8} {row.bad_contaminated:9} {row.bad_suspicious:5} {bad * cohorts:5} "
        f"{row.contaminated:12} {row.suspicious:5} {(N - bad) * cohorts:5} "
        f"{row.error / cohorts:6.2f} {row.plain / cohorts:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--seed", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    totals = {(previous, kind): Row() for previous in (True, False) for kind in KINDS}
    blocks = 0
    for name, classes, alpha in POPULATIONS:
        for trained in (False, True):
            blocks += 1
            rows = {key: Row() for key in totals}
            for kind in KINDS:
                for seed in range(args.seed, args.seed + args.draws):
                    heads, begin = cohort(seed, classes, alpha, kind, trained=trained)
                    for previous in (True, False):
                        for row in (rows[previous, kind], totals[previous, kind]):
                            add_cohort(
                                row, heads, begin, bad=0 if kind == "none" else BAD,
                                previous=previous,
                            )  # fmt: skip
            for previous in (True, False):
                start = "trained" if trained else "random"
                print(
                    f"\n{name}; start {start}; {ROUNDS[previous]}; {args.draws} cohorts\n{HEADER}"
                )
                for kind in KINDS:
                    print(line(kind, rows[previous, kind], args.draws), flush=True)
    for previous in (True, False):
        print(f"\nall; {ROUNDS[previous]}; {blocks * args.draws} cohorts\n{HEADER}")
        for kind in KINDS:
            print(line(kind, totals[previous, kind], blocks * args.draws))


ROUNDS = {True: "with --previous", False: "first round"}


if __name__ == "__main__":
    main()
