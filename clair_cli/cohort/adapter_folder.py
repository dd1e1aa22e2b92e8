"""Which file of a folder is its adapter, and what stands there instead. Opens no file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.filenames import CONFIG, PIPELINE_WEIGHTS, SUFFIX, WEIGHTS, is_weights
from clair_cli.formats.files import kind_of, real_path
from clair_cli.text import first_few, quoted

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz")
# What trainers leave beside an adapter; never a client.
_TRAINER_FILES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")


def adapter_in(folder: Path) -> Path:
    """The weights file of a folder that is one adapter, or of its one sub-folder that is.

    Raises:
        RejectedClient: none, or several.
        OSError: the folder can't be listed.
    """
    if not any(map(is_weights, entries_of(folder))):
        folder = (
            nested_adapter(folder, entries_of(folder), Path(os.path.realpath(folder))) or folder
        )
    return folder / weights_name(entries_of(folder))


def weights_in(folder: Path) -> Path:
    """The weights file of a folder that clair wrote."""
    pipeline = folder / PIPELINE_WEIGHTS
    return pipeline if pipeline.exists() and not (folder / WEIGHTS).exists() else folder / WEIGHTS


def entries_of(folder: Path) -> list[str]:
    """Names of a folder's entries, sorted by their bytes; OSError if it can't be listed."""
    return sorted(os.listdir(folder), key=os.fsencode)


def nested_adapter(here: Path, names: Sequence[str], root: Path) -> Path | None:
    """The one sub-folder that holds an adapter, or None.

    Args:
        here: a folder. names: of its entries.
        root: real path of the cohort's folder.

    Raises:
        RejectedClient: several sub-folders do, or one is a link out of `root`.
    """
    holders = []
    for name in names:
        path = here / name
        if not name.startswith(".") and path.is_dir() and os.path.lexists(path / WEIGHTS):
            real_path(path, root)  # a link may not leave
            holders.append(path)
    if len(holders) > 1:
        listed = first_few(path.name for path in holders)
        raise RejectedClient(
            f"folder holds {len(holders):,} adapters, expected one: {listed}",
            found=f"{len(holders):,} adapter folders",
            expected="one adapter",
        )
    return holders[0] if holders else None


def weights_name(names: Sequence[str]) -> str:
    """The weights file among the entries of an adapter's folder.

    Raises:
        RejectedClient: none, several, or a sharded adapter.
    """
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


def check_no_weights(names: Sequence[str]) -> None:
    """Raise if a folder without a .safetensors file is a client that can't be read."""
    for name in filter(is_pickle, names):
        raise pickle_refused(name)
    for name in filter(is_archive, names):
        raise archive_refused(name)
    if CONFIG in names:
        raise RejectedClient(
            f"folder holds {CONFIG}, but no {WEIGHTS}", found=CONFIG, expected=WEIGHTS
        )


def is_pickle(entry: str) -> bool:
    """Whether a file of that name is weights in a pickle; what trainers keep in one is not."""
    lower = entry.lower()
    return lower.endswith(_PICKLES) and not lower.startswith(_TRAINER_FILES)


def is_archive(entry: str) -> bool:
    """Whether a file of that name may be an adapter in an archive."""
    return entry.lower().endswith(_ARCHIVES)


def not_a_file(name: str, mode: int) -> RejectedClient:
    """The refusal of an entry of that `st_mode` where a weights file should be."""
    kind = kind_of(mode)
    return RejectedClient(
        f"{quoted(name)} is {kind}, not a regular file", found=kind, expected="a regular file"
    )


def pickle_refused(name: str) -> RejectedClient:
    """The refusal of weights in a pickle, which could run code when opened."""
    return RejectedClient(
        f"{quoted(name)} is a pickle-based file, not opened",
        found="a pickle-based file",
        expected=f"a {SUFFIX} file",
        hint="ask the client to re-save with safe_serialization",
    )


def archive_refused(name: str) -> RejectedClient:
    """The refusal of an archive, which could unpack to anything."""
    return RejectedClient(
        f"{quoted(name)} is an archive, not unpacked",
        found="an archive",
        expected=f"a folder or a {SUFFIX} file",
        hint="unpack it yourself, if you trust its sender",
    )
