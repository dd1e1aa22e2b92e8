"""What to do next: something after every outcome, and one command that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from clair_cli.remark import note, warning
from clair_cli.report.cohort import Group
from clair_cli.report.model import ClientReport, ClientScores, Reason, Report
from clair_cli.words.command import again, command_line, folded
from clair_cli.words.doubts import doubts
from clair_cli.words.outcomes import OUTCOMES
from clair_cli.words.reasons import MANY, short_reasons
from clair_cli.words.steps import MAX_DETAILS, Step, command_to_copy, next_steps, step_for
from tests.fake_report import all_benign, fake_report, renamed, undetermined

TWO = "the folder holds two adapters: a, b, none called x; choose with --checkpoint last|best|N"


def only(verdict: str, code: str, names: tuple[str, ...] = ("bob",), text: str = "t") -> Report:
    """A cohort without findings, but for some further clients."""
    report = all_benign()
    more = tuple(
        ClientReport(name, verdict, (Reason(code, text),), ClientScores(), 0.0, None, name)
        for name in names
    )
    return replace(report, clients=(*report.clients, *more))


def step_of(report: Report, about: str) -> Step:
    (step,) = (s for s in next_steps(report, report_path="r.json") if s.about == about)
    return step


@pytest.mark.parametrize("verdict", ["contaminated", "minority", "suspicious", "duplicate"])
def test_a_finding_is_named_and_explained(verdict: str) -> None:
    step = step_of(only(verdict, "norm"), verdict)
    assert step.text.startswith(f"{verdict}: bob. ")
    assert step.details[0].startswith("bob: its update is far larger")
    assert step.command == "clair explain bob --report r.json"


def test_the_most_important_comes_first_and_its_command_is_the_one_to_copy() -> None:
    steps = next_steps(fake_report(), report_path="r.json")
    assert [s.about for s in steps] == [
        "contaminated", "suspicious", "rejected", "duplicate", "benign"
    ]  # fmt: skip
    assert steps[-1].text.startswith("The merged adapter is ready to use; ")
    assert command_to_copy(steps) == "clair explain amber --report r.json"


def test_where_nothing_is_found_the_result_is_verified_or_made() -> None:
    (step,) = next_steps(all_benign())
    assert (step.about, step.command) == ("benign", "clair verify merged.safetensors clients")
    assert step.text.startswith("Nothing to look at. The merged adapter is ready to use; ")
    assert all_benign().merged is not None
    for path in ("", "-"):
        merged = replace(all_benign().merged, path=path)  # type: ignore[type-var]
        assert next_steps(replace(all_benign(), merged=merged))[-1].command == ""
    report = replace(all_benign(), command="inspect", merged=None)
    (step,) = next_steps(report)
    assert step.command == "clair merge clients -o merged.safetensors"
    (step,) = next_steps(replace(fake_report(command="refine"), clients=all_benign().clients))
    assert step.command == "clair verify refined"


def test_a_warning_is_to_be_read_before_the_result_is_used() -> None:
    for count, said in ((1, "Read the warning first. "), (2, "Read the warnings first. ")):
        remarks = (note("first_round", "t"), *[warning("uneven", "t")] * count)
        (step,) = next_steps(replace(all_benign(), warnings=remarks))
        assert step.text.startswith(f"{said}The merged adapter is ready to use; ")
    (step,) = next_steps(replace(all_benign(), warnings=remarks[:1]))
    assert step.text.startswith("Nothing to look at. ")


def test_the_command_that_verifies_has_what_verify_wants_again() -> None:
    given = {"previous": "last round", "weights": "w.csv", "initial": None, "earlier": "rounds"}
    report = replace(all_benign(), options={**all_benign().options, **given})
    command = (
        "clair verify merged.safetensors clients --weights w.csv --previous 'last round'"
        " --earlier rounds"
    )
    for path in ("", "merged.report.json"):
        assert next_steps(report, report_path=path)[-1].command == command
    assert next_steps(report, report_path="r.json")[-1].command == f"{command} --report r.json"
    assert next_steps(report, report_path="-")[-1].command == ""
    memory = replace(report, options={**report.options, "previous": "(in memory)"})
    assert next_steps(memory)[-1].command == "clair verify merged.safetensors"


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("too_few", ""),
        ("same_start", " --previous PREVIOUS.safetensors"),
        ("heads_unrelated", " --heads drop"),
    ],
)
def test_a_round_without_a_verdict_is_run_again_with_what_it_lacked(
    code: str, changed: str
) -> None:
    report = undetermined()
    clients = tuple(replace(c, reasons=(Reason(code, "t"),)) for c in report.clients)
    (step,) = next_steps(replace(report, clients=clients), report_path="r.json")
    assert step.about == "undetermined"
    assert step.text.startswith(f"undetermined: {OUTCOMES[code].what}. ")
    assert step.text.endswith(" What to do: collect more clients, or merge them all with"
                              " --allow-undetermined.")  # fmt: skip
    assert step.command == f"clair merge clients -o merged.safetensors{changed}"


def test_what_is_merged_without_a_verdict_is_not_called_ready() -> None:
    report = undetermined()
    (step,) = next_steps(replace(report, merged=fake_report().merged))
    assert step.text.startswith("undetermined, and all are merged (--allow-undetermined): ")


def test_a_wrong_previous_adapter_is_left_out_of_the_command() -> None:
    report = undetermined()
    clients = tuple(replace(c, reasons=(Reason("previous_absent", "t"),)) for c in report.clients)
    options = {**report.options, "previous": "old.safetensors", "fresh": True}
    (step,) = next_steps(replace(report, clients=clients, options=options))
    assert step.command == "clair merge clients -o merged.safetensors --fresh"


def test_a_refused_round_says_why() -> None:
    report = undetermined()
    cohort = replace(report.cohort, outcome="refused", outcome_text="no client is left")
    (step,) = next_steps(replace(report, cohort=cohort))
    assert step.about == "refused"
    assert step.text.startswith("refused: the clients were not compared. What to do: collect more")


def test_one_reason_of_many_is_told_once() -> None:
    names = tuple(f"c{k}" for k in range(10))
    step = step_of(only("rejected", "rejected", names, TWO), "rejected")
    shown = "c0, c1, c2, c3, c4, c5, c6, c7 and 2 more"
    assert step.details == (
        f"10 clients ({shown}), each: its files can't be used: {TWO}. Mend that, ask for its"
        " adapter again, or leave it out with --exclude.",
    )
    assert step.command == ("clair merge clients -o merged.safetensors --checkpoint last --force")


@pytest.mark.parametrize("count", [MANY - 1, MANY])
def test_the_table_has_a_reason_of_many_once(count: int) -> None:
    names = tuple(f"c{k}" for k in range(count))
    cells = short_reasons(only("rejected", "rejected", names, TWO))[-count:]
    assert cells == ((TWO,) * count if count < MANY else (TWO, *["as c0"] * (count - 1)))


@pytest.mark.parametrize("kinds", [MAX_DETAILS + 1, MAX_DETAILS + 2])
def test_many_different_reasons_are_cut(kinds: int) -> None:
    report = all_benign()
    more = [only("rejected", "rejected", (f"c{k}",), f"t{k}").clients[-1] for k in range(kinds)]
    step = step_of(replace(report, clients=(*report.clients, *more)), "rejected")
    cut = kinds > MAX_DETAILS + 1  # a line that says "1 more" could as well be that one
    assert len(step.details) == MAX_DETAILS + 1
    assert step.details[-1].startswith("and ") == cut
    assert not cut or step.details[-1].startswith("and 2 more reasons")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"rank": "auto", "min_clients": 3, "fail_on": "never", "limit": {}}, []),
        ({"rank": 8, "strict": True}, ["--rank", "8", "--strict"]),
        ({"trust": ["a b", "c"], "min_clients": 2}, ["--trust", "a b", "--trust", "c"]),
        ({"limit": {"file": 5}, "previous": "p"}, ["--limit", "file=5", "--previous", "p"]),
        ({"weights": "(in memory)", "unknown": 1}, []),
    ],
)
def test_options_are_typed_again(options: Mapping[str, Any], words: list[str]) -> None:
    report = replace(fake_report(), options={"clients": "my clients", **options})
    assert shlex.split(again(report, "merge", "o")) == [
        "clair", "merge", "my clients", "-o", "o", *words
    ]  # fmt: skip


def test_no_command_where_something_cant_be_typed() -> None:
    report = fake_report()
    assert again(replace(report, options={"clients": "(in memory)"}), "merge") == ""
    assert again(replace(report, options={}), "merge") == ""
    for name in ("a\nb", "a\x1b[2J", "\u202ex", "\udcff", ""):
        assert command_line("clair", name) == ""
    hostile = renamed(report, {"amber": "x\n", "mallory": "$(rm -rf ~)"})
    steps = next_steps(hostile, report_path="r.json")
    assert command_to_copy(steps) == "clair explain '$(rm -rf ~)' --report r.json"


@pytest.mark.parametrize("width", [1, 20, 30, 31, 80])
def test_a_folded_command_is_the_same_to_a_shell(width: int) -> None:
    command = command_line("clair", "explain", "north  'ward'", "--report", "a b.json")
    lines = folded(command, width)
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == shlex.split(command)
    assert all(len(line) <= max(width, 34) for line in lines)
    assert len(folded("clair explain north-ward --report", 33)) == 2
    assert len(folded("clair explain north-ward --report", 35)) == 1


def test_where_the_judges_agree_nothing_is_doubted() -> None:
    assert doubts(fake_report()) == []
    assert doubts(undetermined()) == []


def with_decomposition(kept: tuple[str, ...], left_out: tuple[str, ...]) -> Report:
    report = fake_report()
    assert report.cohort.decomposition is not None
    changed = replace(report.cohort.decomposition, kept=kept, left_out=left_out, agrees=False)
    return replace(report, cohort=replace(report.cohort, decomposition=changed))


def test_where_the_two_judges_disagree_is_said() -> None:
    (said,) = doubts(with_decomposition(("amber", "bob"), ("zoe", "carol")))
    assert "which decides nothing, keeps amber and leaves out carol;" in said
    assert doubts(with_decomposition(("bob",), ("zoe", "amber"))) == []


@pytest.mark.parametrize("code", ["norm", "opposite"])
def test_a_size_or_a_sign_alone_is_no_contradiction(code: str) -> None:
    report = with_decomposition(("mallory",), ())
    (mallory,) = (c for c in report.clients if c.name == "mallory")
    found = replace(mallory, reasons=(Reason(code, "t"),))
    others = tuple(c for c in report.clients if c.name != "mallory")
    assert len(doubts(report)) == 1
    assert doubts(replace(report, clients=(*others, found))) == []


def test_who_is_alone_and_yet_benign_is_named() -> None:
    report = fake_report()
    groups = (*report.cohort.groups, Group(("bob",), None, "loner"))
    (said,) = doubts(replace(report, cohort=replace(report.cohort, groups=groups)))
    assert said.startswith("bob is alone in the groups and yet benign: ")
    assert said.endswith(" has 98 % of what two of the others share")


def two_groups(own: int) -> Report:
    """An undetermined round with a second group of so many."""
    names = tuple(f"x{k}" for k in range(own))
    report = undetermined()
    clients = tuple(
        replace(report.clients[0], name=name, reasons=(Reason("two_groups", "t"),))
        for name in ("a", *names)
    )
    groups = (Group(("a",), 0.3, "collaborative"), Group(names, 0.3, "other"))
    return replace(report, clients=clients, cohort=replace(report.cohort, groups=groups))


def test_one_of_two_groups_is_looked_at_and_may_be_left_out() -> None:
    report = two_groups(2)
    (step,) = next_steps(report, report_path="r.json")
    assert step.command == "clair explain x0 --report r.json"
    first, second = (step_for(client, report) for client in report.clients[:2])
    assert first.command == "clair merge clients -o merged.safetensors"
    assert second.command == f"{first.command} --exclude x0 --exclude x1"
    many = two_groups(MAX_DETAILS + 1)
    assert "--exclude" not in step_for(many.clients[1], many).command


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("contaminated", ""),
        ("duplicate", ""),
        ("suspicious", " --exclude bob"),
        ("minority", " --minority exclude"),
        ("rejected", ""),
    ],
)
def test_what_to_do_about_one_client(verdict: str, words: str) -> None:
    report = replace(only(verdict, "norm"), merged=None)
    step = step_for(report.clients[-1], report)
    assert step.command == f"clair merge clients -o merged.safetensors{words}"
    assert step_for(report.clients[0], report).command == ""


def test_a_rejected_client_is_read_again_with_the_option_that_its_reason_names() -> None:
    report = only("rejected", "rejected", text=TWO)
    step = step_for(report.clients[-1], report)
    assert step.command == "clair merge clients -o merged.safetensors --checkpoint last --force"
    assert "that is what you want" in step.text


def test_a_report_of_inspect_that_is_there_is_replaced() -> None:
    report = replace(only("rejected", "rejected"), command="inspect", merged=None)
    assert step_of(report, "rejected").command.endswith(" --exclude bob --force")
    options = {**report.options, "output": None}
    assert step_of(replace(report, options=options), "rejected").command == (
        "clair inspect clients --fail-on never --exclude bob"
    )
