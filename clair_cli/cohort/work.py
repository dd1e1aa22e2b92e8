"""The elements of one client's factors, compared with the other clients'."""

from __future__ import annotations

from collections.abc import Container, Sequence
from statistics import median_low

from clair_cli.adapters.adapter import Adapter
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits, remedy

# No client is rejected for fewer elements than this: they are compared in about a second.
LEAST_NUMBERS = 2**24


def numbers_of(adapter: Adapter, modules: Container[str]) -> int:
    """Elements of the factors (`Adapter.factors`) of some modules."""
    return sum(m.components * sum(m.shape) for n, m in adapter.modules.items() if n in modules)


def reject_by_work(
    adapters: Sequence[Adapter], modules: Container[str], limits: Limits
) -> dict[str, RejectedClient]:
    """An error for each client with far more elements than the median client, by name.

    Args:
        modules: that are compared.
        limits: of them, `max_work`.
    """
    numbers = {adapter.name: numbers_of(adapter, modules) for adapter in adapters}
    typical = max(1, median_low(numbers.values()))
    most = max(limits.max_work * typical, LEAST_NUMBERS)
    return {
        name: RejectedClient(
            f"its modules make {n / typical:.3g} x the median client's work ({n:,} numbers, the "
            f"median client has {typical:,})",
            found=f"{n:,} numbers",
            expected=f"at most {limits.max_work} x {typical:,}, or {LEAST_NUMBERS:,}",
            hint=remedy("work"),
        )
        for name, n in numbers.items()
        if n > most
    }
