"""What one client shares with the others, layer by layer: what a bar chart shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clair_cli.report.cohort import ModuleReport
from clair_cli.report.model import ClientReport, ModuleScores, Report

_NUMBER = re.compile(r"(?<![^.])(\d+)(?![^.])")


@dataclass(frozen=True)
class Layer:
    """A layer, or a module where names have no layer's number.

    Attributes:
        name: the layer's, as it stands in the modules' names.
        share: similarity to the others there, over that of two of the others; None if not known.
        unsure: whether an unrelated client could have as much by chance.
        size: norm of the client's delta weights over the median client's; None if not known.
        n_modules: of the layer, that the client has.
    """

    name: str
    share: float | None
    unsure: bool
    size: float | None
    n_modules: int


def layers(client: ClientReport, report: Report) -> tuple[Layer, ...]:
    """The layers of a client, in the order of the model; empty where it was not compared."""
    groups: dict[str, list[ModuleReport]] = {}
    for module in report.modules:
        if module.name in client.modules and client.modules[module.name].rank > 0:
            groups.setdefault(_layer_of(module.name), []).append(module)
    found = [_layer(name, modules, client, report) for name, modules in groups.items()]
    return tuple(sorted(found, key=lambda layer: _natural(layer.name)))


def _layer_of(name: str) -> str:
    """The name up to its first number between dots: the layer; the whole name without one.

    >>> _layer_of("bert.encoder.layer.11.attention.self.query"), _layer_of("lm_head")
    ('bert.encoder.layer.11', 'lm_head')
    """
    found = _NUMBER.search(name)
    return name if found is None else name[: found.end()]


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(p), "") if p.isdecimal() and p.isascii() else (0, 0, p) for p in parts)


def _layer(
    name: str, modules: Sequence[ModuleReport], client: ClientReport, report: Report
) -> Layer:
    own = [(client.modules[m.name], m.similarity_inside) for m in modules]
    told = [(s, inside) for s, inside in own if s.similarity is not None and inside is not None]
    typical = math.fsum(inside for _, inside in told if inside is not None)
    alike = math.fsum(s.similarity for s, _ in told if s.similarity is not None)
    chance = math.sqrt(math.fsum((s.chance or 0.0) ** 2 for s, _ in told))
    share = alike / typical if told and typical > chance else None
    return Layer(name, share, abs(alike) < 2 * chance, _size(modules, client, report), len(modules))


def _size(modules: Sequence[ModuleReport], client: ClientReport, report: Report) -> float | None:
    names = [module.name for module in modules]
    sizes = sorted(_norm(c.modules, names) for c in report.clients if c.modules)
    typical = sizes[len(sizes) // 2] if sizes else 0.0
    return _norm(client.modules, names) / typical if typical > 0 else None


def _norm(scores: Mapping[str, ModuleScores], names: Sequence[str]) -> float:
    return math.hypot(*(scores[name].norm for name in names if name in scores))
