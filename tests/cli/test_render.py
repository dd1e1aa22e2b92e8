"""What people see: widths, whole names, hostile names, and the verdict in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from clair_cli.cli.render import NARROWEST, SURE_FROM, View, render
from clair_cli.cli.sentences import MAX_NAMES, verdict_line
from clair_cli.remark import warning
from clair_cli.report.cohort import Group
from clair_cli.report.model import Report
from clair_cli.text import printable
from tests.fake_report import BENIGN, REASONS, SURE, all_benign, fake_report, renamed, undetermined

TERMINAL = View(width=80)
LONG = "hospital-of-the-northern-region-ward-7"  # 38 characters
REPORTS = {
    "merge": fake_report(),
    "inspect": fake_report(command="inspect"),
    "refine": fake_report(command="refine"),
    "undetermined": undetermined(),
    "many": all_benign(60),
    "long name": renamed(fake_report(), {"amber": LONG}),
    "endless name": renamed(fake_report(), {"amber": "n" * 300, "zoe": "two words " * 9}),
    "wide name": renamed(fake_report(), {"amber": "\u533b\u9662" * 9}),
}


@pytest.mark.parametrize("width", [20, 40, 59, 60, 79, 80, 100, 120])
@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_the_terminal(name: str, unicode: bool, width: int) -> None:
    text = render(REPORTS[name], View(width=width, unicode=unicode), report_path="r" * 90)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert unicode or text.isascii() or name == "wide name"


@pytest.mark.parametrize("view", [TERMINAL, View()], ids=["terminal", "plain"])
def test_every_name_of_usual_length_stands_whole_on_one_line(view: View) -> None:
    lines = render(renamed(fake_report(), {"amber": LONG}), view).splitlines()
    for name in (*BENIGN, *REASONS):
        wanted = LONG if name == "amber" else name
        verdict = REASONS.get(name, ("benign",))[0]
        assert any(line.startswith(wanted + " ") and verdict in line for line in lines), wanted


def test_an_endless_name_is_folded_and_not_cut() -> None:
    report = renamed(fake_report(), {"amber": "n" * 300})
    rows = render(report, TERMINAL).split("\u2500\n")[1].split("mallory")[0]
    assert rows.count("n" * 30) == 300 // 30
    assert sum(line.split("  ")[0].count("n") for line in rows.splitlines()) == 300


def test_plain_text_is_neither_wrapped_nor_cut() -> None:
    long = "because " * 40
    report = fake_report()
    reason = replace(report.clients[0].reasons[0], code="of_a_later_version", text=long)
    amber = replace(report.clients[0], reasons=(reason,))
    text = render(replace(report, clients=(amber, *report.clients[1:])), View())
    assert long.strip() in text
    assert "\u2500" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_who_was_left_out_comes_first() -> None:
    text = render(fake_report(), View())
    rows = [line.split()[0] for line in text.splitlines() if line]
    order = ["amber", "mallory", "zoe", "oscar", "dave-copy", "rita", "bob"]
    assert [rows.index(name) for name in order] == sorted(rows.index(name) for name in order)


@pytest.mark.parametrize(
    ("role", "words"),
    [("other", "form a group of their own"), ("minority", "share what all others lack")],
)
def test_a_group_is_named_as_a_group(role: str, words: str) -> None:
    report = fake_report()
    groups = (report.cohort.groups[0], Group(("mallory", "zoe"), None, role))
    report = replace(report, cohort=replace(report.cohort, groups=groups))
    assert f"2 {words}: mallory, zoe\n" in render(report, View())


def above(report: Report, **cohort: object) -> list[str]:
    """The lines above the table, with a changed cohort."""
    changed = replace(report, cohort=replace(report.cohort, **cohort))  # type: ignore[arg-type]
    return render(changed, View()).split("\n\n")[0].splitlines()


def test_who_agrees_and_what_would_have_been_noticed() -> None:
    agrees = "12 clients; the updates of 6 point the same way (similarity 0.31 +/- 0.02)"
    noticed = "a client that shares nothing with the others would be noticed in this round "
    report = all_benign()
    for power, words in (
        (0.9494, "949 times in 1,000"),
        (0.9994, "999 times in 1,000"),
        (0.9996, "more than 999 times in 1,000"),
    ):
        lines = above(report, power=power, n_clients=12, n_comparable=12)
        assert lines == [agrees, noticed + words]
    assert above(report, power=None, n_clients=12, n_comparable=12) == [agrees]


def test_where_nothing_is_sure_nobody_is_said_to_agree() -> None:
    """Groups that might be chance are in the report, and no sentence says that they agree."""
    for groups in (fake_report().cohort.groups, ()):
        lines = above(fake_report(), stacking=None, power=0.4, groups=groups)
        assert lines == ["12 clients (11 comparable): no agreement found among them"]
    assert above(undetermined(), n_comparable=2) == ["2 clients"]


def test_many_benign_clients_are_summarised_at_a_terminal_only() -> None:
    report = all_benign(42)
    assert "... and 34 more benign\n" in render(report, TERMINAL)
    assert "client-41" not in render(report, TERMINAL)
    assert "client-41" in render(report, View())
    assert "more benign" not in render(all_benign(8), TERMINAL)


HOSTILE = {
    "amber": "[/] [bold red]x[/bold red]",
    "mallory": "a\x1b[31mred\x1b]0;title\x07",
    "zoe": "line\n::error::boo",
    "oscar": "\u202egpj.exe",
    "bob": "::stop-commands::x",
    "carol": "[link=http://evil]click[/link]",
    "erin": "caf\u00e9\udcff\x9b",
}


@pytest.mark.parametrize("view", [TERMINAL, View(), View(width=80, colour=True)])
def test_hostile_names_are_shown_and_harmless(view: View) -> None:
    text = render(renamed(fake_report(), HOSTILE), view)
    for expected in (
        "[/] [bold red]x[/bold red]",
        "a\\x1b[31mred\\x1b]0;title\\x07",
        "line\\x0a::error::boo",
        "\\u202egpj.exe",
        "\\x3a:stop-commands::x",
        "[link=http://evil]click[/link]",
        "caf\u00e9\\xff\\x9b",
    ):
        assert expected in text
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    allowed = "\n\x1b" if view.colour else "\n"
    assert all(char.isprintable() or char in allowed for char in text)
    assert "\x1b]" not in text
    text.encode("utf-8")


def test_hostile_words_outside_names_are_harmless() -> None:
    report = replace(undetermined(), warnings=(warning("x", "w\x1b[2J\nx"),))
    cohort = replace(report.cohort, outcome_text="o\x1b[2J", remedy="r\r\n")
    text = render(replace(report, cohort=cohort), TERMINAL, report_path="p\x1b.json")
    assert "\x1b" not in text
    assert "\r" not in text
    assert "warning: w\\x1b[2J\\x0ax\n" in text


def test_colour_only_where_asked() -> None:
    assert "\x1b[" in render(fake_report(), View(width=80, colour=True))
    assert "\x1b" not in render(fake_report(), TERMINAL)


def test_environment_does_not_colour_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = render(fake_report(), TERMINAL)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "20", "TTY_COMPATIBLE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert render(fake_report(), TERMINAL) == expected


@pytest.mark.parametrize("width", [NARROWEST - 1, NARROWEST])
def test_a_terminal_too_narrow_for_a_table_gets_two_lines_a_client(width: int) -> None:
    lines = render(fake_report(), View(width=width)).splitlines()
    two = width < NARROWEST
    assert any("\u2500" in line for line in lines) != two
    assert ("amber  contaminated  out" in lines) == two
    if two:
        assert lines[lines.index("amber  contaminated  out") + 1].startswith("  ")


def table(text: str) -> dict[str, list[str]]:
    """The words of each line that begins with a client's name, or with "client", by that."""
    lines = (line.split() for line in text.splitlines() if line and line[0] != " ")
    return {words[0]: words for words in lines}


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [40, 60, SURE_FROM - 1, SURE_FROM, 120, None])
def test_how_sure_a_verdict_is_is_shown_where_there_is_room(
    width: int | None, unicode: bool
) -> None:
    found = table(render(fake_report(), View(width=width, unicode=unicode)))
    shown = width is None or width >= SURE_FROM
    assert ("sure" in found.get("client", [])) == shown
    for name in (*BENIGN, *REASONS):
        sure = "" if name in ("rita", "dave-copy") else SURE.get(name, "clear")
        assert (found[name][2] in SURE.values() or found[name][2] == "clear") == (
            shown and sure != ""
        )
        if shown and sure:
            assert found[name][2] == sure


