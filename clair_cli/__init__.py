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
    from clair_cli.errors import ClairError, InputRefused, OutputError, RejectedClient, UsageError
    from clair_cli.report import ClientReport, CohortReport, MergedReport, Reason, Report
    from clair_cli.workflow import VerifyResult, inspect, merge, refine, verify

__version__ = "0.1.0"

__all__ = [
    "ClairError",
    "ClientReport",
    "CohortReport",
    "InputRefused",
    "MergedReport",
    "OutputError",
    "Reason",
    "RejectedClient",
    "Report",
    "UsageError",
    "VerifyResult",
    "__version__",
    "inspect",
    "merge",
    "refine",
    "verify",
]

_HOME = {
    "ClairError": "errors",
    "InputRefused": "errors",
    "OutputError": "errors",
    "RejectedClient": "errors",
    "UsageError": "errors",
    "ClientReport": "report",
    "CohortReport": "report",
    "MergedReport": "report",
    "Reason": "report",
    "Report": "report",
    "inspect": "workflow",
    "merge": "workflow",
    "refine": "workflow",
    "verify": "workflow",
    "VerifyResult": "workflow",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
