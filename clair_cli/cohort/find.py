"""The clients in a cohort's folder, and where the files of each are. Opens nothing."""

from __future__ import annotations

import difflib
import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clair_cli.cohort.adapter_folder import (
    archive_refused,
    is_archive,
    is_pickle,
    not_a_file,
    pickle_refused,
)
from clair_cli.cohort.client_folder import client_folder, stem
from clair_cli.cohort.client_names import distinct_names, excluded_names, similar_names
from clair_cli.cohort.inside import DEPTH, STEP
from clair_cli.cohort.model import Candidate, Listing
from clair_cli.cohort.size import check_cohort_size
from clair_cli.errors import InputRefused, RejectedClient, UsageError, is_out_of_files
from clair_cli.formats.filenames import (
    CONFIG,
    SUFFIX,
    WEIGHTS,
    is_weights,
    no_folder_hint,
    not_here_hint,
)
from clair_cli.formats.files import FAILURES, as_rejection, real_path
from clair_cli.formats.limits import Limits
from clair_cli.formats.stores import followed, is_there, names_in, status_of
from clair_cli.remark import Remark, note
from clair_cli.store.address import Place, RemotePath, check_is_folder
from clair_cli.store.lookup import looked_up
from clair_cli.text import first_few, quoted

_BESIDE_AN_ADAPTER = frozenset(("value_head.safetensors", "new_embeddings.safetensors"))
_BACKUPS = ("~", ".bak", ".orig", ".tmp", ".swp", ".part", ".crdownload", ".old")

_NAMED = 10  # entries in a remark

# A remark's code, its text on one entry, and on several.
_EMPTY = (
    "folder_ignored",
    f"folder {{}} ignored: no weights file down to {DEPTH} levels, or a dot begins its name",
    f"folders {{}} ignored: no weights file down to {DEPTH} levels, or a dot begins their names",
)
_BESIDE = (
    "pickle_ignored",
    "{} ignored: the .safetensors file beside it is read",
    "{} ignored: the .safetensors files beside them are read",
)
_NO_CONFIG = (
    "no_config_file",
    "{} is not a regular file, so it is nobody's config",
    "{} are not regular files, so they are nobody's configs",
)


