"""The strategy in Flower: on hand-made messages, and in Flower's own simulation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, MultiKrum
from flwr.supercore.task_identity import TaskIdentity

from clair_cli.federated import Server, flower
from clair_cli.federated.flower import ClairStrategy
from tests.federated.clients import config, deltas, fresh, loss, trained
from tests.federated.flower_nodes import (
    FLIPPED,
    NODES,
    Client,
    LocalGrid,
    archive,
    boasting,
    claiming,
    descending,
    dying,
    empty,
    honest,
    nonsense,
    packed,
    received,
    record,
    run,
    six,
)

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_server() -> None:
    """What a message says of where it comes from, as a server's process has it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class Recorded(ClairStrategy):
    """Remembers every round's result."""

    def __init__(self, given: Any = None, **options: Any) -> None:
        super().__init__(config() if given is None else given, fraction_evaluate=0.0, **options)
        self.results: list[Any] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        found = super().aggregate_train(server_round, replies)
        self.results.append(self.result)
        return found


def left_out(result: Any) -> set[str]:
    return {c.name for c in result.report.clients if c.weight == 0}


def test_two_attackers_are_left_out_of_every_round() -> None:
    strategy = Recorded()
    arrays = run(strategy, descending())
    assert [left_out(r) for r in strategy.results] == [FLIPPED] * 3
    others = {
        "FedAvg": run(FedAvg(fraction_evaluate=0.0), descending()),
        "MultiKrum": run(MultiKrum(num_malicious_nodes=2, fraction_evaluate=0.0), descending()),
    }
    losses = {name: loss(state) for name, state in others.items()}
    print(f"loss after three rounds: clair {loss(arrays):.3f}, {losses}")
    assert loss(arrays) < 0.5 * losses["FedAvg"] and loss(arrays) < losses["MultiKrum"]


def test_bad_replies_end_no_round() -> None:
    """With FedAvg itself, the first of them ends the run."""
    bad = {"21": nonsense, "22": packed(b"no numpy file"), "23": empty, "24": dying, "25": boasting}
    strategy = Recorded()
    run(strategy, six(**bad))
    rejected = {"21", "22", "23", "25"}
    for result in strategy.results:
        assert left_out(result) == FLIPPED | rejected  # who died sent nothing
        assert {c.name for c in result.report.with_verdict("rejected")} == rejected
    with pytest.raises(Exception, match=r"same keys|exactly one"):
        run(FedAvg(fraction_evaluate=0.0), {**six(), 21: nonsense})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "can't be unpacked"),
        (b"PK\x03\x04 no archive", "can't be unpacked"),
        (archive(), "is not a dense tensor"),
        (claiming("(-1,)"), "can't be unpacked"),
        (claiming(f"({10**13},)"), "can't be unpacked"),
        (claiming("(2, 2)").replace(b"<f4", b"|O8"), "can't be unpacked"),
    ],
    ids=["nothing", "no zip", "zip", "negative", "too large", "pickles"],
)
def test_bytes_that_are_no_array_reject_their_node(data: bytes, why: str) -> None:
    strategy = Recorded()
    run(strategy, six(**{"21": packed(data)}), rounds=1)
    (bad,) = strategy.results[0].report.with_verdict("rejected")
    assert bad.name == "21" and why in bad.reasons[0].text and "l0.q.lora_A" in bad.reasons[0].text


def test_nothing_private_of_flower_is_used() -> None:
    source = Path(str(flower.__file__)).read_text(encoding="utf-8")
    used = set(re.findall(r"(?<!\w)_[a-zA-Z]\w*", source))
    assert used <= {*vars(ClairStrategy), *vars(flower)} and not used & {*dir(FedAvg)}


def test_metrics_are_those_of_the_merged() -> None:
    strategy = Recorded()
    grid = LocalGrid({**six(), 21: nonsense})
    result = strategy.start(grid=grid, initial_arrays=record(fresh()), num_rounds=1)
    sent = {n: trained(fresh(), 100 + k, sign=1.0) for k, n in enumerate(NODES)}
    own = [loss(state) for node, state in sent.items() if str(node) not in FLIPPED]
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(np.mean(own))


