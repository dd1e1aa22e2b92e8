"""One client in full: sections of sentences, rendered from the report alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.clients import names
from clair_cli.words.doubts import LIKENESS, SEEN_TWICE, alone_words, is_alone
from clair_cli.words.influence import Likeness, likenesses, pull
from clair_cli.words.numbers import give_or_take, odds, percent, probability, times
from clair_cli.words.outcomes import outcome_code
from clair_cli.words.reasons import explain_client
from clair_cli.words.steps import Step, step_for
from clair_cli.words.sure import by_earlier, earlier_words, sure_words

RESEMBLES = "whom it resembles"
_NEAREST = 3  # clients that are named on either end


@dataclass(frozen=True)
class Section:
    """A heading and sentences under it, safe to print."""

    heading: str
    lines: tuple[str, ...]


# Of a benign client, where the round has that warning.
_UNEVEN = (
    "that is about clients that share nothing; this round is uneven, so that one which learnt what"
    " all learn, and has a fault besides, may look the same: read the warning"
)


def headline(client: ClientReport) -> str:
    """The verdict and what became of the client, in a line."""
    weight = f"{percent(client.weight)} of the merge" if client.weight > 0 else "not in the merge"
    trusted = ", trusted" if client.trusted else ""
    return f"{printable(client.name)}: {client.verdict}{trusted}, {weight}"


def sections(client: ClientReport, report: Report) -> tuple[Section, ...]:
    """Why, how sure, whom it resembles and what it does to the merge; empty ones are left out."""
    found = (
        Section("why", _why(client, report)),
        Section("how sure", _how_sure(client, report)),
        Section("what the second opinion says", _second_opinion(client, report)),
        Section(RESEMBLES, _resembles(client, report)),
        Section("what it does to the merge", _to_the_merge(client, report)),
    )
    return tuple(section for section in found if section.lines)


def to_do(client: ClientReport, report: Report) -> Step:
    """What to do about the client, and a command."""
    step = step_for(client, report)
    return step if step.command else replace(step, text=f"{step.text.rstrip(':.')}.")


def _why(client: ClientReport, report: Report) -> tuple[str, ...]:
    lines = [f"{_capital(said.line)}" for said in explain_client(client, report)]
    if outcome_code(report):
        lines.append(f"The round: {printable(report.cohort.outcome_text).rstrip('.')}.")
    if not lines and client.verdict == "benign":
        share = give_or_take(client.scores.loading, client.scores.loading_se)
        size = times(client.scores.measures.get("norm_ratio"), "the median client's size")
        numbers = "; ".join(filter(None, (share, size)))
        lines.append("It learnt what the others learnt" + (f" ({numbers})." if numbers else "."))
    return tuple(lines)


def _how_sure(client: ClientReport, report: Report) -> tuple[str, ...]:
    said = sure_words(client)
    if not said or client.decided:
        return (f"{_capital(said)}.",) if said else ()
    noticed = ""
    if client.power is not None:
        times_ = probability(client.power)
        noticed = f"had it shared nothing with the others, that would have been noticed {times_}."
    if client.verdict == "benign":
        first = f"{client.confidence}: {noticed}" if noticed and not by_earlier(client) else said
        uneven = _UNEVEN if any(r.code == "uneven" for r in report.warnings) else ""
        found = (first, odds(client.p_honest), uneven, earlier_words(client))
        return tuple(f"{_capital(line.rstrip('.'))}." for line in found if line)
    lines = [f"{_capital(said)}."]
    if client.p_honest is not None and LIKENESS & {reason.code for reason in client.reasons}:
        lines.append(
            "That is how rare this is among honest clients, not how likely this one is honest."
        )
    if noticed:
        lines.append(_capital(noticed))
    if of_earlier := earlier_words(client):
        lines.append(f"{_capital(of_earlier)}.")
    return tuple(lines)


def _second_opinion(client: ClientReport, report: Report) -> tuple[str, ...]:
    lines = []
    found = report.cohort.decomposition
    codes = {reason.code for reason in client.reasons}
    verdict = client.judged or client.verdict
    if found is not None and found.converged and client.name in found.kept:
        against = verdict == "contaminated"
        why = (
            " The two judges disagree." if against and SEEN_TWICE & codes
            else " It does not look at what the reasons above are about." if against
            else ""
        )  # fmt: skip
        lines.append(f"The decomposition, which decides nothing, keeps the client.{why}")
    elif found is not None and found.converged and client.name in found.left_out:
        against = verdict == "benign"
        why = " The two judges disagree." if against else ""
        lines.append(f"The decomposition, which decides nothing, leaves the client out.{why}")
    if verdict == client.verdict == "benign" and is_alone(client, report):
        lines.append(f"It {alone_words(client)}.")
    return tuple(lines)


def _resembles(client: ClientReport, report: Report) -> tuple[str, ...]:
    found = likenesses(client, report)
    lines = []
    for group in report.cohort.groups:
        if client.name in group.members and len(group.members) > 1:
            others = names(tuple(n for n in group.members if n != client.name))
            lines.append(_IN_GROUP.get(group.role, "In a group with {}.").format(others))
    if is_alone(client, report):
        lines.append("In no group.")
    if len(found) <= 2 * _NEAREST:
        lines += [_likeness(one) for one in found]
    else:
        lines += [_likeness(one) for one in found[:_NEAREST]]
        lines.append(f"and {len(found) - 2 * _NEAREST:,} more in between")
        lines += [_likeness(one) for one in found[-_NEAREST:]]
    return tuple(lines)


_IN_GROUP = {
    "collaborative": "In the cohort's group, with {}.",
    "other": "In a group of its own, with {}.",
    "minority": "In a minority, with {}.",
}


def _likeness(one: Likeness) -> str:
    width = "" if one.width is None or percent(one.width) == "0 %" else percent(one.width)
    give = f", give or take {width}" if width else ""
    return (
        f"  {printable(one.other.name)} ({one.other.verdict}): {percent(one.share)} of what is"
        f" usual between two{give}"
    )


def _to_the_merge(client: ClientReport, report: Report) -> tuple[str, ...]:
    found = pull(client, report)
    if found is None:
        return ()
    if client.verdict == "minority" and found.merged and found.moved is None:
        said = "The part of it that it shares with the others is merged, with a weight of"
        return (f"{said} {percent(found.weight)}.",)
    if found.merged:
        line = f"It has {percent(found.weight)} of the weight."
        if found.moved is not None:
            line += f" Without it the merged adapter would differ by about {percent(found.moved)}."
        return (line,)
    if client.verdict == "duplicate":
        return ("Nothing: the client whose update it equals has the vote.",)
    if found.moved is None:
        return ("It is left out.",)
    return (
        f"It is left out. With an equal share ({percent(found.weight)}) it would have moved the"
        f" merged adapter by about {percent(found.moved)} of its size.",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
