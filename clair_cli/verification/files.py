"""An adapter on disk against what a report says of it: hash, config, modules, shapes, scale."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.adapter_folder import weights_in
from clair_cli.cohort.load import load_result
from clair_cli.cohort.model import Rejection
from clair_cli.errors import RejectedClient
from clair_cli.formats.filenames import BESIDE, CONFIG, PIPELINE_WEIGHTS
from clair_cli.formats.limits import LARGEST, Limits
from clair_cli.formats.stores import followed, names_in, open_stream, read_small
from clair_cli.formats.strict_json import parse_strict
from clair_cli.report.read import NamedAdapter, OldReport
from clair_cli.store.address import Place
from clair_cli.text import quoted
from clair_cli.workflow.provenance import HEADER_KEY

CHUNK_BYTES = 2**20
_MODULES_SHOWN = 3
# Of a result: each module has two factors, as in the clients' files, and an alpha; and the config
# is in the header.
_HEADER_BYTES = 32 * 2**20
_TENSORS = 60_000


def check_adapter(
    path: Place, named: NamedAdapter, shapes: Mapping[str, tuple[int, ...]], limits: Limits
) -> Iterator[str]:
    """The differences between an adapter on disk and the report, one sentence each.

    Args:
        path: a file, or a folder with weights and config.
        named: the adapter as the report has it.
        shapes: module name to the shape (out, in) of its delta weight, as the report has them.
        limits: those that the clients were read with.
    """
    try:
        yield from _check_adapter(path, named, shapes, limits)
    except OSError as error:
        yield f"{quoted(path.as_posix())} can't be read: {error.strerror}"


def _check_adapter(
    path: Place, named: NamedAdapter, shapes: Mapping[str, tuple[int, ...]], limits: Limits
) -> Iterator[str]:
    path = followed(path) if path.is_symlink() else path
    weights = weights_in(path) if path.is_dir() else path
    shown = quoted(weights.as_posix())
    try:
        found = file_hash(weights)
    except RejectedClient as error:
        yield f"{shown} can't be read: {error.message}"
        return
    if found != named.sha256:
        yield f"{shown} has sha256 {found}, the report says {named.sha256}"
    if path.is_dir() and named.config_sha256 is not None:
        yield from _check_config(path / CONFIG, named)
    adapter = load_result(path, limits=_own_limits(limits))
    if isinstance(adapter, Rejection):
        reason = adapter.message.removeprefix(f"client {quoted(adapter.name)}").lstrip(":, ")
        yield f"{shown} is no adapter that can be read: {reason}"
        return
    yield from _check_modules(shown, adapter, named, shapes)


def check_entries(folder: Place, old: OldReport) -> Iterator[str]:
    """Files in a folder that its report does not name, or another report, a sentence each."""
    adapters = {adapter.folder: adapter for adapter in old.adapters}
    own = _files_of(adapters[""], folder) if "" in adapters else set()
    for name in names_in(folder):
        path = folder / name
        if name and name in adapters:
            for inner in names_in(path) if path.is_dir() else ():
                files = _files_of(adapters[name], path)
                if inner not in files and not inner.startswith("."):
                    yield _not_named(path / inner)
        elif name not in BESIDE | own and not name.startswith("."):
            yield _not_named(path)
    inside = folder / "report.json"
    if inside.exists():
        try:
            same = read_small(inside, inside.as_posix(), len(old.raw) + 1) == old.raw
        except RejectedClient:
            same = False
        if not same:
            yield f"{quoted(inside.as_posix())} is not the report that was given"


def _files_of(adapter: NamedAdapter, folder: Place) -> set[str]:
    """Names of an adapter folder's files: a loader that finds more may take the wrong one."""
    weights = weights_in(folder).name  # as it was compared with the report
    own = {PIPELINE_WEIGHTS} if adapter.config_sha256 is None else {weights, CONFIG}
    return own | {"README.md"}


def made_by(path: Place) -> str | None:
    """The version of clair that a merged file's header names; None for one without, as earlier
    versions wrote it, or one that can't be read."""
    try:
        with open_stream(path, path.as_posix()) as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > _HEADER_BYTES:
                return None
            header = parse_strict(stream.read(size), "header", _HEADER_BYTES)
        found = parse_strict(header["__metadata__"][HEADER_KEY].encode(), HEADER_KEY, _HEADER_BYTES)
        version = found["version"]
    except (RejectedClient, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return version if isinstance(version, str) else None


def file_hash(path: Place) -> str:
    """SHA-256 of a regular file, hex.

    Raises:
        RejectedClient: absent, unreadable, a link, or not a regular file.
    """
    whole = hashlib.sha256()
    with open_stream(path, path.as_posix()) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            whole.update(chunk)
    return whole.hexdigest()


def _not_named(path: Place) -> str:
    return f"{quoted(path.as_posix())} is there, and the report does not name it"


def _check_config(path: Place, named: NamedAdapter) -> Iterator[str]:
    shown = quoted(path.as_posix())
    try:
        data = read_small(path, path.as_posix(), Limits().max_config_bytes)
    except RejectedClient as error:
        yield f"{shown} can't be read: {error.message}"
        return
    found = hashlib.sha256(data).hexdigest()
    if named.config_sha256 is not None and found != named.config_sha256:
        yield f"{shown} has sha256 {found}, the report says {named.config_sha256}"


def _own_limits(clients: Limits) -> Limits:
    """What a result of clients within these limits may have. Only the header takes memory: the
    file is read in pieces, and was hashed already."""
    return replace(
        Limits(),
        max_file_bytes=LARGEST,
        max_header_bytes=max(_HEADER_BYTES, clients.max_header_bytes),
        max_tensors=max(_TENSORS, 3 * clients.max_tensors // 2),
        max_rank=LARGEST,
    )


def _same_scale(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)  # kohya's alpha is a float32


def _check_modules(
    shown: str, adapter: Adapter, named: NamedAdapter, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    lines = []
    for name in sorted(shapes.keys() - adapter.modules.keys()):
        lines.append(f"lacks module {quoted(name)}")
    for name, module in adapter.modules.items():
        where = f"module {quoted(name)}"
        if name not in shapes:
            lines.append(f"has {where}, which the report does not have")
        elif tuple(module.shape) != shapes[name]:
            lines.append(f"{where} has shape {tuple(module.shape)}, the report says {shapes[name]}")
        if module.rank != named.rank:
            lines.append(f"{where} has rank {module.rank}, the report says {named.rank}")
        if named.scaling is not None and not _same_scale(module.scaling, named.scaling):
            lines.append(f"{where} has scale {module.scaling}, the report says {named.scaling}")
        if named.dtype is not None and module.dtype != named.dtype:
            lines.append(f"{where} is {module.dtype}, the report says {named.dtype}")
    # a bias of lora_B goes by its module's path in the file, the report by the module's name
    found = {n: d.shape for n, d in adapter.dense.items() if d.kind != "lora_bias"}
    heads = {n: s for n, s in named.heads.items() if not n.endswith(".lora_B.bias")}
    for name in sorted(found.keys() | heads.keys()):
        if found.get(name) != heads.get(name):
            has, said = found.get(name, "nothing"), heads.get(name, "nothing")
            lines.append(f"has {quoted(name)} of shape {has}, the report says {said}")
    for line in lines[:_MODULES_SHOWN]:
        yield f"{shown} {line}"
    if len(lines) > _MODULES_SHOWN:
        yield f"{shown}: {len(lines) - _MODULES_SHOWN} more differences in its modules"
