"""Which entries of a cohort's folder are clients, and where each one's files are. Opens nothing."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.filenames import CONFIG, PIPELINE_WEIGHTS, SUFFIX, WEIGHTS, is_weights
from clair_cli.formats.files import FAILURES, as_rejection, kind_of, open_path
from clair_cli.text import first_few, quoted

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz")
_BACKUPS = ("~", ".bak", ".orig", ".tmp", ".swp", ".part", ".crdownload", ".old")
# What trainers leave beside an adapter; never a client.
_TRAINER_FILES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")


@dataclass(frozen=True)
class Candidate:
    """One client to be, in the order of `entry`'s bytes.

    Attributes:
        entry: its name in the folder.
        name: the client's name.
        shown: path of the weights file (or of the entry) as the user would write it.
        weights: the file to open; unused when `refusal` is set.
        root: real path of the cohort's folder, which no file of the client may be outside of; None
            for an adapter that is read alone.
        configs: where its own config may be, first choice first.
        shared: the cohort's config, for files that don't say their scale themselves, or None.
        notes: remarks for the report.
        refusal: why it can't be read at all.
    """

    entry: str
    name: str
    shown: str
    weights: Path
    configs: tuple[Path, ...] = ()
    shared: Path | None = None
    notes: tuple[str, ...] = ()
    refusal: RejectedClient | None = None
    root: Path | None = None


# Remarks on one entry, and on several.
_EMPTY = (
    "folder {} ignored: it holds no adapter file",
    "folders {} ignored: they hold no adapter file",
)
_BESIDE = (
    "{} ignored: the .safetensors file beside it is read",
    "{} ignored: the .safetensors files beside them are read",
)
_NO_CONFIG = (
    "{} is not a regular file, so it is nobody's config",
    "{} are not regular files, so they are nobody's configs",
)


@dataclass
class Found:
    """Everything in a cohort's folder.

    Attributes:
        remarked: by remark, the entries that it is on; they become notes.
    """

    candidates: list[Candidate] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarked: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))


def find_clients(folder: Path) -> Found:
    """List the clients of an existing folder, sorted by the bytes of their entry names.

    Raises:
        OSError: the folder itself can't be listed.
    """
    found = Found()
    root = Path(os.path.realpath(folder))
    entries = _listing(folder)
    stems = {_stem(entry) for entry in entries if is_weights(entry)}
    for entry in entries:
        try:
            candidate = _candidate(folder, root, entry, stems, found)
        except FAILURES as error:
            path = (folder / entry).as_posix()
            candidate = _refused(folder, entry, as_rejection(error, path))
        if candidate is not None:
            found.candidates.append(candidate)
    for remark, those in found.remarked.items():
        found.notes.append(remark[len(those) > 1].format(first_few(those)))
    alone = len(found.candidates) == 1 and found.candidates[0].entry == WEIGHTS
    if alone and os.path.isfile(folder / CONFIG):
        found.candidates[0] = _single(folder, root, found)
    found.candidates = _distinct_names(found.candidates)
    return found


def adapter_in(folder: Path) -> Path:
    """The weights file of a folder that is one adapter, or of its one sub-folder that is.

    Raises:
        RejectedClient: none, or several.
        OSError: the folder can't be listed.
    """
    if not any(map(is_weights, _listing(folder))):
        folder = _nested(folder, _listing(folder), Path(os.path.realpath(folder))) or folder
    return folder / _weights_name(folder.name, _listing(folder))


def weights_in(folder: Path) -> Path:
    """The weights file of a folder that clair wrote."""
    pipeline = folder / PIPELINE_WEIGHTS
    return pipeline if pipeline.exists() and not (folder / WEIGHTS).exists() else folder / WEIGHTS


def _listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder), key=os.fsencode)


def _refused(folder: Path, entry: str, refusal: RejectedClient) -> Candidate:
    path = folder / entry
    refusal.path = path.as_posix()
    name = _stem(entry) if is_weights(entry) else entry
    return Candidate(entry, name, path.as_posix(), path, refusal=refusal)


def _stem(entry: str) -> str:
    return entry[: -len(SUFFIX)] or entry


def _candidate(
    folder: Path, root: Path, entry: str, stems: set[str], found: Found
) -> Candidate | None:
    path = folder / entry
    lower = entry.lower()
    if entry.startswith((".", "#")) or lower.endswith(_BACKUPS):
        found.ignored.append(entry)
        return None
    is_config = entry == CONFIG or (entry.endswith(".json") and _without_suffix(entry) in stems)
    there, mode = path, 0
    if _may_be_client(path):
        there = open_path(path, root) if path.is_symlink() else root / entry
        mode = os.stat(there).st_mode
    if is_config and not path.is_file() and not path.is_symlink():
        found.remarked[_NO_CONFIG].append(entry)
    if stat.S_ISDIR(mode):
        return _in_folder(folder, root, entry, found)
    if is_weights(entry):
        if not stat.S_ISREG(mode):
            raise _not_a_file(entry, mode)
        return Candidate(
            entry,
            _stem(entry),
            path.as_posix(),
            there,
            (folder / f"{_stem(entry)}.json",),
            folder / CONFIG,
            root=root,
        )
    if lower.endswith(_PICKLES) and not lower.startswith(_TRAINER_FILES):
        if _without_suffix(entry) not in stems:
            raise _pickle(entry)
        found.remarked[_BESIDE].append(entry)
    elif lower.endswith(_ARCHIVES):
        raise _archive(entry)
    if not is_config:
        found.ignored.append(entry)
    return None


def _may_be_client(path: Path) -> bool:
    """Folders, weights files, and links whose name is not that of some other file."""
    if is_weights(path.name):
        return True
    if path.is_symlink():
        return path.is_dir() or not path.suffix
    return path.is_dir()


def _in_folder(folder: Path, root: Path, entry: str, found: Found) -> Candidate | None:
    here = folder / entry
    names = _listing(here)
    base, notes = here, []
    if not any(is_weights(name) and not name.startswith(".") for name in names):
        nested = _nested(here, names, root)
        if nested is None:
            _check_no_weights(names)
            found.ignored.append(f"{entry}/")
            found.remarked[_EMPTY].append(entry)
            return None
        base, names = nested, _listing(nested)
        notes.append(f"read from the sub-folder {quoted(nested.name)}")
    others = [name for name in names if os.path.lexists(base / name / WEIGHTS)]
    if others:
        listed = first_few(others)
        notes.append(f"ignored, as the folder has an adapter itself: sub-folders {listed}")
    file = _weights_name(entry, names)
    if file != WEIGHTS:
        notes.append(f"read {quoted(file)}")
    pickles = [n for n in names if n.lower().endswith(_PICKLES)]
    pickles = [n for n in pickles if not n.lower().startswith(_TRAINER_FILES)]
    if pickles:
        notes.append(f"{first_few(pickles)} ignored")
    path = base / file
    there = open_path(path, root)
    mode = os.lstat(there).st_mode
    if not stat.S_ISREG(mode):
        raise _not_a_file(file, mode)
    configs = [base / f"{_stem(file)}.json", base / CONFIG, here / CONFIG]
    if file == WEIGHTS:
        del configs[0]
    return Candidate(
        entry,
        entry,
        path.as_posix(),
        there,
        tuple(dict.fromkeys(configs)),
        folder / CONFIG,
        tuple(notes),
        root=root,
    )


def _nested(here: Path, names: list[str], root: Path) -> Path | None:
    """The one sub-folder that holds an adapter, or None."""
    holders = []
    for name in names:
        path = here / name
        if not name.startswith(".") and path.is_dir() and os.path.lexists(path / WEIGHTS):
            open_path(path, root)  # a link may not leave
            holders.append(path)
    if len(holders) > 1:
        listed = first_few(path.name for path in holders)
        raise RejectedClient(
            f"folder holds {len(holders):,} adapters, expected one: {listed}",
            found=f"{len(holders):,} adapter folders",
            expected="one adapter",
        )
    return holders[0] if holders else None


def _weights_name(entry: str, names: list[str]) -> str:
    if WEIGHTS in names:
        return WEIGHTS
    files = [name for name in names if is_weights(name) and not name.startswith(".")]
    index = next((name for name in names if name.endswith(f"{SUFFIX}.index.json")), "")
    if len(files) == 1 and not index:
        return files[0]
    what = f"{len(files)} {SUFFIX} files"
    if index:
        what = f"a sharded adapter (index {quoted(index)}, not followed)"
    raise RejectedClient(
        f"folder holds {what}, none called {WEIGHTS}",
        found=first_few(files),
        expected=WEIGHTS,
    )


def _check_no_weights(names: list[str]) -> None:
    """Raise if a folder without a .safetensors file is a client that can't be read."""
    for name in names:
        lower = name.lower()
        if lower.endswith(_PICKLES) and not lower.startswith(_TRAINER_FILES):
            raise _pickle(name)
    for name in names:
        if name.lower().endswith(_ARCHIVES):
            raise _archive(name)
    if CONFIG in names:
        raise RejectedClient(
            f"folder holds {CONFIG}, but no {WEIGHTS}", found=CONFIG, expected=WEIGHTS
        )


