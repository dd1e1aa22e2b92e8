"""What earlier rounds add, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clair_cli.report.model import ClientReport, EarlierScores
from clair_cli.words.explain import sections
from clair_cli.words.sure import earlier_words, sure_words
from tests.fake_report import fake_report

REPORT = fake_report()
BOB, AMBER = (next(c for c in REPORT.clients if c.name == name) for name in ("bob", "amber"))


def earlier(
    client: ClientReport, *, rounds: int = 3, agrees: bool = True, alone: str
) -> ClientReport:
    scores = EarlierScores(rounds, 0.96, 0.05, 0.999, 0.998, agrees, alone)
    return replace(client, earlier=scores)


def how_sure(client: ClientReport) -> tuple[str, ...]:
    return next(s.lines for s in sections(client, REPORT) if s.heading == "how sure")


def test_a_verdict_that_earlier_rounds_made_surer_says_so() -> None:
    surer = earlier(BOB, alone="open")
    assert sure_words(surer) == (
        "clear: had it shared nothing with the others, that would have shown (with 3 earlier "
        "rounds; by this one alone it is open)"
    )
    assert how_sure(surer)[0] == f"{sure_words(surer).capitalize()}."
    assert how_sure(surer)[-1] == (
        "Over this round and 3 earlier rounds it has 96 % of what two of the others share, give or "
        "take 10 %; by this round alone the verdict is open."
    )


def test_a_verdict_that_is_as_sure_as_before() -> None:
    same = earlier(BOB, rounds=1, alone="clear")
    assert sure_words(same) == sure_words(BOB)
    assert how_sure(same)[:-1] == how_sure(BOB)
    assert earlier_words(same).startswith("over this round and 1 earlier round it has 96 %")
    assert earlier_words(same).endswith("; which makes the verdict no surer")


@pytest.mark.parametrize("client", [BOB, AMBER])
def test_rounds_that_contradict_this_one(client: ClientReport) -> None:
    assert client.confidence is not None
    turned = earlier(client, agrees=False, alone=client.confidence)
    assert sure_words(turned) == sure_words(client)
    assert how_sure(turned) == (
        *how_sure(client),
        "What 3 earlier rounds saw of it is not what this one sees, and counts for nothing.",
    )


def test_without_earlier_rounds_there_is_nothing_to_say() -> None:
    assert earlier_words(BOB) == ""
