"""Clients' files to adapters: a bad client is listed as rejected and never stops the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config_source import find_config
from clair_cli.adapters.names.kohya import check_header
from clair_cli.adapters.names.pair import COMPONENTS, TRANSFORMER, pair_keys
from clair_cli.adapters.names.parts import KeyMap
from clair_cli.adapters.read import build_adapter
from clair_cli.cohort.adapter_folder import adapter_in, weights_in
from clair_cli.cohort.find import did_you_mean
from clair_cli.cohort.model import Candidate, Cohort, Listing, Rejection, rejection
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.filenames import CONFIG, SUFFIX, WEIGHTS, is_weights
from clair_cli.formats.files import FAILURES, as_rejection
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.check import open_safetensors
from clair_cli.formats.safetensors.reader import KeptBytes, SafetensorsFile
from clair_cli.formats.stores import followed, is_there
from clair_cli.store.address import Place
from clair_cli.store.lookup import looked_up
from clair_cli.text import quoted


def load_client(
    candidate: Candidate,
    *,
    assume_alpha: float | str | None = None,
    limits: Limits | None = None,
    memory: KeptBytes | None = None,
) -> Adapter | Rejection:
    """Read and check one client's files.

    Args:
        candidate: from `find_clients`.
        assume_alpha: finite `lora_alpha` for a file without any config, or "rank".
        limits: default `Limits()`.
        memory: for the tensors' bytes, if it has room.

    Returns:
        The adapter, or why the client is rejected.

    Raises:
        OSError: no more files can be opened, which is no client's fault.
    """
    name, shown, sha256 = candidate.name, candidate.shown, None
    limits = limits or Limits()
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


def cohort_of(listing: Listing, results: Iterable[Adapter | Rejection]) -> Cohort:
    """The cohort of a folder.

    Args:
        listing: from `find_clients`.
        results: of `load_client`, one for each of `listing.candidates`, in their order.
    """
    adapters: list[Adapter] = []
    rejected: list[Rejection] = []
    for result in results:
        if isinstance(result, Adapter):
            adapters.append(result)
        else:
            rejected.append(result)
    return Cohort(
        tuple(adapters), tuple(rejected), listing.excluded, listing.ignored, listing.notes,
        listing.noted,
    )  # fmt: skip


def load_one(
    path: Place, *, limits: Limits | None = None, assume_alpha: float | str | None = None
) -> Cohort:
    """Read one adapter: its folder, or a `.safetensors` file with its config next to it. Its files
    may be links, as in a download cache: the caller chose them, and not a client.

    Args:
        limits, assume_alpha: as for `load_client`.

    Returns:
        A cohort of one adapter, or of one rejection.

    Raises:
        UsageError: nothing at the path, or neither of the two.
    """
    path, shown = looked_up(path), quoted(path.as_posix())
    if not is_there(path):
        raise UsageError(f"adapter {shown} does not exist", hint=did_you_mean(path))
    weights, shared = path, path.parent / CONFIG
    configs: tuple[Place, ...] = (path.with_suffix(".json"),)
    if path.name == WEIGHTS:
        configs = (*configs, shared)
    if path.is_dir():
        try:
            weights = adapter_in(path)
        except (RejectedClient, OSError) as error:
            several = isinstance(error, RejectedClient) and "expected one" in error.message
            hint = "give the folder of the one that is meant" if several else ""
            raise UsageError(f"adapter {shown}: {error}", hint=hint) from None
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
    return cohort_of(
        Listing((candidate,)), [load_client(candidate, limits=limits, assume_alpha=assume_alpha)]
    )


def load_result(path: Place, *, limits: Limits | None = None) -> Adapter | Rejection:
    """Read an adapter that clair wrote: a folder with its config, or a single file with its config
    in the header; no other config is looked for."""
    path = looked_up(path)
    folder = path.is_dir()
    candidate = Candidate(
        entry=path.name,
        name=path.name,
        shown=path.as_posix(),
        weights=weights_in(path) if folder else path,
        configs=(path / CONFIG,) if folder else (),
    )
    return load_client(candidate, limits=limits)


def _followed(path: Place) -> Place:
    return followed(path) if path.is_symlink() and path.exists() else path


def _keys(candidate: Candidate, file: SafetensorsFile, limits: Limits) -> KeyMap:
    """The pairs of a file. Where it has other tensors too, an error in the config is raised first,
    as it may name the variant."""
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
