"""The clip in TensorFlow gives the integers of `privacy.clipping.clip`, of any update."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.models.backend import tf
from fedrho.privacy.clipping import clip
from fedrho.privacy.vectors import Grid, Update
from fedrho.simulations.gridding import clipped_rows
from fedrho.simulations.training import Compiled

GRIDS = [Grid(0.5, 20), Grid(1.0, 24), Grid(1e-3, 8), Grid(1e30, 24), Grid(1e-20, 1)]
SIZES = [1, 7, 650]
Rows = NDArray[np.float32]


@cache
def compiled(grid: Grid, size: int) -> Compiled:
    return Compiled(lambda updates: clipped_rows(updates, grid), [tf.TensorSpec((None, size), tf.float32)])


def clipped(rows: Rows, grid: Grid) -> tuple[Any, Any, Any]:
    ints, norms, failed = compiled(grid, rows.shape[1])(rows)
    return ints.numpy(), norms.numpy(), failed.numpy()


def updates(size: int, clip_norm: float, seed: int) -> Rows:
    """Random ones of all lengths, long tails, equal coordinates, one coordinate alone, and some at the clip norm."""
    generator = np.random.default_rng((size, seed))
    normal = generator.normal(size=(40, size))
    scaled = normal * 10.0 ** generator.uniform(-30, 30, (40, 1))
    tails = np.sign(normal) * np.exp(generator.uniform(-40, 40, (40, size)))
    at_the_edge = clip_norm * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    equal = np.repeat(10.0 ** generator.uniform(-5, 5, (20, 1)), size, axis=1)
    alone = np.zeros((size, size))[:20] + np.eye(size)[:20] * 3.0
    fixed = np.array([np.zeros(size), np.full(size, -0.0), np.full(size, 3e38), np.full(size, clip_norm), np.full(size, 1e-37)])
    return np.concatenate([scaled, tails, at_the_edge, equal, alone, fixed]).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_integers_and_norms_are_those_of_clip_to_the_last_bit(grid: Grid, size: int) -> None:
    rows = updates(size, grid.clip_norm, seed=1)
    ints, norms, failed = clipped(rows, grid)
    assert not failed.any()
    for row, got, norm in zip(rows, ints, norms, strict=True):
        assert (got == clip(Update(row), grid).vector).all()
        assert norm == pytest.approx(np.linalg.norm(row.astype(np.float64)), rel=1e-13)
    assert (np.sum(ints.astype(object) ** 2, axis=1) <= grid.radius**2).all()


def test_rows_that_are_not_finite_become_zeros_and_leave_the_others_alone() -> None:
    rows = updates(7, 0.5, seed=2)
    spoilt = rows.copy()
    spoilt[3, 2], spoilt[5, 0], spoilt[8] = np.nan, np.inf, -np.inf
    ints, norms, failed = clipped(spoilt, GRIDS[0])
    assert np.flatnonzero(failed).tolist() == [3, 5, 8]
    assert not ints[failed].any()
    assert not norms[failed].any()
    assert (ints[~failed] == clipped(rows, GRIDS[0])[0][~failed]).all()


def test_numbers_below_the_smallest_normal_one_are_zero_to_tensorflow() -> None:
    tiny = np.full((1, 2), 1e-40, dtype=np.float32)
    ints, norms, failed = clipped(tiny, Grid(1e-20, 1))
    assert (ints.tolist(), norms.tolist(), failed.tolist()) == ([[0, 0]], [0.0], [False])
