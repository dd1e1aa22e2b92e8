"""For every test: no network, and one torch thread once torch is there."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test. Local pipes (AF_UNIX) may be used."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                raise AssertionError(f"a test tried to connect to {address}")
            return original(self, address)

        return call

    def no_lookup(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"a test tried to look up {args[0]!r}")

    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Small matrices: a second thread costs more than it gives. Does not import torch."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)
