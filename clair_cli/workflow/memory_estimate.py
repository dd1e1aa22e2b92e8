"""How much memory a round will take beside torch itself, known before its first tensor is read."""

from __future__ import annotations

from clair_cli.maths.evidence import CORE_DIM
from clair_cli.maths.wide_evidence import WIDE_DIM
from clair_cli.workflow.engine import Engine
from clair_cli.workflow.passes import kept_grams, kept_stacks, largest_ranks, wide
from clair_cli.workflow.round import Round

_FLOAT = 8
# Matrices of the size of one module's stacked factors, and of its Grams, that its work holds.
_STACKS, _SQUARES = 2, 8
# Numbers that a client's share of a module that is too wide for Grams takes.
_WIDE_NUMBERS = 4 * WIDE_DIM**2


def estimate_memory(round_: Round, engine: Engine) -> int:
    """Bytes at the highest point: the modules in work, what is kept of all, and the result.

    The largest modules are taken to be worked on at the same time.
    """
    sizes = []
    for module, shape in round_.module_shapes.items():
        rank = sum(largest_ranks(round_, [module]))
        squares = _SQUARES * rank * rank
        if wide(round_, module):
            squares = len(round_.adapters) * _WIDE_NUMBERS + 3 * min(shape) ** 2
        sizes.append(_FLOAT * (_STACKS * rank * sum(shape) + squares))
    in_work = sum(sorted(sizes, reverse=True)[: engine.threads])
    kept = 2 * sum(kept_grams(round_).values())
    kept += sum(kept_stacks(round_, engine).values())
    clients = len(round_.adapters)
    evidence = len(sizes) * clients * _FLOAT * (6 * clients + CORE_DIM**2)
    return in_work + kept + evidence
