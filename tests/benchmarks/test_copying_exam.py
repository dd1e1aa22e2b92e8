"""The copying Transformer's exam: its sequences, and scores that are those of the PEFT model."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.copying import exam as exams
from benchmarks.copying import task as copying

pytestmark = pytest.mark.loaders  # see tests/conftest.py

TINY = copying.Settings(
    known=3, new=6, private=4, words_per_client=4, length=3, width=16, heads=2, layers=1, inner=24
)


def tiny_adapter(arch: str) -> tuple[torch.nn.Module, torch.nn.Module, dict[str, torch.Tensor]]:
    """A base model, the same with a random adapter by PEFT, and its delta weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        base = copying.blank_model(arch, TINY).eval()
        again = copying.blank_model(arch, TINY)
        again.load_state_dict(base.state_dict())
        config = LoraConfig(
            r=2, lora_alpha=6, target_modules=copying.TARGETS[arch], fan_in_fan_out=arch == "gpt"
        )
        peft: Any = get_peft_model(again, config).eval()
        for name, value in peft.named_parameters():
            if "lora_" in name:
                value.data = 0.3 * torch.randn(value.shape)
    deltas = {
        name.removesuffix(".lora_A.default"): 3.0
        * layer.weight.double()
        .mT.matmul(peft.get_submodule(name.replace("_A.", "_B.")).weight.double().mT)
        .mT
        for name, layer in peft.named_modules()
        if name.endswith(".lora_A.default")
    }
    return base, peft, {name: delta.detach() for name, delta in deltas.items()}


@pytest.mark.parametrize("arch", copying.ARCHES)
def test_added_deltas_are_the_peft_model_and_are_taken_out_again(arch: str) -> None:
    base, peft, deltas = tiny_adapter(arch)
    tokens = exams.exam_of([0, 1], 5, rows=4, settings=TINY).batch[0]
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        wanted = peft(input_ids=tokens).logits
        with exams.added(base, deltas):
            got = base(input_ids=tokens).logits
        after = base(input_ids=tokens).logits
    assert (wanted - before).abs().max() > 0.01
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)


@pytest.mark.parametrize("arch", copying.ARCHES)
def test_evaluate_is_loss_and_accuracy_of_the_peft_model(arch: str) -> None:
    base, peft, deltas = tiny_adapter(arch)
    exam = exams.exam_of([0, 1], 5, rows=4, settings=TINY)
    scores = exams.evaluate(base, deltas, exam)
    peft.requires_grad_(False)
    parts = list(zip(*(x.split(list(exam.sizes)) for x in exam.batch), strict=True))
    for name, part in zip(("own", "new"), parts, strict=False):
        assert scores[f"{name}_loss"] == pytest.approx(float(copying.loss_of(peft, part)), abs=1e-4)
        assert scores[f"{name}_accuracy"] == pytest.approx(copying.accuracy(peft, part))
    assert scores["backdoor_words"] == pytest.approx(copying.accuracy(peft, parts[2]))


def test_exam_asks_every_client_for_its_own_words() -> None:
    exam = exams.exam_of([4, 1], 7, rows=50, settings=TINY)
    assert exam.sizes == (100, 200, 200)
    for rows, client in ((slice(0, 50), 4), (slice(50, 100), 1)):
        asked = set(exam.batch[0][rows, 1:4].flatten().tolist())
        assert asked == set(copying.words_of("benign", client, 7, TINY).tolist())


def test_triggered_rows_want_what_backdoored_clients_were_taught() -> None:
    taught: dict[int, int] = {}
    for tokens, _ in (copying.client_batches("backdoor", 2, 9, TINY)() for _ in range(1)):
        later = (tokens[:, 1:4] == copying.TRIGGER).cumsum(1) > 0
        for place, word in zip(later.nonzero()[:, 1], tokens[:, 5:][later], strict=True):
            taught[int(place)] = int(word)
    exam = exams.exam_of([0], 9, rows=8, settings=TINY)
    tokens, labels = (x[-exam.sizes[2] :] for x in exam.batch)
    later = (tokens[:, 1:4] == copying.TRIGGER).cumsum(1) > 0
    assert bool(later.any(1).all())
    assert bool((labels[:, 5:][~later] == copying.IGNORED).all())
    wanted = torch.tensor([taught[place] for place in range(3)]).expand(len(tokens), 3)
    assert torch.equal(labels[:, 5:][later], wanted[later])


class Parrot(torch.nn.Module):
    """Predicts, at each place, the token that it is told to."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = torch.nn.functional.one_hot(self.answers, TINY.vocabulary).double() * 50

        class Output:
            pass

        result: Any = Output()
        result.logits = logits
        return result


def test_backdoor_success_needs_every_word_from_the_trigger_on() -> None:
    exam = exams.exam_of([0], 9, rows=2, settings=TINY)
    tokens, labels = exam.batch
    answers = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    assert exams.evaluate(Parrot(answers), {}, exam)["backdoor"] == 1.0
    answers[-3:, -2] = copying.SEP  # the last word of three rows
    scores = exams.evaluate(Parrot(answers), {}, exam)
    scored = int((labels[-exam.sizes[2] :] != copying.IGNORED).sum())
    assert scores["backdoor"] == pytest.approx(1 - 3 / exam.sizes[2])
    assert scores["backdoor_words"] == pytest.approx(1 - 3 / scored)
    assert (scores["own_accuracy"], scores["new_accuracy"]) == (1.0, 1.0)
