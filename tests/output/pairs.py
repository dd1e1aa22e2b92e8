"""What a merge publishes, in little: also for processes that import no test."""

from __future__ import annotations

from pathlib import Path

from clair_cli.output.publish import Output


def pair(folder: Path, text: bytes, kind: str = "file") -> list[Output]:
    """A report and an adapter, as a merge publishes them."""
    one = [Output(folder / "r.json", text, True)]
    if kind == "file":
        return [*one, Output(folder / "m.safetensors", text, True)]
    return [*one, Output(folder / "m", {"adapter_model.safetensors": text}, True)]
