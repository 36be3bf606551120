"""Bound what one client adds to a sum, and put it on the integer grid."""

from __future__ import annotations

import numpy as np

from fedrho.privacy.vectors import Clipped, Grid, Update, within

SHRINK = 1.0 - 2.0**-30


def clip(update: Update, grid: Grid) -> Clipped:
    """Scale `update` to L2 norm at most `grid.clip_norm`, then truncate toward zero onto the grid.

    Guarantees: the result's norm is at most the radius, exactly. Truncation cannot raise a norm; the float64 scaling before
    it may err by one grid unit at a boundary, and then the factor shrinks until the integers fit.
    Source: flat clipping, McMahan et al. 2018 (arXiv 1710.06963), section 3.
    """
    wide = update.vector.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    factor = min(1.0, grid.clip_norm / norm) / grid.unit if norm > 0 else 0.0
    while True:
        vector = np.trunc(wide * factor).astype(np.int32)
        if within(vector, grid):
            return Clipped(vector, grid)
        factor *= SHRINK
