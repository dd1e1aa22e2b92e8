"""Pattern keys: PEFT's own loop finds the same, and what that costs is counted and bounded."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clair_cli.adapters import patterns
from clair_cli.adapters.config import AdapterConfig, parse_config
from clair_cli.errors import RejectedClient
from tests.hostile import config

PLAIN = ["a", "a.b", r"a\.b", r"\_a\-", ".", "..", "a$", "^a", "^.$", r"^a\..$"]
NOT_PLAIN = [".*b", "[ab]", r"\d+", "(a|b)q", "a.*", "[^a]", r"\D", "a?", r"\Wa"]
KEYS = st.lists(
    st.one_of(
        st.text("abq.0", min_size=1, max_size=5),
        st.sampled_from(PLAIN),
        st.sampled_from(NOT_PLAIN),
    ),
    max_size=8,
    unique=True,
)
MODULES = st.one_of(st.text("abq.0\n", max_size=8), st.text("ab._-?\u00e9\ud800\x00\n", max_size=6))


def plain_loop(keys: list[str], module: str) -> str | None:
    """What PEFT does."""
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), None)


@given(KEYS, MODULES)
@example(["b", "a.b", ".b"], "a.b")
@example(["q.b", "a.b"], "a.b")
@example([".b", "b"], "x.\u00e9b")
@example(["a"], "x.a\n")
@example(["a", "."], "x\n.a")
@example(["a."], "a\n\n")
def test_lookup_is_that_of_the_plain_loop(keys: list[str], module: str) -> None:
    patterns.check_keys(keys, "rank_pattern")
    lookup = patterns.Lookup(keys)
    expected = plain_loop(keys, module)
    assert lookup.first(module) == lookup.first(module) == expected
    assert pickle.loads(pickle.dumps(lookup)).first(module) == expected


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The keys that are matched one by one from now on."""
    calls: list[Any] = []
    real = patterns._compiled

    def counting(key: str) -> Any:
        calls.append(key)
        return real(key)

    monkeypatch.setattr(patterns, "_compiled", counting)
    return calls


def look_up(parsed: AdapterConfig, modules: list[str]) -> None:
    """What the reader does with one client's modules."""
    parsed.check_patterns(modules)
    for module in modules:
        parsed.rank_for(module)
        parsed.alpha_for(module, 1)
        parsed.scaling(module, 1)


def test_plain_keys_are_never_matched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 dotted names and 400 keys were 120,000 matches a lookup, three times."""
    calls = counted(monkeypatch)
    keys = {f"block.{i}.q_proj": 1 for i in range(400)}
    modules = ["a." * 200 + f"layer.{i}.k_proj" for i in range(300)]
    look_up(parse_config(config(rank_pattern=keys, alpha_pattern=keys)), modules)
    assert calls == []


def test_each_module_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parse_config(config(rank_pattern={".*x": 1, "q": 2}, alpha_pattern={"[0-9]": 1}))
    calls = counted(monkeypatch)
    look_up(parsed, ["model.q", "model.k"])
    assert sorted(calls) == [".*x", ".*x", "[0-9]", "[0-9]"]


def test_a_pattern_behind_the_plain_key_found_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = patterns.Lookup(["[xy]", "q", "q.*"])
    calls = counted(monkeypatch)
    assert lookup.first("a.q") == "q"
    assert calls == ["[xy]"]


def dotted(count: int) -> list[str]:
    return [f"{i:04d}." + "a." * 250 for i in range(count)]


def flat(count: int) -> list[str]:
    return [f"{i:04d}" + "a" * 500 for i in range(count)]


def masked(count: int) -> list[str]:
    """Plain keys of one length, each with its dots elsewhere."""
    return [f"{n:012b}".replace("1", ".").replace("0", "b") for n in range(count)]


@pytest.mark.parametrize(
    ("keys", "modules", "work"),
    [
        (["q"], flat(10), 10),
        (["q"], dotted(10), 10 * 252),
        (masked(100), [f"{i:04d}." + "c" * 12 for i in range(10)], 10 * 2 + 10 * 100),
        (["[ab]"], flat(10), 10 * (1 + 2)),
        (["[ab]c"], dotted(10), 10 * (252 + 2 + 255 // 25)),
        ([".*b"], dotted(10), 10 * (252 + 2 + 255 * 505 // 200)),
        (["(a|a)" * 8 + ".*a.*b"], flat(10), 10 * (1 + 2 + 4 * 256 * 504**2 // 2400)),
    ],
)
def test_work_is_counted(keys: list[str], modules: list[str], work: int) -> None:
    patterns.check_keys(keys, "rank_pattern")
    assert patterns.Lookup(keys).work(modules) == work


def test_work_is_bounded_for_a_whole_config() -> None:
    """Just below, just above; ranks and alphas count together, and so do a pipeline's parts."""
    key = {"(a|a)" * 8 + ".*b": 1}
    fits = patterns.MAX_WORK // patterns.Lookup(key).work(flat(1))
    parse_config(config(alpha_pattern=key)).check_patterns(flat(fits))
    with pytest.raises(RejectedClient, match=f"1 keys for {fits + 1:,} modules"):
        parse_config(config(alpha_pattern=key)).check_patterns(flat(fits + 1))
    both = parse_config(config(alpha_pattern=key, rank_pattern=key))
    both.check_patterns(flat(fits // 2))
    with pytest.raises(RejectedClient, match="2 keys"):
        both.check_patterns(flat(fits // 2 + 1))
    part = parse_config(config(alpha_pattern=key))
    parts = AdapterConfig("LORA", None, None, parts={"unet": part, "text": part})
    parts.check_patterns([f"{p}.{m}" for p in parts.parts for m in flat(fits // 2)])
    with pytest.raises(RejectedClient, match="2 keys"):
        parts.check_patterns([f"{p}.{m}" for p in parts.parts for m in flat(fits // 2 + 1)])


def test_characters_to_compile_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_COMPILED_CHARS", 10)
    parse_config(config(rank_pattern={"[ab]x": 1, "[ab]y": 1, "plain.name": 1}))
    with pytest.raises(RejectedClient, match="more than 10 characters together"):
        parse_config(config(rank_pattern={"[ab]x": 1, "[ab]yz": 1}))


@pytest.mark.parametrize(
    ("fits", "too_much", "words"),
    [
        (["q" * 512], ["q" * 513], "has 513 characters"),
        (["a?b?"], ["a?b?c?"], "more than 2 quantifiers"),
        (["(a|a)" * 8], ["(a|a)" * 7 + "(a|a|a)"], "more than 256 alternatives"),
        ([f"q{i}" for i in range(4096)], [f"q{i}" for i in range(4097)], "4,097 keys"),
    ],
    ids=["characters", "quantifiers", "alternatives", "keys"],
)
def test_limits_on_keys(fits: list[str], too_much: list[str], words: str) -> None:
    parse_config(config(rank_pattern=dict.fromkeys(fits, 1)))
    with pytest.raises(RejectedClient, match=words):
        parse_config(config(rank_pattern=dict.fromkeys(too_much, 1)))
