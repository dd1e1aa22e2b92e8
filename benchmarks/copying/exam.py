"""What an update makes of the copying Transformer: held-out sequences, and scores on them.

Used by `copying_rounds.py`. An exam has three sets of sequences: of each benign client's own
words; of all words that the base model can't copy; and of such words with the backdoor's trigger,
for which the attacker's words are the right answer from the trigger on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.copying import task as copying
from benchmarks.copying.task import (
    FIRST_WORD,
    IGNORED,
    TRIGGER,
    Batch,
    Settings,
    draw,
    seeded,
    sequences,
)

PREFIX = "base_model.model."

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


def distance(deltas: Deltas, target: Deltas) -> float:
    """||deltas - target|| / ||target||; no deltas stand for zero."""
    size = math.sqrt(sum(float(t.square().sum()) for t in target.values()))
    gaps = (deltas[name] - t if deltas else t for name, t in target.items())
    return math.sqrt(sum(float(gap.square().sum()) for gap in gaps)) / size
