"""Six clients of a tiny PEFT model in Flower, two of whom flip what they train: three rounds of the
strategy, and of FedAvg and MultiKrum, which is told the number of attackers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, MultiKrum
from flwr.supercore.task_identity import TaskIdentity
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from clair_cli.federated.flower import ClairStrategy
from tests.federated.clients import MODULES, task
from tests.federated.flower_nodes import FLIPPED, NODES, Client, LocalGrid
from tests.federated.peft_clients import Tiny, lora, trained

pytestmark = pytest.mark.flower


def client(k: int, sign: float) -> Client:
    def answer(message: Message, n: int) -> Message:
        model = get_peft_model(Tiny(), lora())
        sent = message.content["arrays"].to_torch_state_dict()
        assert not set_peft_model_state_dict(model, sent).unexpected_keys
        arrays = ArrayRecord(trained(model, 10 * n + k, sign=sign))
        metrics = MetricRecord({"num-examples": 100})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return answer


def loss_after_three_rounds(strategy: Any) -> float:
    """Squared distance of the model's weights to what honest clients train towards in three rounds,
    1 for the base."""
    torch.manual_seed(0)
    model = get_peft_model(Tiny(), lora())
    grid = LocalGrid(
        {node: client(k, -1.0 if str(node) in FLIPPED else 1.0) for k, node in enumerate(NODES)}
    )
    initial = ArrayRecord(get_peft_model_state_dict(model))
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=3)
    set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
    merged, base = model.merge_and_unload(), Tiny()
    missed = whole = 0.0
    for name in MODULES:
        goal = 0.9 * torch.from_numpy(task()[name]).float()
        moved = (
            merged.get_submodule(name).weight.detach() - base.get_submodule(name).weight.detach()
        )
        missed += float(((goal - moved) ** 2).sum())
        whole += float((goal**2).sum())
    return missed / whole


class Recorded(ClairStrategy):
    """Remembers who was left out of each round."""

    left_out: list[set[str]]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        found = super().aggregate_train(server_round, replies)
        assert self.result is not None
        self.left_out.append({c.name for c in self.result.report.clients if c.weight == 0})
        return found


def test_both_are_left_out_of_every_round_and_the_loss_is_lower() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    strategy = Recorded(lora(), fraction_evaluate=0.0)
    strategy.left_out = []
    losses = {
        "clair": loss_after_three_rounds(strategy),
        "FedAvg": loss_after_three_rounds(FedAvg(fraction_evaluate=0.0)),
        "MultiKrum": loss_after_three_rounds(
            MultiKrum(num_malicious_nodes=2, fraction_evaluate=0.0)
        ),
    }
    print(losses)
    assert strategy.left_out == [FLIPPED] * 3
    assert losses["clair"] < 0.5 * losses["FedAvg"] and losses["clair"] < losses["MultiKrum"]
