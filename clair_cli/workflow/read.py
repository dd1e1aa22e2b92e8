"""The clients' files, read on threads while this one imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.find import Candidate
from clair_cli.cohort.load import Loader, load_cohort
from clair_cli.cohort.model import Cohort, Rejection
from clair_cli.engine.threads import Workers, available_threads, reported
from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.safetensors.reader import KeptBytes
from clair_cli.settings import Settings

# Bytes of the clients' files that are kept from the check on; those of the others are read again.
KEPT_BYTES = 384 * 2**20


def read_cohort(
    settings: Settings, meanwhile: Callable[[], object] | None = None
) -> Cohort | InputRefused:
    """All clients, from files or from memory; or why they are refused as a whole.

    Args:
        meanwhile: called while the files are being read.

    Raises:
        UsageError: as `load_cohort`; or a client to exclude is not there.
    """
    try:
        return _from_memory(settings) if settings.in_memory else _from_files(settings, meanwhile)
    except InputRefused as error:
        return error


def _from_files(settings: Settings, meanwhile: Callable[[], object] | None) -> Cohort:
    workers = Workers(settings.threads or available_threads())

    def each(load: Loader, found: Sequence[Candidate]) -> Iterator[Adapter | Rejection]:
        begun = workers.start(load, found)
        if meanwhile is not None:
            meanwhile()
        results = (future.result() for future in begun)
        return reported(results, len(found), "reading", settings.tell)

    with contextlib.closing(workers):
        return load_cohort(
            settings.clients,
            assume_alpha=settings.assume_alpha,
            exclude=settings.exclude,
            limits=settings.limit,
            each=each,
            memory=KeptBytes(KEPT_BYTES),
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
