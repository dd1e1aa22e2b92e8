"""What becomes of adapters while they are made."""

from __future__ import annotations

from pathlib import Path

from clair_cli.formats.draft import Draft
from clair_cli.own_process import is_ours
from clair_cli.workflow.settings import Settings

# Drafts at one time, each with a thread that writes it: what more adapters there are waits in
# memory.
_MOST = 64


class Destination:
    """Where adapters go: drafts of files beside the output, and memory.

    Args:
        output: the file or the folder that will be published; None for nowhere.
        one_file: whether the merged adapter is to be a single file.
        keep_tensors: whether the adapters are to be had in memory too.
    """

    def __init__(
        self, output: Path | None = None, *, one_file: bool = False, keep_tensors: bool = True
    ) -> None:
        self.one_file, self.keep_tensors = one_file, keep_tensors
        self._output = output
        self._drafts: list[Draft] = []

    def draft(self) -> Draft | None:
        """Of one more adapter's file; None where it is not written, or too many are."""
        if self._output is None or len(self._drafts) == _MOST:
            return None
        self._drafts.append(Draft(self._output))
        return self._drafts[-1]

    def close(self) -> None:
        """Remove what was not published of all drafts; others may follow."""
        for draft in self._drafts:
            draft.discard()
        self._drafts.clear()


def destination_of(settings: Settings) -> Destination:
    """What a command's options ask for. In a process of our own nobody looks at what was written
    to files."""
    keep = settings.output is None or not is_ours()
    return Destination(settings.output, one_file=settings.one_file, keep_tensors=keep)
