"""What a robust merge is compared with: the field's rules, on the same clients.

``PEERS`` work on exact delta weights: points (K, D), float64, one row per client (``flatten``),
and the true number of bad clients (0 if nobody says), which only trimmed mean, Krum and Multi-Krum
use. They return one point, (D,).

``LORA_PEERS`` need the factors: clients as ``cohorts.Member`` (name, state dict, configuration, is
bad) and the number of bad ones, which none of them uses. They return delta weights, module to
(out, in). FedEx-LoRA (arXiv 2410.09432) and FLoRA (arXiv 2409.05976) merge to the exact mean of
the products, so "mean" stands for them.

All are deterministic, and our own code: the results do not depend on which library is installed.
The tests hold them against byzfl where it is.

Left out: RAS (Huang, Feng, Ying, "Robust and Adaptive Spectral Method for Representation Multi-Task
Learning with Contamination", arXiv 2509.06575). Its abstract and summaries say that it stacks the
clients' estimates, keeps the singular vectors above an adaptive threshold, and pulls each estimate
towards that subspace by biased regularisation. The rule for the threshold, its new part, was not
to be had; and it returns a subspace and one estimate per client, not a merged point, so that a
column of that name would be a rule of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .factors import factor_mean, stacked_factors
from .fedrpca import fedrpca, robust_pca
from .points import error, flatten, unflatten
from .rules import (
    centered_clipping,
    coordinate_median,
    geometric_median,
    krum,
    krum_scores,
    mean,
    multi_krum,
    trimmed_mean,
)
from .screening import norm_z_score, pooled_pca, pooled_residuals, z_scores

if TYPE_CHECKING:  # cohorts imports transformers, which the rules do without
    from benchmarks.copying.cohorts import Member

PEERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda points, bad: mean(points),
    "geometric-median": lambda points, bad: geometric_median(points),
    "coordinate-median": lambda points, bad: coordinate_median(points),
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "centered-clipping": lambda points, bad: centered_clipping(points),
    "norm-z-score": lambda points, bad: norm_z_score(points),
    "pooled-pca": lambda points, bad: pooled_pca(points),
}

LORA_PEERS: dict[str, Callable[[Sequence[Member], int], dict[str, Tensor]]] = {
    "factor-mean": lambda members, bad: factor_mean(members),
    "fedrpca": lambda members, bad: fedrpca(members),
}

__all__ = [
    "LORA_PEERS",
    "PEERS",
    "centered_clipping",
    "coordinate_median",
    "error",
    "factor_mean",
    "fedrpca",
    "flatten",
    "geometric_median",
    "krum",
    "krum_scores",
    "mean",
    "multi_krum",
    "norm_z_score",
    "pooled_pca",
    "pooled_residuals",
    "robust_pca",
    "stacked_factors",
    "trimmed_mean",
    "unflatten",
    "z_scores",
]
