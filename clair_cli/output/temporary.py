"""Temporary names beside a target: made for one run, and found again when it was killed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from clair_cli.output.targets import resolve

_MADE_HERE: set[str] = set()  # temporary names of this process


def temp_name(target: Path) -> Path:
    """A new temporary name beside a target: `.NAME.clair-PID-HEX.tmp`."""
    name = f"{_short(target)}.clair-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    _MADE_HERE.add(name)
    return target.parent / name


def leftovers(path: Path) -> list[str]:
    """Temporary names beside `path` that a killed run left there; those of a live one are not."""
    target = resolve(path)
    try:
        names = sorted(os.listdir(target.parent))
    except OSError:
        return []
    return [name for name, pid in _temp_names(target, names) if not _runs_elsewhere(pid)]


def _temp_names(target: Path, names: Sequence[str]) -> list[tuple[str, int]]:
    """Those of `names` that another process made for a target, with its number."""
    pattern = re.compile(re.escape(_short(target)) + r"\.clair-(\d+)-[0-9a-f]{8}\.tmp")
    found = [(name, pattern.fullmatch(name)) for name in names]
    return [(name, int(m[1])) for name, m in found if m and name not in _MADE_HERE]


def _short(target: Path) -> str:
    return "." + os.fsdecode(os.fsencode(target.name)[:150])


def _runs_elsewhere(pid: int) -> bool:
    """Whether another process of that number runs on this machine. (In a container every run may
    have the same one.)"""
    if os.name != "posix" or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True
