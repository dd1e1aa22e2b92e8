"""The clients' files, read before torch is imported, or beside it where a process can be had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.find import Candidate
from clair_cli.cohort.load import Loader, load_cohort
from clair_cli.cohort.model import Cohort, Rejection
from clair_cli.engine.threads import available_threads, in_order, told
from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.safetensors.reader import Handover
from clair_cli.settings import Settings
from clair_cli.workflow.beside import may_fork, results_beside

# Bytes of the clients' files that are held from the check on; those of the others are read again.
HANDOVER_BYTES = 384 * 2**20


def read_cohort(
    settings: Settings, meanwhile: Callable[[], object] | None = None
) -> Cohort | InputRefused:
    """All clients, from files or from memory; or why they are refused as a whole.

    Args:
        meanwhile: what else is to be done; called only where both can be done at once.

    Raises:
        UsageError: as `load_cohort`; or a client to exclude is not there.
    """
    try:
        return _from_memory(settings) if settings.in_memory else _from_files(settings, meanwhile)
    except InputRefused as error:
        return error


def _from_files(settings: Settings, meanwhile: Callable[[], object] | None) -> Cohort:
    threads = settings.threads or available_threads()
    beside = meanwhile if threads > 1 and may_fork() else None
    handover = None
    with contextlib.suppress(OSError):
        handover = Handover(HANDOVER_BYTES, by_child=beside is not None)

    def each(load: Loader, found: Sequence[Candidate]) -> Iterable[Adapter | Rejection]:
        if beside is None:
            results = in_order(load, found, threads)
        else:
            begun = None if handover is None else handover.take_part
            results = results_beside(load, found, threads, beside, shared=handover, begun=begun)
        return told(results, len(found), "reading", settings.tell)

    return load_cohort(
        settings.clients,
        assume_alpha=settings.assume_alpha,
        exclude=settings.exclude,
        limits=settings.limit,
        each=each,
        handover=handover,
    )


def _from_memory(settings: Settings) -> Cohort:
    from clair_cli.cohort.memory import adapters_from_memory  # numpy, which starts threads

    clients: Mapping[str, object] = settings.clients
    exclude = settings.exclude
    unknown = [name for name in exclude if name not in clients]
    if unknown:
        raise UsageError(f"no client is called {unknown[0]!r}, so it can't be excluded")
    kept = {name: pair for name, pair in clients.items() if name not in exclude}
    return adapters_from_memory(kept, limits=settings.limit)  # type: ignore[arg-type]