@pytest.mark.parametrize("view", [TERMINAL, View()], ids=["terminal", "plain"])
def test_where_nobody_is_judged_nothing_is_sure(view: View) -> None:
    assert "sure" not in table(render(undetermined(), view))["client"]


@pytest.mark.parametrize(("length", "sure"), [(30, True), (31, False), (38, False), (39, True)])
def test_a_name_is_not_folded_to_say_how_sure_a_verdict_is(length: int, sure: bool) -> None:
    """In 80 columns 30 characters fit beside it, 38 without it, and what is longer is folded."""
    lines = render(renamed(fake_report(), {"amber": "n" * length}), TERMINAL).splitlines()
    assert any(line.startswith("n" * length + " ") for line in lines) == (length < 39)
    assert any("sure" in line.split() for line in lines if line.startswith("client")) == sure


def test_words_need_twenty_columns() -> None:
    text = render(fake_report(), View(width=20))
    assert render(fake_report(), View(width=1)) == text != render(fake_report(), View(width=21))


MANY = 25


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            fake_report(),
            "3 of 12 clients contaminated: amber, mallory, zoe; 1 suspicious, 1 duplicate, "
            "1 rejected; merged 7 into merged.safetensors (rank 16, error 0.071)",
        ),
        (
            fake_report(command="inspect"),
            "3 of 12 clients contaminated: amber, mallory, zoe; 1 suspicious, 1 duplicate, "
            "1 rejected",
        ),
        (
            all_benign(),
            "0 of 6 clients contaminated; merged 6 into merged.safetensors (rank 16, error 0.071)",
        ),
        (
            undetermined(),
            "undetermined: 2 clients: can't tell which of them is wrong; nothing merged",
        ),
        (
            undetermined("inspect"),
            "undetermined: 2 clients: can't tell which of them is wrong",
        ),
        (
            replace(
                undetermined("refine"),
                cohort=replace(
                    undetermined().cohort, outcome="refused", outcome_text="no client is left."
                ),
            ),
            "refused: no client is left; nothing refined",
        ),
        (
            replace(fake_report(), merged=None, exit_code=3, options={"fail_on": "contaminated"}),
            "3 of 12 clients contaminated: amber, mallory, zoe; 1 suspicious, 1 duplicate, "
            "1 rejected; nothing merged (--fail-on contaminated)",
        ),
    ],
)
def test_the_verdict_in_one_sentence(report: object, expected: str) -> None:
    assert verdict_line(report) == expected
    assert render(report, View()).splitlines()[-1] == expected


def test_the_sentence_says_where_the_report_is() -> None:
    line = verdict_line(undetermined(), report_path="merged.report.json")
    assert line.endswith("; nothing merged; report in merged.report.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name-1.2", "plain name-1.2"),
        ("\u533b\u9662 caf\u00e9", "\u533b\u9662 caf\u00e9"),
        ("a\tb\r\n\0\x7f", "a\\x09b\\x0d\\x0a\\x00\\x7f"),
        ("\u2028\u200b\ufeff\u2066", "\\u2028\\u200b\\ufeff\\u2066"),
        ("\udc80\udcff\ud800", "\\x80\\xff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("  ::warning::", "  \\x3a:warning::"),
        ("a::b", "a::b"),
        ("", ""),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize("count", [MAX_NAMES, MAX_NAMES + 1])
def test_groups_are_cut(count: int) -> None:
    report = fake_report()
    others = tuple(Group((f"a{k}", f"b{k}"), 0.5, "other") for k in range(count))
    groups = (report.cohort.groups[0], *others)
    report = replace(report, cohort=replace(report.cohort, groups=groups))
    text = render(report, View())
    assert text.count("form a group of their own") == MAX_NAMES
    assert ("and 1 more groups\n" in text) == (count > MAX_NAMES)
