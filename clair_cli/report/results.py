"""What a run made, as plain numbers and words: part of `clair.report/2`. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from clair_cli.report.fields import LATER, Count, Rank, Sha256, Size, Text, at_least, one_of

Format = Annotated[str, one_of("peft", "diffusers", "kohya", "mlx")]
_Positive = Annotated[int, at_least(1)]


@dataclass(frozen=True)
class HeadReport:
    """A tensor of the result that was trained as a whole beside the LoRA.

    Attributes:
        name: path of the parameter, without base_model.model.
        shape: its axes.
        dtype: type of the numbers written.
        n_clients: number of clients whose tensors are averaged.
        equal: whether it is the same in all clients, and written as it is.
        bounded: whether any client's counts for less than its weight, as it is far from the
            others'.
    """

    name: Text
    shape: tuple[_Positive, ...]
    dtype: Annotated[str, one_of("float32", "bfloat16", "float16")]
    n_clients: _Positive
    equal: bool
    bounded: bool


@dataclass(frozen=True)
class MergedReport:
    """The merged adapter.

    Attributes:
        path: where it was written, as given; - for a stream, empty if nothing was written.
        sha256: SHA-256 of the file, or of the weights file in a folder; None if nothing was
            written.
        rank: rank of all modules as written.
        full_rank: rank that would lose nothing.
        alpha: alpha of the config (lora_alpha) as written.
        scaling: scale that goes with rank and alpha.
        dtype: type of the numbers as written.
        error: distance of what was written to the exact mean over the norm of that mean, rank and
            rounding both counted.
        error_by_rank: the same for the loss by rank alone, at every serving rank and at the full
            one.
        module_error_by_rank: the same in each module, by its name; None where the mean is zero.
        norm: norm of the exact mean.
        plain_mean_distance: distance of the merged update to the plain mean of all comparable
            clients, over the norm of that.
        config_sha256: SHA-256 of a folder's adapter_config.json; None if the weights file holds the
            config.
        format: whose tensor names it has.
        heads: what is in it beside the LoRA, sorted by name.
    """

    path: str
    sha256: Sha256 | None
    rank: Count
    full_rank: Count
    alpha: float
    scaling: float
    dtype: Text
    error: Size | None
    error_by_rank: Mapping[Rank, Size | None]
    module_error_by_rank: Mapping[str, Mapping[Rank, Size | None]]
    norm: Size
    plain_mean_distance: Size | None
    config_sha256: Sha256 | None = None
    format: Format = "peft"
    heads: Annotated[tuple[HeadReport, ...], LATER] = ()


@dataclass(frozen=True)
class RefinedClient:
    """One refined adapter.

    Attributes:
        name: name of the client.
        path: where it was written, as given; empty if nothing was written.
        sha256: SHA-256 of the file, or of the weights file in a folder; None if nothing was
            written.
        rank: rank of all modules as written.
        error: distance of what was written to the refined update over the norm of that, rank and
            rounding both counted.
        changed: distance of the refined update to the client's own over the norm of the latter.
        local_error: estimated squared error of the client's own adapter, in squared weight units;
            None if it can't be known.
        refined_error: the same of the refined adapter; None if it can't be known.
        gain: 1 less the refined error over the local one; None if it can't be known.
        kept_local: whether the client's own adapter was written, because refinement is not sure to
            help.
        config_sha256: SHA-256 of a folder's adapter_config.json; None if the weights file holds the
            config.
    """

    name: Text
    path: str
    sha256: Sha256 | None
    rank: Count
    error: Size | None
    changed: Size | None
    local_error: Size | None
    refined_error: Size | None
    gain: float | None
    kept_local: bool
    config_sha256: Sha256 | None = None


@dataclass(frozen=True)
class RefinedReport:
    """All refined adapters.

    Attributes:
        path: folder that they were written to, as given; empty if nothing was written.
        side: side of the delta weights on which the clients' own part was kept.
        why: why that side, in a sentence.
        noise_from: where the noise is known from.
        noise: standard deviation of the noise per entry of a delta weight; None if it can't be
            known.
        heterogeneity: estimated squared norm of the clients' true differences off what they share,
            per client; None if it can't be known.
        clients: each refined adapter, sorted by the client's name.
        format: whose tensor names they have.
        heads: what is in each of them beside the LoRA, the same for all, sorted by name.
    """

    path: str
    side: Annotated[str, one_of("output", "input", "both")]
    why: str
    noise_from: Annotated[str, one_of("option", "weights", "not identifiable")]
    noise: Size | None
    heterogeneity: Size | None
    clients: tuple[RefinedClient, ...]
    format: Format = "peft"
    heads: Annotated[tuple[HeadReport, ...], LATER] = ()
