"""Where adapters go while they are made: drafts of files, and memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from clair_cli.engine.own_process import is_ours
from clair_cli.output.draft import Draft
from clair_cli.settings import Settings
from clair_cli.store.address import Place
from clair_cli.version import __version__

# Drafts at one time, each an open file: what more adapters there are waits in memory.
_MOST = 64


class Destination:
    """Where adapters go: drafts of files beside the output, and memory.

    Args:
        output: the file or the folder that will be published; None for nowhere.
        one_file: whether the merged adapter is to be a single file.
        in_folder: whether an adapter is to stand in a folder; None for: if there is an output, and
            it is no single file.
        keep_tensors: whether the adapters are to be had in memory too.
        version: of clair, for the header of a single file; None leaves out where it is from.
    """

    def __init__(
        self,
        output: Place | None = None,
        *,
        one_file: bool = False,
        in_folder: bool | None = None,
        keep_tensors: bool = True,
        version: str | None = __version__,
    ) -> None:
        self.one_file, self.keep_tensors, self.version = one_file, keep_tensors, version
        self.in_folder = output is not None and not one_file if in_folder is None else in_folder
        self._output = output
        self._drafts: list[Draft] = []
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None

    def draft(self) -> Draft | None:
        """Of one more adapter's file; None where it is not written, or too many are."""
        if self._output is None or len(self._drafts) == _MOST:
            return None
        self._drafts.append(Draft(self._beside()))
        return self._drafts[-1]

    def _beside(self) -> Path:
        """What the next draft is written beside: the output, or a file of this machine until all of
        it can be uploaded."""
        if isinstance(self._output, Path):
            return self._output
        if self._own_folder is None:
            self._own_folder = tempfile.TemporaryDirectory(
                prefix="clair-", ignore_cleanup_errors=True
            )
        return Path(self._own_folder.name, "adapter")

    def close(self) -> None:
        """Remove what was not published of all drafts; others may follow."""
        for draft in self._drafts:
            draft.discard()
        self._drafts.clear()
        if self._own_folder is not None:
            self._own_folder.cleanup()
            self._own_folder = None


def destination_of(settings: Settings) -> Destination:
    """What a command's options ask for. In a process of our own nobody looks at what was written
    to files."""
    keep = settings.output is None or not is_ours()
    return Destination(settings.output, one_file=settings.one_file, keep_tensors=keep)
