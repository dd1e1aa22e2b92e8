"""Whether this process runs one command of clair and nothing else: only the entry point knows.

A library must not fork a process that may hold anything, nor settle its memory.
"""

from __future__ import annotations

_ours = False


def claim() -> None:
    """Say that it does."""
    global _ours
    _ours = True


def is_ours() -> bool:
    return _ours
