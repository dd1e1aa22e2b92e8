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
        "Ask more clients for their adapters: three is the least, and more show more.",
    ),
    "too_few_left": Outcome(
        "too few clients agree with one another and have no other finding",
        "Ask those with a finding for what their reasons say, or ask more clients.",
    ),
    "nothing_shared": Outcome(
        "the clients have learnt nothing in common that could be told from chance",
        "Often: long training on very different data, or different tasks. Ask all of them whether"
        " they trained for the same task, from the same base model.",
    ),
    "little_shared": Outcome(
        "the clients have so little in common that a bad one could pass unnoticed",
        "Ask more clients, or ask them to train longer.",
    ),
    "same_start": Outcome(
        "all clients are nearly the same, as they are when all started from one adapter",
        "Find the adapter that they started from, often the last merged one, and give it with"
        " --previous.",
    ),
    "previous_cancels": Outcome(
        "what the clients added to the adapter given with --previous cancels out",
        "Often: it is these clients' own merge. Give the adapter that they started from.",
    ),
    "previous_absent": Outcome(
        "the clients have little of the adapter given with --previous in them",
        "Often: it is another round's. Ask the clients what they started from.",
    ),
    "heads_unrelated": Outcome(
        "what the clients trained beside the LoRA has nothing in common, so its mean would be none"
        " of them",
        "Often: each client's head began at random. Let all start from one head in the next round.",
    ),
    "same_update": Outcome(
        "all clients sent the same update",
        "Often: checkpoints or copies of one run. Ask each client for its own adapter.",
    ),
    "one_side": Outcome(
        "the clients are alike only as any training from one base model is",
        "Ask whether they trained for the same task; more clients or longer training show more.",
    ),
    "two_groups": Outcome(
        "the clients fall into two groups of similar size, and nothing says which one is right",
        "Ask both groups for their data source and labels, or name a client that you trust.",
    ),
    "trusted_alone": Outcome(
        "nobody is like the trusted client",
        "Look at the trusted adapter first: ask for its data version and training settings.",
    ),
    "trusted_disagree": Outcome(
        "the trusted clients contradict one another",
        "Find out which of them is wrong, and trust the others only.",
    ),
    "not_converged": Outcome(
        "the second opinion did not come to a result",
        "Please report this cohort to the authors of clair: it should not happen.",
    ),
    "undetermined": Outcome(
        "the clients were not judged",
        "What the round says about itself, above, has the cause.",
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
