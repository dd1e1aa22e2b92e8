"""Which file of a folder is its adapter, and what stands there instead. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clair_cli.cohort.inside import find_adapter
from clair_cli.errors import RejectedClient
from clair_cli.formats.filenames import (
    ARCHIVES,
    CONFIG,
    MAIN_WEIGHTS,
    MLX_WEIGHTS,
    PIPELINE_WEIGHTS,
    SUFFIX,
    WEIGHTS,
    is_weights,
)
from clair_cli.formats.files import kind_of
from clair_cli.formats.stores import followed, names_in
from clair_cli.store.address import Place
from clair_cli.text import first_few, quoted

# A part of what was saved as several files, and how many they are: "model-00001-of-00002".
_SHARD = re.compile(rf".*-\d+-of-0*(\d+){re.escape(SUFFIX)}", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_OTHER_WEIGHTS = (".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".distcp")
# What trainers leave beside an adapter; never a client.
_TRAINER_FILES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")


def adapter_in(folder: Place) -> Place:
    """The weights file of a folder that is one adapter, or holds one in a sub-folder.

    Raises:
        RejectedClient: none, or several.
        OSError: the folder can't be listed.
    """
    found, _, _ = find_adapter(folder, followed(folder))
    here = folder if found is None else found.path
    return here / weights_name(names_in(here))


def weights_in(folder: Place) -> Place:
    """The weights file of a folder that clair wrote."""
    names = (WEIGHTS, PIPELINE_WEIGHTS, MLX_WEIGHTS)
    return next((folder / n for n in names if (folder / n).exists()), folder / WEIGHTS)


def weights_name(names: Sequence[str]) -> str:
    """The weights file among the entries of an adapter's folder.

    Raises:
        RejectedClient: none, several, or a sharded adapter.
    """
    for name in MAIN_WEIGHTS:
        if name in names:
            return name
    files = [name for name in names if is_weights(name) and not name.startswith(".")]
    index = next((name for name in names if name.endswith(f"{SUFFIX}.index.json")), "")
    if len(files) == 1 and not index:
        return files[0]
    what, hint = f"{len(files)} {SUFFIX} files", f"call the adapter {WEIGHTS}"
    if index.startswith("adapter"):
        what = f"a sharded adapter (index {quoted(index)}, not followed)"
        hint = "save the adapter as one file"
    elif index:
        what = f"a sharded whole model (index {quoted(index)}, not followed)"
        hint = "a whole model is no adapter: ask for what save_pretrained of the PEFT model writes"
    elif shards := [name for name in files if _SHARD.fullmatch(name)]:
        count = max(int(_SHARD.sub(r"\1", name)) for name in shards)
        what = f"{len(shards)} of {count:,} shards and no index ({SUFFIX}.index.json)"
        hint = (
            "shards are not followed: ask for the adapter as one file, as save_pretrained of the "
            "PEFT model writes it"
        )
    raise RejectedClient(
        f"folder holds {what}, none called {WEIGHTS}",
        found=first_few(files),
        expected=WEIGHTS,
        hint=hint,
    )


def check_no_weights(names: Sequence[str], folder: str = "") -> None:
    """Raise if a folder without a .safetensors file is a client that can't be read.

    Args:
        names: of its entries.
        folder: its path in the client's folder.
    """
    for name in names:
        shown = f"{folder}/{name}" if folder else name
        if is_pickle(name):
            raise pickle_refused(shown)
        if is_archive(name):
            raise archive_refused(shown)
        if name.lower().endswith(_OTHER_WEIGHTS):
            raise RejectedClient(
                f"{quoted(shown)} is no {SUFFIX} file, not opened",
                found=quoted(shown),
                expected=f"a {SUFFIX} file",
                hint=f"ask the client for the adapter as {WEIGHTS}",
            )
    if CONFIG in names:
        where = f"sub-folder {quoted(folder)}" if folder else "folder"
        raise RejectedClient(
            f"{where} holds {CONFIG}, but no {WEIGHTS}", found=CONFIG, expected=WEIGHTS
        )


def is_pickle(entry: str) -> bool:
    """Whether a file of that name is weights in a pickle; what trainers keep in one is not."""
    lower = entry.lower()
    return lower.endswith(_PICKLES) and not lower.startswith(_TRAINER_FILES)


def is_archive(entry: str) -> bool:
    """Whether a file of that name may be an adapter in an archive."""
    return entry.lower().endswith(ARCHIVES)


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
