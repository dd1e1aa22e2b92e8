"""NVFlare: an aggregator that judges and merges LoRA adapters (extra `nvflare`, nvflare 2.9).

    FedAvg(num_clients=6, num_rounds=3, aggregator=ClairAggregator(lora_config))

or `FedAvgRecipe(aggregator=...)`. NVFlare sends one adapter to all clients, so these have one rank;
and its default exchange is numpy's, which has no bfloat16: clients send float32 (`t.float()`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DataKind
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from clair_cli.cohort.memory import plain_config
from clair_cli.errors import RejectedClient
from clair_cli.federated.metrics import mean_of
from clair_cli.federated.result import Result
from clair_cli.federated.server import Server

_STEPS = FLMetaKey.NUM_STEPS_CURRENT_ROUND


class ClairAggregator(ModelAggregator):
    """Merges each round's adapters as `clair_cli.federated.Server` does.

    A client that can't be used is rejected by name and ends no round. Weights are the clients'
    `NUM_STEPS_CURRENT_ROUND`; equal ones if nobody sends any.

    Args:
        config: as of `Server`; it travels in the job as plain values.
        options: further arguments of `Server`.
        state: a file that the server is saved to after each round, and read from if it is there;
            "" for none. Where a job's first round is lost, clients are sent the file's adapter.

    Attributes:
        result: of the last round; its report has every client's verdict.
    """

    expected_data_kind = DataKind.WEIGHTS

    def __init__(
        self, config: Any = None, options: Mapping[str, Any] | None = None, state: str = ""
    ) -> None:
        super().__init__()
        self.config = None if config is None else plain_config(config)
        self.options = dict(options or {})
        self.state = str(state)
        self.result: Result | None = None
        self._models: dict[str, FLModel] = {}

    @cached_property
    def server(self) -> Server:
        """The server; made where the rounds run, and not where the job is written."""
        if self.state and Path(self.state).exists():
            return Server.load(self.state, **self.options)
        return Server(self.config, **self.options)

    def accept_model(self, model: FLModel) -> None:
        """Keep one client's model until all are there."""
        self._models[str(model.meta.get("client_name"))] = model

    def aggregate_model(self) -> FLModel:
        """The merge; a model that changes nothing where there is nothing to use."""
        models = self._models
        states = {name: _state_of(model) for name, model in models.items()}
        steps = {name: m.meta[_STEPS] for name, m in models.items() if _STEPS in m.meta}
        first = self.result is None
        result = self.result = self.server.aggregate(states, steps or None)
        if self.state:
            self.server.save(self.state)
        result.tell(self.info, self.warning)
        if result.tensors is None:
            kept = self.server.tensors if first else None  # this job has not sent it yet
            return FLModel(params=kept or {}, params_type="FULL" if kept else "DIFF")
        metrics = mean_of([(models[n].metrics or {}, share) for n, share in result.merged.items()])
        return FLModel(params=dict(result.tensors), params_type="FULL", metrics=metrics)

    def reset_stats(self) -> None:
        """Forget the round's models."""
        self._models = {}


def _state_of(model: FLModel) -> Any:
    if model.params_type == ParamsType.DIFF:
        return RejectedClient(
            "it sent differences, and the factors' differences are no adapter",
            found="params_type DIFF",
            expected="params_type FULL",
            hint="send whole factors: params_transfer_type=TransferType.FULL",
        )
    return model.params
