"""The workflow: reads a round, judges it, merges or refines, writes. Knows formats and maths.

Names are resolved on first use, so that `verify` without clients does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_cli.workflow.commands import (
        InspectResult,
        MergeResult,
        RefineResult,
        inspect,
        merge,
        refine,
    )
    from clair_cli.workflow.verifying import VerifyResult, verify

__all__ = [
    "InspectResult",
    "MergeResult",
    "RefineResult",
    "VerifyResult",
    "inspect",
    "merge",
    "refine",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "verifying" if name in ("VerifyResult", "verify") else "commands"
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
