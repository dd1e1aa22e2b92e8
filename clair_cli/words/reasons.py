"""Why a client has its verdict: one template for each reason code, in three parts.

Everything is rendered from the report; nothing is judged again. Words of the report come from
strangers and pass through `printable`; who writes HTML or Markdown escapes these texts besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clair_cli.report.model import ClientReport, Reason, Report
from clair_cli.text import printable
from clair_cli.words.outcomes import OUTCOMES
from clair_cli.words.values import values_of

MANY = 3  # clients rejected for one reason, which is shown once


@dataclass(frozen=True)
class Sentences:
    """A reason in words.

    Attributes:
        short: a phrase for a table, with the number.
        what: plain, without numbers; it follows the client's name and a colon.
        number: the numbers with their meaning, or "".
        ask: what often causes it, and what to ask the client; whole sentences, or "".
    """

    short: str
    what: str
    number: str = ""
    ask: str = ""

    @property
    def line(self) -> str:
        """All of it: "what (number). Ask"."""
        numbers_ = f" ({self.number})" if self.number else ""
        return f"{self.what.rstrip('.')}{numbers_}." + (f" {self.ask}" if self.ask else "")


@dataclass(frozen=True)
class Template:
    """Parts with `{names}` of values (values.py); a part of `number` without its value is left out.

    `short` is the report's own text where it is "".
    """

    what: str
    number: tuple[str, ...]
    ask: str
    short: str = ""


REASONS: Mapping[str, Template] = {
    "unlike_the_others": Template(
        "what it learnt has {little} in common with what the others learnt",
        ("{share}", "{odds}"),
        "Often: shuffled labels, other data, another task. Ask for its label file and data"
        " version.",
        "unlike the others: {share}",
    ),
    "in_a_group": Template(
        "it learnt the same as {company}, and that is not what the others learnt",
        ("{share}", "{odds}"),
        "Often: the same wrong labels, data of another kind, or clients that act together. Ask each"
        " of them, separately, for its data source and its training script.",
        "in a group with {company}, apart from the others: {share}",
    ),
    "opposite": Template(
        "what it learnt points against what the others learnt",
        ("{share}", "{odds}"),
        "Often: labels the wrong way round, or an update with its sign reversed. Ask for its label"
        " mapping, and how the adapter was exported.",
        "against the others: {share}",
    ),
    "weakly_alike": Template(
        "it can't be told from a client that learnt something unrelated",
        ("{interval}", "{odds}"),
        "Often: little data, or few steps. Ask how many examples and steps it trained with; the"
        " next round shows more.",
        "may be unrelated to the others: {interval}",
    ),
    "less_alike": Template(
        "what it learnt seems to have less in common with what the others learnt than honest"
        " clients' updates have",
        ("{interval}", "{odds}"),
        "Often: other data, labels that are wrong in part, or few steps. Ask for its data source"
        " and its training settings; the next round shows more.",
        "less like the others: {interval}",
    ),
    "odd_signature": Template(
        "taken together, its sizes over the modules, its number of directions and what it shares"
        " with the others, in all and beside the direction that all training takes, are unlike"
        " theirs",
        ("{odds}",),
        "Often: other data, wrong labels or a backdoor, another recipe (learning rate, rank,"
        " steps). Ask what is special about its data, and for its label file and training"
        " settings.",
        "what it shares, its sizes and directions unlike the others'",
    ),
    "norm": Template(
        "its update is far larger than the others', and would outweigh theirs",
        ("{size}", "{agrees}"),
        "Often: a learning rate or lora_alpha set too high, many more steps, or an update scaled up"
        " on purpose. Ask for its training settings.",
        "far too large: {size}",
    ),
    "module_norm": Template(
        "in one module its update is far larger than the others' are there",
        ("{module_size}", "{agrees}"),
        "Often: training that became unstable there, another rule for the scale, or a change put"
        " there on purpose. Ask for its training settings and its loss curve.",
        "far too large in one module: {module_size}",
    ),
    "scale": Template(
        "its config multiplies the update by more than the others' do",
        ("{text}",),
        "Ask why its lora_alpha, or use_rslora, is not what was agreed.",
    ),
    "noise": Template(
        "it is spread over many more directions than the others' updates, as random numbers are",
        ("{spread}", "{share}"),
        "Often: noise added for privacy or by mistake, or weights that were never trained. Ask"
        " whether noise was added, and for its training log.",
        "like noise: {spread}",
    ),
    "odd_module": Template(
        "as a whole it is like the others, but not in {modules}",
        ("{share}, as a whole",),
        "Often: its data want something else there; sometimes a change hidden in a few modules. Ask"
        " whether these modules were trained in another way.",
    ),
    "head_unlike": Template(
        "what it trained beside the LoRA (a head, biases, token rows) is unlike the others'",
        ("{head}",),
        "Often: a head that began elsewhere, or labels in another order. Ask for its label order,"
        " and what its head started from.",
        "its head is unlike the others'",
    ),
    "head_against": Template(
        "its head learnt something else than the others' heads did",
        ("{head}",),
        "Often: labels in another order, or wrong labels. Ask for its label order and label file.",
        "its head does not go along with the others'",
    ),
    "head_norm": Template(
        "its head changed far more than the others' heads did",
        ("{head_size}",),
        "Often: a learning rate of its own for the head, or another start. Ask for its training"
        " settings.",
        "its head changed far too much: {head_size}",
    ),
    "no_update": Template(
        "its adapter changes nothing, or nearly nothing",
        ("{size}",),
        "Often: training that did not run, or the wrong checkpoint. Ask for its training log, and"
        " for the adapter again.",
        "changes nothing, or nearly nothing",
    ),
    "large": Template(
        "it is like the others but larger, so it counts for less than its full weight",
        ("{size}", "{counts}"),
        "Nothing has to be done; if the size is a surprise, ask for its learning rate.",
        "large: {counts}",
    ),
    "trusted": Template(
        "it would be left out, and is merged because --trust names it",
        ("without that it is {without}",),
        "Its other reasons say what was found: make sure that it deserves the trust.",
    ),
    "allowed": Template(
        "it would be left out, and is merged because the allow list names its file",
        ("without that it is {without}", "{decision}"),
        "Make sure that the reason still holds.",
    ),
    "reviewed": Template(
        "a person changed its verdict in the report that was given with --verdicts",
        ("by its numbers it is {without}", "{decision}"),
        "Make sure that the reason still holds.",
    ),
    "near_copy": Template(
        "it is {text}",
        (),
        "Often: one client under two names, or two with the same data. Ask each of them on which"
        " data, and by whom, it was trained.",
    ),
    "tied": Template(
        "it is like {tied}, or against it, as nobody else in the round is; together they count as"
        " one client",
        (),
        "One of them may have mixed another's update into its own, or taken it away; the weights do"
        " not say which. Ask each how it came by its adapter, and whether it could read another's.",
        "like {tied}, or against it, as nobody else is",
    ),
    "duplicate": Template(
        "it sent {text}",
        (),
        "Often: the same file under two names. Ask which of them trained it, and the other for its"
        " own adapter.",
    ),
    "minority": Template(
        "besides what all share, it has something in common with {company} that everyone else"
        " lacks",
        ("{chance}", "{agrees}"),
        "It can be a backdoor or the same wrong labels, and as well honest data of another kind"
        " (other patients, another device). Ask each of them, separately, for its data source, and"
        " try the merged model on their data.",
        "shares with {company} what all others lack",
    ),
    "rejected": Template(
        "its files can't be used: {text}",
        (),
        "Mend that, ask for its adapter again, or leave it out with --exclude.",
    ),
}
"""By code; those of a cohort that is not judged are in `OUTCOMES`."""


def explain_reason(
    client: ClientReport, reason: Reason, report: Report, *, others: str | None = None
) -> Sentences:
    """One reason of a client in words.

    A code that is not known, as in a report that a later version wrote, gets the report's own text.

    Args:
        others: what to call the others of its group or minority; None for their names.
    """
    values = values_of(client, reason, report)
    if others is not None and values["company"]:
        values["company"] = others
    template = REASONS.get(reason.code)
    if client.verdict == "rejected":
        template = REASONS["rejected"]
    if template is None and reason.code in OUTCOMES:
        return Sentences(values["text"], OUTCOMES[reason.code].what, "", OUTCOMES[reason.code].ask)
    if template is None:
        return Sentences(values["text"], values["text"])
    return Sentences(
        _filled(template.short, values) or values["text"],
        _filled(template.what, values) or values["text"],
        "; ".join(filter(None, (_filled(part, values) for part in template.number))),
        template.ask,
    )


def _filled(part: str, values: Mapping[str, str]) -> str:
    """The part with its values; "" if it has none of one of them."""
    for name, value in values.items():
        if not value and f"{{{name}}}" in part:
            return ""
    return part.format_map(values)


def explain_client(client: ClientReport, report: Report) -> tuple[Sentences, ...]:
    """All reasons of a client in words, in the report's order."""
    return tuple(explain_reason(client, reason, report) for reason in client.reasons)


def short_reasons(report: Report) -> tuple[str, ...]:
    """What a table says of each client, in the report's order; "" for one without a reason.

    The reason of rejected clients that several have stands with the first of them only.
    """
    found = ["; ".join(s.short for s in explain_client(c, report)) for c in report.clients]
    same: dict[str, list[int]] = {}
    for k, client in enumerate(report.clients):
        if client.verdict == "rejected" and client.reasons:
            same.setdefault(found[k], []).append(k)
    for who in same.values():
        for k in who[1:] if len(who) >= MANY else ():
            found[k] = f"as {printable(report.clients[who[0]].name)}"
    return tuple(found)
