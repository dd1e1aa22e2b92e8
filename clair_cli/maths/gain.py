"""What refinement is worth to each client, where that can be known.

With noise of standard deviation sigma_k per entry of a delta weight, over all modules:

    local error     sigma_k^2 (d_in + d_off)
    refined error   sigma_k^2 d_in                                   the client's own inside
                    + sum_j w_j^2 sigma_j^2 d_off                    the mean's, off the subspace
                    + H (1 - 2 w_k + sum_j w_j^2)                    true differences, lost
                    + mean sigma^2 (d_off / d_long) dim / K          estimating the subspace

Noise and heterogeneity H look the same in one round, so sigma has to be given, or be seen in
clients of different sample counts (sigma_k^2 = tau / n_k: the slope is noise, the intercept H).
First-order formulas of ours; measured against planted truth in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseModel:
    """Noise variance per entry of each client, and heterogeneity off the subspace.

    Attributes:
        variances: sigma_k^2, one per client.
        heterogeneity: expected squared norm of a client's true difference off the subspace.
        source: "option", "weights" or "not identifiable".
    """

    variances: tuple[float, ...]
    heterogeneity: float
    source: str

    @property
    def known(self) -> bool:
        return self.source != "not identifiable"


def noise_from_option(noise: float, energies: Sequence[float], n_off: int) -> NoiseModel:
    """Noise given: what the off-subspace energies hold beyond it is heterogeneity.

    Args:
        energies: unbiased squared distances to the mean off the subspace, one per client.
        n_off: degrees of freedom off the subspace.
    """
    variance = noise**2
    mean = sum(energies) / len(energies)
    return NoiseModel(
        tuple(variance for _ in energies), max(0.0, mean - n_off * variance), "option"
    )


def noise_from_counts(energies: Sequence[float], counts: Sequence[float], n_off: int) -> NoiseModel:
    """Noise from sample counts: energy_k = H + tau n_off / n_k, least squares.

    Not identifiable with fewer than four clients, with counts within a factor of 1.5 of one
    another, or when the slope comes out negative.
    """
    unknown = NoiseModel(tuple(float("nan") for _ in energies), float("nan"), "not identifiable")
    if len(energies) < 4 or max(counts) < 1.5 * min(counts):
        return unknown
    x = [1.0 / n for n in counts]
    mean_x, mean_y = sum(x) / len(x), sum(energies) / len(energies)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, energies, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )
    slope = min(slope, mean_y / mean_x)  # an intercept below 0 is no heterogeneity: all noise
    if not slope > 0 or n_off == 0:
        return unknown
    variances = tuple(slope * a / n_off for a in x)
    return NoiseModel(variances, max(0.0, mean_y - slope * mean_x), "weights")


@dataclass(frozen=True)
class Gain:
    """Estimated squared errors of one client, weight units squared."""

    local: float
    refined: float

    @property
    def gain(self) -> float:
        """1 - refined / local; negative where refinement hurts."""
        return 1.0 - self.refined / self.local if self.local > 0 else 0.0


def estimate_gain(
    model: NoiseModel,
    client: int,
    weights: Sequence[float],
    n_inside: int,
    n_off: int,
    subspace_entries: float,
) -> Gain:
    """The formula of this module's text.

    Args:
        weights: of the clients in the mean, summing to 1.
        subspace_entries: sum over modules of (long side - dim) * dim, the degrees of freedom
            of the subspace itself.
    """
    variance = model.variances[client]
    squares = sum(w * w for w in weights)
    mean_noise = sum(w * w * v for w, v in zip(weights, model.variances, strict=True)) * n_off
    lost = model.heterogeneity * (1.0 - 2.0 * weights[client] + squares)
    average = sum(model.variances) / len(model.variances)
    return Gain(
        variance * (n_inside + n_off),
        variance * n_inside + mean_noise + lost + average * subspace_entries / len(weights),
    )
