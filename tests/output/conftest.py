"""Publishing is tested with a disk that is waited for."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk() -> None:
    """The real `os.fsync`, not `tests/conftest.py`'s."""
