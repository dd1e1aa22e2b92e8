"""Where the adapter is inside a client's folder: in it, up to three levels down, in a checkpoint of
a trainer, or in a snapshot of the hub's cache. Opens nothing but two small files that say which
checkpoint or snapshot is meant.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.filenames import CONFIG, MAIN_WEIGHTS, is_weights
from clair_cli.formats.files import real_path
from clair_cli.formats.stores import followed, is_there, names_in, read_small
from clair_cli.remark import Remark, note
from clair_cli.store.address import Place
from clair_cli.text import first_few, quoted, some_of

DEPTH = 3  # verl's global_step_10/actor/lora_adapter
MAX_ENTRIES = 20_000  # that are looked at for one client
STEP = re.compile(r"(?:checkpoint|global_step|step|epoch)[-_](\d{1,18})", re.ASCII)
"""Name of a trainer's checkpoint, and its number."""

_STATE = "trainer_state.json"
_MAX_STATE_BYTES = 8_000_000  # it holds a line for each time that was logged
_MAX_REF_BYTES = 200


@dataclass(frozen=True)
class Inside:
    """A folder below a client's folder.

    Attributes:
        parts: its path from there; () for the client's own folder.
        path: of the folder.
        names: of its entries, sorted by their bytes.
    """

    parts: tuple[str, ...]
    path: Place
    names: tuple[str, ...]

    @property
    def shown(self) -> str:
        return "/".join(self.parts)

    @property
    def step(self) -> tuple[tuple[str, ...], int] | None:
        """The folder that its checkpoint is in, and the checkpoint's number; None for no such."""
        for place, part in enumerate(self.parts):
            if match := STEP.fullmatch(part):
                return self.parts[:place], int(match[1])
        return None


def find_adapter(
    here: Place, root: Place, checkpoint: str | int | None = None
) -> tuple[Inside | None, tuple[Remark, ...], list[Inside]]:
    """The folder that holds a client's adapter.

    Args:
        here: the client's folder.
        root: real path of the cohort's folder.
        checkpoint: which checkpoint is read where the folder has some: "last", "best" (as
            trainer_state.json says) or its number; None for the adapter in the folder itself.

    Returns:
        `(found, notes, folders)`: None where no folder holds a `.safetensors` file; remarks on the
        choice; all folders that were looked at, the client's own first.

    Raises:
        RejectedClient: several folders do, the checkpoint is not there, a link leaves `root`, or
            there are more than `MAX_ENTRIES` entries.
        OSError: a folder can't be listed.
    """
    own = Inside((), here, _names_in(here))
    if {"blobs", "snapshots"} <= set(own.names) and not _holds_weights(own):
        return _in_snapshot(own, root, checkpoint)
    if _holds_weights(own) and checkpoint is None:
        return own, (), [own]
    folders = [own, *_below(own, root)]
    holders = [f for f in folders[1:] if not set(MAIN_WEIGHTS).isdisjoint(f.names)]
    if not _holds_weights(own):
        holders = holders or [f for f in folders[1:] if _holds_weights(f)]
    steps = [f for f in holders if f.step is not None]
    if checkpoint is not None and steps:
        chosen = _checkpoint(own, steps, checkpoint, root)
        which = checkpoint if isinstance(checkpoint, str) else "chosen"
        text = f"read from {quoted(chosen.shown)}, the {which} of {len(steps)} checkpoints"
        if _holds_weights(own):
            text += "; the adapter in the folder itself is ignored"
        if empty := _without_adapter(folders, steps):
            text += f"; without an adapter: {some_of(empty)}"
        return chosen, (note("checkpoint_read", text),), folders
    if _holds_weights(own):
        return own, (), folders
    if len(holders) > 1:
        raise _several(holders, only_steps=len(steps) == len(holders))
    if not holders:
        return None, (), folders
    text = f"read from the sub-folder {quoted(holders[0].shown)}"
    return holders[0], (note("sub_folder_read", text),), folders


def _without_adapter(folders: Sequence[Inside], steps: Sequence[Inside]) -> list[str]:
    """Names of the checkpoints that no adapter is in, in the order of their numbers."""
    found = {folder.step for folder in steps}
    empty = {f.step: f.parts[len(f.step[0])] for f in folders if f.step and f.step not in found}
    return [quoted(empty[step]) for step in sorted(empty)]


def _names_in(folder: Place) -> tuple[str, ...]:
    return tuple(names_in(folder))


def _holds_weights(folder: Inside) -> bool:
    return any(is_weights(name) and not name.startswith(".") for name in folder.names)


def _below(own: Inside, root: Place) -> Iterator[Inside]:
    """The folders below, level by level, each real one once; links may not leave `root`."""
    level, count = [own], len(own.names)
    real = followed(own.path)
    seen = {real, *real.parents}
    for _ in range(DEPTH):
        above, level = level, []
        for inside in (inside for folder in above for inside in _sub_folders(folder, root, seen)):
            level.append(inside)
            count += 1 + len(inside.names)
            if count > MAX_ENTRIES:
                raise RejectedClient(
                    f"folder holds more than {MAX_ENTRIES:,} entries down to {DEPTH} levels",
                    found=f"more than {MAX_ENTRIES:,} entries",
                    expected="a folder with one adapter",
                )
            yield inside


