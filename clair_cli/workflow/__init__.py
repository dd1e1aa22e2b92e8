"""The workflow: reads a round, judges it, merges or refines, writes. Knows formats and maths."""

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
