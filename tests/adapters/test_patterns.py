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
    real = patterns._matches

    def counting(key: str, text: Any) -> Any:
        calls.append(key)
        return real(key, text)

    monkeypatch.setattr(patterns, "_matches", counting)
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
        (["xy|z"], flat(1), 1 + 2 + 504 // 4 + (1 + 4 + 2) // 3),
        (["(xy)*"], flat(1), 1 + 2 + 504 // 4 + 513 * 4 // 3),
        (["(xy){3,5}"], flat(1), 1 + 2 + 504 // 4 + 5 * 4 // 3),
        (["((x)*y)*"], flat(1), 1 + 2 + 504 // 4 + 513 * (1 + 1 + 1 + 10 + 1) // 3),
        (["((xy)*z)*"], flat(1), 1 + 2 + 504 // 4 + 513 * (1 + 1 + 513 * 4 + 1) // 3),
        (["[xy]z"], flat(1), 1 + 2 + 504 // 4 + 3 // 3 + 1 * 2),
        ([r"\d+", r"x\d", r"(?=\D)"], flat(1), 1 + 6 + 504 // 4 + (12 + 3 + 2) // 3 + 2 * 2),
    ],
)
def test_work_is_counted(keys: list[str], modules: list[str], work: int) -> None:
    patterns.check_keys(keys, "rank_pattern")
    assert patterns.Lookup(keys).work(modules) == work


def test_work_is_bounded_for_a_whole_config() -> None:
    """Just below, just above; ranks and alphas count together, and so do a pipeline's parts."""
    key = {"((ab)*c)*": 1}
    fits = patterns.MAX_WORK // patterns.Lookup(key).work(flat(1))
    assert fits > 1
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
        (["a{1000}"], ["a{1001}"], "a count above 1,000"),
        (["(" * 16 + "a" + ")" * 16], ["(" * 17 + "a" + ")" * 17], "groups more than 16 deep"),
        ([f"q{i}" for i in range(4096)], [f"q{i}" for i in range(4097)], "4,097 keys"),
    ],
    ids=["characters", "count", "groups", "keys"],
)
def test_limits_on_keys(fits: list[str], too_much: list[str], words: str) -> None:
    parse_config(config(rank_pattern=dict.fromkeys(fits, 1)))
    with pytest.raises(RejectedClient, match=words):
        parse_config(config(rank_pattern=dict.fromkeys(too_much, 1)))


# The expressions that people use


REAL = [
    r"^(?!.*vision).*q_proj",
    r"^(?!.*(?:vision_tower|multi_modal_projector)).*(?:q_proj|k_proj|v_proj|o_proj).*",
    r".*\.layers\.(?:[0-9]|1[0-5])\..*proj",
    r"(?:.*?(?:vision|language).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.up_proj)",
    r"model\.(language_model\.)?layers\.\d{1,2}\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj",
    r"(.*(language_model).*(down_proj|q_proj).*$|.*(custom_text_proj).*$)",
    r"layers\.(?!0\.)\d+\..*",
    r"(?<=layers\.1\.)mlp\.up_proj|up_projx",
    r"(?P<block>blocks)\.[0-9]+?\.attn",
]  # fmt: skip
NAMES = [
    f"{tower}.layers.{layer}.{part}"
    for tower in ("model", "model.language_model", "model.vision_tower", "vision")
    for layer in (0, 1, 15, 16)
    for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "custom_text_proj")
] + ["blocks.3.attn", "x.blocks.12.attn", "q_proj"]


@pytest.mark.parametrize("key", REAL)
def test_expressions_of_the_field(key: str) -> None:
    patterns.check_keys([key], "rank_pattern")
    found = [name for name in NAMES if patterns.Lookup([key]).first(name) is not None]
    assert found == [name for name in NAMES if plain_loop([key], name) is not None]
    assert 0 < len(found) < len(NAMES)
    many = [f"{name}.{k}" for name in NAMES for k in range(12)]
    assert patterns.Lookup([key]).work(many) < patterns.MAX_WORK // 4


ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\W", "^", "$", r"\b", r"\B", "q", "0", r"\Z"]
)
COUNTS = st.sampled_from(["", "", "*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{,2}", "{1,}", "{0}"])


def grouped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    rows = st.lists(st.tuples(inner, COUNTS).map("".join), max_size=3).map("".join)
    either = st.lists(rows, min_size=1, max_size=3).map("|".join)
    openings = st.sampled_from(["(", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?P<n>"])
    return st.tuples(openings, either).map(lambda made: f"{made[0]}{made[1]})")


EXPRESSIONS = st.lists(
    st.tuples(st.recursive(ATOMS, grouped, max_leaves=6), COUNTS).map("".join),
    min_size=1, max_size=4,
).map("".join)  # fmt: skip


@given(EXPRESSIONS, st.text("aab.0q_-\n\u00e9", max_size=7))
@example("(a|b)*c", "abac")
@example("(?=.*b)a", "x.ab")
@example("(?!a*b)a+", "aab")
@example("(a*)*", "aaa")
@example("a|b$", "b\n")
@example("x{,}", "xx")
@example("x{}", "x{}")
@example("[]a]+", "]a")
@example("[^]a]", "b")
@example("(?:a?){3}", "a")
def test_the_matcher_is_pythons(key: str, module: str) -> None:
    """Whatever is read matches as Python's own expressions do; what Python refuses is refused."""
    try:
        plain = re.compile(rf"(.*\.)?({key})$")
    except re.error:
        with pytest.raises(RejectedClient):
            patterns.check_keys([key], "rank_pattern")
        return
    try:
        patterns.check_keys([key], "rank_pattern")
    except RejectedClient as error:
        assert "is no regular expression that is read here" in error.message
        return
    assert (patterns.Lookup([key]).first(module) is not None) == bool(plain.match(module))


@pytest.mark.parametrize(
    "key",
    [r"(a)\1", "(?(1)a|b)", "(?>a)", "a*+", "(?i)a", "(?i:a)", "(?#x)a", "(?P=n)", r"\x61", "[[a]",
     "[a--b]", "(a", "a)(b", "[a", "*a", "a**", "a{2}{3}", "a\\", "a{3,2}", r"\u0061", "(?", "(?<"],
)  # fmt: skip
def test_what_is_not_read_is_refused(key: str) -> None:
    with pytest.raises(RejectedClient, match="rank_pattern key"):
        parse_config(config(rank_pattern={key: 1}))


HOSTILE = [
    ("(a+)+b", "a" * 500), ("(a|a)*b", "a" * 500), ("(a*)*b", "a" * 500),
    ("(.*a){200}b", "a" * 500), ("(a?){500}a{500}b", "a" * 500), (".*" * 200 + "b", "a" * 500),
    ("(?=(a+)+b)a", "a" * 500), ("(?!(.*a)*b).*c", "a" * 500), ("((a+)+)+b", "a" * 30),
    (r"(\w+\.)*\w+!", "a." * 250), ("(x+x+)+y", "x" * 500),
]  # fmt: skip


@pytest.mark.parametrize(("key", "module"), HOSTILE, ids=[key[:16] for key, _ in HOSTILE])
def test_no_key_makes_the_matcher_run_for_ever(key: str, module: str) -> None:
    """Python would take years. A step is counted for each part of the expression that is asked."""
    from clair_cli.adapters import pattern_matcher

    parsed, text = pattern_matcher.parse_pattern(key), pattern_matcher.Text(module)
    asked = 0
    kinds = [getattr(pattern_matcher, name) for name in
             ("_Atom", "_Row", "_Either", "_Run", "_Repeat", "_Look")]  # fmt: skip

    def counting(kind: Any, way: str) -> Any:
        real = getattr(kind, way)

        def count(self: Any, places: int, text: Any) -> int:
            nonlocal asked
            asked += 1
            return int(real(self, places, text))

        return count

    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            for way in ("ahead", "back"):
                patch.setattr(kind, way, counting(kind, way))
        assert patterns._matches(key, text) is False
    assert 0 < asked <= parsed.steps(len(module))
    assert asked < 1_000_000
    work = patterns.Lookup([key]).work([module])
    checked = parse_config(config(rank_pattern={key: 1}))
    if work <= patterns.MAX_WORK:
        checked.check_patterns([module])
    else:
        with pytest.raises(RejectedClient, match="too many to look up"):
            checked.check_patterns([module])


def test_each_class_is_compiled_once() -> None:
    """Python keeps 512 expressions; a config may have many more, for thousands of modules."""
    from clair_cli.adapters import pattern_matcher

    classes = [f"[{chr(0x4E00 + k)}x]" for k in range(600)]
    keys = ["".join(classes[k : k + 100]) for k in range(0, 600, 100)]
    patterns.check_keys(keys, "rank_pattern")
    pattern_matcher._compiled.cache_clear()
    lookup = patterns.Lookup(keys)
    for character in "abc":
        assert lookup.first(200 * character) is None
    assert pattern_matcher._compiled.cache_info().misses <= 600
