"""Bound what one client adds to a sum, and put it on the integer grid."""

from __future__ import annotations

import math

import numpy as np

from fedrho.privacy import kernels
from fedrho.privacy.vectors import Clipped, Grid, Update, within

SHRINK = 1.0 - 2.0**-30


def clip(update: Update, grid: Grid) -> Clipped:
    """Scale `update` to L2 norm at most `grid.clip_norm`, then truncate toward zero onto the grid.

    Guarantees: the result's norm is at most the radius, exactly. Truncation cannot raise a norm; the float64 scaling before
    it may err by one grid unit at a boundary, and then the factor shrinks until the integers fit.
    Source: flat clipping, McMahan et al. 2018 (arXiv 1710.06963), section 3.
    """
    return _fit(update, _norm(update), grid, behind=[])


def clip_with_count(update: Update, grid: Grid) -> Clipped:
    """`clip`, and one more coordinate behind it: +1 where nothing had to be clipped, else -1; shape (size + 1,).

    For `adaptive.AdaptiveGaussian`. The norm of the whole is at most the radius, so that of the update stays below it by less
    than one grid unit.
    """
    norm = _norm(update)
    return _fit(update, norm, grid, behind=[1 if norm <= grid.clip_norm else -1])


def units(grid: Grid) -> float:
    """Grid units in one unit of the weights: what a device multiplies by, not divides by, so that every runtime does the same."""
    return grid.radius / grid.clip_norm


def _norm(update: Update) -> float:
    return math.sqrt(kernels.squared_length(update.vector))


def _fit(update: Update, norm: float, grid: Grid, behind: list[int]) -> Clipped:
    """The update scaled and truncated, with the integers `behind` after it, such that all together fit the radius."""
    wide = update.vector.astype(np.float64)
    factor = min(1.0, grid.clip_norm / norm) * units(grid) if norm > 0 else 0.0
    while True:
        vector = np.append(np.trunc(wide * factor), behind).astype(np.int32)
        if within(vector, grid):
            return Clipped(vector, grid)
        factor *= SHRINK
