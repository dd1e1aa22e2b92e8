"""The clients' files, read on threads while this one imports torch, or by a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from clair_cli.cohort.find import find_clients
from clair_cli.cohort.load import cohort_of, load_client
from clair_cli.cohort.model import Cohort
from clair_cli.cohort.trust import trusted_clients
from clair_cli.engine.cluster import on_ray
from clair_cli.engine.threads import Workers, available_threads, reported
from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.safetensors.reader import KeptBytes
from clair_cli.report.earlier import read_earlier
from clair_cli.settings import Settings
from clair_cli.store.address import RemotePath
from clair_cli.text import quoted

if TYPE_CHECKING:
    from clair_cli.engine.ray_results import RayReaders

# Bytes of the clients' files that are kept from the check on; those of the others are read again.
KEPT_BYTES = 160 * 2**20

# Clients of a store that are read at one time, each two chunks ahead (`store.objects.CHUNK_BYTES`).
REMOTE_READERS = 8


def with_earlier_reports(settings: Settings) -> Settings:
    """The settings with what the reports of `--earlier` say.

    Raises:
        UsageError: as `read_earlier`.
    """
    if settings.earlier is None:
        return settings
    return replace(settings, seen=read_earlier(settings.earlier, settings.clients).chain)


def read_cohort(
    settings: Settings, meanwhile: Callable[[], object] | None = None
) -> Cohort | InputRefused:
    """All clients, from files or from memory; or why they are refused as a whole.

    Args:
        meanwhile: called while the files are being read.

    Raises:
        UsageError: as `find_clients` and `trusted_clients`; or a client to exclude is not there.
    """
    try:
        return _from_memory(settings) if settings.in_memory else _from_files(settings, meanwhile)
    except InputRefused as error:
        return error


def _from_files(settings: Settings, meanwhile: Callable[[], object] | None) -> Cohort:
    listing = find_clients(
        settings.clients,
        exclude=settings.exclude,
        limits=settings.limit,
        checkpoint=settings.checkpoint,
    )
    found = [candidate.name for candidate in listing.candidates]
    trusted_clients(settings.trusted, found, listing.excluded)
    load = partial(load_client, assume_alpha=settings.assume_alpha, limits=settings.limit)
    workers: Workers | RayReaders
    if on_ray(settings):
        from clair_cli.engine.ray_results import RayReaders  # it imports ray

        workers = RayReaders()
    else:
        threads = settings.threads or available_threads()
        if isinstance(settings.clients, RemotePath):  # they wait for the network most of the time
            threads = max(threads, REMOTE_READERS)
        workers = Workers(threads)
        load = partial(load, memory=KeptBytes(KEPT_BYTES))
    with contextlib.closing(workers):
        begun = workers.start(load, listing.candidates)
        if meanwhile is not None:
            meanwhile()
        results = (future.result() for future in begun)
        return cohort_of(listing, reported(results, len(begun), "reading", settings.progress))


def _from_memory(settings: Settings) -> Cohort:
    from clair_cli.cohort.memory import adapters_from_memory  # numpy, which starts threads

    clients: Mapping[str, object] = settings.clients
    exclude = settings.exclude
    unknown = [name for name in exclude if name not in clients]
    if unknown:
        raise UsageError(f"no client is called {quoted(unknown[0])}, so it can't be excluded")
    trusted_clients(settings.trusted, [n for n in clients if n not in exclude], exclude)
    kept = {name: pair for name, pair in clients.items() if name not in exclude}
    return adapters_from_memory(kept, limits=settings.limit)  # type: ignore[arg-type]
