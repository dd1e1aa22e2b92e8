"""The rounds of the copying Transformer: its scores, its intervals, and the figures."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

import copying
import copying_rounds as rounds
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binomtest

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
    tokens = rounds.exam_of([0, 1], 5, rows=4, settings=TINY).batch[0]
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        wanted = peft(input_ids=tokens).logits
        with rounds.added(base, deltas):
            got = base(input_ids=tokens).logits
        after = base(input_ids=tokens).logits
    assert (wanted - before).abs().max() > 0.01
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)


@pytest.mark.parametrize("arch", copying.ARCHES)
def test_evaluate_is_loss_and_accuracy_of_the_peft_model(arch: str) -> None:
    base, peft, deltas = tiny_adapter(arch)
    exam = rounds.exam_of([0, 1], 5, rows=4, settings=TINY)
    scores = rounds.evaluate(base, deltas, exam)
    peft.requires_grad_(False)
    parts = list(zip(*(x.split(list(exam.sizes)) for x in exam.batch), strict=True))
    for name, part in zip(("own", "new"), parts, strict=False):
        assert scores[f"{name}_loss"] == pytest.approx(float(copying.loss_of(peft, part)), abs=1e-4)
        assert scores[f"{name}_accuracy"] == pytest.approx(copying.accuracy(peft, part))
    assert scores["backdoor_words"] == pytest.approx(copying.accuracy(peft, parts[2]))


def test_exam_asks_every_client_for_its_own_words() -> None:
    exam = rounds.exam_of([4, 1], 7, rows=50, settings=TINY)
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
    exam = rounds.exam_of([0], 9, rows=8, settings=TINY)
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
    exam = rounds.exam_of([0], 9, rows=2, settings=TINY)
    tokens, labels = exam.batch
    answers = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    assert rounds.evaluate(Parrot(answers), {}, exam)["backdoor"] == 1.0
    answers[-3:, -2] = copying.SEP  # the last word of three rows
    scores = rounds.evaluate(Parrot(answers), {}, exam)
    scored = int((labels[-exam.sizes[2] :] != copying.IGNORED).sum())
    assert scores["backdoor"] == pytest.approx(1 - 3 / exam.sizes[2])
    assert scores["backdoor_words"] == pytest.approx(1 - 3 / scored)
    assert (scores["own_accuracy"], scores["new_accuracy"]) == (1.0, 1.0)


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 20), (3, 20), (10, 20), (99, 100), (5, 5)])
def test_wilson_is_scipys(hits: int, total: int) -> None:
    wanted = binomtest(hits, total).proportion_ci(method="wilson")
    assert rounds.wilson(hits, total) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_mean_interval_by_hand() -> None:
    mean, half = rounds.mean_interval([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert half == pytest.approx(1.96 * (14 / 3) ** 0.5 / 2)
    assert rounds.mean_interval([4.0]) == (4.0, 0.0)


def fake_cells() -> list[dict[str, Any]]:
    """Rounds with made-up scores: two inits, two seeds, two kinds."""
    chance = random.Random(1)
    columns = ["mean", "geometric-median", "multi-krum", "oracle", "clair merge"]
    measures = [
        "own_accuracy",
        "new_accuracy",
        "backdoor",
        "backdoor_words",
        "own_loss",
        "new_loss",
    ]
    cells = []
    for init in ("same", "own"):
        for kind, share in [("clean", 0.0), ("wrong", 0.25), ("backdoor", 0.25), ("backdoor", 0.6)]:
            bad = round(20 * share)
            for seed in (0, 1):
                scores = {
                    name: {m: chance.random() for m in [*measures, "error"]}
                    for name in ["base", *columns]
                }
                for name in ["local", "clair refine", *(["attack"] if bad else [])]:
                    scores[name] = {m: chance.random() for m in measures}
                verdicts = {
                    "bad": bad, "hits": bad // 2, "suspicious_bad": 1, "honest": 20 - bad,
                    "false_flags": seed, "suspicious_honest": 0, "undetermined": seed,
                    "refined": 20 - bad if share < 0.5 else 0, "missed": ["a"], "wronged": [],
                }  # fmt: skip
                cells.append(
                    {"init": init, "seed": seed, "kind": kind, "share": share}
                    | {"scores": scores, "verdicts": verdicts}
                )
    return cells


def test_summary_adds_up_over_seeds() -> None:
    cells = fake_cells()
    rows = rounds.summary(cells)
    assert len(rows) == 8
    row = next(r for r in rows if (r["init"], r["kind"], r["share"]) == ("own", "backdoor", 0.6))
    some = [c for c in cells if (c["init"], c["kind"], c["share"]) == ("own", "backdoor", 0.6)]
    a, b = (c["scores"]["mean"]["new_loss"] for c in some)
    assert row["columns"]["mean"]["new_loss"] == pytest.approx(
        ((a + b) / 2, 1.96 * abs(a - b) / 2), rel=1e-12
    )
    assert (row["verdicts"]["hits"], row["verdicts"]["bad"], row["rounds"]) == (12, 24, 2)
    assert row["intervals"]["hits"] == rounds.wilson(12, 24)
    assert row["intervals"]["false_flags"] == rounds.wilson(1, 16)
    assert row["intervals"]["undetermined"] == rounds.wilson(1, 2)


def test_tables_fit_and_show_every_row() -> None:
    rows = rounds.summary(fake_cells())
    for measure in rounds.MEASURES:
        lines = list(rounds.measure_table(rows, measure))
        assert len(lines) == len(rows) + 3
        assert len({len(text) for text in lines[1:-1]}) == 1
        assert len(lines[1]) <= 160
    assert len(list(rounds.verdict_table(rows))) == len(rows) + 2


def test_figures_are_drawn_and_the_same_every_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    import figures

    some = {name: figures.LINES[name] for name in ("mean", "clair merge", "clair refine")}
    monkeypatch.setattr(figures, "LINES", some)  # fewer lines, less time
    (tmp_path / "results").mkdir()
    assert figures.draw_all(tmp_path / "results", tmp_path / "none") == []
    assert "copying_rounds.json: not there, skipped" in capsys.readouterr().out
    cells = [one for one in fake_cells() if one["init"] == "own" and one["kind"] != "wrong"]
    data = rounds.rounded({"rows": rounds.summary(cells)})
    (tmp_path / "results" / "copying_rounds.json").write_text(json.dumps(data))
    one, two = (figures.draw_all(tmp_path / "results", tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in one] == [
        "copying_accuracy_own.svg", "copying_loss_own.svg", "copying_backdoor.svg",
        "copying_verdicts.svg",
    ]  # fmt: skip
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size < 200_000
        assert b"<dc:date>" not in first.read_bytes()


def test_labels_keep_order_and_distance() -> None:
    pytest.importorskip("matplotlib")
    from figures import spread

    assert spread([0.1, 0.9], 0.2, 0, 1) == [0.1, 0.9]
    assert spread([0.5, 0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.3, 0.5, 0.7])
    assert spread([1.0, 0.95, 0.2], 0.2, 0, 1) == pytest.approx([1.0, 0.8, 0.2])
    assert spread([0, 0, 0], 5, 0, 1) == pytest.approx([0, 0.5, 1])
