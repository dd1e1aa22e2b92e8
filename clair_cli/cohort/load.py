"""A folder of clients to adapters: a bad client is listed as rejected and never stops the rest."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config import assumed_config
from clair_cli.adapters.config_source import find_config
from clair_cli.adapters.names.kohya import check_header
from clair_cli.adapters.names.pair import COMPONENTS, TRANSFORMER, pair_keys
from clair_cli.adapters.names.parts import KeyMap
from clair_cli.adapters.read import build_adapter
from clair_cli.cohort.find import Candidate, adapter_in, find_clients, weights_in
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.cohort.size import check_cohort_size
from clair_cli.errors import InputRefused, RejectedClient, UsageError, is_out_of_files
from clair_cli.formats.filenames import CONFIG, SUFFIX, WEIGHTS, is_weights
from clair_cli.formats.files import FAILURES, as_rejection
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.check import open_safetensors
from clair_cli.formats.safetensors.reader import KeptBytes, SafetensorsFile
from clair_cli.text import at_most, by_spelling, quoted, some_of

Loader = Callable[[Candidate], "Adapter | Rejection"]
Each = Callable[[Loader, Sequence[Candidate]], "Iterable[Adapter | Rejection]"]


def load_cohort(
    folder: Path,
    *,
    assume_alpha: float | str | None = None,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    each: Each = map,
    memory: KeptBytes | None = None,
) -> Cohort:
    r"""Read every client of a folder.

    Args:
        folder: holds one sub-folder or one `.safetensors` file per client, or both.
        assume_alpha: finite `lora_alpha` for files without any config, or "rank".
        exclude: names of clients to leave out unopened; one that is not UTF-8 may be spelt as the
            report does (`\xNN` for each such byte), where nobody else is called so.
        limits: default `Limits()`.
        each: like `map`; may work on several threads.
        memory: for the bytes that are read.

    Returns:
        The cohort; at least one adapter, rejection or excluded client.

    Raises:
        UsageError: no such folder, not a folder, an unknown name in `exclude`, or a bad
            `assume_alpha`.
        InputRefused: no client in the folder at all, or more than the limits allow.
    """
    limits = limits or Limits()
    _check_arguments(folder, assume_alpha)
    try:
        found = find_clients(folder)
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise UsageError(f"{quoted(folder.as_posix())} can't be listed: {error.strerror}") from None
    if not found.candidates:
        raise _nothing_found(folder, found.ignored)
    names = [candidate.name for candidate in found.candidates]
    spelt = by_spelling(names)
    exclude = [spelt.get(name, name) for name in exclude]
    _check_excluded(exclude, names)
    candidates = [c for c in found.candidates if c.name not in exclude]
    candidates = check_cohort_size(folder.as_posix(), candidates, limits)
    adapters: list[Adapter] = []
    rejected: list[Rejection] = []

    def load(candidate: Candidate) -> Adapter | Rejection:
        return _load_one(candidate, assume_alpha, limits, memory)

    for result in each(load, candidates):
        if isinstance(result, Adapter):
            adapters.append(result)
        else:
            rejected.append(result)
    notes = [*found.notes, *similar_names(names)]
    return Cohort(
        adapters=tuple(adapters),
        rejected=tuple(rejected),
        excluded=tuple(sorted(set(exclude), key=os.fsencode)),
        ignored=tuple(found.ignored),
        notes=tuple(notes),
    )


def load_one(path: Path, *, limits: Limits | None = None) -> Cohort:
    """Read one adapter: its folder, or a `.safetensors` file with its config beside it. Its files
    may be links, as they are in a download cache: it is the caller's own choice, not a client's.

    Returns:
        A cohort of one adapter, or of one rejection.

    Raises:
        UsageError: nothing there, or neither of the two.
    """
    shown = quoted(path.as_posix())
    if not os.path.lexists(path):
        raise UsageError(f"adapter {shown} does not exist", hint=_did_you_mean(path))
    weights, shared = path, path.parent / CONFIG
    configs: tuple[Path, ...] = (path.with_suffix(".json"),)
    if path.name == WEIGHTS:
        configs = (*configs, shared)
    if path.is_dir():
        try:
            weights = adapter_in(path)
        except (RejectedClient, OSError) as error:
            raise UsageError(f"adapter {shown}: {error}") from None
        configs = (weights.parent / CONFIG, path / CONFIG)
    if not is_weights(weights.name) or not weights.is_file():
        raise UsageError(
            f"{shown} is no adapter", hint=f"give a PEFT folder (with {WEIGHTS}) or a {SUFFIX} file"
        )
    candidate = Candidate(
        entry=path.name,
        name=path.stem if is_weights(path.name) else path.name,
        shown=weights.as_posix(),
        weights=_followed(weights),
        configs=tuple(map(_followed, configs)),
        shared=_followed(shared),
    )
    result = _load_one(candidate, None, limits or Limits())
    if isinstance(result, Adapter):
        return Cohort((result,))
    return Cohort((), (result,))


def load_result(path: Path, *, limits: Limits | None = None) -> Adapter | Rejection:
    """Read an adapter that clair wrote: a folder with its config in it, or a single file with its
    config in the header and nowhere else."""
    folder = path.is_dir()
    candidate = Candidate(
        entry=path.name,
        name=path.name,
        shown=path.as_posix(),
        weights=weights_in(path) if folder else path,
        configs=(path / CONFIG,) if folder else (),
    )
    return _load_one(candidate, None, limits or Limits())


def _followed(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() and path.exists() else path


def similar_names(names: Iterable[str]) -> list[str]:
    """One note for each group of names that differ only in case or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    notes = []
    for group in groups.values():
        if len(group) > 1:
            listed = some_of([ascii(name) for name in sorted(group)])
            notes.append(f"clients {listed}: names differ only in case or Unicode form")
    return at_most(sorted(notes), "groups of clients whose names differ only in this")


