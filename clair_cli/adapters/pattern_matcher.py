r"""Regular expressions from strangers, matched in a bounded number of steps.

Python's matcher tries one way after another, and an expression can make it try exponentially many.
Here all ways are followed at once: the places in a text that can be reached are the bits of one
number, and each part of the expression takes such a number to the next. A repetition goes on only
from places that are new, at most once for each place. So the steps have a bound that is known from
the expression and the text's length: `Pattern.steps`.

Only whether there is a match is asked for, never which, so that greedy and lazy are the same. Read
are characters, `.`, classes, `^ $ \b \B \A \Z`, groups, alternatives, `* + ? {m,n}` and their lazy
forms, look-ahead and look-behind. Refused are back-references, conditions, atomic groups, flags,
possessive quantifiers and comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

MAX_COUNT = 1000  # in {m,n}
MAX_DEPTH = 16  # of groups in one another

_ANY = r"[^\n]"
_CLASSES = frozenset("dDwWsS")
_CONTROLS = frozenset("nrtfva")
_BOUNDS = {"b": "b", "B": "B", "A": "^", "Z": "Z"}
_COUNT = re.compile(r"\{([0-9]*)(?:(,)([0-9]*))?\}")
_GROUPS = (("(?:", None), ("(?=", (False, False)), ("(?!", (False, True)), ("(?<=", (True, False)),
           ("(?<!", (True, True)))  # fmt: skip
_ROUNDS = 10  # of `_run_back`: texts have at most 2**10 characters or so


class Unsupported(ValueError):
    """An expression outside of what is read; the text says what."""


class Text:
    """A text to match, and where each of its characters stands.

    Attributes:
        length: in characters.
        every: a bit for each place, from before the first character to behind the last.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.length = len(text)
        self.every = (1 << (self.length + 1)) - 1
        self._by_character: dict[str, int] = {}
        for place, character in enumerate(text):
            self._by_character[character] = self._by_character.get(character, 0) | 1 << place
        self._where: dict[str, int] = {}

    def where(self, atom: str) -> int:
        """A bit for each place whose next character the atom matches.

        Args:
            atom: one character, or the text of a class or an escape.
        """
        if len(atom) == 1:
            return self._by_character.get(atom, 0)
        if atom not in self._where:
            found = 0
            for character, places in self._by_character.items():
                found |= places if _is_one(atom, character) else 0
            self._where[atom] = found
        return self._where[atom]

    def bounds(self, kind: str) -> int:
        """A bit for each place where `^`, `$`, `Z` (the very end), `b` or `B` holds."""
        end = 1 << self.length
        if kind == "^":
            return 1
        if kind == "Z":
            return end
        if kind == "$":
            return end | (end >> 1 if self.text.endswith("\n") else 0)
        words = self.where(r"\w")
        bounds = (words ^ (words << 1)) & self.every
        if kind == "B":
            return self.every & ~bounds if self.length else 0
        return bounds


@lru_cache(maxsize=65536)
def _is_one(atom: str, character: str) -> bool:
    return _compiled(atom).fullmatch(character) is not None


@lru_cache(maxsize=32768)  # more than the keys of one config can have
def _compiled(atom: str) -> re.Pattern[str]:
    return re.compile(atom)


class Node(Protocol):
    """A part of an expression."""

    def ahead(self, places: int, text: Text) -> int:
        """Where a match that begins at one of these places may end."""

    def back(self, places: int, text: Text) -> int:
        """Where a match that ends at one of these places may begin."""

    def steps(self, length: int) -> int:
        """The most elementary steps that either takes, for a text of that length."""


@dataclass(frozen=True)
class _Atom:
    atom: str

    def ahead(self, places: int, text: Text) -> int:
        return (places & text.where(self.atom)) << 1

    def back(self, places: int, text: Text) -> int:
        return places >> 1 & text.where(self.atom)

    def steps(self, length: int) -> int:
        return 1