def _sub_folders(folder: Inside, root: Place, seen: set[Place]) -> Iterator[Inside]:
    paths = [folder.path / name for name in folder.names if not name.startswith(".")]
    for path in sorted(
        paths, key=lambda path: path.is_symlink()
    ):  # a folder goes by its own name, not a link's
        if not path.is_dir():
            continue
        try:
            real = real_path(path, root)
        except RejectedClient:
            if any(is_there(path / name) for name in MAIN_WEIGHTS):
                raise
            continue  # whatever is there, it is no part of the client
        if real not in seen:
            seen.add(real)
            yield Inside((*folder.parts, path.name), path, _names_in(path))


def _several(holders: Sequence[Inside], *, only_steps: bool) -> RejectedClient:
    hint = "keep one of them; or, if they are the clients, give this folder as CLIENTS"
    if only_steps:
        hint = "say which checkpoint is the client's with --checkpoint last|best|N"
    return RejectedClient(
        f"folder holds {len(holders):,} adapters, expected one: "
        f"{first_few(holder.shown for holder in holders)}",
        found=f"{len(holders):,} adapter folders",
        expected="one adapter",
        hint=hint,
    )


def _checkpoint(own: Inside, steps: list[Inside], wanted: str | int, root: Place) -> Inside:
    """The checkpoint that is wanted, of folders that all are in one."""
    by_step: dict[int, list[Inside]] = {}
    runs = set()
    for folder in steps:
        run, step = folder.step or ((), 0)
        runs.add(run)
        by_step.setdefault(step, []).append(folder)
    if len(runs) > 1:
        raise _several(steps, only_steps=False)
    number = max(by_step) if wanted == "last" else wanted
    if wanted == "best":
        number = _best(own.path.joinpath(*runs.pop()), by_step[max(by_step)][0], root)
    if not isinstance(number, int) or number not in by_step:
        listed = some_of([f"{step}" for step in sorted(by_step)], 5)
        best = ", its best one by trainer_state.json" if wanted == "best" else ""
        raise RejectedClient(
            f"has no checkpoint {number}{best}; it has {listed}",
            found=f"checkpoints {listed}",
            expected=f"checkpoint {number}",
            hint="give another one with --checkpoint last|best|N",
        )
    if len(by_step[number]) > 1:
        raise _several(by_step[number], only_steps=False)
    return by_step[number][0]


def _best(run: Place, last: Inside, root: Place) -> int:
    """The number of the best checkpoint, by the trainer's own record: of the run's folder, or of
    its last checkpoint."""
    folders = [run, *(p for p in (last.path, *last.path.parents) if run in p.parents)]
    path = next((f / _STATE for f in folders if is_there(f / _STATE)), None)
    hint = "give --checkpoint last, or its number"
    if path is None:
        raise RejectedClient(
            f"no {_STATE}, so its best checkpoint is not known", expected=_STATE, hint=hint
        )
    data = read_small(real_path(path, root), path.as_posix(), _MAX_STATE_BYTES, root)
    try:
        state = json.loads(data)  # of a loss that is NaN too
    except ValueError as error:
        raise RejectedClient(f"{_STATE} is not JSON", path=path.as_posix(), hint=hint) from error
    fields = state if isinstance(state, dict) else {}
    name = fields.get("best_model_checkpoint")
    match = STEP.fullmatch(re.split(r"[\\/]", name)[-1]) if isinstance(name, str) else None
    number = fields.get("best_global_step")
    if match is None and type(number) is int:
        return number
    if match is None:
        raise RejectedClient(
            f"{_STATE} names no best checkpoint (best_model_checkpoint is {quoted(name, 60)})",
            path=path.as_posix(),
            found=f"best_model_checkpoint {quoted(name, 60)}",
            expected="the name of a checkpoint",
            hint=f"{hint}; a trainer names one with load_best_model_at_end",
        )
    return int(match[1])


def _in_snapshot(
    own: Inside, root: Place, checkpoint: str | int | None
) -> tuple[Inside | None, tuple[Remark, ...], list[Inside]]:
    """The adapter in a folder of the hub's cache, whose files are links to its blobs."""
    snapshots = own.path / "snapshots"
    revisions = [n for n in _names_in(snapshots) if (snapshots / n).is_dir()]
    chosen = revisions[0] if len(revisions) == 1 else _main_revision(own.path, root)
    if chosen not in revisions:
        raise RejectedClient(
            f"a download cache with {len(revisions):,} snapshots, and refs/main names none of them",
            found=f"{len(revisions):,} snapshots",
            expected="one snapshot",
            hint="download the adapter with a folder of its own (hf download --local-dir)",
        )
    real_path(snapshots / chosen, root)
    found, notes, folders = find_adapter(snapshots / chosen, root, checkpoint)
    if found is None:
        return None, notes, [own, *folders]
    for name in found.names:
        _check_blob(found.path / name, own.path)
    text = f"read from the download cache, snapshot {quoted(chosen)}"
    return found, (note("sub_folder_read", text), *notes), folders


def _main_revision(cache: Place, root: Place) -> str:
    path = cache / "refs" / "main"
    if not is_there(path):
        return ""
    data = read_small(real_path(path, root), path.as_posix(), _MAX_REF_BYTES, root)
    return data.decode("utf-8", "surrogateescape").strip()


def _check_blob(path: Place, cache: Place) -> None:
    """Refuse a file of a snapshot that is a link to anything but the cache's own blobs."""
    if not (is_weights(path.name) or path.name == CONFIG) or not path.is_symlink():
        return
    assert isinstance(path, Path)  # a link is on a disk
    if followed(cache) / "blobs" not in followed(path).parents:
        link = f"link {quoted(path.name)} to {quoted(os.readlink(path))}"
        raise RejectedClient(
            f"symbolic {link} leaves the blobs of its download cache",
            found=link,
            expected="links to blobs only",
        )
