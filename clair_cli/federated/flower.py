"""Flower: a strategy that judges and merges LoRA adapters (extra `flower`, flwr 1.42).

    strategy = ClairStrategy(lora_config)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(get_peft_model_state_dict(model)))

Flower's arrays are numpy's, which have no bfloat16: clients send float32 (`t.float()`), and get it.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from clair_cli.federated.clients import OWN_FIELDS
from clair_cli.federated.metrics import alike
from clair_cli.federated.result import Result
from clair_cli.federated.server import Server
from clair_cli.text import printable

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

    def _construct_messages(
        self, record: RecordDict, node_ids: list[int], message_type: str
    ) -> Iterable[Message]:
        """Messages with each node's own adapter; before the first merge, with the arrays given."""
        arrays = record.array_records[self.arrayrecord_key]
        if not self.server.round and arrays:
            self.server.start_from(_state(arrays))
        for node in node_ids:
            own = self.server.adapter_for(node)
            content = RecordDict(dict(record))
            content[self.arrayrecord_key] = arrays if own is None else _record(own)
            yield Message(content=content, message_type=message_type, dst_node_id=node)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge and merge a round's replies. `(None, None)` keeps the last arrays."""
        valid, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        contents = {message.metadata.src_node_id: message.content for message in valid}
        result = self.result = self.server.aggregate(
            {node: _state_of(content) for node, content in contents.items()},
            {node: _weight(content, self.weighted_by_key) for node, content in contents.items()},
        )
        for line in result.left_out:
            _LOG.info("\t> Node %s", line)
        if result.tensors is None:
            _LOG.warning("aggregate_train: nothing is merged: %s", printable(result.why))
            return None, None
        used = [content for node, content in contents.items() if str(node) in result.merged]
        return _record(result.tensors), self._metrics(used, self.train_metrics_aggr_fn)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The mean of the metrics of those replies that can be used."""
        valid, _ = self._check_and_log_replies(list(replies), is_train=False, validate=False)
        return self._metrics([m.content for m in valid], self.evaluate_metrics_aggr_fn)

    def _metrics(self, contents: list[RecordDict], mean: Any) -> MetricRecord | None:
        """The mean over the replies that have the metrics which most have; None where none has."""
        records = [list(content.metric_records.values()) for content in contents]
        usable = alike([own[0] if len(own) == 1 else None for own in records], self.weighted_by_key)
        found: MetricRecord | None = None
        if usable:
            found = mean([contents[k] for k in usable], self.weighted_by_key)
        return found


def _state_of(content: RecordDict) -> Any:
    """A reply's state dict, with its own fields of the config where it brings some; None for no
    arrays."""
    try:
        (arrays,) = content.array_records.values()
        state = _state(arrays)
    except (ValueError, TypeError, OSError, EOFError):
        return None
    for record in content.config_records.values():
        if "r" in record and "lora_alpha" in record:
            return state, {field: record[field] for field in OWN_FIELDS if field in record}
    return state


def _state(arrays: ArrayRecord) -> dict[str, Any]:
    return {key: array.numpy() for key, array in arrays.items()}


def _record(state: Any) -> ArrayRecord:
    return ArrayRecord({key: Array(array) for key, array in state.items()})


def _weight(content: RecordDict, key: str) -> Any:
    """The reply's number of samples; None where it has none."""
    found = [record[key] for record in content.metric_records.values() if key in record]
    return found[0] if len(found) == 1 else None
