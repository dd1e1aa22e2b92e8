"""A cohort that is not judged: one template for each code, and which one a report is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from clair_cli.report.model import Report


@dataclass(frozen=True)
class Outcome:
    """What happened, plainly, and what to ask or do; whole phrases, and `ask` whole sentences."""

    what: str
    ask: str


OUTCOMES: Mapping[str, Outcome] = {
    "no_updates": Outcome(
        "no client sent a change: all their weights are zero",
        "Often: training did not run, or the adapters were saved before it. Ask all clients for"
        " their training logs.",
    ),
    "too_few": Outcome(
        "there are too few clients to say who is unlike the others",
        "Ask more clients for their adapters: three is the least.",
    ),
    "too_few_left": Outcome(
        "too few clients are left that agree with one another and have no finding of their own",
        "Ask those with a finding for what their reasons say.",
    ),
    "nothing_shared": Outcome(
        "the clients have learnt nothing in common that could be told from chance",
        "Often: long training on very different data, or different tasks. Ask all of them whether"
        " they trained for the same task, from the same base model.",
    ),
    "little_shared": Outcome(
        "the clients have so little in common that a bad one could pass unnoticed",
        "Often: few steps, or data that differ much. Ask for the number of steps and examples.",
    ),
    "same_start": Outcome(
        "all clients are nearly the same, as they are when all started from one adapter",
        "Ask the clients what they started from: often it is the last merged adapter.",
    ),
    "previous_cancels": Outcome(
        "what the clients added to the adapter that is given as their start cancels out",
        "Often: that adapter is the merge of these very clients. Ask them what they started from.",
    ),
    "previous_absent": Outcome(
        "the clients have little in them of the adapter that is given as their start",
        "Often: that adapter is of another round. Ask the clients what they started from.",
    ),
    "heads_unrelated": Outcome(
        "what the clients trained beside the LoRA has nothing in common, so a mean of it would"
        " be like none of theirs",
        "Often: each client's head began at random.",
    ),
    "same_update": Outcome(
        "all clients sent the same update",
        "Often: they are checkpoints or copies of one run. Ask each client for its own adapter.",
    ),
    "one_side": Outcome(
        "the clients are alike only in the way in which any training from one base model is",
        "Ask whether they trained for the same task; more clients or longer training show more.",
    ),
    "two_groups": Outcome(
        "the clients fall into two groups of similar size, and nothing says which one is right",
        "Ask both groups for their data source and labels.",
    ),
    "trusted_alone": Outcome(
        "nobody is like the trusted client",
        "Ask the trusted client for its data version and training settings.",
    ),
    "trusted_disagree": Outcome(
        "the trusted clients contradict one another",
        "Ask all of them for their data version and training settings.",
    ),
    "not_converged": Outcome(
        "the second opinion did not come to a result",
        "That should not happen.",
    ),
    "undetermined": Outcome(
        "the clients were not judged",
        "The report's outcome says why.",
    ),
}


def outcome_code(report: Report) -> str:
    """The code of a round that is not judged: "refused", one of `OUTCOMES`, or "" if it is judged.

    Where some or all clients keep their own findings, too few of them were left.
    """
    if report.cohort.outcome == "judged":
        return ""
    if report.cohort.outcome == "refused":
        return "refused"
    codes = Counter(r.code for c in report.clients for r in c.reasons if r.code in OUTCOMES)
    return max(codes, key=lambda code: (codes[code], code)) if codes else "too_few_left"
