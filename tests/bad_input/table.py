"""The contract on bad input: one row for each kind, with the exit code of `clair merge`.

A test names the rows it covers with `covers` or `cases`; `test_all_rows.py` counts them. Codes
are those with the default options; `strict` is the code with `--strict`, where it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Row(NamedTuple):
    """What comes in, how the run ends, and what must not happen."""

    what: str
    code: int
    never: str = ""
    strict: int | None = None


# fmt: off
ROWS = {
    1: Row("folder does not exist", 2, "torch imported"),
    2: Row("path is a file, not a folder", 2),
    3: Row("empty folder", 4, "exit 0 with an empty adapter"),
    4: Row("folder with other files only", 4, "a clean bill of health"),
    5: Row("one client", 5, "a verdict"),
    6: Row("two clients", 5, "a majority claimed"),
    7: Row("fewer than --min-clients after rejection", 4, "a silent merge of the rest"),
    8: Row("empty file", 0, "the round stopped", 4),
    9: Row("truncated file", 0, strict=4),
    10: Row("trailing bytes", 0, "accepted", 4),
    11: Row("header length above the file's or the limit", 0, "allocated", 4),
    12: Row("header not JSON, not UTF-8, an array", 0, strict=4),
    13: Row("HTML page, git-lfs pointer", 0, "'header too large'", 4),
    14: Row("overlapping offsets, hole", 0, strict=4),
    15: Row("tensor name given twice", 0, "the last one wins", 4),
    16: Row("metadata key given twice, extra field", 0, strict=4),
    17: Row("shape times dtype is not the offsets", 0, strict=4),
    18: Row("10^12 elements in a small file", 0, "allocated", 4),
    19: Row("sparse file of 200 GB", 0, "mapped or read", 4),
    20: Row("axis of length 0, absurd axis", 0, "TypeError", 4),
    21: Row("300,000 tensors", 0, "seconds of parsing", 4),
    22: Row("100 axes, a factor that is no matrix", 0, strict=4),
    23: Row("config nested deeply", 0, "RecursionError", 4),
    24: Row("config above 1 MB, 5,000 digits, NaN", 0, "ValueError", 4),
    25: Row("no config anywhere", 0, "a silent guess", 4),
    26: Row("config's rank is not the tensors'", 0, "the config trusted", 4),
    27: Row("alpha 1e6, or by a pattern", 0, "judged on the raw factors"),
    28: Row("rsLoRA mixed with plain", 0, "a wrong scale"),
    29: Row("DoRA, lora_bias, KaSA, AdaLoRA, IA3, PiSSA", 0, "a silent wrong merge", 4),
    30: Row("heads and token rows that can't be read", 0, "copied into the output", 4),
    31: Row("lora_A alone", 0, strict=4),
    32: Row("module sets differ", 0, "zero-filled unnoticed"),
    33: Row("module that most clients lack", 0, "a similarity claimed there"),
    34: Row("in or out features differ", 0, "torch's own words", 4),
    35: Row("ranks differ", 0, "refused"),
    36: Row("no two clients agree on shapes", 4, "one picked at random"),
    37: Row("another base model", 0, "a base model loaded", 4),
    38: Row("base model not named, or a local path", 0, "the path opened"),
    39: Row("dtypes mixed", 0, "RuntimeError"),
    40: Row("8-bit floats", 0, "KeyError", 4),
    41: Row("int8, bool, complex, F4, F6", 0, "cast silently", 4),
    42: Row("NaN or Inf", 0, "NaN in the output", 4),
    43: Row("finite, but its square overflows", 0, "infinite scores", 4),
    44: Row("subnormal numbers only", 0, "division by zero"),
    45: Row("all-zero adapter", 0, "NaN cosine"),
    46: Row("everybody all zero", 5, "0/0"),
    47: Row("result above float16", 0, "Inf written"),
    48: Row("byte-identical clients", 0, "n votes"),
    49: Row("same update in other factors", 0, "missed"),
    50: Row("one client as folder and as file", 0, "two votes"),
    51: Row("half or more of the clients identical", 0, "the honest flagged"),
    52: Row("two coherent groups of similar size", 5, "one picked at random"),
    53: Row(".bin only", 0, "unpickled", 4),
    54: Row(".safetensors and .bin", 0, ".bin preferred"),
    55: Row("pickle or zip called .safetensors", 0, strict=4),
    56: Row(".zip, .tar, .npz", 0, "unpacked", 4),
    57: Row("config without weights", 0, "asked of a hub", 4),
    58: Row("sharded adapter whose index leaves the folder", 0, "opened outside", 4),
    59: Row("link out of the folder", 0, "read", 4),
    60: Row("link loop, dangling link", 0, "hang", 4),
    61: Row("hard link, link to another client", 0),
    62: Row("FIFO, socket, device", 0, "hang", 4),
    63: Row("unreadable file or folder", 0, "counted clean", 4),
    64: Row("file that changes or vanishes during the run", 0, "SIGBUS, mixed bytes", 4),
    65: Row("name with newline, ESC, bidi, markup", 0, "injection"),
    66: Row("name not UTF-8", 0, "UnicodeEncodeError"),
    67: Row("names that differ in case or Unicode form only", 0, "one hides the other"),
    68: Row("name that begins with - or a space", 0, "taken as an option"),
    69: Row("hidden files, editors' backups", 0, "read as clients"),
    70: Row("10,000 clients", 4, "n^2 memory"),
    71: Row("output exists", 6, "overwritten"),
    72: Row("output's folder does not exist", 2, "created silently"),
    73: Row("output's folder is read-only", 6, "minutes of work lost"),
    74: Row("output inside the input", 2, "read as a client next time"),
    75: Row("output is an input, also by a link", 2, "the input destroyed"),
    76: Row("output is a FIFO, socket or device", 2, "the device replaced"),
    77: Row("output is a link", 0, "the link replaced"),
    78: Row("report and adapter at one path", 2),
    79: Row("disk full at the report, at the adapter", 6, "truncated, old file lost"),
    80: Row("-o - at a terminal", 2, "binary on the screen"),
    81: Row("| head", 3, "traceback, 1"),
    82: Row("stdout full, or closed at the start", 6, "exit 0"),
    83: Row("Ctrl-C, also twice", 130, "temporary file, half a report"),
    84: Row("SIGTERM", 143, "temporary file left"),
    85: Row("SIGKILL", 137, "a torn file"),
    86: Row("two runs to one output", 0, "a torn file"),
    87: Row("out of memory", 1),
    88: Row("torch missing or broken", 1, "also on --help"),
    89: Row("unknown option, typo", 2),
    90: Row("--fail-on 200%, negative, NaN", 2, "always or never trips"),
    91: Row("unknown config key, config in the clients' folder", 2, "the attacker's obeyed"),
    92: Row("allowance expired, or its hash differs", 0, "trusted by name"),
    93: Row("solver does not converge", 0, "another verdict, or no word"),
    94: Row("NO_COLOR, dumb terminal, no terminal, COLUMNS=20", 0, "ANSI, names cut"),
    95: Row("ASCII locale", 0, "UnicodeEncodeError"),
    96: Row("order of clients, folder renamed", 0, "other bytes"),
    97: Row("run twice, one or two threads", 0, "other bytes"),
    98: Row("no network", 0, "any connection"),
    99: Row("read-only input, other umask", 0, "mode 0600, input written to"),
    100: Row("old report given to a later command", 2, "KeyError"),
    101: Row("object key with '..', '//', a control character", 0, "read, the round lost", 4),
    102: Row("client with more objects than are listed", 0, "memory, the round lost", 4),
    103: Row("more objects below the address than are listed", 4, "memory"),
    104: Row("such a key beside the clients' folders", 4, "a client left out unsaid"),
    105: Row("object that is a folder of others too", 0, "one of them read", 4),
    106: Row("object replaced, gone, refused or failing", 0, "mixed bytes, the round lost", 4),
}
# fmt: on

# No config file of clair's own yet, no allowances, no command that reads a report.
LATER = {91, 92, 100}


def covers(*numbers: int) -> Callable[[Any], Any]:
    """Run a test once for each row; it takes the number as `row`."""
    return pytest.mark.parametrize("row", numbers, ids=[f"row-{n:03}" for n in numbers])


@dataclass(frozen=True)
class Bad:
    """One bad client, put into a folder of good ones.

    Attributes:
        row: the row it belongs to. name: which of the row's cases it is.
        make: called with the folder of clients; the client it makes is called "bad".
        says: what its reason must contain.
        verdict: "rejected", or "contaminated" for what can be read.
        entry: the client's name, where the file's kind makes it another one.
    """

    row: int
    name: str
    make: Callable[[Path], None]
    says: tuple[str, ...]
    verdict: str = "rejected"
    entry: str = "bad"


def cases(bad: Iterable[Bad]) -> Callable[[Any], Any]:
    """Run a test once for each case; it takes it as `case`."""
    listed = list(bad)
    ids = [f"row-{case.row:03}-{case.name.replace(' ', '-')}" for case in listed]
    assert len(set(ids)) == len(ids)
    return pytest.mark.parametrize("case", listed, ids=ids)
