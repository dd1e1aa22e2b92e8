"""An adapter that the server keeps: what a merge wrote, or what the clients started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.federated.clients import unpacked
from clair_cli.formats.limits import Limits


@dataclass(frozen=True)
class Bank:
    """A checked adapter in memory.

    Attributes:
        tensors: by name, torch's, on the CPU. config: the adapter config's fields.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None
    limits: Limits

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter.

        Raises:
            UsageError: it is none.
        """
        given = {"the adapter": (self.tensors, self.config)}
        cohort = adapters_from_memory(given, limits=self.limits)
        if cohort.rejected:
            (refused,) = cohort.rejected
            raise UsageError(refused.message, hint=refused.hint)
        return cohort.adapters[0]

    def is_fresh(self) -> bool:
        """Whether it changes nothing, as before any training."""
        adapter = self.adapter
        if adapter.dense:
            return False
        factors = (adapter.stored_factors(name) for name in adapter.modules)
        return all(not lora_A.any() or not lora_B.any() for lora_A, lora_B in factors)


def bank_of(tensors: Mapping[str, Any], config: Any, limits: Limits) -> Bank:
    """Copies of some tensors, torch's or numpy's or packed ones, as an adapter.

    Raises:
        UsageError: they are none.
    """
    tensors = unpacked(tensors)
    if isinstance(tensors, RejectedClient):
        raise UsageError(tensors.message, hint=tensors.hint)
    copies = {key: torch.as_tensor(value).detach().cpu().clone() for key, value in tensors.items()}
    bank = Bank(copies, config, limits)
    bank.adapter  # noqa: B018  # checked now
    return bank