def _load_one(
    candidate: Candidate,
    assume_alpha: float | str | None,
    limits: Limits,
    memory: KeptBytes | None = None,
) -> Adapter | Rejection:
    name, shown, sha256 = candidate.name, candidate.shown, None
    try:
        if candidate.refusal is not None:
            raise candidate.refusal
        file = open_safetensors(
            candidate.weights, limits, shown=shown, root=candidate.root, memory=memory
        )
        sha256 = file.sha256
        keys = _keys(candidate, file, limits)
        config, notes = find_config(
            candidate.configs,
            file.metadata,
            keys,
            shared=candidate.shared,
            root=candidate.root,
            assume_alpha=assume_alpha,
            limits=limits,
        )
        if config.parts.keys() & {*COMPONENTS, TRANSFORMER} and keys.format == "peft":
            keys = replace(keys, format="diffusers")
        if keys.format == "kohya":
            ranks = [file.tensors[pair.key_A].shape[0] for pair in keys.pairs]
            without = any(pair.key_alpha is None for pair in keys.pairs)
            notes += check_header(file.metadata, ranks, without_alpha=without)
        return build_adapter(
            name,
            shown,
            sha256,
            file,
            keys,
            config,
            limits,
            notes=(*candidate.notes, *notes),
        )
    except FAILURES as error:
        return rejection(as_rejection(error, shown), name, shown, sha256)


def _keys(candidate: Candidate, file: SafetensorsFile, limits: Limits) -> KeyMap:
    """The file's pairs; where it has others too, the config may say better what they are."""
    try:
        return pair_keys({key: entry.shape for key, entry in file.tensors.items()})
    except RejectedClient:
        find_config(
            candidate.configs,
            {},
            KeyMap("", ()),
            shared=candidate.shared,
            root=candidate.root,
            assume_alpha="rank",
            limits=limits,
        )
        raise


def _check_arguments(folder: Path, assume_alpha: float | str | None) -> None:
    if assume_alpha is not None:
        try:
            assumed_config(assume_alpha)
        except ValueError as error:
            raise UsageError(str(error)) from None
    shown = quoted(folder.as_posix())
    if not os.path.lexists(folder):
        raise UsageError(f"folder {shown} does not exist", hint=_did_you_mean(folder))
    if not folder.is_dir():
        raise UsageError(
            f"{shown} is not a folder", hint="give the folder that holds the clients' adapters"
        )


def _did_you_mean(folder: Path) -> str:
    try:
        siblings = [entry.name for entry in os.scandir(folder.parent) if entry.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(folder.name, sorted(siblings), n=1)
    return f"did you mean {quoted((folder.parent / close[0]).as_posix())}?" if close else ""


def _check_excluded(exclude: Sequence[str], names: Sequence[str]) -> None:
    for name in exclude:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"no client is called {quoted(name)}, so it can't be excluded",
                hint=f"did you mean {quoted(close[0])}?" if close else "",
            )


def _nothing_found(folder: Path, ignored: Sequence[str]) -> InputRefused:
    count = len(ignored)
    others = f"{count:,} other {'entry' if count == 1 else 'entries'} ignored"
    if not count:
        others = "the folder is empty"
    return InputRefused(
        f"no client in {quoted(folder.as_posix())} ({others})",
        hint=f"clients are looked for as */{WEIGHTS} with {CONFIG}, and as *{SUFFIX}",
    )
