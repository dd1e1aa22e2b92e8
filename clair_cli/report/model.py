"""What a run found, as plain numbers and words: `clair.report/2`. Standard library only.

Every float here is finite or None: a number that can't be known is None, never NaN.
Shares and ratios lie in 0 to 1 unless said otherwise; norms are in weight units. The docstrings are
also what the JSON Schema says of each field: see `fields.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from clair_cli.remark import Remark
from clair_cli.report.cohort import CohortReport, ModuleReport
from clair_cli.report.fields import (
    LATER,
    Code,
    Count,
    InputName,
    Sha256,
    Share,
    Size,
    Text,
    Word,
    at_least,
    between,
    matching,
    one_of,
)
from clair_cli.report.notebook import short_table
from clair_cli.report.plain import plain
from clair_cli.report.results import MergedReport, RefinedReport

SCHEMA = "clair.report/2"

# In the order a reader wants them: who was left out first.
VERDICTS = (
    "contaminated", "minority", "suspicious", "duplicate", "rejected", "undetermined", "benign",
)  # fmt: skip
Verdict = Annotated[str, one_of(*VERDICTS)]
Cosine = Annotated[float, between(-1.000001, 1.000001)]  # but for rounding -1 to 1


@dataclass(frozen=True)
class Reason:
    """Why a client has its verdict.

    Attributes:
        code: what it is about, as in "unlike_the_others" or "duplicate"; stays the same from
            version to version.
        text: a phrase for people, with the numbers.
    """

    code: Code
    text: Text


@dataclass(frozen=True)
class ClientScores:
    """The numbers behind a client's verdict; None where a number does not exist.

    Attributes:
        loading: how much the client has of what the cohort's group has in common, over a typical
            member: about 1 for a member, about 0 for an unrelated client, below 0 for an opposite
            one.
        loading_se: standard error of the loading, from the members' own pairs and from chance.
        similarity: mean similarity to the other members, above the value for unrelated clients.
        off_line_ratio: share of the norm of its delta weights off the line of the other members'
            mean; None where the members share only a side of the delta weights.
        block_norm: norm of what the decomposition set aside for the client; 0 means that it keeps
            the client whole.
        measures: further numbers by name: `norm` of all delta weights and `norm_ratio` to the
            members' median, `module_norm_ratio` (the largest in one module),
            `effective_rank_ratio` (directions the energy is spread over, over their median).
    """

    loading: float | None = None
    loading_se: Size | None = None
    similarity: float | None = None
    off_line_ratio: Share | None = None
    block_norm: Size | None = None
    measures: Mapping[Word, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleScores:
    """One client in one module.

    Attributes:
        norm: norm of its delta weight; 0 if it has none here.
        similarity: mean similarity to the other members in this module.
        chance: standard deviation of that similarity for an unrelated client, from the spectra and
            the directions used; None where there is no similarity.
        rank: LoRA rank of its factors here; 0 if it lacks the module.
        scaling: what B A is multiplied with; None if it lacks the module.
    """

    norm: Size
    similarity: float | None
    chance: Size | None
    rank: Count
    scaling: float | None


@dataclass(frozen=True)
class HeadScores:
    """One client's tensor that was trained as a whole beside the LoRA.

    Attributes:
        distance: norm of its difference from the previous round's tensor, or from the members'
            median, in the tensor's own units.
        similarity: median cosine of that difference to the members'.
        whole_similarity: median cosine of the tensor itself to the members'.
    """

    distance: Size
    similarity: Cosine | None
    whole_similarity: Cosine | None


@dataclass(frozen=True)
class Review:
    """Why a client has another verdict than its numbers give.

    Attributes:
        reason: why; empty if nobody wrote it down.
        by: who says so; empty likewise.
        until: the last day on which it holds, as YYYY-MM-DD; empty for no end.
    """

    reason: str = ""
    by: str = ""
    until: str = ""


@dataclass(frozen=True)
class EarlierScores:
    """What a client's earlier rounds add to how sure its verdict is.

    Attributes:
        rounds: how many of them saw the client.
        loading: over these rounds and this one.
        loading_se: its standard error, at least that of three independent rounds like this one.
        p_honest: probability of a loading as low for a client that has just what the line asks,
            never stated below 0.001.
        power: probability that the client would have been noticed if it had shared nothing with the
            others in any of the rounds.
        agrees: whether the earlier rounds say what this one says; if not, they count for nothing.
        alone: the confidence that this round alone gives.
    """

    rounds: Annotated[int, at_least(1)]
    loading: float
    loading_se: Annotated[float, at_least(0)]
    p_honest: Annotated[float, between(0.001, 1)]
    power: Share
    agrees: bool
    alone: Annotated[str, one_of("clear", "likely", "open")]


@dataclass(frozen=True)
class ClientReport:
    """One client and its verdict.

    Attributes:
        name: name of the client; bytes that are not Unicode stand in it as \\xNN, and then it need
            not be unique.
        verdict: the verdict on the client.
        reasons: why it has this verdict; a benign client may have none.
        scores: the numbers behind the verdict.
        weight: its share in the merged mean; all weights sum to 1, and who is left out has 0.
        sha256: SHA-256 of its weights file; None if that could not be read.
        path: its path, as given.
        ranks: the distinct LoRA ranks of its modules, ascending.
        scales: the distinct scales of its modules, ascending.
        modules: its numbers in each module, by the module's name.
        name_bytes: base64 of the name's bytes if they are not Unicode, else None.
        trusted: whether it was given with --trust.
        p_honest: probability that an honest client of this round looks at least as unlike the
            others, never stated below 0.001; it is not the probability that this client is honest,
            and None where that was not asked.
        confidence: how sure the verdict is; None without a verdict on what the client learnt.
        power: probability that this client would have been noticed if it shared nothing with the
            others; None if the cohort has no group.
        heads: the tensors beside the LoRA that are not the same in all clients, by name.
        judged: the verdict that the numbers give; where `verdict` is another, a person decided so;
            None or absent in reports of earlier versions.
        review: that decision, if somebody gave a reason; else None.
        earlier: what earlier rounds add; None where none is given, or none saw the client.
    """

    name: Text
    verdict: Verdict
    reasons: tuple[Reason, ...]
    scores: ClientScores
    weight: Share
    sha256: Sha256 | None
    path: str
    ranks: tuple[Count, ...] = ()
    scales: tuple[float, ...] = ()
    modules: Mapping[str, ModuleScores] = field(default_factory=dict)
    name_bytes: Annotated[str, matching("^[A-Za-z0-9+/]+=*$", "base64")] | None = None
    trusted: bool = False
    p_honest: Annotated[float, between(0.001, 1)] | None = None
    confidence: Annotated[str, one_of("clear", "likely", "open")] | None = None
    power: Share | None = None
    heads: Annotated[Mapping[str, HeadScores], LATER] = field(default_factory=dict)
    judged: Annotated[Verdict | None, LATER] = None
    review: Annotated[Review | None, LATER] = None
    earlier: Annotated[EarlierScores | None, LATER] = None

    @property
    def decided(self) -> bool:
        """Whether the verdict is a person's and not the one that the numbers give."""
        return self.judged is not None and self.judged != self.verdict

    @property
    def sure(self) -> str:
        """How sure the verdict is, for a table; "" without a verdict on what the client learnt, or
        where a person decided."""
        return "" if self.decided else self.confidence or ""


