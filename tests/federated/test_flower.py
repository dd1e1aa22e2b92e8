"""The strategy in Flower: on hand-made messages, and in Flower's own simulation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, MultiKrum
from flwr.supercore.task_identity import TaskIdentity

from clair_cli.federated import Server
from clair_cli.federated.flower import ClairStrategy
from tests.federated.clients import State, config, deltas, descended, fresh, loss, trained

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[2]
NODES = (11, 2**62 + 1, 13, 14, 15, 2**63 - 7)
FLIPPED = {str(NODES[3]), str(NODES[5])}
Client = Callable[[Message, int], Message]


class LocalGrid(Grid):  # type: ignore[misc]
    """Nodes that answer in this process.

    Args:
        clients: by node, what answers its messages; None for one that is gone.
    """

    def __init__(self, clients: dict[int, Client | None]) -> None:
        self.clients = clients

    def get_node_ids(self) -> Iterable[int]:
        return list(self.clients)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            answer = self.clients[message.metadata.dst_node_id]
            if answer is not None:
                n = message.content["config"]["server-round"]
                replies.append(answer(message, int(n)))
        return replies

    set_run = run = create_message = push_messages = pull_messages = get_nodes = None  # type: ignore[assignment]


LocalGrid.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def in_a_server() -> None:
    """What a message says of where it comes from, as a server's process has it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def record(state: State) -> ArrayRecord:
    return ArrayRecord({key: Array(array) for key, array in state.items()})


def received(message: Message) -> State:
    return {key: array.numpy() for key, array in message.content["arrays"].items()}


def content(state: State, samples: Any = 100, **more: Any) -> RecordDict:
    metrics = MetricRecord({"num-examples": samples, "loss": loss(state)})
    return RecordDict({"arrays": record(state), "metrics": metrics, **more})


def honest(seed: int, rank: int = 4, sign: float = 1.0, samples: Any = 100) -> Client:
    """A client that trains what it is sent; of another rank than 4 it says so."""

    def answer(message: Message, n: int) -> Message:
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "loss": 1.0})}),
                           reply_to=message)  # fmt: skip
        sent = received(message)
        first = sent and next(iter(sent.values()))
        start = sent if len(sent) and first.shape[0] == rank else None
        state = trained(start, 100 * n + seed, rank=rank, sign=sign)
        more = {} if rank == 4 else {"lora": ConfigRecord({"r": rank, "lora_alpha": 2 * rank})}
        return Message(content(state, samples, **more), reply_to=message)

    return answer


def six(**more: Client | None) -> dict[int, Client | None]:
    flips = {str(node): -1.0 for node in NODES if str(node) in FLIPPED}
    clients: dict[int, Client | None] = {
        node: honest(k, sign=flips.get(str(node), 1.0)) for k, node in enumerate(NODES)
    }
    return clients | {int(node): client for node, client in more.items()}


def descending() -> dict[int, Client | None]:
    """Six clients who train both factors from what they are sent, as any framework's do."""

    def client(k: int, sign: float) -> Client:
        def answer(message: Message, n: int) -> Message:
            state = descended(received(message), 10 * n + k, sign=sign)
            return Message(content(state), reply_to=message)

        return answer

    signs = [-1.0 if str(node) in FLIPPED else 1.0 for node in NODES]
    return {node: client(k, signs[k]) for k, node in enumerate(NODES)}


def run(strategy: Any, clients: dict[int, Client | None], rounds: int = 3) -> State:
    """The arrays after some rounds of training, without evaluation."""
    grid = LocalGrid(clients)
    result = strategy.start(grid=grid, initial_arrays=record(fresh()), num_rounds=rounds)
    return {key: array.numpy() for key, array in result.arrays.items()}


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


def nonsense(message: Message, n: int) -> Message:
    junk = ArrayRecord({"weight": Array(np.full((3, 3), np.nan, np.float32))})
    metrics = MetricRecord({"num-examples": 5, "loss": [1.0, 2.0]})
    return Message(RecordDict({"arrays": junk, "metrics": metrics}), reply_to=message)


def unreadable(message: Message, n: int) -> Message:
    array = Array("float32", (2, 2), "numpy.ndarray", b"no numpy file")
    state = ArrayRecord({"base_model.model.l0.q.lora_A.weight": array})
    return Message(RecordDict({"arrays": state, "m": MetricRecord({"num-examples": 5})}),
                   reply_to=message)  # fmt: skip


def empty(message: Message, n: int) -> Message:
    return Message(RecordDict(), reply_to=message)


def dying(message: Message, n: int) -> Message:
    return Message(Error(code=1, reason="it died"), reply_to=message)


def boasting(message: Message, n: int) -> Message:
    return honest(77, samples=float("inf"))(message, n)


def test_bad_replies_end_no_round() -> None:
    """With FedAvg itself, the first of them ends the run."""
    bad = {"21": nonsense, "22": unreadable, "23": empty, "24": dying, "25": boasting}
    strategy = Recorded()
    run(strategy, six(**bad))
    rejected = {"21", "22", "23", "25"}
    for result in strategy.results:
        assert left_out(result) == FLIPPED | rejected  # who died sent nothing
        assert {c.name for c in result.report.with_verdict("rejected")} == rejected
    with pytest.raises(Exception, match=r"same keys|exactly one"):
        run(FedAvg(fraction_evaluate=0.0), {**six(), 21: nonsense})


def test_metrics_are_those_of_the_merged() -> None:
    strategy = Recorded()
    grid = LocalGrid({**six(), 21: nonsense})
    result = strategy.start(grid=grid, initial_arrays=record(fresh()), num_rounds=1)
    sent = {n: trained(fresh(), 100 + k, sign=1.0) for k, n in enumerate(NODES)}
    own = [loss(state) for node, state in sent.items() if str(node) not in FLIPPED]
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(np.mean(own))


def test_one_nonsense_reply_ends_no_evaluation() -> None:
    def evaluating(message: Message, n: int) -> Message:
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"m": MetricRecord({"x": 1.0})}), reply_to=message)
        return honest(9)(message, n)

    grid = LocalGrid({**six(), 31: evaluating})
    result = ClairStrategy(config()).start(grid=grid, initial_arrays=record(fresh()), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(1.0)


def test_clients_of_mixed_ranks_get_their_own() -> None:
    ranks = dict(zip(NODES, (4, 8, 4, 8, 8, 4), strict=True))
    shapes: list[dict[int, set[int]]] = []

    def watching(node: int, client: Client) -> Client:
        def answer(message: Message, n: int) -> Message:
            while len(shapes) < n:
                shapes.append({})
            state = received(message)
            shapes[n - 1][node] = {a.shape[0] for key, a in state.items() if "lora_A" in key}
            return client(message, n)

        return answer

    clients: dict[int, Client | None] = {
        node: watching(
            node, honest(k, rank=ranks[node], sign=-1.0 if str(node) in FLIPPED else 1.0)
        )
        for k, node in enumerate(NODES)
    }
    strategy = Recorded()
    grid = LocalGrid(clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(), num_rounds=3)
    assert [left_out(r) for r in strategy.results] == [FLIPPED] * 3
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
