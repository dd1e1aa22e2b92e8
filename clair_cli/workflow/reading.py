"""The clients' files, read before torch is imported: what is wrong with them is known at once.

Reading beside the import would not be faster: both want the interpreter's lock, thousands of times.
"""

from __future__ import annotations

from collections.abc import Mapping

from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.cohort import Cohort, load_cohort
from clair_cli.formats.memory import adapters_from_memory
from clair_cli.workflow.pool import available_threads, told_in_order
from clair_cli.workflow.settings import Settings


def read_cohort(settings: Settings) -> Cohort | InputRefused:
    """All clients, from files or from memory; or why they are refused as a whole.

    Raises:
        UsageError: as `load_cohort`; or a client to exclude is not there.
    """
    try:
        return _from_memory(settings) if settings.in_memory else _from_files(settings)
    except InputRefused as error:
        return error


def _from_files(settings: Settings) -> Cohort:
    threads = settings.threads or available_threads()
    return load_cohort(
        settings.clients,
        assume_alpha=settings.assume_alpha,
        exclude=settings.exclude,
        limits=settings.limit,
        each=lambda load, found: told_in_order(load, found, threads, "reading", settings.tell),
    )


def _from_memory(settings: Settings) -> Cohort:
    clients: Mapping[str, object] = settings.clients
    exclude = settings.exclude
    unknown = [name for name in exclude if name not in clients]
    if unknown:
        raise UsageError(f"no client is called {unknown[0]!r}, so it can't be excluded")
    kept = {name: pair for name, pair in clients.items() if name not in exclude}
    return adapters_from_memory(kept, limits=settings.limit)  # type: ignore[arg-type]
