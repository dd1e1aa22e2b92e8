"""Flower: a strategy that judges and merges LoRA adapters (extra `flower`, flwr 1.42).

    strategy = ClairStrategy(lora_config)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(get_peft_model_state_dict(model)))

Flower's arrays are numpy's, which have no bfloat16: clients send float32 (`t.float()`), and get it.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from logging import getLogger
from operator import attrgetter
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from clair_cli.federated.clients import own_fields
from clair_cli.federated.metrics import alike
from clair_cli.federated.result import Result
from clair_cli.federated.server import Server
from clair_cli.text import quoted

_LOG = getLogger("flwr")


class ClairStrategy(FedAvg):
    """FedAvg whose merge is `clair_cli.federated.Server`'s.

    Every client is sent the adapter in its own form. A client of another rank than `config` says
    has a ConfigRecord with `r` and `lora_alpha` in each of its replies. A reply that can't be used
    is rejected by node id, and ends no round.

    Args:
        config: as of `Server`; or a `Server`, with its own options or loaded from a file.
        options: of `FedAvg`. Weights are the replies' metric `weighted_by_key`.

    Attributes:
        server: call its `save` where a round may be lost with the process.
        result: of the last round; its report has every client's verdict, by node id.
    """

    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(**options)
        self.server = config if isinstance(config, Server) else Server(config)
        self.result: Result | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with its node's own adapter; at first, with the arrays given."""
        if arrays and not self.server.round:
            self.server.start_from(arrays)
        return self._for_each(super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(self, *args: Any, **named: Any) -> Iterable[Message]:
        """The same to evaluate."""
        return self._for_each(super().configure_evaluate(*args, **named))

    def _for_each(self, messages: Iterable[Message]) -> Iterable[Message]:
        for m in messages:  # FedAvg's have one content for all
            own = self.server.adapter_for(m.metadata.dst_node_id)
            if own is not None:
                m.content = RecordDict({**m.content, self.arrayrecord_key: _record(own)})
            yield m

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Judge and merge a round's replies: the arrays and the mean of the metrics of those that
        are merged; `(None, None)` keeps the last arrays."""
        contents = {m.metadata.src_node_id: m.content for m in _answers(replies)}
        states, weights = {}, {}
        for node, content in contents.items():
            own = own_fields(ChainMap(*content.config_records.values()))
            states[node] = ChainMap(*content.array_records.values()), own
            weights[node] = ChainMap(*content.metric_records.values()).get(self.weighted_by_key)
        result = self.result = self.server.aggregate(states, weights)
        result.tell(_LOG.info, _LOG.warning)
        if result.tensors is None:
            return None, None
        merged = [content for node, content in contents.items() if str(node) in result.merged]
        usable = alike(merged, attrgetter("metric_records"), self.weighted_by_key)
        return _record(result.tensors), self.train_metrics_aggr_fn(usable, self.weighted_by_key)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
        """FedAvg's mean of the metrics of those replies that have what most have."""
        records = attrgetter("content.metric_records")
        usable = alike(_answers(replies), records, self.weighted_by_key)
        return super().aggregate_evaluate(server_round, usable)


def _answers(replies: Iterable[Message]) -> Iterable[Message]:
    for m in replies:
        if m.has_content():
            yield m
        else:  # the end of a traceback
            _LOG.info("%d failed: %s", m.metadata.src_node_id, quoted(str(m.error.reason)[-100:]))


def _record(state: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({key: Array(array) for key, array in state.items()})