@dataclass(frozen=True)
class _Bound:
    kind: str

    def ahead(self, places: int, text: Text) -> int:
        return places & text.bounds(self.kind)

    def back(self, places: int, text: Text) -> int:
        return self.ahead(places, text)

    def steps(self, length: int) -> int:
        return 3


@dataclass(frozen=True)
class _Row:
    parts: tuple[Node, ...]

    def ahead(self, places: int, text: Text) -> int:
        for part in self.parts:
            places = part.ahead(places, text)
        return places

    def back(self, places: int, text: Text) -> int:
        for part in reversed(self.parts):
            places = part.back(places, text)
        return places

    def steps(self, length: int) -> int:
        return 1 + sum(part.steps(length) for part in self.parts)


@dataclass(frozen=True)
class _Either:
    parts: tuple[Node, ...]

    def ahead(self, places: int, text: Text) -> int:
        found = 0
        for part in self.parts:
            found |= part.ahead(places, text)
        return found

    def back(self, places: int, text: Text) -> int:
        found = 0
        for part in self.parts:
            found |= part.back(places, text)
        return found

    def steps(self, length: int) -> int:
        return 1 + sum(1 + part.steps(length) for part in self.parts)


@dataclass(frozen=True)
class _Run:
    """Any number of characters of one atom, in few steps."""

    atom: str

    def ahead(self, places: int, text: Text) -> int:
        """The carry of an addition runs along the characters: from the first start of each row of
        them to its end."""
        where = text.where(self.atom)
        return places | (((places & where) + where) ^ where)

    def back(self, places: int, text: Text) -> int:
        """Twice as far in each round, through rows that are long enough."""
        rows, far = text.where(self.atom), 1
        while far <= text.length:
            places |= places >> far & rows
            rows &= rows >> far
            far *= 2
        return places

    def steps(self, length: int) -> int:
        return max(_ROUNDS, length.bit_length())


@dataclass(frozen=True)
class _Repeat:
    """`least` times at least, and `most` more at most; None: any number more."""

    part: Node
    least: int
    most: int | None

    def ahead(self, places: int, text: Text) -> int:
        return self._repeated(places, text, ahead=True)

    def back(self, places: int, text: Text) -> int:
        return self._repeated(places, text, ahead=False)

    def _repeated(self, places: int, text: Text, *, ahead: bool) -> int:
        step = self.part.ahead if ahead else self.part.back
        for _ in range(self.least):
            places = step(places, text)
        found = new = places
        times = 0
        while new and (self.most is None or times < self.most):
            new = step(new, text) & ~found
            found |= new
            times += 1
        return found

    def steps(self, length: int) -> int:
        more = length + 1 if self.most is None else min(self.most, length + 1)
        return (self.least + more) * (1 + self.part.steps(length))


@dataclass(frozen=True)
class _Look:
    part: Node
    behind: bool
    negative: bool

    def ahead(self, places: int, text: Text) -> int:
        look = self.part.ahead if self.behind else self.part.back
        found = look(text.every, text)
        return places & (~found if self.negative else found)

    def back(self, places: int, text: Text) -> int:
        return self.ahead(places, text)

    def steps(self, length: int) -> int:
        return 1 + self.part.steps(length)


@dataclass(frozen=True)
class Pattern:
    """An expression, parsed.

    Attributes:
        classes: its classes and escapes. For each of them every different character of a text is
            looked at once, whatever the number of expressions.
    """

    node: Node
    classes: frozenset[str]

    def ends(self, places: int, text: Text) -> int:
        """Where a match that begins at one of these places may end; both are bits, as in `Text`."""
        return self.node.ahead(places, text) & text.every

    def steps(self, length: int) -> int:
        """The most steps that `ends` takes for a text of that length, its classes apart."""
        return self.node.steps(length)


