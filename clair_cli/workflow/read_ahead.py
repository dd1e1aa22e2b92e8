"""The clients' files, read on other threads while this one imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from clair_cli.errors import UsageError
from clair_cli.formats.cohort import Cohort, load_cohort
from clair_cli.formats.memory import adapters_from_memory
from clair_cli.workflow.pool import available_threads, told_in_order
from clair_cli.workflow.settings import Settings


class ReadAhead:
    """A cohort that is being read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reading: Future[Cohort] | None = None
        if not settings.in_memory:
            pool = ThreadPoolExecutor(1, thread_name_prefix="clair-read")
            self._reading = pool.submit(_read, settings)
            pool.shutdown(wait=False)

    def cohort(self) -> Cohort:
        """The cohort, once it is read.

        Raises:
            UsageError, InputRefused: as `load_cohort` and `adapters_from_memory`.
        """
        if self._reading is not None:
            return self._reading.result()
        clients: Mapping[str, object] = self._settings.clients
        exclude = self._settings.exclude
        unknown = [name for name in exclude if name not in clients]
        if unknown:
            raise UsageError(f"no client is called {unknown[0]!r}, so it can't be excluded")
        kept = {name: pair for name, pair in clients.items() if name not in exclude}
        return adapters_from_memory(kept, limits=self._settings.limit)  # type: ignore[arg-type]


def _read(settings: Settings) -> Cohort:
    threads = settings.threads or available_threads()
    return load_cohort(
        settings.clients,
        assume_alpha=settings.assume_alpha,
        exclude=settings.exclude,
        limits=settings.limit,
        each=lambda load, found: told_in_order(load, found, threads, "reading", settings.tell),
    )
