"""Flower's nodes and their grid in one process: what honest, flipped and broken clients reply."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from tests.federated.clients import State, descended, fresh, loss, trained

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
        for message in list(messages):  # a real grid has them all at once
            answer = self.clients[message.metadata.dst_node_id]
            if answer is not None:
                n = message.content["config"]["server-round"]
                replies.append(answer(message, int(n)))
        return replies

    set_run = run = create_message = push_messages = pull_messages = get_nodes = None  # type: ignore[assignment]


LocalGrid.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


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


def nonsense(message: Message, n: int) -> Message:
    junk = ArrayRecord({"weight": Array(np.full((3, 3), np.nan, np.float32))})
    metrics = MetricRecord({"num-examples": 5, "loss": [1.0, 2.0]})
    return Message(RecordDict({"arrays": junk, "metrics": metrics}), reply_to=message)


def packed(data: bytes) -> Client:
    """A client whose array has other bytes than numpy writes."""
    array = Array("float32", (2, 2), "numpy.ndarray", data)
    state = ArrayRecord({"base_model.model.l0.q.lora_A.weight": array})
    metrics = MetricRecord({"num-examples": 5})
    return lambda message, n: Message(RecordDict({"arrays": state, "m": metrics}),
                                      reply_to=message)  # fmt: skip


def claiming(shape: str) -> bytes:
    """A numpy file of 16 bytes that says it has another shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + bytes(16)


def archive() -> bytes:
    made = io.BytesIO()
    np.savez(made, a=np.zeros(3))
    return made.getvalue()


def empty(message: Message, n: int) -> Message:
    return Message(RecordDict(), reply_to=message)


def dying(message: Message, n: int) -> Message:
    return Message(Error(code=1, reason="it died"), reply_to=message)


def boasting(message: Message, n: int) -> Message:
    return honest(77, samples=float("inf"))(message, n)
