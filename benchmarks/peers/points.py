"""Clients as points: delta weights of all modules flattened to one row each, (K, D) float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def flatten(deltas: Mapping[str, Tensor]) -> Tensor:
    """Points (K, D) from delta weights, module to (K, out, in), modules in order of name."""
    return torch.cat([deltas[name].flatten(1) for name in sorted(deltas)], dim=1).double()


def unflatten(point: Tensor, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Delta weights, module to (out, in), from a point (D,); ``deltas`` gives the shapes."""
    names = sorted(deltas)
    shapes = [deltas[name].shape[1:] for name in names]
    parts = point.split([shape.numel() for shape in shapes])
    return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def error(point: Tensor, target: Tensor) -> float:
    """Distance of a point (D,) from the target (D,), relative to the target's norm."""
    return float((point - target).norm() / target.norm())


def centred_gram(points: Tensor) -> Tensor:
    """Gram matrix (K, K) of points (K, D) about their mean."""
    centred = points - points.mean(0)
    return centred @ centred.T


def square_distances(gram: Tensor) -> Tensor:
    """Squared distances of all pairs, (K, K), from a Gram matrix (K, K)."""
    squares = gram.diagonal()
    return (squares[:, None] + squares - 2 * gram).clamp_min(0)
