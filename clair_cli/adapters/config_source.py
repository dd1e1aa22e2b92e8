"""A client's config: from a file of its own, from the weights file's header, or the cohort's."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from clair_cli.adapters.config import AdapterConfig, assumed_config, parse_config
from clair_cli.adapters.names.parts import KeyMap
from clair_cli.errors import RejectedClient
from clair_cli.formats.files import kind_of, real_path
from clair_cli.formats.limits import Limits
from clair_cli.formats.stores import read_small, status_of
from clair_cli.formats.strict_json import parse_strict
from clair_cli.remark import Remark, note
from clair_cli.store.address import Place
from clair_cli.text import first_few, quoted, some_of

HEADER_FIELD = "lora_adapter_metadata"


def find_config(
    paths: Iterable[Place],
    metadata: Mapping[str, str],
    keys: KeyMap,
    *,
    shared: Place | None,
    root: Place | None,
    assume_alpha: float | str | None,
    limits: Limits,
) -> tuple[AdapterConfig, tuple[Remark, ...]]:
    """The config of one client, and notes if it had to be assumed.

    Args:
        paths: files to try, in order; the first that exists is the one. A folder, or anything else
            that is no regular file, never is: another client may be called so.
        metadata: the weights file's header metadata, tried next.
        keys: the file's pairs; some formats need no config.
        shared: the cohort's config, tried last, and only for a file that does not say its own
            scale: by that metadata, by an alpha for every module, or because it is kohya's.
        root: real path of the cohort's folder, which no link may leave; None if the files are the
            caller's own, and no links.
        assume_alpha: alpha to assume where no config is found, or "rank"; None refuses.

    Raises:
        RejectedClient: none found, or the one found is bad; `path` is the config file.
    """
    tried = tuple(paths)
    no_files: list[str] = []
    for path in tried:
        if _is_config(path, no_files):
            return _from_file(path, root, limits), ()
    if HEADER_FIELD in metadata:
        return _from_header(metadata[HEADER_FIELD], keys, limits), ()
    if shared is not None:
        alone = keys.pairs and all(pair.key_alpha is not None for pair in keys.pairs)
        if _is_config(shared, no_files) and not (alone or keys.format == "kohya"):
            return _from_file(shared, root, limits), ()
        tried = tuple(dict.fromkeys((*tried, shared)))
    if keys.scale_inside:
        return inside_config(keys)
    if assume_alpha is not None:
        text = "alpha = rank" if assume_alpha == "rank" else f"alpha = {assume_alpha}"
        return assumed_config(assume_alpha), (note("alpha_assumed", f"no config: {text} assumed"),)
    looked = some_of([quoted(path.as_posix()) for path in tried], 5)
    text = f"no adapter config, so the scale is unknown; looked for {looked} and the header's "
    raise RejectedClient(
        "; ".join([text + HEADER_FIELD, *dict.fromkeys(no_files)]),
        found="no config",
        expected="adapter_config.json",
        hint="add the config, or give --assume-alpha N|rank",
    )


def inside_config(keys: KeyMap) -> tuple[AdapterConfig, tuple[Remark, ...]]:
    """The config of a file that needs none, and a note where its format's rule was needed."""
    without = [pair.module for pair in keys.pairs if pair.key_alpha is None]
    if not without or keys.format == "kohya":  # `check_header` notes it
        return assumed_config("rank"), ()
    text = "no config: alpha = rank, as diffusers loads it"
    return assumed_config("rank"), (note("alpha_missing", text),)


def _is_config(path: Place, no_files: list[str]) -> bool:
    """Whether a path is a regular file, or a link to one or to nothing.

    Args:
        no_files: gets a sentence about a folder or another kind of entry at the path.

    Raises:
        OSError: the system fails. (`os.path.lexists` would say no, and another config be used.)
    """
    try:
        mode = status_of(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(mode):
        with contextlib.suppress(OSError):  # `real_path` says where such a link leads
            mode = status_of(path, follow=True).st_mode
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return True
    no_files.append(f"{quoted(path.name)} is {kind_of(mode)}, not a regular file")
    return False


def _from_file(path: Place, root: Place | None, limits: Limits) -> AdapterConfig:
    shown = path.as_posix()
    try:
        real = path if root is None else real_path(path, root)
        data = read_small(real, shown, limits.max_config_bytes, root)
        return parse_config(_object(data, path.name, limits))
    except RejectedClient as error:
        error.path = error.path or shown
        raise


def _object(data: bytes, what: str, limits: Limits) -> dict[str, Any]:
    try:
        value = parse_strict(data, what, limits.max_config_bytes)
    except ValueError as error:
        raise RejectedClient(str(error)) from None
    if not isinstance(value, dict):
        raise RejectedClient(f"{what} is not a JSON object", expected="a JSON object")
    return value


def _from_header(text: str, keys: KeyMap, limits: Limits) -> AdapterConfig:
    """The config in a header: plain fields, or fields behind the name of a part ("unet.r")."""
    raw = _object(text.encode("utf-8"), f"header's {HEADER_FIELD}", limits)
    parts: dict[str, dict[str, Any]] = {}
    for key, value in raw.items():
        name, _, field = key.rpartition(".")
        parts.setdefault(name, {})[field] = value
    if parts.keys() <= {""}:
        return parse_config(raw)
    used = {pair.module.split(".")[0] for pair in keys.pairs} & parts.keys()
    if "" in parts or (len(parts) > 1 and not used):
        listed = first_few(parts)
        raise RejectedClient(
            f"header's {HEADER_FIELD} describes several adapters: prefixes {listed}",
            found=f"prefixes {listed}",
            expected="one prefix or none, or the names that begin the modules",
        )
    return _of_parts(parts) if used else parse_config(next(iter(parts.values())))


def _of_parts(parts: Mapping[str, Mapping[str, Any]]) -> AdapterConfig:
    """One config of a pipeline's parts; `fan_in_fan_out` must be the same in all of them."""
    configs = {name: parse_config(raw) for name, raw in sorted(parts.items())}
    if len({config.fan_in_fan_out for config in configs.values()}) > 1:
        raise RejectedClient(f"header's {HEADER_FIELD}: fan_in_fan_out differs between its parts")
    first = next(iter(configs.values()))
    return AdapterConfig(
        r=None,
        lora_alpha=None,
        fan_in_fan_out=first.fan_in_fan_out,
        base_model_name_or_path=first.base_model_name_or_path,
        revision=first.revision,
        raw={name: dict(raw) for name, raw in parts.items()},
        parts=configs,
    )