@dataclass
class _Remarks:
    """Remarks on entries of a cohort's folder.

    Attributes:
        ignored: entries that are no clients.
        by_kind: a remark (code, text on one entry, on several) to the entries that it is on.
    """

    ignored: list[str] = field(default_factory=list)
    by_kind: dict[tuple[str, str, str], list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def noted(self) -> list[str]:
        """The ignored entries that one of the notes is on."""
        told = {entry for entries in self.by_kind.values() for entry in entries}
        return [entry for entry in self.ignored if entry.removesuffix("/") in told]

    def notes(self) -> list[Remark]:
        """One note for each kind."""
        return [
            note(code, (several if len(entries) > 1 else one).format(first_few(entries, _NAMED)))
            for (code, one, several), entries in self.by_kind.items()
        ]


def find_clients(
    folder: Place,
    *,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    checkpoint: str | int | None = None,
) -> Listing:
    """List the clients of a folder.

    Args:
        folder: holds one sub-folder or one `.safetensors` file per client, or both; or is itself
            the folder of one adapter.
        exclude: clients to leave out; see `excluded_names`.
        limits: default `Limits()`; of them, the clients' number and the files' bytes in all.
        checkpoint: which checkpoint of a client is read; see `find_adapter`.

    Returns:
        The listing; at least one candidate or excluded client.

    Raises:
        UsageError: no such folder, not a folder, or an unknown name in `exclude`.
        InputRefused: no client in the folder at all, or more than the limits allow.
    """
    check_is_folder(folder)
    folder = looked_up(folder)
    _check_folder(folder)
    try:
        candidates, remarks = _clients_in(folder, checkpoint)
        notes = remarks.notes()
        if only := _the_folder_itself(folder, candidates):
            candidates = [only]
            text = (
                f"the folder is itself one adapter: read as the one client {quoted(only.name)}; to "
                "compare several, give the folder that holds their folders"
            )
            notes.append(note("one_adapter", text))
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise UsageError(f"{quoted(folder.as_posix())} can't be listed: {error.strerror}") from None
    if not candidates:
        raise _nothing_found(folder, remarks.ignored)
    candidates = distinct_names(candidates)
    names = [candidate.name for candidate in candidates]
    excluded = excluded_names(exclude, names)
    wanted = [c for c in candidates if c.name not in excluded]
    return Listing(
        tuple(check_cohort_size(folder.as_posix(), wanted, limits or Limits())),
        excluded=excluded,
        ignored=tuple(remarks.ignored),
        notes=(*notes, *similar_names(names)),
        noted=tuple(remarks.noted()),
    )


def _check_folder(folder: Place) -> None:
    shown = quoted(folder.as_posix())
    if not is_there(folder):
        hint = did_you_mean(folder) or not_here_hint(folder)
        raise UsageError(f"folder {shown} does not exist", hint=hint)
    if not folder.is_dir():
        raise UsageError(f"{shown} is not a folder", hint=no_folder_hint(folder))


def did_you_mean(folder: Place) -> str:
    """A hint at the folder next to it whose name is most alike, or ""."""
    if isinstance(folder, RemotePath):
        files_only = not folder.can_be_listed and not is_weights(folder.name)
        return f"give the address of the {SUFFIX} file itself" if files_only else ""
    try:
        siblings = [entry.name for entry in os.scandir(folder.parent) if entry.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(folder.name, sorted(siblings), n=1)
    return f"did you mean {quoted((folder.parent / close[0]).as_posix())}?" if close else ""


def _nothing_found(folder: Place, ignored: Sequence[str]) -> InputRefused:
    count = len(ignored)
    others = f"{count:,} other {'entry' if count == 1 else 'entries'} ignored"
    if not count:
        others = "the folder is empty"
    return InputRefused(
        f"no client in {quoted(folder.as_posix())} ({others})",
        hint=f"clients are looked for as */{WEIGHTS} with {CONFIG}, and as *{SUFFIX}",
    )


def _clients_in(folder: Place, checkpoint: str | int | None) -> tuple[list[Candidate], _Remarks]:
    """The clients of an existing folder, in the order of their entries' bytes.

    Raises:
        OSError: the folder itself can't be listed.
    """
    candidates, remarks = [], _Remarks()
    root = followed(folder)
    entries = names_in(folder)
    stems = {stem(entry) for entry in entries if is_weights(entry)}
    for entry in entries:
        try:
            candidate = _candidate(folder, root, entry, stems, remarks, checkpoint)
        except FAILURES as error:
            path = (folder / entry).as_posix()
            candidate = _refused(folder, entry, as_rejection(error, path))
        if candidate is not None:
            candidates.append(candidate)
    return candidates, remarks


def _refused(folder: Place, entry: str, refusal: RejectedClient) -> Candidate:
    path = folder / entry
    refusal.path = path.as_posix()
    name = stem(entry) if is_weights(entry) else entry
    return Candidate(entry, name, path.as_posix(), path, refusal=refusal)


def _candidate(
    folder: Place,
    root: Place,
    entry: str,
    stems: set[str],
    remarks: _Remarks,
    checkpoint: str | int | None,
) -> Candidate | None:
    path = folder / entry
    if entry.startswith((".", "#")) or entry.lower().endswith(_BACKUPS):
        remarks.ignored.append(entry)
        if entry.startswith(".") and path.is_dir():
            remarks.by_kind[_EMPTY].append(entry)
        return None
    if isinstance(path, RemotePath) and (why := path.refusal()):
        raise RejectedClient(why, hint="remove what does not belong there, or --exclude it")
    is_config = entry == CONFIG or (entry.endswith(".json") and _without_suffix(entry) in stems)
    weights, mode = path, 0
    if _may_be_client(path):
        weights = real_path(path, root) if path.is_symlink() else root / entry
        mode = status_of(weights, follow=True).st_mode
    if is_config and not path.is_file() and not path.is_symlink():
        remarks.by_kind[_NO_CONFIG].append(entry)
    if stat.S_ISDIR(mode):
        candidate = client_folder(folder, root, entry, checkpoint)
        if candidate is None:
            remarks.ignored.append(f"{entry}/")
            remarks.by_kind[_EMPTY].append(entry)
        return candidate
    if is_weights(entry):
        if not stat.S_ISREG(mode):
            raise not_a_file(entry, mode)
        return Candidate(
            entry,
            stem(entry),
            path.as_posix(),
            weights,
            (folder / f"{stem(entry)}.json",),
            folder / CONFIG,
            root=root,
        )
    if is_pickle(entry):
        if _without_suffix(entry) not in stems:
            raise pickle_refused(entry)
        remarks.by_kind[_BESIDE].append(entry)
    elif is_archive(entry):
        raise archive_refused(entry)
    if not is_config:
        remarks.ignored.append(entry)
    return None


def _may_be_client(path: Place) -> bool:
    """Whether a path is a folder, a weights file, or a link that has no other suffix."""
    if is_weights(path.name):
        return True
    if path.is_symlink():
        return path.is_dir() or not path.suffix
    return path.is_dir()


def _without_suffix(entry: str) -> str:
    return os.path.splitext(entry)[0]


def _the_folder_itself(folder: Place, found: Sequence[Candidate]) -> Candidate | None:
    """The client of a folder that is one adapter, called as the folder is; None for another folder.
    Beside it may be a trainer's checkpoints, and weights that training adds to an adapter."""
    own = [candidate for candidate in found if candidate.entry == WEIGHTS]
    others = [candidate.entry for candidate in found if candidate.entry != WEIGHTS]
    beside = all(STEP.fullmatch(name) or name in _BESIDE_AN_ADAPTER for name in others)
    if not own or not beside or not (folder / CONFIG).is_file():
        return None
    name = folder.name if folder.name not in ("", "..") else followed(folder).name
    notes = own[0].notes
    if others:
        text = f"{first_few(others)} left out: only {quoted(WEIGHTS)} is read"
        notes = (*notes, note("weights_left_out", text))
    return replace(
        own[0], name=name, configs=(*own[0].configs, folder / CONFIG), shared=None, notes=notes
    )
