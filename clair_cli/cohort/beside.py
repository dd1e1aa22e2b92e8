"""What a user gives beside the clients: their weights, and adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.load import load_one
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.cohort.model import Cohort
from clair_cli.cohort.trust import TRUST_ADAPTER
from clair_cli.cohort.weights import read_weights
from clair_cli.errors import UsageError
from clair_cli.settings import Settings
from clair_cli.store.address import RemotePath
from clair_cli.text import quoted


def weights_given(settings: Settings, cohort: Cohort) -> dict[str, float] | None:
    """Weights by name; names are those of all clients found, rejected or not."""
    if settings.weights is None:
        return None
    found = [a.name for a in cohort.adapters] + [r.name for r in cohort.rejected]
    excluded = sorted({*settings.exclude, *cohort.excluded})
    names = sorted(set(found) - set(excluded))
    if not isinstance(settings.weights, Mapping):
        return read_weights(settings.weights, names, optional=excluded)
    given: dict[str, Any] = dict(settings.weights)
    if missing := sorted(set(names) - set(given)):
        raise UsageError(f"weights: no weight for client {quoted(missing[0])}")
    if unknown := sorted(set(given) - set(names) - set(excluded)):
        raise UsageError(f"weights: unknown client {quoted(unknown[0])}")
    for name, value in given.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and value > 0 and math.isfinite(value)):
            raise UsageError(f"weights: {value} for {quoted(name)} is not a positive number")
    return given


def load_given(settings: Settings, option: str) -> Adapter | None:
    """The adapter of "previous", "initial" or "trust_adapter": a PEFT folder, a file, or (state
    dict, config); None where the option is not given."""
    given = getattr(settings, option)
    if given is None:
        return None
    if isinstance(given, (Path, RemotePath)):
        cohort = load_one(given, limits=settings.limit)
    else:
        cohort = adapters_from_memory({option: given}, limits=settings.limit)
    if cohort.rejected:
        (refused,) = cohort.rejected
        flag = f"--{option.replace('_', '-')}"
        raise UsageError(f"{flag}: {refused.message}", hint=refused.hint)
    (adapter,) = cohort.adapters
    return replace(adapter, name=TRUST_ADAPTER) if option == "trust_adapter" else adapter
