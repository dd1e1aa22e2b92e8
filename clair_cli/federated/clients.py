"""What a framework gives of its clients, as a round has it: names, weights, configs, arrays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from typing import Any, Literal

from clair_cli.cohort.memory import plain_config
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.text import quoted

Kind = Literal["torch", "numpy"]

OWN_FIELDS = ("r", "lora_alpha", "use_rslora")
"""Fields of a config that a client may have of its own, where the rest is all clients'."""


def text_of(client: Hashable) -> str:
    """A client's name as text. A text is itself, but for what no file can hold.

    >>> text_of(8349), text_of("site-1"), text_of(b"a")
    ('8349', 'site-1', "b'a'")
    """
    return str(client).encode("utf-8", "backslashreplace").decode("utf-8")


def names_of(clients: Iterable[Hashable]) -> dict[Any, str]:
    """Clients to their texts. Of different ones with one text (1 and "1") each has its `repr`.

    Raises:
        UsageError: those are the same too.
    """
    by_text: dict[str, list[Hashable]] = {}
    for client in clients:
        by_text.setdefault(text_of(client), []).append(client)
    found: dict[Any, str] = {}
    for text, same in by_text.items():
        for client in same:
            found[client] = text if len(same) == 1 else text_of(repr(client))
    for name, count in Counter(found.values()).items():
        if count > 1:
            raise UsageError(f"{count} clients are called {quoted(name)}")
    return found


def weights_of(
    names: Mapping[Any, str], weights: Mapping[Any, Any] | None
) -> tuple[dict[str, RejectedClient], dict[str, float] | None]:
    """Each client's weight.

    Args:
        names: from `names_of`. weights: by client; None for equal ones.

    Returns:
        `(refused, numbers)` by name: whose weight is no number above 0; and a weight for everybody
        (1 for those), None for equal ones.
    """
    if weights is None:
        return {}, None
    refused, numbers = {}, dict.fromkeys(names.values(), 1.0)
    for client, name in names.items():
        number = positive(weights.get(client))
        if number is None:
            value = weights.get(client)
            shown = "missing" if value is None else quoted(value, 60)
            refused[name] = RejectedClient(
                f"its weight is {shown}, expected a finite number above 0",
                found=f"weight {shown}",
                expected="a finite number above 0",
                hint="let it send the number of its samples",
            )
        else:
            numbers[name] = number
    return refused, numbers


def finite(value: Any) -> float | None:
    """What a client sent for a number as a float; None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def positive(value: Any) -> float | None:
    """The same; None also where it is not above 0."""
    number = finite(value)
    return number if number is not None and number > 0 else None


def configs_by_name(config: Any) -> tuple[Any, dict[str, Any]]:
    """`(one for all, by client)` of what the operator gave; the second may be empty.

    Raises:
        UsageError: neither a config nor configs by client.
    """
    if config is None:
        return None, {}
    try:
        if isinstance(config, Mapping) and config and all(map(_is_config, config.values())):
            return None, {text_of(client): plain_config(one) for client, one in config.items()}
        fields = plain_config(config)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UsageError(f"config can't be read: {error}") from None
    if not isinstance(fields, Mapping) or not fields:
        raise UsageError(
            f"config is {quoted(fields, 60)}, expected a LoraConfig or its fields",
            hint="give one for all clients, or a mapping of client to config",
        )
    return fields, {}


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def own_fields(sent: Mapping[str, Any]) -> dict[str, Any]:
    """A client's own fields of the config, among what it sent beside its arrays; {} for none.

    >>> own_fields({"r": 4, "lora_alpha": 8, "lr": 0.1}), own_fields({"r": 4})
    ({'r': 4, 'lora_alpha': 8}, {})
    """
    if "r" not in sent or "lora_alpha" not in sent:
        return {}
    return {field: sent[field] for field in OWN_FIELDS if field in sent}


def unpacked(state: Any) -> Any:
    """A state dict whose values came packed, as Flower's: they have a method `numpy()`. A
    RejectedClient where one can't be unpacked; anything else as it is."""
    if isinstance(state, tuple) and state:
        return unpacked(state[0]), *state[1:]
    if not isinstance(state, Mapping):
        return state
    found = dict(state)
    for key, value in found.items():
        if hasattr(value, "numpy") and not hasattr(value, "data_ptr"):  # no tensor of torch
            try:
                found[key] = value.numpy()
            except Exception as error:  # of any kind: a stranger's bytes, in another library
                return RejectedClient(
                    f"tensor {quoted(key)} can't be unpacked: {quoted(str(error), 80)}",
                    found=type(error).__name__,
                    expected="an array of numbers",
                    hint="let it send its arrays as the framework packs them",
                )
    return found


def kind_of(states: Iterable[Any]) -> Kind | None:
    """The kind of arrays that more clients sent; None where nobody sent any."""
    import numpy

    votes = [0, 0]
    for state in states:
        state = state[0] if isinstance(state, tuple) and state else state
        first = next(iter(state.values()), None) if isinstance(state, Mapping) else None
        votes[0] += isinstance(first, (numpy.ndarray, numpy.generic))
        votes[1] += hasattr(first, "data_ptr")
    return None if votes == [0, 0] else "numpy" if votes[0] > votes[1] else "torch"


def in_kind(tensors: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Torch's tensors as arrays of a kind; numpy has no bfloat16, so float32 stands for it."""
    if kind == "torch":
        return {key: tensor.clone() for key, tensor in tensors.items()}
    import torch

    plain = {
        key: tensor.float() if tensor.dtype is torch.bfloat16 else tensor.clone()
        for key, tensor in tensors.items()
    }
    return {key: tensor.numpy() for key, tensor in plain.items()}
