"""PEFT's `rank_pattern` and `alpha_pattern`: regular expressions that come from strangers.

PEFT looks a module up with `re.match(rf"(.*\\.)?({key})$", module)`, first key first. The same is
found here, but by a matcher whose steps are bounded (`pattern_matcher`), so that no key can make it
run for ever. Most keys are plain names: they are found in a dictionary, and no expression is parsed
for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from clair_cli.adapters.pattern_matcher import Pattern, Text, Unsupported, parse_pattern
from clair_cli.errors import RejectedClient
from clair_cli.text import quoted

MAX_KEYS = 4096
MAX_KEY_CHARS = 512
MAX_COMPILED_CHARS = 100_000  # of all keys that are compiled: 2 to 4 microseconds each
MAX_WORK = 1_000_000  # about a microsecond each

_PLAIN_KEY = re.compile(r"(\^?)((?:\\[._\-]|[\w\-/:@. ])+)\$?", re.ASCII)
# What a microsecond is enough for, measured at its worst: steps of the matcher, and characters of a
# text that are sorted. A class takes one for each different character.
_STEPS, _CHARACTERS = 3, 4
_LENGTHS = 64


def check_keys(keys: Iterable[str], field: str) -> None:
    """Refuse keys that are too long, that `pattern_matcher` does not read, or no expression.

    Raises:
        RejectedClient: names `field` and the key.
    """
    compiled = 0
    for key in keys:
        _check_key(key, f"{field} key {quoted(key)}")
        compiled += 0 if _PLAIN_KEY.fullmatch(key) else len(key)
        if compiled > MAX_COMPILED_CHARS:
            raise RejectedClient(
                f"{field} has keys that are patterns of more than {MAX_COMPILED_CHARS:,} "
                "characters together",
                expected="plain module names where there are many",
            )


def _check_key(key: str, where: str) -> None:
    if len(key) > MAX_KEY_CHARS:
        raise RejectedClient(f"{where} has {len(key):,} characters, more than {MAX_KEY_CHARS}")
    if _PLAIN_KEY.fullmatch(key):
        return
    try:
        _parsed(key)
        re.compile(rf"(.*\.)?({key})$")
    except Unsupported as error:
        raise RejectedClient(
            f"{where} is no regular expression that is read here: {error}",
            expected="module names, and expressions without back-references or flags",
        ) from None
    except (re.error, OverflowError) as error:
        raise RejectedClient(f"{where} is no regular expression: {error}") from None


class Lookup:
    """Finds the key of a module as PEFT's loop over all keys does, without that loop.

    A plain key matches a module's whole name, or what follows one of its dots; each '.' in the key
    stands for any character. So plain keys are grouped by their length and by the places of these
    dots, and a module's ending is looked up in the groups of its length: as one large number, in
    which a mask makes these places zero.

    Args:
        keys: that passed `check_keys`, in the file's order.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = tuple(keys)
        # length -> (anchored, mask) -> masked text -> the first such key's place in the file
        self._plain: dict[int, dict[tuple[bool, int], dict[int, int]]] = {}
        self._patterns: list[int] = []
        self._found: dict[str, str | None] = {}
        self._steps_of: dict[int, int] = {}
        for place, key in enumerate(self._keys):
            plain = _PLAIN_KEY.fullmatch(key)
            if plain is None:
                self._patterns.append(place)
                continue
            characters = re.findall(r"\\?.", plain[2])
            mask = _number("".join("\0" if c == "." else "\xff" for c in characters))
            groups = self._plain.setdefault(len(characters), {})
            texts = groups.setdefault((plain[1] == "^", mask), {})
            texts.setdefault(_number("".join(c[-1] for c in characters)) & mask, place)
        parsed = [_parsed(self._keys[place]) for place in self._patterns]
        self._classes = frozenset[str]().union(*(pattern.classes for pattern in parsed))

    def __len__(self) -> int:
        return len(self._keys)

    def first(self, module: str) -> str | None:
        """The first key that matches `module`, or None. Asked again, it remembers.

        >>> Lookup(["k_proj", "layers.0.q_proj"]).first("model.layers.0.q_proj")
        'layers.0.q_proj'
        """
        if module not in self._found:
            self._found[module] = self._first(module)
        return self._found[module]

    def work(self, modules: Iterable[str]) -> int:
        """About how many microseconds it takes to look all modules up once, at worst."""
        total = 0
        for module in modules:
            length, starts = len(module), list(_starts(module))
            total += len(starts) + len(self._patterns) * (1 + length // 256)
            total += sum(len(self._plain.get(length - start, ())) for start in starts)
            if self._patterns:
                total += length // _CHARACTERS + self._steps(length) // _STEPS
                total += len(self._classes) * len(set(module))
        return total

    def _steps(self, length: int) -> int:
        """At least the most steps of the matcher for all patterns and a module of that length."""
        length += -length % _LENGTHS  # few different ones, as counting takes time too
        if length not in self._steps_of:
            each = (_parsed(self._keys[place]).steps(length) for place in self._patterns)
            self._steps_of[length] = sum(each)
        return self._steps_of[length]

    def _first(self, module: str) -> str | None:
        best = min(self._plain_places(module), default=len(self._keys))
        asked = [place for place in self._patterns if place < best]
        text = Text(module if asked else "")
        for place in asked:
            if _matches(self._keys[place], text):
                return self._keys[place]
        return self._keys[best] if best < len(self._keys) else None

    def _plain_places(self, module: str) -> Iterator[int]:
        """The places of plain keys that match, of equal texts the first."""
        module = module.removesuffix("\n")  # '$' matches before one
        if "\n" in module:  # and '.' matches none
            return
        for start in _starts(module):
            groups = self._plain.get(len(module) - start)
            text = _number(module[start:]) if groups else 0
            for (anchored, mask), texts in (groups or {}).items():
                place = texts.get(text & mask)
                if place is not None and not (anchored and start):
                    yield place


def check_work(lookups: Iterable[tuple[Lookup, Iterable[str]]]) -> None:
    """Refuse a config whose lookups would take more than a second or so.

    Args:
        lookups: each with the modules that will be looked up in it.

    Raises:
        RejectedClient: names the numbers of keys and modules.
    """
    work, keys, looked_up = 0, 0, 0
    for lookup, modules in lookups:
        names = list(modules)
        if lookup and names:
            work += lookup.work(names)
            keys, looked_up = keys + len(lookup), max(looked_up, len(names))
    if work > MAX_WORK:
        raise RejectedClient(
            f"rank_pattern and alpha_pattern have {keys:,} keys for {looked_up:,} modules, too "
            "many to look up",
            expected="fewer patterns, or plain module names",
        )


def _starts(module: str) -> Iterator[int]:
    """Where a key may begin to match: at the front, and after each dot."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", module))


def _number(text: str) -> int:
    """The characters as one number, 8 bits each. A plain key has ASCII characters only, so all
    others may be one: '?', which no plain key has."""
    return int.from_bytes(text.encode("latin-1", "replace"), "little")


@lru_cache(maxsize=2 * MAX_KEYS)
def _parsed(key: str) -> Pattern:
    return parse_pattern(key)


def _matches(key: str, text: Text) -> bool:
    """Whether the whole text matches, or what follows one of its dots."""
    line = text.text.partition("\n")[0]  # '.' matches no newline
    starts = sum(1 << start for start in _starts(line))
    return bool(_parsed(key).ends(starts, text) & text.bounds("$"))