@dataclass(frozen=True)
class Report:
    """What one run of clair found, key by key; a number that can't be known is None.

    Attributes:
        version: version of clair that wrote the report.
        command: the command that was run.
        options: every option of the command by name, as given or by default, but those that say
            where it is computed (older reports have device); paths as they were given.
        cohort: the round as a whole.
        clients: every client that was found, sorted by name.
        modules: every module that any comparable client has, sorted by name.
        merged: the merged adapter; None if the command is another one or nothing was merged.
        refined: the refined adapters; None if the command is another one or nothing was refined.
        warnings: remarks on the round, in the order in which they were found.
        exit_code: exit code of the command.
        schema: name and version of this format.
        inputs: SHA-256 of what was given beside the clients and changes the result, by the name of
            its option: of the weights files of "previous", "initial" and "trust_adapter", and of
            the comparable clients' "weights" as JSON sorted by name, without spaces; and of the
            reports of "earlier" that count, as "earlier_1" (the last round's), "earlier_2"...
    """

    version: Text
    command: Annotated[str, one_of("merge", "inspect", "refine")]
    options: Mapping[str, object]
    cohort: CohortReport
    clients: tuple[ClientReport, ...]
    modules: tuple[ModuleReport, ...]
    merged: MergedReport | None
    refined: RefinedReport | None
    warnings: tuple[Remark, ...]
    exit_code: Annotated[int, one_of(0, 3, 4, 5)]
    schema: Annotated[str, one_of(SCHEMA)] = SCHEMA
    inputs: Mapping[InputName, Sha256] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers: what its JSON says.

        Raises:
            TypeError: a value that JSON has no word for (a tensor, a path, a numpy number).
        """
        return cast(dict[str, Any], plain(self))

    def with_verdict(self, verdict: str) -> tuple[ClientReport, ...]:
        """The clients of one verdict, in the report's order."""
        return tuple(c for c in self.clients if c.verdict == verdict)

    def _repr_html_(self) -> str:
        """What a notebook shows: the outcome, and who has which verdict and why, who was left out
        first."""
        counts = [f"{len(found)} {v}" for v in VERDICTS if (found := self.with_verdict(v))]
        rows = [
            (
                client.name,
                verdict,
                client.sure,
                f"{client.weight:.1%}" if client.weight > 0 else "out",
                "; ".join(reason.text for reason in client.reasons),
            )
            for verdict in VERDICTS
            for client in self.with_verdict(verdict)
        ]
        outcome = "" if self.cohort.outcome == "judged" else f"{self.cohort.outcome}: "
        title = f"clair {self.command}: {outcome}{', '.join(counts) or 'no client'}"
        return short_table(title, ("client", "verdict", "sure", "weight", "why"), rows)
