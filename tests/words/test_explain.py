"""One client in full: its layers, whom it resembles, what it does to the merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import clair_cli
from clair_cli.remark import warning
from clair_cli.report.cohort import ModuleReport
from clair_cli.report.model import ClientReport, ModuleScores, Reason, Report
from clair_cli.words.doubts import doubts
from clair_cli.words.explain import headline, sections, to_do
from clair_cli.words.influence import likenesses, pull
from clair_cli.words.layers import layers
from tests import cohorts
from tests.fake_report import BENIGN, all_benign, fake_report, undetermined

REPORT = fake_report()


def client(name: str, report: Report = REPORT) -> ClientReport:
    (found,) = (c for c in report.clients if c.name == name)
    return found


def lines(name: str, heading: str, report: Report = REPORT) -> tuple[str, ...]:
    (found,) = (s for s in sections(client(name, report), report) if s.heading == heading)
    return found.lines


def with_modules(modules: Mapping[str, tuple[float | None, float]], rank: int = 8) -> Report:
    """The fake report whose clients have these modules: similarity of amber, and of the others."""
    scores = {
        m: ModuleScores(2.0 if own is None else 1.0, own, 0.01, rank, 1.0)
        for m, (own, _) in modules.items()
    }
    clients = tuple(replace(c, modules=scores) for c in REPORT.clients)
    reports = tuple(
        ModuleReport(m, (4, 4), 11, (), inside, 0.0) for m, (_, inside) in modules.items()
    )
    return replace(REPORT, clients=clients, modules=reports)


def test_modules_are_gathered_by_their_layer_in_the_models_order() -> None:
    report = with_modules(
        {
            "m.layers.10.q": (0.1, 0.4),
            "m.layers.2.q": (0.2, 0.4),
            "m.layers.2.v": (0.4, 0.4),
            "head": (0.4, 0.4),
        }
    )
    found = layers(client("amber", report), report)
    assert [(one.name, one.n_modules) for one in found] == [
        ("head", 1), ("m.layers.2", 2), ("m.layers.10", 1)
    ]  # fmt: skip
    assert [one.share for one in found] == pytest.approx([1.0, 0.75, 0.25])


@pytest.mark.parametrize(("own", "unsure"), [(0.0199, True), (0.0201, False), (-0.0201, False)])
def test_what_may_be_chance_is_said(own: float, unsure: bool) -> None:
    report = with_modules({"m.0.q": (own, 0.4)})
    (found,) = layers(client("amber", report), report)
    assert found.unsure == unsure


def test_what_is_not_known_is_none() -> None:
    report = with_modules({"m.0.q": (None, 0.4), "m.1.q": (0.1, 0.0)})
    assert [one.share for one in layers(client("amber", report), report)] == [None, None]
    assert layers(client("rita"), REPORT) == ()
    report = with_modules({"m.0.q": (0.1, 0.4)}, rank=0)
    assert layers(client("amber", report), report) == ()


def test_whom_a_client_resembles() -> None:
    names = REPORT.cohort.names
    table = [list(row) for row in REPORT.cohort.similarity]
    table[0][names.index("bob")] = 0.62
    table[0][names.index("carol")] = None
    cohort = replace(REPORT.cohort, similarity=tuple(map(tuple, table)))
    found = likenesses(client("amber"), replace(REPORT, cohort=cohort))
    assert names[0] == "amber"
    assert [one.other.name for one in found[:2]] == ["bob", "dave"]
    assert found[0].share == pytest.approx(0.62 / 0.31)
    assert "carol" not in {one.other.name for one in found}
    assert likenesses(client("rita"), REPORT) == ()
    assert likenesses(undetermined().clients[0], undetermined()) == ()


def test_a_long_list_shows_both_ends() -> None:
    shown = lines("amber", "whom it resembles")
    assert shown[0] == "In no group."
    assert shown[4] == "and 4 more in between"
    assert len(shown) == 8


def dense_mean(clients: cohorts.Clients, weights: Mapping[str, float]) -> cohorts.Deltas:
    return cohorts.mean([clients[n].deltas() for n in weights], list(weights.values()))


@pytest.mark.parametrize(("first", "off"), [(1.0, 0.01), (5.0, 0.05)])
def test_what_a_client_does_to_the_merge_is_about_right(
    tmp_path: Path, first: float, off: float
) -> None:
    """Against dense means: of a merged client, and of one left out with an equal share."""
    clients = dict(cohorts.honest(7))
    clients["bad"] = cohorts.unrelated()
    folder = cohorts.save(tmp_path / "clients", clients)
    given = dict.fromkeys(clients, 1.0) | {"c0": first}
    out = tmp_path / "out.safetensors"
    report = clair_cli.merge(folder, out, rank="full", weights=given).report
    assert report.with_verdict("contaminated") == (client("bad", report),)
    weights = {c.name: c.weight for c in report.clients if c.weight > 0}
    made = dense_mean(clients, weights)
    for name in clients:
        found = pull(client(name, report), report)
        assert found is not None and found.moved is not None
        assert found.merged == (name != "bad")
        others = {n: w for n, w in weights.items() if n != name}
        if name == "bad":
            others = {n: w * 7 / 8 for n, w in weights.items()} | {"bad": 1 / 8}
            assert found.weight == 1 / 8
        wanted = cohorts.relative(dense_mean(clients, others), made)
        assert found.moved == pytest.approx(wanted, rel=off)


@pytest.mark.parametrize(("weight", "others"), [(0.5, (1.0, 0.0)), (0.9, (10.0, 0.0))])
@pytest.mark.parametrize("side", [4.0, 0.0])
@pytest.mark.parametrize("along", [3.0, -3.0])
def test_how_far_a_client_moves_the_merge_in_a_plane(
    weight: float, others: tuple[float, float], side: float, along: float
) -> None:
    """A client (along, side) and the mean of the others, as the report has them."""
    made = (weight * along + (1 - weight) * others[0], weight * side)
    size = math.hypot(along, side)
    scores = replace(
        client("bob").scores,
        loading=along / abs(along),
        off_line_ratio=side / size,
        measures={"norm": size},
    )
    assert REPORT.merged is not None
    report = replace(REPORT, merged=replace(REPORT.merged, norm=math.hypot(*made)))
    wanted = math.hypot(made[0] - others[0], made[1]) / math.hypot(*made)
    found = pull(replace(client("bob"), weight=weight, scores=scores), report)
    assert found is not None and found.moved is not None
    if made[0] > 0:
        assert found.moved == pytest.approx(wanted)
    out = pull(replace(client("bob"), weight=0.0, scores=scores), report)
    assert out is not None and out.moved is not None
    n = sum(c.weight > 0 for c in report.clients) + 1
    apart = size**2 + report.merged.norm**2  # type: ignore[union-attr]
    apart -= 2 * along * report.merged.norm  # type: ignore[union-attr]
    assert out.moved == pytest.approx(apart**0.5 / n / math.hypot(*made))


@pytest.mark.parametrize("option", ["previous", "initial"])
def test_nothing_is_said_of_a_merge_on_top_of_another(option: str) -> None:
    assert pull(client("bob"), REPORT) is not None
    moved = pull(client("bob"), replace(REPORT, options={option: "p"}))
    assert moved is not None and moved.moved is None
    assert pull(client("bob"), fake_report(command="inspect")) is None
    assert pull(client("rita"), REPORT) is None


def test_the_first_line_says_what_became_of_it() -> None:
    assert headline(client("amber")) == "amber: contaminated, not in the merge"
    assert headline(client("bob")) == "bob: benign, 15 % of the merge"


def test_a_benign_client_is_explained_too() -> None:
    assert lines("bob", "why") == (
        "It learnt what the others learnt (98 % of what two of the others share, give or take 10 %;"
        " 1.0 times the median client's size).",
    )


def sure(name: str, **fields: object) -> tuple[str, ...]:
    one = replace(client(name), **fields)  # type: ignore[arg-type]
    (section,) = (s for s in sections(one, REPORT) if s.heading == "how sure")
    return section.lines


NOTICED = "ad it shared nothing with the others, that would have been noticed 998 times in 1,000."


def test_how_sure_a_verdict_is() -> None:
    few = "Likely: few honest clients look like this."
    honest = "That is how rare this is among honest clients, not how likely this one is honest."
    assert sure("amber") == (few, honest, "H" + NOTICED)
    assert sure("amber", power=None) == (few, honest)
    assert sure("oscar") == (
        "Open: honest clients may well look like this; do not act on it alone.",
        "H" + NOTICED,
    )
    assert sure("bob") == (
        "Clear: h" + NOTICED,
        "6 of 10 honest clients look at least as unlike them.",
    )
    assert sure("bob", p_honest=None, power=None)[0].startswith("Clear: had it shared nothing")
    assert sure("amber", verdict="minority", confidence="clear")[0] == (
        "Clear: chance hardly ever brings about what they share."
    )


@pytest.mark.parametrize(("code", "said"), [("uneven", True), ("weight_majority", False)])
def test_where_a_round_is_uneven_a_benign_client_is_not_called_clear_alone(
    code: str, said: bool
) -> None:
    report = replace(REPORT, warnings=(warning(code, "t"),))
    assert ("this round is uneven" in " ".join(lines("bob", "how sure", report))) is said
    assert "uneven" not in " ".join(lines("amber", "how sure", report))  # contaminated


def test_what_to_do_without_a_command_ends_as_a_sentence() -> None:
    assert to_do(client("amber"), REPORT).text.endswith(", judge again:")
    report = replace(REPORT, options={"clients": "(in memory)"})
    assert to_do(client("amber"), report).text.endswith(", judge again.")


def test_where_a_verdict_is_contradicted_it_is_said() -> None:
    decomposition = REPORT.cohort.decomposition
    assert decomposition is not None
    heading = "what the second opinion says"
    assert "disagree" not in lines("amber", heading)[0]
    other = replace(decomposition, kept=("amber", "oscar"), left_out=("bob",), agrees=False)
    report = replace(REPORT, cohort=replace(REPORT.cohort, decomposition=other))
    assert lines("amber", heading, report)[0].endswith("keeps the client. The two judges disagree.")
    assert lines("bob", heading, report)[0].endswith("out. The two judges disagree.")
    large = replace(client("amber"), reasons=(Reason("norm", "t"),))
    (section,) = (s for s in sections(large, report) if s.heading == heading)
    assert "does not look at what the reasons above are about" in section.lines[0]
    against = replace(client("amber"), reasons=(Reason("opposite", "t"),))
    (section,) = (s for s in sections(against, report) if s.heading == heading)
    assert "disagree" not in section.lines[0]  # it takes an update and its opposite for one


def test_a_client_that_was_not_judged_has_the_rounds_reason() -> None:
    said = lines("client-00", "why", undetermined())
    assert said[-1] == "The round: 2 clients: can't tell which of them is wrong."
    headings = {s.heading for s in sections(undetermined().clients[0], undetermined())}
    assert "how sure" not in headings


def test_everybody_has_a_reason() -> None:
    for report in (REPORT, all_benign(), undetermined(), fake_report(command="refine")):
        for one in report.clients:
            assert sections(one, report)[0].heading == "why", one.name
    assert BENIGN


def test_a_verdict_of_a_person_is_not_called_sure() -> None:
    decomposition = REPORT.cohort.decomposition
    assert decomposition is not None
    changed = replace(decomposition, kept=(), left_out=("amber",), agrees=False)
    report = replace(REPORT, cohort=replace(REPORT.cohort, decomposition=changed))
    amber = replace(client("amber"), verdict="benign", judged="contaminated")
    found = {section.heading: section.lines for section in sections(amber, report)}
    assert found["how sure"] == (
        "A person decided; by its numbers it is contaminated, likely: few honest clients look like"
        " this.",
    )
    assert found["what the second opinion says"][0].endswith("leaves the client out.")
    clients = tuple(amber if c.name == "amber" else c for c in report.clients)
    assert doubts(replace(report, clients=clients)) == []
    assert (client("amber").sure, amber.sure) == ("likely", "")
