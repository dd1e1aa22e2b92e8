"""Whether this process runs one command of clair and nothing else: only the entry point knows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from clair_cli.output.signals import held_signals

_claimed = False
_raises = True  # whether a signal's handler may raise


def claim() -> None:
    """Say that it does; before numpy is imported.

    Numpy comes with an OpenBLAS whose threads, which nothing here uses, spin for a tenth of a
    second after they were started.
    """
    global _claimed
    _claimed = True
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def is_ours() -> bool:
    return _claimed


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import torch inside. No signal's handler raises meanwhile, since torch's C++ code would end
    the process with SIGABRT: in a process of our own the handler ends it at once, elsewhere the
    signal waits."""
    global _raises
    if not _claimed:
        with held_signals():
            yield
        return
    before, _raises = _raises, False
    try:
        yield
    finally:
        _raises = before


def may_raise() -> bool:
    """Whether a signal's handler may raise; else it ends the process itself."""
    return _raises
