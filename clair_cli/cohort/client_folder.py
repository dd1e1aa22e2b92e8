"""One client's folder: the files that are read, and notes on what stands beside them."""

from __future__ import annotations

import re
import stat

from clair_cli.cohort.adapter_folder import check_no_weights, is_pickle, not_a_file, weights_name
from clair_cli.cohort.inside import Inside, find_adapter
from clair_cli.cohort.model import Candidate
from clair_cli.formats.filenames import CONFIG, MLX_WEIGHTS, SUFFIX, WEIGHTS, is_weights
from clair_cli.formats.files import real_path
from clair_cli.formats.stores import is_there, status_of
from clair_cli.remark import Remark, note
from clair_cli.store.address import Place
from clair_cli.text import first_few, quoted


def client_folder(
    folder: Place, root: Place, entry: str, checkpoint: str | int | None
) -> Candidate | None:
    """The client of a folder in the cohort's folder; None where it holds no weights of any kind.

    Args:
        folder: the cohort's.
        root: its real path.
        entry: name of the client's folder in it.
        checkpoint: see `find_adapter`.

    Raises:
        RejectedClient: it can't be read.
        OSError: a folder can't be listed.
    """
    here = folder / entry
    found, notes, folders = find_adapter(here, root, checkpoint)
    if found is None:
        for inside in folders:
            check_no_weights(inside.names, inside.shown)
        return None
    file = weights_name(found.names)
    path = found.path / file
    weights = real_path(path, root)
    mode = status_of(weights).st_mode
    if not stat.S_ISREG(mode):
        raise not_a_file(file, mode)
    configs = [found.path / f"{stem(file)}.json", found.path / CONFIG, here / CONFIG]
    if file == WEIGHTS:
        del configs[0]
    return Candidate(
        entry,
        entry,
        path.as_posix(),
        weights,
        tuple(dict.fromkeys(configs)),
        folder / CONFIG,
        (*notes, *_beside(found, file)),
        root=root,
    )


def stem(entry: str) -> str:
    """The name of a weights file without its suffix."""
    return entry[: -len(SUFFIX)] or entry


def _is_checkpoint(name: str, file: str) -> bool:
    """Whether it is one of the numbered checkpoints that mlx-lm leaves beside its adapter."""
    return file == MLX_WEIGHTS and re.fullmatch(rf"\d+_{re.escape(MLX_WEIGHTS)}", name) is not None


def _beside(found: Inside, file: str) -> list[Remark]:
    """Notes on what stands beside the weights file that is read."""
    notes = []
    others = [name for name in found.names if is_there(found.path / name / WEIGHTS)]
    if others:
        listed = first_few(others)
        text = f"ignored, as the folder has an adapter itself: sub-folders {listed}"
        notes.append(note("sub_folders_ignored", text))
    if file not in (WEIGHTS, MLX_WEIGHTS):
        notes.append(note("other_file_read", f"read {quoted(file)}"))
    left_out = [
        n
        for n in found.names
        if is_weights(n) and n != file and not n.startswith(".") and not _is_checkpoint(n, file)
    ]
    if left_out:
        text = f"{first_few(left_out)} left out: only {quoted(file)} is read"
        notes.append(note("weights_left_out", text))
    if pickles := list(filter(is_pickle, found.names)):
        notes.append(note("pickle_ignored", f"{first_few(pickles)} ignored"))
    return notes
