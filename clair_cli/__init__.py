"""Merge federated LoRA adapters robustly and exactly.

    import clair_cli
    result = clair_cli.merge("clients", "merged.safetensors")
    result.report.with_verdict("contaminated")

The functions never print and never exit; what they raise is in `clair_cli.errors`. Names are
resolved on first use, so that `import clair_cli` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clair_cli.api import InspectResult, MergeResult, RefineResult, inspect, merge, refine
    from clair_cli.conversion import ConvertResult, convert
    from clair_cli.errors import (
        ClairError,
        InputRefused,
        OutputError,
        RejectedClient,
        RoundStopped,
        UsageError,
    )
    from clair_cli.remark import Remark
    from clair_cli.report.cohort import CohortReport
    from clair_cli.report.load import load_report
    from clair_cli.report.model import ClientReport, Reason, Report
    from clair_cli.report.results import MergedReport
    from clair_cli.verification.verify import VerifyResult, verify

from clair_cli.version import __version__

__all__ = [
    "ClairError",
    "ClientReport",
    "CohortReport",
    "ConvertResult",
    "InputRefused",
    "InspectResult",
    "MergeResult",
    "MergedReport",
    "OutputError",
    "Reason",
    "RefineResult",
    "RejectedClient",
    "Remark",
    "Report",
    "RoundStopped",
    "UsageError",
    "VerifyResult",
    "__version__",
    "convert",
    "inspect",
    "load_report",
    "merge",
    "refine",
    "verify",
]

_HOME = {
    "ClairError": "errors",
    "InputRefused": "errors",
    "OutputError": "errors",
    "RejectedClient": "errors",
    "RoundStopped": "errors",
    "UsageError": "errors",
    "ClientReport": "report.model",
    "CohortReport": "report.cohort",
    "MergedReport": "report.results",
    "Reason": "report.model",
    "Remark": "remark",
    "Report": "report.model",
    "InspectResult": "api",
    "MergeResult": "api",
    "RefineResult": "api",
    "inspect": "api",
    "merge": "api",
    "refine": "api",
    "convert": "conversion",
    "ConvertResult": "conversion",
    "load_report": "report.load",
    "verify": "verification.verify",
    "VerifyResult": "verification.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
