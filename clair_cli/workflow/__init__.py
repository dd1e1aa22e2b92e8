"""The workflow: reads a round, judges it, merges or refines, writes. Knows formats and maths."""

from clair_cli.workflow.commands import (
    InspectResult,
    MergeResult,
    RefineResult,
    inspect,
    merge,
    refine,
)

__all__ = ["InspectResult", "MergeResult", "RefineResult", "inspect", "merge", "refine"]