def parse_pattern(source: str) -> Pattern:
    """Parse an expression.

    Raises:
        Unsupported: something that is not read, or not well formed.
    """
    parser = _Parser(source)
    node = parser.either()
    if parser.place < len(source):
        raise Unsupported("a ')' too many")
    return Pattern(node, frozenset(parser.classes))


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.place = 0
        self.depth = 0
        self.classes: set[str] = set()

    def either(self) -> Node:
        parts = [self._row()]
        while self._take("|"):
            parts.append(self._row())
        return parts[0] if len(parts) == 1 else _Either(tuple(parts))

    def _row(self) -> Node:
        parts: list[Node] = []
        while self.place < len(self.source) and self.source[self.place] not in "|)":
            parts.append(self._repeated(self._item()))
        return parts[0] if len(parts) == 1 else _Row(tuple(parts))

    def _take(self, text: str) -> bool:
        if not self.source.startswith(text, self.place):
            return False
        self.place += len(text)
        return True

    def _item(self) -> Node:
        character = self.source[self.place]
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        self.place += 1
        if character == "\\":
            return self._escape()
        if character in "^$":
            return _Bound(character)
        if character in "*+?":
            raise Unsupported(f"nothing to repeat before {character!r}")
        if character == ".":
            character = _ANY
            self.classes.add(character)
        return _Atom(character)

    def _escape(self) -> Node:
        character = self.source[self.place : self.place + 1]
        self.place += 1
        if character in _CLASSES or character in _CONTROLS:
            self.classes.add(f"\\{character}")
            return _Atom(f"\\{character}")
        if character in _BOUNDS:
            self.classes.add(r"\w")
            return _Bound(_BOUNDS[character])
        if not character or character.isalnum():
            raise Unsupported(f"\\{character} is not read")
        return _Atom(character)

    def _class(self) -> Node:
        begin = self.place
        self.place += 1
        self._take("^")
        self._take("]")
        while self.place < len(self.source) and self.source[self.place] != "]":
            self.place += 2 if self.source[self.place] == "\\" else 1
        if not self._take("]"):
            raise Unsupported("a '[' that is not closed")
        text = self.source[begin : self.place]
        inner = text[1:-1].replace("\\\\", "")
        if re.search(r"(?<!\\)\[|--|&&|~~|\|\||\\[0-9xuUN]", inner):
            raise Unsupported(f"the class {text} is not read")
        self.classes.add(text)
        return _Atom(text)

    def _group(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported(f"groups more than {MAX_DEPTH} deep")
        look: tuple[bool, bool] | None = None
        for opening, kind in _GROUPS:
            if self._take(opening):
                look = kind
                break
        else:
            name = re.compile(r"\(\?P<[A-Za-z_]\w*>", re.ASCII).match(self.source, self.place)
            self.place = name.end() if name else self.place + 1
            if self.source.startswith("?", self.place):
                raise Unsupported("a group that begins with (? is not read")
        node = self.either()
        if not self._take(")"):
            raise Unsupported("a '(' that is not closed")
        self.depth -= 1
        return node if look is None else _Look(node, *look)

    def _repeated(self, node: Node) -> Node:
        counts = self._counts()
        if counts is None:
            return node
        least, most = counts
        if self._take("+"):
            raise Unsupported("possessive quantifiers are not read")
        self._take("?")
        if self._counts() is not None:
            raise Unsupported("multiple repeat")
        if isinstance(node, _Atom) and most is None:
            return _Row((*[node] * least, _Run(node.atom)))
        return _Repeat(node, least, most)

    def _counts(self) -> tuple[int, int | None] | None:
        """What the quantifier here asks for: how often, and how often more; None without one."""
        if self._take("*"):
            return 0, None
        if self._take("+"):
            return 1, None
        if self._take("?"):
            return 0, 1
        match = _COUNT.match(self.source, self.place)
        if match is None or match[0] == "{}":
            return None
        self.place = match.end()
        least = int(match[1] or 0)
        most = least if match[2] is None else int(match[3]) if match[3] else None
        if max(least, most or 0) > MAX_COUNT:
            raise Unsupported(f"a count above {MAX_COUNT:,}")
        if most is not None and most < least:
            raise Unsupported("a count with its larger number first")
        return least, None if most is None else most - least
