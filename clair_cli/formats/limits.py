"""The sizes beyond which a client's files are refused instead of read. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from clair_cli.errors import UsageError
from clair_cli.text import quoted


@dataclass(frozen=True)
class Limits:
    """Upper bounds on a client's files, each at least 1. A client above one of them is rejected.

    Attributes:
        max_file_bytes: size of one weights file.
        max_total_bytes: size of all clients' weights files together. Above it, clients with files
            out of all proportion are rejected; where that is not enough, the whole input is.
        max_header_bytes: size of a weights file's JSON header.
        max_tensors: tensors in one file.
        max_name_chars: length of a tensor name.
        max_rank: LoRA rank of one module.
        max_config_bytes: size of one config file.
        max_clients: clients in one cohort; more refuse the whole input.
        max_work: elements of one client's factors, as a multiple of the median client's.
    """

    max_file_bytes: int = 4 * 1024**3
    max_total_bytes: int = 64 * 1024**3
    max_header_bytes: int = 8 * 1024**2
    max_tensors: int = 40_000
    max_name_chars: int = 512
    max_rank: int = 1024
    max_config_bytes: int = 1_000_000
    max_clients: int = 1000
    max_work: int = 8


# Limits by their names in `--limit NAME=VALUE`. No honest file comes near the others.
NAMES = {
    "clients": "max_clients",
    "file": "max_file_bytes",
    "total": "max_total_bytes",
    "header": "max_header_bytes",
    "tensors": "max_tensors",
    "rank": "max_rank",
    "work": "max_work",
}
_SIZES = ("file", "total", "header")
_TRUSTED = 8
LARGEST = 2**63 - 1  # every JSON reader of a report takes integers up to it
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def remedy(name: str) -> str:
    """What to do about an input above the limit that `--limit` calls `name`."""
    return f"raise it with --limit {name}=VALUE, if you trust the sender"


def parse_limits(given: Mapping[str, object] | Iterable[object]) -> Limits:
    """The limits with some of them replaced.

    Args:
        given: name to value, or texts `NAME=VALUE`. A value is a whole number of at least 1; one
            of a size may end in K, M, G or T (powers of 1024).

    Raises:
        UsageError: an unknown name, or no such value.

    >>> parse_limits(["file=2G", "clients=20"]).max_file_bytes
    2147483648
    """
    pairs = given.items() if isinstance(given, Mapping) else [_pair(item) for item in given]
    limits = Limits()
    for name, value in pairs:
        if name not in NAMES:
            raise UsageError(
                f"--limit: unknown name {quoted(name)}", hint=f"one of {', '.join(NAMES)}"
            )
        limits = replace(limits, **{NAMES[name]: _number(name, value)})
    return limits


def capped_limits(limits: Limits) -> Limits:
    """The limits, each at most 8 times its default. `verify` reads them from a report, which may be
    a stranger's."""
    default = vars(Limits())
    return Limits(**{k: min(v, _TRUSTED * default[k]) for k, v in vars(limits).items()})


def changed_limits(limits: Limits) -> dict[str, int]:
    """The limits that differ from the default, by their names in `--limit`."""
    default = Limits()
    values = {name: getattr(limits, field) for name, field in sorted(NAMES.items())}
    return {name: v for name, v in values.items() if v != getattr(default, NAMES[name])}


def _pair(item: object) -> tuple[str, str]:
    name, equals, value = str(item).partition("=")
    if not equals:
        raise UsageError(f"--limit: {quoted(item)} is not NAME=VALUE", hint="say, clients=2000")
    return name, value


def _number(name: str, value: object) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", str(value), re.ASCII | re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if match is None or int(match[1]) < 1 or (unit and name not in _SIZES):
        units = ", if need be with K, M, G or T behind it" if name in _SIZES else ""
        raise UsageError(
            f"--limit: {name} is {quoted(value)}, expected a whole number of at least 1{units}"
        )
    number = int(match[1]) * _UNITS[unit]
    if number > LARGEST:
        raise UsageError(f"--limit: {name} is {quoted(value)}, expected at most {LARGEST:,}")
    return number
