"""NVFlare: an aggregator that judges and merges LoRA adapters (extra `nvflare`, nvflare 2.9).

    FedAvg(num_clients=6, num_rounds=3, aggregator=ClairAggregator(lora_config))

or `FedAvgRecipe(aggregator=...)`. NVFlare sends one adapter to all clients, so these have one rank;
and its default exchange is numpy's, which has no bfloat16: clients send float32 (`t.float()`).
"""

from __future__ import annotations

import math
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
from clair_cli.federated.server import Result, Server
from clair_cli.text import printable


class ClairAggregator(ModelAggregator):
    """Merges each round's adapters as `clair_cli.federated.Server` does.

    A client that can't be used is rejected by name and ends no round. Weights are the clients'
    `NUM_STEPS_CURRENT_ROUND`; equal ones if nobody sends any.

    Args:
        config: as of `Server`; it travels in the job as plain values.
        options: further arguments of `Server`.
        state: a file that the server is saved to after each round, and read from if it is there;
            "" for none.

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
        self._models[str((model.meta or {}).get("client_name"))] = model

    def aggregate_model(self) -> FLModel:
        """The merge; a model that changes nothing where there is nothing to use."""
        states = {name: _state_of(model) for name, model in self._models.items()}
        steps = {
            name: (model.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
            for name, model in self._models.items()
        }
        told = {name: number for name, number in steps.items() if number is not None}
        result = self.result = self.server.aggregate(states, told or None)
        if self.state:
            self.server.save(self.state)
        for client in result.report.clients:
            if client.weight == 0:
                why = "; ".join(reason.text for reason in client.reasons)
                self.info(printable(f"{client.name} is {client.verdict}: {why}"))
        if result.tensors is None:
            self.warning(printable(f"nothing is merged: {result.why}"))
            return FLModel(params={}, params_type=ParamsType.DIFF)
        shares = {client.name: client.weight for client in result.report.clients}
        metrics = _mean({n: m.metrics or {} for n, m in self._models.items()}, shares)
        return FLModel(params=dict(result.tensors), params_type=ParamsType.FULL, metrics=metrics)

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


def _mean(
    metrics: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float]
) -> dict[str, float] | None:
    """The merged clients' means of the metrics that all of them have as finite numbers."""
    merged = [(metrics[name], share) for name, share in shares.items() if share > 0]
    found = {}
    for key in merged[0][0] if merged else ():
        values = [(own.get(key), share) for own, share in merged]
        if all(isinstance(v, (int, float)) and math.isfinite(v) for v, _ in values):
            found[str(key)] = math.fsum(v * share for v, share in values)  # type: ignore[operator]
    return found or None
