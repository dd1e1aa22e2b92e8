"""Refinement: a client keeps its own part inside the shared subspace, and takes the clients' mean
off it.

    refined_k = P(D_k) + Dbar - P(Dbar) = Dbar + P(D_k - Dbar)

P is the projection on the shared subspace: U U' D (`output`), D V V' (`input`), or
U U' D V V' (`both`); Dbar the weighted mean of the benign clients. In the model
D_k = D_0 + U C_k + noise the client's own C_k stays, while noise off the subspace is averaged.

Source: arXiv 2605.21217, abstract; the formula and the error estimate are our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.lowrank import Product, norm
from clair_cli.maths.refine.gain import mixing

SIDES = ("output", "input", "both")


@dataclass(frozen=True)
class SharedSubspace:
    """Orthonormal bases of one module's shared subspace.

    Attributes:
        side: "output", "input" or "both".
        U: shape (out_features, subspace_dim), or None for the input side.
        V: shape (in_features, subspace_dim), or None for the output side.
    """

    side: str
    U: Tensor | None
    V: Tensor | None

    @property
    def dim(self) -> int:
        """Number of shared dimensions."""
        basis = self.U if self.U is not None else self.V
        return 0 if basis is None else basis.shape[1]

    def n_parameters(self, shape: tuple[int, int]) -> int:
        """Numbers that fix the subspace: (width - dim) dim for each basis.

        Args:
            shape: (out_features, in_features) of the layer, even where the bases are in
                coordinates.
        """
        sides = zip((self.U, self.V), shape, strict=True)
        dims = [(width, basis.shape[1]) for basis, width in sides if basis is not None]
        return sum((width - dim) * dim for width, dim in dims)

    def project(self, product: Product) -> Product:
        """P(D) of a product, shape unchanged, rank at most `dim`."""
        projected = product
        if self.U is not None:
            projected = Product(self.U, (self.U.mT @ projected.lora_B) @ projected.lora_A)
        if self.V is not None:
            inner = projected.lora_A @ self.V
            projected = Product(projected.lora_B @ inner, self.V.mT)
        return projected


def stacked_basis(
    clients: Sequence[Product], weights: Sequence[float], dim: int, *, transpose: bool
) -> Tensor:
    """Leading left singular vectors of [w_1 D_1 ... w_K D_K] (or of the transposes).

    Each D_k = B_k A_k is first rotated to B_k R_k' with A_k = R_k' Q_k (QR), which keeps the
    stack's column space and singular values and drops the long side.

    Args:
        clients: D_k, of one shape.
        weights: w_k, one per client.
        dim: number of vectors, at least 0.
        transpose: stack the D_k' instead.

    Returns:
        Orthonormal columns, (out_features, n) or (in_features, n), n <= dim.
    """
    columns = []
    for product, weight in zip(clients, weights, strict=True):
        long, other = (
            (product.lora_B, product.lora_A.mT)
            if not transpose
            else (product.lora_A.mT, product.lora_B)
        )
        rotated: Tensor = torch.linalg.qr(other, mode="r").R
        columns.append(weight * long @ rotated.mT)
    stack = torch.cat(columns, dim=1)
    basis, core = torch.linalg.qr(stack)
    u, _, _ = torch.linalg.svd(core, full_matrices=False)
    leading: Tensor = basis @ u[:, : min(dim, u.shape[1])]
    return leading


def shared_subspace(
    clients: Sequence[Product], weights: Sequence[float], side: str, dim: int
) -> SharedSubspace:
    """The shared subspace of one module, refitted on the clients the decomposition kept.

    Args:
        clients: benign delta weights.
        weights: one per client: 1 / its norm, so that size does not stand in for direction.
        side: "output", "input" or "both".
        dim: at least 0.

    Raises:
        ValueError: there is no such side.
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {SIDES}, got {side!r}")
    U = stacked_basis(clients, weights, dim, transpose=False) if side != "input" else None
    V = stacked_basis(clients, weights, dim, transpose=True) if side != "output" else None
    return SharedSubspace(side, U, V)


def refine_module(local: Product, mean: Product, subspace: SharedSubspace) -> Product:
    """Dbar + P(D_k - Dbar) for one client and module.

    Args:
        local: D_k, shape (out, in).
        mean: Dbar, the weighted mean of the benign clients, of the same shape.

    Returns:
        A product of stacked factors, rank at most that of the mean plus `subspace.dim`.
    """
    return mean + subspace.project(local - mean)


@dataclass(frozen=True)
class NoiseEvidence:
    """Evidence of one module about the clients' noise: distances to the mean off the subspace.

    Attributes:
        energy: ||(1 - P)(D_k - Dbar)||^2 of each client, corrected for the client's own share
            in the mean, weight units squared.
        n_entries: degrees of freedom off the subspace.
        n_inside: degrees of freedom inside the subspace.
        n_fitted: the part of the subspace's own degrees of freedom that was fitted to differences
            between the clients: all of them times the differences' share of the energy inside.
    """

    energy: tuple[float, ...]
    n_entries: int
    n_inside: int
    n_fitted: float


def off_subspace(
    clients: Sequence[Product],
    weights: Sequence[float],
    mean: Product,
    subspace: SharedSubspace,
    shape: tuple[int, int] | None = None,
) -> NoiseEvidence:
    """Squared distance of each benign client to their mean, outside the shared subspace.

    Args:
        clients: benign delta weights of one module.
        weights: their weights in `mean`, summing to 1.
        shape: (out_features, in_features) of the layer, if the products are in coordinates.
    """
    energy, apart, inside = [], 0.0, 0.0
    for k, product in enumerate(clients):
        difference = product - mean
        own = subspace.project(difference)
        outside = norm(difference - own) ** 2
        apart, inside = apart + norm(own) ** 2, inside + norm(subspace.project(product)) ** 2
        # Var(x_k - mean) = (1 - 2 w_k + sum w^2) Var(x) for equal variances.
        shrink = mixing(weights, k)
        energy.append(outside / shrink if shrink > 1e-12 else 0.0)
    out_features, in_features = shape or (mean.lora_B.shape[0], mean.lora_A.shape[1])
    n_inside = (subspace.dim if subspace.U is not None else out_features) * (
        subspace.dim if subspace.V is not None else in_features
    )
    fitted = 0.0
    if inside > 0:
        fitted = subspace.n_parameters((out_features, in_features)) * apart / inside
    return NoiseEvidence(tuple(energy), out_features * in_features - n_inside, n_inside, fitted)
