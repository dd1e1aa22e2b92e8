"""The gain of refinement for each client, where it can be known.

With noise of standard deviation sigma_k per entry of a delta weight, and E_k the squared distance
of client k to the mean off the subspace, over all modules:

    local error     sigma_k^2 (d_in + d_off)
    refined error   local error + E_k - 2 sigma_k^2 ((1 - w_k) d_off - d_fit / K)

No model of the clients' differences is behind it: with T_k the truth, n_k the noise and
d_k = D_k - Dbar off the subspace, ||Dbar - T_k||^2 - ||n_k||^2 = ||d_k||^2 - 2 <d_k, n_k> there,
and <d_k, n_k> is sigma_k^2 (1 - w_k) d_off on average, less what the subspace has taken in: its
degrees of freedom are fitted to the noise of K clients, as far as differences between clients
decide on them (d_fit; first order). What a client differs by, and what it has inside the true
subspace that the estimate misses, is in E_k. So each client has an estimate of its own, however
unlike the others it is. Written out in the model D_k = D_0 + U C_k + H_k + noise, with equal
sigma and weights and independent H_k of expected squared norm H:

    refined error   sigma^2 (d_in + (d_off + d_fit) / K) + H (1 - 1 / K)

which crosses the local error at H = sigma^2 (d_off - d_fit / (K - 1)).

The estimate has a standard error, mostly that of ||n_k||^2 and <H_k, n_k>. Only a gain of more
than MARGIN standard errors counts; else the local adapter is kept.

Noise and heterogeneity look the same in one round, so sigma has to be given, or be seen in
clients of different sample counts (sigma_k^2 = tau / n_k).

Source: that refinement pays when its gain exceeds the cost of the subspace and the benign
clients' heterogeneity: arXiv 2605.21217, abstract. The estimate is ours, an unbiased risk
estimate in the sense of C. Stein, Annals of Statistics 9(6), 1981; so is the margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A gain must exceed this many of its standard errors: one client in 30,000 at the crossing.
MARGIN = 4.0


@dataclass(frozen=True)
class NoiseModel:
    """Noise variance per entry of each client, and heterogeneity off the subspace.

    Attributes:
        variances: sigma_k^2, one per client.
        heterogeneity: mean squared norm of a client's true difference off the subspace.
        source: "option", "weights" or "not identifiable".
        relative_error: standard error of the variances, over themselves (all move together).
    """

    variances: tuple[float, ...]
    heterogeneity: float
    source: str
    relative_error: float = 0.0

    @property
    def known(self) -> bool:
        """Whether the variances are known."""
        return self.source != "not identifiable"


def mixing(weights: Sequence[float], client: int) -> float:
    """1 - 2 w_k + sum_j w_j^2: the variance of x_k - mean(x) over that of x_k, for independent x_j
    of equal variance and a mean with `weights`, which sum to 1."""
    return 1.0 - 2.0 * weights[client] + sum(w * w for w in weights)


def noise_from_option(noise: float, energies: Sequence[float], n_off: float) -> NoiseModel:
    """The model for a given noise; the rest of the off-subspace energies is heterogeneity.

    Args:
        noise: sigma, standard deviation per entry of a delta weight, at least 0.
        energies: unbiased squared distances to the mean off the subspace, one per client.
        n_off: degrees of freedom off the subspace.
    """
    variance = noise**2
    mean = sum(energies) / len(energies)
    return NoiseModel(
        tuple(variance for _ in energies), max(0.0, mean - n_off * variance), "option"
    )


def noise_from_counts(
    energies: Sequence[float], counts: Sequence[float], weights: Sequence[float], n_off: float
) -> NoiseModel:
    """Noise from sample counts, sigma_k^2 = tau / n_k, by weighted least squares.

    energy_k mixing_k = H mixing_k + tau n_off ((1 - 2 w_k) / n_k + sum_j w_j^2 / n_j)

    with weights 1 / energy_k^2, for a sum of squares varies as its mean. The standard error of
    tau is that of the residuals, and at least that of sums of n_off squares.

    Args:
        energies: as in `noise_from_option`, one per client.
        counts: n_k, training samples, one per client.
        weights: w_k, summing to 1, one per client.
        n_off: degrees of freedom off the subspace.

    Returns:
        Not identifiable with fewer than four clients or with counts within a factor of 1.5 of
        one another. Variances 0 where clients of fewer samples show no more noise: then all
        distances are true differences.
    """
    unknown = NoiseModel(tuple(float("nan") for _ in energies), float("nan"), "not identifiable")
    if len(energies) < 4 or max(counts) < 1.5 * min(counts) or n_off <= 0 or min(energies) <= 0:
        return unknown
    mean_noise = sum(w * w / n for w, n in zip(weights, counts, strict=True))
    keeps = [mixing(weights, k) for k in range(len(weights))]
    slopes = [
        n_off * ((1.0 - 2.0 * w) / n + mean_noise) / (keep * energy)
        for w, n, keep, energy in zip(weights, counts, keeps, energies, strict=True)
    ]
    levels = [1.0 / energy for energy in energies]  # both sides over energy_k: 1 = H x + tau y
    xx, xy, yy = _dot(levels, levels), _dot(levels, slopes), _dot(slopes, slopes)
    x, y = sum(levels), sum(slopes)
    determinant = xx * yy - xy * xy
    if not determinant > 1e-9 * xx * yy:
        return unknown
    level, tau = (yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant
    variance_of_tau = xx / determinant
    if level < 0:  # no heterogeneity: all of it is noise
        level, tau, variance_of_tau = 0.0, y / yy, 1.0 / yy
    if not tau > 0:
        return NoiseModel(tuple(0.0 for _ in counts), x / xx, "weights")
    residuals = [1.0 - level * a - tau * b for a, b in zip(levels, slopes, strict=True)]
    spread = max(_dot(residuals, residuals) / (len(energies) - 2), 2.0 / n_off)
    return NoiseModel(
        tuple(tau / n for n in counts), level, "weights", math.sqrt(spread * variance_of_tau) / tau
    )


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Gain:
    """Estimated squared errors of one client's adapters, weight units squared.

    Attributes:
        local: of the client's own adapter.
        refined: of the refined adapter.
        se: standard error of refined - local.
    """

    local: float
    refined: float
    se: float

    @property
    def gain(self) -> float:
        """1 - refined / local; negative where refinement hurts."""
        return 1.0 - self.refined / self.local if self.local > 0 else 0.0

    @property
    def sure(self) -> bool:
        """Whether refinement helps by more than MARGIN standard errors; False for NaN."""
        return self.refined + MARGIN * self.se < self.local


def estimate_gain(
    model: NoiseModel,
    client: int,
    energies: Sequence[float],
    weights: Sequence[float],
    n_inside: int,
    n_off: int,
    n_fitted: float,
) -> Gain:
    """Errors of one client's local and refined adapters: the formula at the top of this file.

    Args:
        client: index k of the client in `energies` and `weights`.
        energies: squared distances to the mean off the subspace over `mixing`, one per client.
        weights: of the clients in the mean, summing to 1.
        n_inside, n_off: d_in and d_off, degrees of freedom inside and off the subspace.
        n_fitted: d_fit, degrees of freedom of the subspace fitted to the clients' differences.
    """
    variance, weight = model.variances[client], weights[client]
    energy = energies[client] * mixing(weights, client)
    seen = (1.0 - weight) * n_off - n_fitted / len(weights)
    local = variance * (n_inside + n_off)
    refined = local + energy - 2.0 * variance * seen
    least = variance * n_inside  # a given sigma far too large would make it negative
    own = variance * energy + (variance * (1.0 - weight)) ** 2 * n_off
    se = 2.0 * math.hypot(math.sqrt(own), variance * seen * model.relative_error)
    return Gain(local, max(least, refined), se)
