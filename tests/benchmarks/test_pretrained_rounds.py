"""Rounds of the pretrained clients: who is trained when and from what, and what is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.pools import store
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained
from benchmarks.pretrained import rounds
from benchmarks.pretrained.rounds import COHORTS, TURNS, Cohort

MODULE = "base_model.model.layers.{}.query"
SMALL = Cohort("small", rounds.honest(0, 4), 2, rounds.honest(3, 1), rounds.honest(4, 1))
SHARED = torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(5))


class Trainer:
    """Clients without any training: each moves its start by what all share and something own."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path | None, str, str]] = []

    def __call__(
        self, client: Client, seed: int, previous: Path | None, draw: str, turned: str
    ) -> Trained:
        self.calls.append((client.name, previous, draw, turned))
        start = {} if previous is None else store.dense(*store.load_adapter(previous))
        generator = store.seeded(client.name, draw, seed)
        state = {}
        for k, (left, right) in enumerate(SHARED):
            own = torch.randn(24, generator=generator)[:, None] * torch.randn(
                24, generator=generator
            )
            delta = (0.0 if turned else 1.0) * left[:, None] * right + own
            delta = delta + start.get(MODULE.format(k), 0.0)
            u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
            state[f"{MODULE.format(k)}.lora_A.weight"] = v[:8].float().contiguous()
            state[f"{MODULE.format(k)}.lora_B.weight"] = (u[:, :8] * s[:8]).float().contiguous()
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["query"]}
        return (state, config), {"n": 1}


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The small cohort, trained."""
    monkeypatch.setenv("CLAIR_BENCH_CACHE", str(tmp_path))
    trainer = Trainer()
    assert rounds.train(SMALL, 0, None, trainer) == 4 + 4 + 5 + len(TURNS)
    return trainer


def test_the_cohorts_are_of_the_base_pool_and_share_their_honest_clients() -> None:
    assert [one.name for one in COHORTS] == ["clean", "samelabel", "random", "backdoor", "turning"]
    assert [one.rounds for one in COHORTS] == [3] * 4 + [5]
    assert all(client in one.members for one in COHORTS for client in one.turning)
    assert not any(client in one.members for one in COHORTS for client in one.joining)
    assert all(client.index < 16 for one in COHORTS for client in one.members)


def test_each_round_starts_from_the_merge_of_the_one_before(played: Trainer) -> None:
    starts = [None if start is None else start.name for _, start, _, _ in played.calls]
    assert starts == [None] * 4 + ["round-1"] * 4 + ["round-2"] * (5 + len(TURNS))
    draws = [draw for *_, draw, _ in played.calls]
    assert draws == ["batches"] * 4 + ["batches-2"] * 4 + ["batches-3"] * (5 + len(TURNS))
    assert [turned for *_, turned in played.calls] == [""] * 13 + list(TURNS)
    assert {name for name, *_, turned in played.calls if turned} == {"honest-03"}


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAIR_BENCH_CACHE", str(tmp_path))
    trainer = Trainer()
    assert [rounds.train(SMALL, 0, limit, trainer) for limit in (3, 3, None, None)] == [3, 3, 10, 0]
    whole = Trainer()
    monkeypatch.setenv("CLAIR_BENCH_CACHE", str(tmp_path / "other"))
    rounds.train(SMALL, 0, None, whole)
    assert [call[2:] for call in trainer.calls] == [call[2:] for call in whole.calls]


def test_a_round_that_made_nothing_is_passed_over(played: Trainer) -> None:
    """And its clients are not merged again."""
    rounds.merged(SMALL, 0, 2).rename(rounds.merged(SMALL, 0, 2).with_name("gone"))
    assert rounds.started_from(SMALL, 0, 3) == rounds.merged(SMALL, 0, 1)


def test_the_table(played: Trainer) -> None:
    lines = list(rounds.table(SMALL, 0))
    assert [text[:34].strip() for text in lines] == [
        "small 0, round 1, honest", "small 0, round 2, honest", "small 0, round 3, honest",
        *(text for turned in TURNS
          for text in (f"small 0, turned to {turned}", "small 0, the others, twice")),
    ]  # fmt: skip
    assert lines[0].endswith("4 benign clear") and lines[1].endswith("4 benign clear")
    turned = lines[3].split("  ")[-1]
    assert turned.startswith("1 contaminated")
    earlier = {c.name: c.earlier for c in rounds.judged(SMALL, 0, 3).clients}
    assert [one is None for one in earlier.values()] == [False] * 4 + [True]


def test_what_earlier_rounds_change_stands_behind_an_arrow(played: Trainer) -> None:
    clients = rounds.judged(SMALL, 0, 3).clients
    assert clients[0].earlier is not None
    lifted = replace(clients[0], earlier=replace(clients[0].earlier, alone="open"))
    text = rounds.line("x", [lifted, clients[4]])
    assert text.endswith("1 benign clear, 1 benign open -> 2 benign clear")
    assert text[34:].split()[3] == "1"