def _without_suffix(entry: str) -> str:
    return os.path.splitext(entry)[0]


def _not_a_file(name: str, mode: int) -> RejectedClient:
    kind = kind_of(mode)
    return RejectedClient(
        f"{quoted(name)} is {kind}, not a regular file", found=kind, expected="a regular file"
    )


def _pickle(name: str) -> RejectedClient:
    return RejectedClient(
        f"{quoted(name)} is a pickle-based file, not opened",
        found="a pickle-based file",
        expected=f"a {SUFFIX} file",
        hint="ask the client to re-save with safe_serialization",
    )


def _archive(name: str) -> RejectedClient:
    return RejectedClient(
        f"{quoted(name)} is an archive, not unpacked",
        found="an archive",
        expected=f"a folder or a {SUFFIX} file",
        hint="unpack it yourself, if you trust its sender",
    )


def _single(folder: Path, root: Path, found: Found) -> Candidate:
    name = folder.name if folder.name not in ("", "..") else root.name
    found.notes.append(f"the folder is itself one adapter: read as the one client {quoted(name)}")
    (only,) = found.candidates
    return replace(only, name=name, configs=(*only.configs, folder / CONFIG), shared=None)


def _distinct_names(candidates: list[Candidate]) -> list[Candidate]:
    """Give clients of equal name their full entry names (unique within a folder)."""
    while True:
        counts = Counter(candidate.name for candidate in candidates)
        clashing = [c.name != c.entry and counts[c.name] > 1 for c in candidates]
        if not any(clashing):
            return sorted(candidates, key=lambda c: os.fsencode(c.name))
        candidates = [
            replace(c, name=c.entry) if clash else c
            for c, clash in zip(candidates, clashing, strict=True)
        ]
