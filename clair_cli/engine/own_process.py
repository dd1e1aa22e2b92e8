"""Whether this process runs one command of clair and nothing else; only the entry point knows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from clair_cli.output.signals import held_signals

_claimed = False
_raises = True  # whether a signal's handler may raise


def claim() -> None:
    """Declare that this process runs one command of clair and nothing else; call it before numpy is
    imported.

    Numpy's OpenBLAS starts threads that clair does not use and that spin for a tenth of a second;
    an environment variable prevents it.
    """
    global _claimed
    _claimed = True
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def is_ours() -> bool:
    """Whether `claim` was called."""
    return _claimed


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Context for the import of torch, in which no signal handler raises: torch's C++ code would
    abort the process. In a process that runs only clair, the handler ends the process at once; in
    any other process the signal is held back until the import is over."""
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
    """Whether a signal handler may raise an exception; if not, it has to end the process itself."""
    return _raises
