"""What one round of a server gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clair_cli.report.model import Report
from clair_cli.text import printable


@dataclass(frozen=True)
class Result:
    """What one round gave.

    Attributes:
        outcome: "use" the tensors, or "keep" the last ones: nobody could be judged, or nobody is
            left.
        why: the outcome of the round in a sentence, and what to do about it.
        tensors: the next adapter in the form of most merged clients' state dicts, as arrays of the
            kind that came (torch's or numpy's; float32 for bfloat16 in numpy's); None to keep the
            last one.
        config: the adapter config that `tensors` are for, that of such a client; None where there
            is none.
        report: as `clair_cli.merge` gives it.
        round: 1 for the first, lost ones counted.
    """

    outcome: Literal["use", "keep"]
    why: str
    tensors: Mapping[str, Any] | None
    config: Mapping[str, Any] | None
    report: Report
    round: int

    @property
    def merged(self) -> Mapping[str, float]:
        """Who is in the merge, with its share."""
        return {c.name: c.weight for c in self.report.clients if c.weight > 0}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Who is not, and why, in a line each that is safe to print."""
        gone = (client for client in self.report.clients if client.weight == 0)
        return tuple(
            printable(f"{c.name} is {c.verdict}: {'; '.join(r.text for r in c.reasons)}")
            for c in gone
        )

    def tell(self, info: Callable[[str], Any], warning: Callable[[str], Any]) -> None:
        """Write to a log, by its own two functions, who is left out, and that a round is lost."""
        for line in self.left_out:
            info(line)
        if self.tensors is None:
            warning(printable(f"nothing is merged: {self.why}"))
