"""The recipe of docs/federated.md in Flower's simulation: six clients, two of them flipped, one
that sends nonsense and one that dies. Writes what each round found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.simulation import run_simulation

from clair_cli.federated import flower
from tests.federated.clients import config, fresh, trained
from tests.federated.recipes import recipe

client_app = ClientApp()
FOUND: list[Any] = []


@client_app.train()
def train(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    state = {key: array.numpy() for key, array in message.content["arrays"].items()}
    n = int(message.content["config"]["server-round"])
    if number == 7:
        raise RuntimeError("it died")
    after = trained(state, 10 * n + number, sign=-1.0 if number in (3, 5) else 1.0)
    if number == 6:
        after = {"junk": np.full((2, 2), np.nan, np.float32)}
    arrays = ArrayRecord({key: Array(array) for key, array in after.items()})
    metrics = MetricRecord({"num-examples": 100, "number": number})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "ok": 1.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class Watched(flower.ClairStrategy):
    """Writes down who is what, by the number that the client gives itself."""

    def __init__(self, config: Any, **options: Any) -> None:
        """Rounds begin when all are there, however slow the machine is."""
        super().__init__(config, min_train_nodes=8, min_available_nodes=8, **options)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        found = super().aggregate_train(server_round, replies)
        assert self.result is not None
        verdicts = {c.name: c.verdict for c in self.result.report.clients}
        flipped = [
            verdicts[str(m.metadata.src_node_id)]
            for m in replies
            if m.has_content() and m.content["metrics"]["number"] in (3, 5)
        ]
        FOUND.append([self.result.outcome, flipped, verdicts])
        return found


if __name__ == "__main__":
    flower.ClairStrategy = Watched  # type: ignore[misc]
    initial = ArrayRecord({key: Array(array) for key, array in fresh().items()})
    names: dict[str, Any] = {"lora_config": config(), "initial": initial}
    exec(recipe("Flower"), names)
    backend = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(names["app"], client_app, num_supernodes=8, backend_config=backend)
    Path(sys.argv[1]).write_text(json.dumps(FOUND))
