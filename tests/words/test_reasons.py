"""Each reason in three parts: what, the number with its meaning, what to ask."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from clair_cli.report.model import ClientReport, Reason, Report, Review
from clair_cli.words import numbers
from clair_cli.words.outcomes import OUTCOMES, outcome_code
from clair_cli.words.reasons import REASONS, Sentences, explain_client, explain_reason
from tests.fake_report import MODULES, fake_report, renamed, undetermined
from tests.pages import PAGES

REPORT = fake_report()


def with_reason(code: str, text: str = "the judge's text", **fields: object) -> ClientReport:
    """The fake report's first client with one reason, and changed fields or scores."""
    (client,) = (c for c in REPORT.clients if c.name == "mallory")
    scores = {k: fields.pop(k) for k in list(fields) if hasattr(client.scores, k)}
    client = replace(client, scores=replace(client.scores, **scores))  # type: ignore[arg-type]
    return replace(client, reasons=(Reason(code, text),), **fields)  # type: ignore[arg-type]


def said(code: str, text: str = "the judge's text", **fields: object) -> Sentences:
    client = with_reason(code, text, **fields)
    return explain_reason(client, client.reasons[0], REPORT)


def test_the_line_of_the_issue() -> None:
    assert said("unlike_the_others", loading=0.18, p_honest=0.001).line == (
        "what it learnt has almost nothing in common with what the others learnt (18 % of what two "
        "of the others share; fewer than one honest client in a thousand looks so unlike them). "
        "Often: shuffled labels, other data, another task. Ask for its label file and data version."
    )


def documented() -> set[str]:
    """The codes in the table of reasons of the page on the report."""
    table = PAGES["docs/reading-the-report.md"].split("## Reasons")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_every_code_has_a_template_and_no_template_is_left_over() -> None:
    assert REASONS.keys() | OUTCOMES.keys() == documented()
    assert not REASONS.keys() & OUTCOMES.keys()


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_says_what_and_what_to_ask(code: str) -> None:
    found = said(code)
    assert found.short
    assert found.what[0].islower()
    assert found.ask.endswith(".")
    assert not re.search(r"[{}]|None|nan|-0|\+/-", found.line)


@pytest.mark.parametrize("code", REASONS)
def test_a_reason_without_any_number_is_still_a_sentence(code: str) -> None:
    nothing = {"loading": None, "loading_se": None, "measures": {}, "p_honest": None, "modules": {}}
    found = said(code, **nothing)
    assert found.short
    assert not re.search(r"[{}]|None|\( *\)|; *\)|  ", found.line)


@pytest.mark.parametrize(
    ("loading", "words"),
    [
        (0.0049, "nothing in common"),
        (0.0051, "almost nothing in common"),
        (0.249, "almost nothing in common"),
        (0.25, "little in common"),
        (-0.001, "nothing of what two of the others share"),
        (-0.049, "nothing in common with what the others learnt (nothing of what two"),
        (-0.051, "almost nothing in common with what the others learnt (the opposite of 5 %"),
        (-0.19, "the opposite of 19 % of what two"),
        (1e300, "more than 1,000 %"),
    ],
)
def test_how_little_is_shared(loading: float, words: str) -> None:
    assert words in said("unlike_the_others", loading=loading).line


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (0.001, "fewer than one honest client in a thousand looks so unlike them"),
        (0.00101, "about one honest client in 990 looks so unlike them"),
        (0.249, "about one honest client in 4 looks so unlike them"),
        (0.25, "2 of 10 honest clients look at least as unlike them"),
        (0.949, "9 of 10 honest clients look at least as unlike them"),
        (0.95, "nearly every honest client looks at least as unlike them"),
    ],
)
def test_the_odds(p: float, words: str) -> None:
    assert said("unlike_the_others", p_honest=p).number.endswith(words)


def test_a_range_of_no_width_is_not_said() -> None:
    assert numbers.give_or_take(0.3, 0.001) == "30 % of what two of the others share"
    assert numbers.give_or_take(0.3, 0.004).endswith(", give or take 1 %")


def test_a_size_says_whether_the_direction_agrees() -> None:
    sizes = {"norm_ratio": 7.92}
    agrees = "; otherwise like the others: 102 % of what two of the others share"
    found = said("norm", measures=sizes, loading=1.02)
    assert found.number == "7.9 times the median client's size" + agrees
    assert said("norm", measures=sizes, loading=0.44).number == found.number.removesuffix(agrees)
    assert "otherwise" in said("norm", measures=sizes, loading=0.45).number


