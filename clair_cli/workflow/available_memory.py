"""How much more memory this process may take, where the system says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Names of a control group's files: its limit, what it uses, and in memory.stat what of that is the
# page cache's and can be dropped; of version 2 and 1.
_VERSIONS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory() -> int | None:
    """The least that the machine, its control groups and `ulimit -v` leave, in bytes; None where
    nothing is known."""
    found = [*_of_machine(), *_of_groups(), *_of_address_space()]
    return max(0, min(found)) if found else None


def _of_machine() -> Iterator[int]:
    values = _table(PROC / "meminfo")
    if "MemAvailable:" in values:
        yield 1024 * (values["MemAvailable:"] + values.get("SwapFree:", 0))


def _of_groups() -> Iterator[int]:
    """What this process's control group and those above it leave."""
    for line in _text(PROC / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        kind, _, path = rest.partition(":")
        if kind not in _VERSIONS:
            continue
        limit, used, cache = _VERSIONS[kind]
        inside = Path(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            group = GROUPS / kind / folder
            with contextlib.suppress(ValueError):  # "max", or no such file
                most, now = int(_text(group / limit)), int(_text(group / used))
                yield most - now + _table(group / "memory.stat").get(cache, 0)


def _of_address_space() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _text(PROC / "self/statm").split()
    if soft != resource.RLIM_INFINITY and taken:
        yield soft - int(taken[0]) * resource.getpagesize()


def _table(path: Path) -> dict[str, int]:
    """Name to number of lines that begin with both."""
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str:
    """A file of the system's, "" where it can't be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
