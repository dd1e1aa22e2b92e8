"""Attacks with a goal: a direction that a backdoor needs, put into the merge in several ways.

The direction T is module to (out, in): trained backdoored clients' mean, if it is given, else
rank one, t v^T with random unit target t and trigger v. It is norm-matched (see `attacks_base`)
before use. ``BACKDOOR`` attacks take it as the keyword ``direction``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.attacks.base import (
    Attack,
    Deltas,
    copies,
    deltas_of,
    low_rank,
    matched,
    median_norm,
    normal,
    parted,
    points_of,
)
from benchmarks.attacks.optimised import against_std, alie, min_max, squared_distances

# Norm of the noise that hides sybils, over the norm of what they hide.
HIDING = 0.1


def target(honest: Deltas, generator: torch.Generator, direction: Deltas | None) -> Deltas:
    """T, norm-matched: module to (1, out, in)."""
    result = {}
    for name, one in honest.items():
        rows, columns = one.shape[1:]
        if direction is None:
            made = normal(generator, rows, 1) @ normal(generator, 1, columns)
        else:
            made = direction[name].double()
        result[name] = matched(made[None], one)
    return result


def bounded(
    deltas: Deltas, bad: int, generator: torch.Generator, direction: Deltas | None = None
) -> Deltas:
    """x = T: the backdoor at the honest median norm.

    Sun et al., "Can You Really Backdoor Federated Learning?", arXiv 1911.07963 (norm-bounded).
    """
    honest = parted(deltas, bad)[0]
    return {name: t.repeat(bad, 1, 1) for name, t in target(honest, generator, direction).items()}


def replacement(
    deltas: Deltas, bad: int, generator: torch.Generator, direction: Deltas | None = None
) -> Deltas:
    """x = (K / bad) T: what makes the mean T if the honest updates cancel.

    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, arXiv 1807.00459, with
    learning rate 1 and the global model of the round before at zero.
    """
    count = len(next(iter(deltas.values())))
    made = bounded(deltas, bad, generator, direction)
    return {name: count / bad * one for name, one in made.items()}


def replacement_exact(
    deltas: Deltas, bad: int, generator: torch.Generator, direction: Deltas | None = None
) -> Deltas:
    """x = (K T - sum of the honest) / bad: the plain mean is T exactly. Source as above."""
    honest = parted(deltas, bad)[0]
    count = len(next(iter(deltas.values())))
    goal = target(honest, generator, direction)
    return {
        name: ((count * goal[name] - one.sum(0)) / bad).repeat(bad, 1, 1)
        for name, one in honest.items()
    }


def hidden(
    deltas: Deltas,
    bad: int,
    generator: torch.Generator,
    share: float,
    modules: int | None = None,
) -> Deltas:
    """x_k = own_k + share ||own_k|| t v^T, unit t and v the same for all attackers.

    By module; with ``modules`` only in that many random ones. Own form: a backdoor that needs no
    training. LoRA backdoors of low rank live longest (arXiv 2511.14406).
    """
    own = parted(deltas, bad)[1]
    names = sorted(own)
    order = torch.randperm(len(names), generator=generator).tolist()
    chosen = {names[i] for i in order[:modules]}
    result = {}
    for name in names:
        rows, columns = own[name].shape[1:]
        t, v = normal(generator, rows, 1), normal(generator, 1, columns)
        product = t @ v / (t.norm() * v.norm())
        size = share * own[name].flatten(1).norm(dim=1)[:, None, None]
        result[name] = own[name] + size * product if name in chosen else own[name].clone()
    return result


def row_masks(rows: int, parts: int, generator: torch.Generator) -> Tensor:
    """Disjoint masks that sum to one, (parts, rows, 1), float64: whose part each row is."""
    owner = torch.randperm(rows, generator=generator) % parts
    return (owner == torch.arange(parts)[:, None]).double()[:, :, None]


def distributed(
    deltas: Deltas,
    bad: int,
    generator: torch.Generator,
    boosted: bool,
    direction: Deltas | None = None,
) -> Deltas:
    """x_k = own_k + g M_k T, masks M_k disjoint over the attackers, g = 1 or ``boosted`` = bad.

    Xie et al., "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020. There
    the parts are of the trigger; here each attacker has some output rows of T, which keeps the
    rank. With g = bad the attackers' sum is that of bad times the whole T.
    """
    honest, own = parted(deltas, bad)
    goal = target(honest, generator, direction)
    factor = float(bad) if boosted else 1.0
    return {
        name: one + factor * row_masks(one.shape[1], bad, generator) * goal[name]
        for name, one in sorted(own.items())
    }


def neurotoxin(
    deltas: Deltas,
    bad: int,
    generator: torch.Generator,
    masked: float = 0.1,
    direction: Deltas | None = None,
) -> Deltas:
    """x = T without the coordinates where |mean(honest)| is in the largest ``masked`` share.

    Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, arXiv
    2206.10341: what the others hardly move stays. Norm-matched; coordinates of all modules.
    """
    honest = parted(deltas, bad)[0]
    moved = points_of(honest).mean(0).abs()
    goal = points_of(target(honest, generator, direction))[0].clone()
    goal[moved.argsort(descending=True, stable=True)[: round(masked * len(moved))]] = 0.0
    return {name: matched(one, honest[name]) for name, one in copies(goal, bad, deltas).items()}


def cancelling(bad: int, generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Pairs of noise e and -e of norm 1, low rank, (bad, rows, columns); an odd last one is 0."""
    noise = [low_rank(generator, rows, columns) for _ in range(bad // 2)]
    pairs = [one for e in noise for one in (e, -e)]
    return torch.stack(pairs + [torch.zeros(rows, columns, dtype=torch.float64)] * (bad % 2))


def in_pairs(
    deltas: Deltas,
    bad: int,
    generator: torch.Generator,
    base: Callable[..., Deltas],
    direction: Deltas | None = None,
) -> Deltas:
    """x_k = b_k +- e: attackers of ``base`` with noise that cancels in their sum, by pairs.

    Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID
    2020, arXiv 1808.04866: sybils that are not seen by being the same. ||e|| is ``HIDING`` of b's.
    """
    options = {} if direction is None else {"direction": direction}
    result = {}
    for name, made in base(deltas, bad, generator, **options).items():
        size = HIDING * made.flatten(1).norm(dim=1).mean()
        result[name] = made + size * cancelling(bad, generator, *made.shape[1:])
    return result


def in_parts(
    deltas: Deltas, bad: int, generator: torch.Generator, direction: Deltas | None = None
) -> Deltas:
    """x_k = own_k + g T_k: each inside the honest cloud, together g T.

    The parts T_k are T / bad + e_k with random e_k of T's norm / sqrt(bad) and sum zero, so that
    no part looks like T. g is the largest for which every x_k is no further from any honest
    client than two clean clients are from each other at most. After "Colluding LoRA", arXiv
    2603.12681: adapters that are harmless one by one.
    """
    honest, own = parted(deltas, bad)
    goal = target(honest, generator, direction)
    parts = {}
    for name, t in goal.items():
        rows, columns = t.shape[1:]
        noise = torch.stack([low_rank(generator, rows, columns) for _ in range(bad)])
        noise = (noise - noise.mean(0)) * median_norm(honest[name]) / bad**0.5
        parts[name] = t / bad + noise
    step, start, others = points_of(parts), points_of(own), points_of(honest)
    room = squared_distances(points_of(deltas)).max()
    strengths = []
    for x, p in zip(start, step, strict=True):
        offset = x - others
        slope, square = offset @ p, p @ p
        left = (room - offset.square().sum(1)).clamp_min(0)
        strengths.append(((-slope + (slope.square() + square * left).sqrt()) / square).min())
    return deltas_of(start + torch.stack(strengths).min() * step, deltas)


BACKDOOR: dict[str, Attack] = {
    "backdoor-bounded": bounded,
    "replacement": replacement,
    "replacement-exact": replacement_exact,
    "dba": partial(distributed, boosted=False),
    "dba-boosted": partial(distributed, boosted=True),
    "neurotoxin": neurotoxin,
    "backdoor-pairs": partial(in_pairs, base=bounded),
    "collude-parts": in_parts,
}
HIDDEN: dict[str, Attack] = {
    **{f"hidden-{b:g}": partial(hidden, share=b) for b in (0.05, 0.2, 0.5, 1.0)},
    **{f"hidden-one-{b:g}": partial(hidden, share=b, modules=1) for b in (0.5, 1.0, 3.0)},
    "alie-1.5-pairs": partial(in_pairs, base=partial(alie, deviations=1.5)),
    "min-max-std-pairs": partial(in_pairs, base=partial(min_max, direction=against_std)),
}
