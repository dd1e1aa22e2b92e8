"""PEFT's `rank_pattern` and `alpha_pattern`: regular expressions that come from strangers.

PEFT looks a module up with `re.match(rf"(.*\\.)?({key})$", module)`, first key first. The same is
done here, but only for keys in a small subset of the language (names, classes, at most two
quantifiers, flat groups), so that no key can make the matcher run for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from clair_cli.errors import RejectedClient
from clair_cli.formats.strict_json import quoted

MAX_KEYS = 4096
MAX_KEY_CHARS = 512
MAX_QUANTIFIERS = 2
MAX_ALTERNATIVES = 256
MAX_WORK = 10_000_000  # about a microsecond each

_ATOM = r"(?:\\[.dwDWsS_\-]|\[\^?(?:[\w\-.]|\\[.dw\-])+\]|[\w\-/:@. ])"
_GROUP = rf"\((?:\?:)?{_ATOM}+(?:\|{_ATOM}+)*\)"
_SAFE_KEY = re.compile(rf"\^?(?:{_GROUP}|{_ATOM}[*+?]?)+\$?", re.ASCII)
_QUANTIFIER = re.compile(r"(?<!\()[*+?]")
_GROUP_BODY = re.compile(_GROUP, re.ASCII)


def check_key(key: str, field: str) -> None:
    """Refuse a key that is too long, outside the subset, or no regular expression.

    Raises:
        RejectedClient: names `field` and the key.
    """
    where = f"{field} key {quoted(key)}"
    if len(key) > MAX_KEY_CHARS:
        raise RejectedClient(f"{where} has {len(key):,} characters, more than {MAX_KEY_CHARS}")
    if not _SAFE_KEY.fullmatch(key):
        raise RejectedClient(
            f"{where} is not a module name or a simple pattern",
            expected="module names, '.', '\\d+', '.*', '[0-9]', '(a|b)'",
        )
    if len(_QUANTIFIER.findall(key)) > MAX_QUANTIFIERS:
        raise RejectedClient(f"{where} has more than {MAX_QUANTIFIERS} quantifiers")
    if _alternatives(key) > MAX_ALTERNATIVES:
        raise RejectedClient(f"{where} has more than {MAX_ALTERNATIVES} alternatives")
    try:
        _compiled(key)
    except re.error as error:
        raise RejectedClient(f"{where} is no regular expression: {error}") from None


def first_match(patterns: Mapping[str, float], module: str) -> str | None:
    """The first key that matches `module` as PEFT matches it, or None.

    >>> first_match({"k_proj": 4, "layers.0.q_proj": 8}, "model.layers.0.q_proj")
    'layers.0.q_proj'
    """
    for key in patterns:
        if _compiled(key).match(module):
            return key
    return None


def check_work(patterns: Iterable[str], modules: Iterable[str], field: str) -> None:
    """Refuse a config whose lookups over all `modules` would take more than some seconds.

    Raises:
        RejectedClient: names `field` and the numbers of keys and modules.
    """
    keys = list(patterns)
    lengths = [len(module) for module in modules]
    if not keys or not lengths:
        return
    per_module = sum(_work(key, max(lengths)) for key in keys)
    if per_module * len(lengths) > MAX_WORK:
        raise RejectedClient(
            f"{field} has {len(keys):,} keys for {len(lengths):,} modules, too many to look up"
        )


def _work(key: str, length: int) -> int:
    quantifiers = len(_QUANTIFIER.findall(key))
    steps: int = 1 + (length ** (quantifiers + 1) // 500 if quantifiers else 0)
    return steps * _alternatives(key)


def _alternatives(key: str) -> int:
    product = 1
    for group in _GROUP_BODY.findall(key):
        product *= 1 + str(group).count("|")
    return product


@lru_cache(maxsize=2 * MAX_KEYS)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
