"""What a run found about the round as a whole: part of `clair.report/2`. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from clair_cli.report.fields import LATER, Constraint, Count, Share, Size, Text, one_of


@dataclass(frozen=True)
class Group:
    """Clients that have something in common.

    Attributes:
        members: names of the clients, sorted.
        level: mean similarity of its members; None for a minority or a single client.
        role: what it is to the round: collaborative (the cohort's group, which is merged), minority
            (has that in common too, and something of its own), other (a further group) or loner (a
            client in none).
    """

    members: tuple[str, ...]
    level: float | None
    role: Annotated[str, one_of("collaborative", "minority", "other", "loner")]


@dataclass(frozen=True)
class DecompositionReport:
    """How the decomposition into a low-rank part and a block-sparse one went.

    Attributes:
        program: name of the program that was solved.
        low_rank_penalty: penalty on the nuclear norm of the low-rank part.
        block_penalty: penalty on the norm of each client's block of the sparse part.
        gap: relative duality gap: how far the solution is from the optimum at most.
        n_iter: iterations used.
        converged: whether the gap reached the tolerance.
        kept: names of the clients for whom nothing was set aside (S_k = 0).
        left_out: names of the other clients that took part; `block_norm` of their scores has S_k.
        agrees: whether it keeps the whole of the cohort's group and nobody who is contaminated.
    """

    program: Text
    low_rank_penalty: Size
    block_penalty: Size
    gap: float
    n_iter: Count
    converged: bool
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    agrees: bool


def _is_weight(value: float) -> bool:
    return 0 < value <= 1


@dataclass(frozen=True)
class WeightSpread:
    """How the clients' weights in the merge are spread.

    Attributes:
        largest: the largest weight of any client.
        client: name of the client who has the largest weight; None if several do.
        effective_clients: 1 over the sum of the squared weights: the number of clients merged where
            all have the same weight, and near 1 where one has nearly everything.
        capped: names of the clients held at the weight that --max-weight allows, sorted; none where
            it changes nothing.
    """

    largest: Annotated[
        float, Constraint({"exclusiveMinimum": 0, "maximum": 1}, "above 0, at most 1", _is_weight)
    ]
    client: Text | None
    effective_clients: Size
    capped: tuple[str, ...]


@dataclass(frozen=True)
class CohortReport:
    """The round as a whole.

    Attributes:
        outcome: whether the clients were judged.
        outcome_text: why they were not, in a sentence; empty if they were.
        remedy: what can be done about that; empty if they were judged.
        n_clients: number of clients found.
        n_comparable: number of clients left after rejections, duplicates included.
        stacking: where agreement was found: in whole delta weights (matrix) or on one side of them
            only (output, input); None if nowhere, or if it may be chance.
        level: mean similarity of the members of the cohort's group; None if there is no group.
        level_se: standard error of that level over the modules.
        power: probability that a client that shares nothing with the others would have been
            noticed; None if there is no group.
        contaminated_ratio: contaminated clients over judged ones; None if nobody was judged.
        groups: groups of clients that have something in common; the cohort's group first, single
            clients last.
        decomposition: how the decomposition went; None if no clients share whole delta weights.
        names: names of the clients in the order of the rows and columns of the similarities.
        similarity: similarity of each pair of clients, in `stacking` (in whole delta weights where
            that is None), above the value for unrelated clients; None where it is unknown.
        similarity_se: standard errors of the similarities over the modules.
        weights: how the clients' weights are spread; None if nobody has one.
        line: a client is contaminated whose loading is clearly below this; None if there is no
            group.
        line_width: standard errors of the loading by which it has to be below that line; None if
            there is no group.
        coordinates: a map of the clients, x and y in the order of `names`: inner products of two
            clients' points are about their similarity; empty where nothing was compared.
        spectrum: eigenvalues of the similarities, the largest first: one above 1 for each thing
            that several clients share; empty where nothing was compared.
    """

    outcome: Annotated[str, one_of("judged", "undetermined", "refused")]
    outcome_text: str
    remedy: str
    n_clients: Count
    n_comparable: Count
    stacking: Annotated[str, one_of("matrix", "output", "input")] | None
    level: float | None
    level_se: Size | None
    power: Share | None
    contaminated_ratio: Share | None
    groups: tuple[Group, ...]
    decomposition: DecompositionReport | None
    names: tuple[str, ...]
    similarity: tuple[tuple[float | None, ...], ...]
    similarity_se: tuple[tuple[Size | None, ...], ...]
    weights: WeightSpread | None = None
    line: Annotated[float | None, LATER] = None
    line_width: Annotated[Size | None, LATER] = None
    coordinates: Annotated[tuple[tuple[float, float], ...], LATER] = ()
    spectrum: Annotated[tuple[float, ...], LATER] = ()


@dataclass(frozen=True)
class ModuleReport:
    """One module over all clients.

    Attributes:
        name: name of the module.
        shape: rows and columns of its delta weight as a matrix: (out_features, in_features), of an
            embedding (dim, entries), of a convolution (out, in x kernel).
        n_updates: number of comparable clients with a delta weight other than zero here.
        absent: names of the comparable clients without the module, sorted.
        similarity_inside: mean similarity of the members of the cohort's group in this module.
        similarity_outside: mean similarity between the members and the clients outside the group in
            this module.
        written: its path in adapters written from this round; None if it is not written.
    """

    name: str
    shape: tuple[Count, Count]
    n_updates: Count
    absent: tuple[str, ...]
    similarity_inside: float | None
    similarity_outside: float | None
    written: Text | None = None