def test_the_module_of_the_largest_size_is_named() -> None:
    client = with_reason("module_norm")
    modules = dict(client.modules)
    modules[MODULES[1]] = replace(modules[MODULES[1]], norm=17.0)
    found = said("module_norm", modules=modules)
    assert found.short == f"far too large in one module: 10 times the median in {MODULES[1]}"


def test_modules_that_are_odd_are_named() -> None:
    assert "but not in a.q, b.k (" in said("odd_module", "unlike the others in a.q, b.k").line


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        ("head_unlike", "cls.weight itself is unlike the others': cosine 0.03, theirs 0.91",
         "(cls.weight: likeness to the others' 0.03, of theirs to one another 0.91; 1 is the same"),
        ("head_against", "what changed in cls.weight points against the others': cosine -0.41,"
         " theirs 0.55", "(cls.weight: likeness to the others' -0.41, of theirs to one another"),
        ("head_against", "as another version says it", "(as another version says it)"),
        ("head_norm", "its head differs from the others' by 9.21 x the median difference",
         "(9.2 times the median client's change)"),
        ("head_norm", "its head differs, and most clients' are the same",
         "(most clients' heads are the same)"),
        ("head_norm", "as another version says it", "did. Often: "),
        ("large", "large: counts 0.62 of its weight", "it counts for 62 % of its weight)"),
        ("trusted", "trusted, and merged for that: else minority", "(without that it is minority)"),
        ("tied", "like or unlike zoe, bob as nobody else is; together they count as one client",
         "it is like zoe, bob, or against it, as nobody else"),
        ("tied", "as another version says it", "as another version says it. One of them"),
    ],
)  # fmt: skip
def test_numbers_of_a_text_are_told_with_their_meaning(code: str, text: str, words: str) -> None:
    assert words in said(code, text).line


def test_a_decision_is_told_with_who_why_and_until_when() -> None:
    text = "allowed, else contaminated: seen (A. Meyer, until 2027-01-31)"
    review = Review("seen", "A. Meyer", "2027-01-31")
    assert said("allowed", text, review=review).number == (
        "without that it is contaminated; seen, says A. Meyer, until 2027-01-31"
    )
    assert said("allowed", text).number == "without that it is contaminated"
    found = said("reviewed", "edited by a person, else contaminated", review=Review(by="A. Meyer"))
    assert found.number == "by its numbers it is contaminated; says A. Meyer"


def test_the_others_of_a_group_are_named() -> None:
    assert "the same as zoe, and" in said("in_a_group").what
    client = with_reason("in_a_group")
    together = explain_reason(client, client.reasons[0], REPORT, others="the rest")
    assert "the same as the rest, and" in together.what


def test_a_code_of_another_version_gets_its_own_text() -> None:
    found = said("new_code", "some\x1b[2Jthing")
    assert found == Sentences("some\\x1b[2Jthing", "some\\x1b[2Jthing")


def test_braces_in_names_are_no_fields() -> None:
    report = renamed(REPORT, {"zoe": "{share}{0}"})
    groups = tuple(
        replace(g, members=("mallory", "{share}{0}")) if g.role == "other" else g
        for g in report.cohort.groups
    )
    report = replace(report, cohort=replace(report.cohort, groups=groups))
    (client,) = (c for c in report.clients if c.name == "mallory")
    assert "the same as {share}{0}, and" in explain_client(client, report)[0].what


def unjudged(*codes: str) -> Report:
    """A round that is not judged, with one reason a client."""
    report = undetermined()
    clients = tuple(
        replace(report.clients[0], name=f"c{k}", reasons=(Reason(code, "t"),) if code else ())
        for k, code in enumerate(codes)
    )
    return replace(report, clients=clients)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("same_start", "same_start"), "same_start"),
        (("norm", "too_few_left"), "too_few_left"),
        (("norm", "opposite"), "too_few_left"),
        ((), "too_few_left"),
    ],
)
def test_the_code_of_a_round(codes: tuple[str, ...], expected: str) -> None:
    assert outcome_code(unjudged(*codes)) == expected


def test_a_judged_round_has_no_code_and_a_refused_one_its_own() -> None:
    assert outcome_code(REPORT) == ""
    report = undetermined()
    assert (
        outcome_code(replace(report, cohort=replace(report.cohort, outcome="refused"))) == "refused"
    )
