"""What a run found, as plain numbers and words: `clair.report/2`. Standard library only.

Every float here is finite or None: a number that can't be known is None, never NaN.
Shares and ratios lie in 0 to 1 unless said otherwise; norms are in weight units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from clair_cli.remark import Remark
from clair_cli.report.notebook import short_table
from clair_cli.report.plain import plain
from clair_cli.report.results import MergedReport, RefinedReport

SCHEMA = "clair.report/2"

# In the order a reader wants them: who was left out first.
VERDICTS = (
    "contaminated", "minority", "suspicious", "duplicate", "rejected", "undetermined", "benign",
)  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """Why a verdict was given.

    Attributes:
        code: stable and machine readable, e.g. "unlike_the_others", "in_a_group",
            "opposite", "norm", "duplicate", "no_update", "unreadable".
        text: a short phrase for a person, with the numbers.
    """

    code: str
    text: str


@dataclass(frozen=True)
class ClientScores:
    """The numbers behind a verdict; None where a number does not exist.

    Attributes:
        loading: how much of what the cohort's group has in common the client has, over a typical
            member; about 1 for a member, about 0 for an unrelated client, below 0 for an opposite
            one.
        loading_se: its standard error, from the members' own pairs and from chance.
        similarity: mean similarity to the other members (above the value for unrelated clients).
        off_line_ratio: share of the delta weights' norm off the line of the *other* members' mean;
            None where only a side is shared.
        block_norm: ||S_k|| of the decomposition; 0 means the decomposition keeps the client.
        measures: further numbers by name: `norm` of all delta weights and `norm_ratio` to the
            members' median, `module_norm_ratio` (the largest in one module),
            `effective_rank_ratio` (directions the energy is spread over, over their median).
    """

    loading: float | None = None
    loading_se: float | None = None
    similarity: float | None = None
    off_line_ratio: float | None = None
    block_norm: float | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleScores:
    """One client in one module.

    Attributes:
        norm: of its delta weight (0: it has none here).
        similarity: mean similarity to the other members in this module.
        chance: standard deviation of `similarity` for an unrelated client, from the spectra and
            the directions used; None where there is no similarity.
        rank: LoRA rank of the client's factors here (0: the module is absent).
        scaling: what the reader multiplied B @ A with.
    """

    norm: float
    similarity: float | None
    chance: float | None
    rank: int
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

    distance: float
    similarity: float | None
    whole_similarity: float | None


@dataclass(frozen=True)
class Review:
    """Why a client has another verdict than its numbers give.

    Attributes:
        reason, by: why, and who says so; "" where nobody wrote it down.
        until: the last day on which it holds, as YYYY-MM-DD, or "".
    """

    reason: str = ""
    by: str = ""
    until: str = ""


@dataclass(frozen=True)
class ClientReport:
    """One client's verdict.

    Attributes:
        weight: its share in the merged mean; 0 when left out; all weights sum to 1.
        ranks, scales: the distinct ones over its modules, ascending.
        modules: by module name.
        name_bytes: base64 of the name's bytes if they are not Unicode; then `name`, in which they
            stand as `\\xNN`, need not be unique.
        trusted: whether it was given with `--trust`.
        p_honest: probability that an honest client of this round looks at least as unlike the
            others (not that this one is honest), 0.001 to 1; None where that was not asked.
        confidence: "clear", "likely" or "open"; None without a verdict on the client's update.
        power: probability that the client would have been noticed if it shared nothing with the
            others; None without a group.
        heads: by name, the tensors beside the LoRA that are not the same in all clients.
        judged: the verdict that the numbers give; another `verdict` is a person's decision. None in
            reports of earlier versions.
        review: that decision; None where there is none, or nobody gave a reason.
    """

    name: str
    verdict: str
    reasons: tuple[Reason, ...]
    scores: ClientScores
    weight: float
    sha256: str | None
    path: str
    ranks: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    modules: Mapping[str, ModuleScores] = field(default_factory=dict)
    name_bytes: str | None = None
    trusted: bool = False
    p_honest: float | None = None
    confidence: str | None = None
    power: float | None = None
    heads: Mapping[str, HeadScores] = field(default_factory=dict)
    judged: str | None = None
    review: Review | None = None


@dataclass(frozen=True)
class Group:
    """Clients that have something in common.

    Attributes:
        members: names, sorted.
        level: mean similarity inside, None for a single client.
        role: "collaborative" (the cohort's group, which is merged), "minority" (has that in common
            too, and something of its own), "other" or "loner".
    """

    members: tuple[str, ...]
    level: float | None
    role: str


@dataclass(frozen=True)
class DecompositionReport:
    """How the low-rank plus block-sparse decomposition went.

    Attributes:
        kept: names of the clients that it keeps (S_k = 0). left_out: the others that took part.
            (`ClientScores.block_norm` has S itself.)
        gap: relative duality gap. converged: whether it reached the tolerance.
        agrees: whether it keeps the cohort's group and nobody who is contaminated.
    """

    program: str
    low_rank_penalty: float
    block_penalty: float
    gap: float
    n_iter: int
    converged: bool
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    agrees: bool


@dataclass(frozen=True)
class WeightSpread:
    """How the clients' weights in the merge are spread.

    Attributes:
        largest: the largest weight, above 0 and at most 1. client: who has it; None if several do.
        effective_clients: 1 over the sum of the squared weights; the number merged where all have
            the same, and near 1 where one has nearly everything.
        capped: names of the clients who are held at the weight that `--max-weight` allows, sorted;
            none where it changes nothing.
    """

    largest: float
    client: str | None
    effective_clients: float
    capped: tuple[str, ...]


@dataclass(frozen=True)
class CohortReport:
    """The cohort as a whole.

    Attributes:
        outcome: "judged", "undetermined" or "refused"; `outcome_text` says why, in a sentence,
            and `remedy` what to do about it ("" when judged).
        n_clients: found; n_comparable: left after rejections, duplicates included.
        stacking: where agreement was found: "matrix" (whole delta weights), "output" or "input"
            (that side only), or None, as where it may be chance.
        level: mean similarity inside the cohort's group; level_se: its standard error over modules.
        power: probability that a client that shares nothing with the others would have been
            noticed; None without a group.
        contaminated_ratio: contaminated over judged clients, or None.
        names: order of rows and columns of `similarity`.
        similarity: of each pair in `stacking` (in "matrix" when none), above the value for
            unrelated clients; None where unknown. similarity_se: its standard errors.
        weights: how they are spread; None if nobody has one.
        line: a client is contaminated whose loading is clearly below this; None without a group.
        line_width: standard errors of the loading that are "clearly"; None without a group.
        coordinates: a map of the clients, (x, y) in the order of `names`: inner products are about
            the similarities. () where nothing was compared, as in reports of older versions.
        spectrum: eigenvalues of the similarities, the largest first: one above 1 for each thing
            that several clients share. () likewise.
    """

    outcome: str
    outcome_text: str
    remedy: str
    n_clients: int
    n_comparable: int
    stacking: str | None
    level: float | None
    level_se: float | None
    power: float | None
    contaminated_ratio: float | None
    groups: tuple[Group, ...]
    decomposition: DecompositionReport | None
    names: tuple[str, ...]
    similarity: tuple[tuple[float | None, ...], ...]
    similarity_se: tuple[tuple[float | None, ...], ...]
    weights: WeightSpread | None = None
    line: float | None = None
    line_width: float | None = None
    coordinates: tuple[tuple[float, float], ...] = ()
    spectrum: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModuleReport:
    """One module over all clients.

    Attributes:
        shape: (out_features, in_features) of the delta weight; (dim, entries) of an
            embedding, (out, in x kernel) of a convolution.
        n_updates: comparable clients with a nonzero delta weight here.
        absent: names of comparable clients without the module.
        similarity_inside, similarity_outside: mean similarity within the collaborative set,
            and between it and the clients left out.
        written: its path in adapters written from this round; None when none can be, and for
            a module that only clients left out of the merge have.
    """

    name: str
    shape: tuple[int, int]
    n_updates: int
    absent: tuple[str, ...]
    similarity_inside: float | None
    similarity_outside: float | None
    written: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything one run found: what the JSON report holds, key by key.

    Attributes:
        inputs: SHA-256 (hex) of what was given beside the clients and changes the result, by the
            name of its option: of the weights files of "previous", "initial" and "trust_adapter",
            and of the comparable clients' "weights" as JSON sorted by name, without spaces.
    """

    version: str
    command: str
    options: Mapping[str, object]
    cohort: CohortReport
    clients: tuple[ClientReport, ...]
    modules: tuple[ModuleReport, ...]
    merged: MergedReport | None
    refined: RefinedReport | None
    warnings: tuple[Remark, ...]
    exit_code: int
    schema: str = SCHEMA
    inputs: Mapping[str, str] = field(default_factory=dict)

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
                client.confidence or "",
                f"{client.weight:.1%}" if client.weight > 0 else "out",
                "; ".join(reason.text for reason in client.reasons),
            )
            for verdict in VERDICTS
            for client in self.with_verdict(verdict)
        ]
        outcome = "" if self.cohort.outcome == "judged" else f"{self.cohort.outcome}: "
        title = f"clair {self.command}: {outcome}{', '.join(counts) or 'no client'}"
        return short_table(title, ("client", "verdict", "sure", "weight", "why"), rows)
