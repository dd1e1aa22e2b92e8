"""How much work one client makes, beside the others."""

from __future__ import annotations

from collections.abc import Container, Sequence
from statistics import median_low

from clair_cli.adapters.adapter import Adapter
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits, remedy

# Nobody is rejected for fewer numbers than this: they are compared in a second or so.
LEAST_NUMBERS = 2**24


def numbers_of(adapter: Adapter, modules: Container[str]) -> int:
    """Numbers in the factors of some modules, as they are computed with."""
    return sum(m.components * sum(m.shape) for n, m in adapter.modules.items() if n in modules)


def reject_by_work(
    adapters: Sequence[Adapter], modules: Container[str], limits: Limits
) -> dict[str, RejectedClient]:
    """One error for each client with far more numbers to compute with than the median one.

    Args:
        modules: those that are compared.
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