@pytest.mark.parametrize(
    "sent",
    [
        {"m": {"x": 1.0}},
        {"m": {"num-examples": [1], "loss": 9.0}},
        {"m": {"num-examples": 1, "loss": [9.0, 9.0]}},
        {"m": {"num-examples": float("inf"), "loss": 9.0}},
        {"m": {"num-examples": float("nan"), "loss": 9.0}},
        {"m": {"num-examples": -1, "loss": 9.0}},
        {"another": {"num-examples": 1, "loss": 9.0}},
        {"m": {"num-examples": 1, "loss": 9.0}, "n": {"num-examples": 1, "loss": 9.0}},
        {},
        None,
    ],
    ids=str,
)
def test_one_nonsense_reply_ends_no_evaluation(sent: Any) -> None:
    def evaluating(message: Message, n: int) -> Message:
        if message.metadata.message_type == "evaluate" and sent is None:
            return dying(message, n)
        if message.metadata.message_type == "evaluate":
            records = {name: MetricRecord(own) for name, own in sent.items()}
            return Message(RecordDict(records), reply_to=message)
        return honest(9)(message, n)

    grid = LocalGrid({**six(), 31: evaluating})
    result = ClairStrategy(config()).start(grid=grid, initial_arrays=record(fresh()), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(1.0)


def test_clients_of_mixed_ranks_get_their_own() -> None:
    ranks = dict(zip(NODES, (4, 8, 4, 8, 8, 4), strict=True))
    shapes: list[dict[int, set[int]]] = []

    tested: list[set[int]] = []

    def watching(node: int, client: Client) -> Client:
        def answer(message: Message, n: int) -> Message:
            while len(shapes) < n:
                shapes.append({})
            sent = {a.shape[0] for key, a in received(message).items() if "lora_A" in key}
            if message.metadata.message_type == "evaluate":
                tested.append(sent)
                assert sent == {ranks[node]}
            else:
                shapes[n - 1][node] = sent
            return client(message, n)

        return answer

    clients: dict[int, Client | None] = {
        node: watching(
            node, honest(k, rank=ranks[node], sign=-1.0 if str(node) in FLIPPED else 1.0)
        )
        for k, node in enumerate(NODES)
    }
    strategy = Recorded()
    strategy.fraction_evaluate, strategy.min_evaluate_nodes = 1.0, 2
    grid = LocalGrid(clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(), num_rounds=3)
    assert [left_out(r) for r in strategy.results] == [FLIPPED] * 3 and len(tested) == 18
    assert shapes[1:] == [{node: {rank} for node, rank in ranks.items()}] * 2


def test_a_lost_round_keeps_the_arrays() -> None:
    strategy = Recorded(Server(config()))

    def failing(k: int, node: int) -> Client:
        good = honest(k, sign=-1.0 if str(node) in FLIPPED else 1.0)
        return lambda message, n: nonsense(message, n) if n == 2 else good(message, n)

    run(strategy, {node: failing(k, node) for k, node in enumerate(NODES)})
    assert [r.outcome for r in strategy.results] == ["use", "keep", "use"]
    assert left_out(strategy.results[2]) == FLIPPED


def test_initial_arrays_with_an_update_are_the_first_start() -> None:
    strategy = Recorded()
    start = trained(None, 5)
    grid = LocalGrid(six())
    strategy.start(grid=grid, initial_arrays=record(start), num_rounds=1)
    assert left_out(strategy.results[0]) == FLIPPED
    sent = strategy.server._state.banks[0]
    assert np.allclose(deltas(sent.tensors)["l0.q"], deltas(start)["l0.q"])  # type: ignore[arg-type]


def test_the_shortest_recipe_runs_in_the_simulation(tmp_path: Path) -> None:
    """In a process of its own, which may use this machine's own sockets: Ray needs them."""
    out = tmp_path / "found.json"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
        "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path),
        "RAY_ADDRESS": "local",  # whatever cluster this machine had, and left its address
    }  # fmt: skip
    script = str(Path(__file__).with_name("flower_app.py"))
    done = subprocess.run([sys.executable, script, str(out)], env=environment, timeout=170,
                          capture_output=True, text=True)  # fmt: skip
    assert out.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert len(found) == 3
    for outcome, flipped, verdicts in found:
        assert outcome == "use"
        assert flipped == ["contaminated"] * 2  # by what the client itself says it is
        assert sorted(verdicts.values()).count("rejected") == 1  # nonsense; who died sent nothing
        assert len(verdicts) == 7
