"""Rounds of a federated server: `Server`, and its place in Flower (flower.py) and NVFlare
(nvflare.py). The frameworks are imported by those two files alone, and torch on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_cli.federated.result import Result
    from clair_cli.federated.server import Server

__all__ = ["Result", "Server"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clair_cli.federated import result, server

    return getattr(result if name == "Result" else server, name)
