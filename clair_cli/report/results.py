"""What a run made, as plain numbers and words: part of `clair.report/2`. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HeadReport:
    """A tensor of the result that was trained as a whole beside the LoRA.

    Attributes:
        name: of the parameter, without `base_model.model.`.
        shape, dtype: as written.
        n_clients: how many clients' are averaged.
        equal: whether it is the same in all clients, and written as it is.
        bounded: whether any client's counts for less than its weight, as it is far from the
            others'.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_clients: int
    equal: bool
    bounded: bool


@dataclass(frozen=True)
class MergedReport:
    """The merged adapter.

    Attributes:
        path: as given, "" when nothing was written, "-" for a stream.
        sha256: of the file (in a folder, of the weights file).
        config_sha256: of a folder's `adapter_config.json`; None where the weights file holds it.
        format: whose tensor names it has: "peft", "diffusers", "kohya" or "mlx".
        rank, alpha, scaling, dtype: as written, one for all modules.
        error: norm of (written - exact mean) over the norm of the exact mean, rank and dtype
            both counted.
        error_by_rank: the same for truncation alone, at every serving rank and at the full rank.
        module_error_by_rank: the same per module (None where the mean is zero).
        norm: of the exact mean.
        plain_mean_distance: distance of the merged update to the plain mean of all comparable
            clients, over the latter's norm.
        heads: what is in it beside the LoRA, sorted by name.
    """

    path: str
    sha256: str | None
    rank: int
    full_rank: int
    alpha: float
    scaling: float
    dtype: str
    error: float | None
    error_by_rank: Mapping[str, float | None]
    module_error_by_rank: Mapping[str, Mapping[str, float | None]]
    norm: float
    plain_mean_distance: float | None
    config_sha256: str | None = None
    format: str = "peft"
    heads: tuple[HeadReport, ...] = ()


@dataclass(frozen=True)
class RefinedClient:
    """One refined adapter.

    Attributes:
        changed: distance to the client's local adapter over the latter's norm.
        local_error, refined_error: estimated squared error, weight units squared; None when
            not identifiable. gain: 1 - refined_error / local_error.
        kept_local: refinement is not sure to help, so the local adapter is written.
    """

    name: str
    path: str
    sha256: str | None
    rank: int
    error: float | None
    changed: float | None
    local_error: float | None
    refined_error: float | None
    gain: float | None
    kept_local: bool
    config_sha256: str | None = None


@dataclass(frozen=True)
class RefinedReport:
    """All refined adapters.

    Attributes:
        side: "output", "input" or "both"; why: a sentence.
        noise_from: "option", "weights" or "not identifiable".
        noise: estimated or given standard deviation per entry of a delta weight, or None.
        heterogeneity: estimated squared norm of the benign clients' true differences off the
            subspace, per client, or None.
        format: whose tensor names the adapters have: "peft", "diffusers", "kohya" or "mlx".
        heads: what is in each of them beside the LoRA, the same for all, sorted by name.
    """

    path: str
    side: str
    why: str
    noise_from: str
    noise: float | None
    heterogeneity: float | None
    clients: tuple[RefinedClient, ...]
    format: str = "peft"
    heads: tuple[HeadReport, ...] = ()
