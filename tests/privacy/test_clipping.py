"""Clipping: never outside the ball, never far from the scaled vector."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedrho.privacy.clipping import clip
from fedrho.privacy.vectors import MAX_GRID_BITS, Grid, Update

Vector = NDArray[np.float32]

SLACK = Fraction(1, 32)
"""Float64 scaling errs by at most 2**24 * 2**-51 units, and a SHRINK of 2**-30 at a boundary by 2**24 * 2**-30 = 1/64."""

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-100, 100, width=32)
extremes = st.sampled_from([3e38, -3e38, 1e-45, -1e-45, 0.0, -0.0, 1.0, 2.0**-149, 2.0**-126])
entries = st.one_of(finite, ordinary, extremes)
vectors = hnp.arrays(np.float32, st.integers(0, 12), elements=entries)
clip_norms = st.one_of(st.floats(1e-3, 1e3), st.floats(1e-40, 1e40), st.sampled_from([1.0, 0.1, 3.0]))
grids = st.builds(Grid, clip_norms, st.integers(1, MAX_GRID_BITS))


def squared_norm(vector: Vector) -> Fraction:
    return sum((Fraction(float(value)) ** 2 for value in vector), Fraction(0))


def root(value: Fraction) -> Fraction:
    """The square root to 60 digits or more, for values that are not astronomically small."""
    scale = 10 ** (60 + max(0, len(str(value.denominator)) - len(str(value.numerator))))
    return Fraction(math.isqrt(value.numerator * scale**2 // value.denominator), scale)


def scaled_exactly(vector: Vector, grid: Grid) -> list[Fraction]:
    """min(1, clip_norm / norm) * vector, in grid units, in rational arithmetic."""
    clip_norm, squared = Fraction(grid.clip_norm), squared_norm(vector)
    factor = Fraction(1) if squared <= clip_norm**2 else clip_norm / root(squared)
    return [Fraction(float(value)) * factor * grid.radius / clip_norm for value in vector]


@given(vectors, grids)
def test_the_integer_norm_never_exceeds_the_radius(vector: Vector, grid: Grid) -> None:
    clipped = clip(Update(vector), grid)
    assert sum(int(value) ** 2 for value in clipped.vector) <= grid.radius**2
    assert clipped.vector.shape == vector.shape
    assert clipped.grid == grid


@given(vectors, grids)
def test_every_coordinate_stays_within_one_grid_unit_of_the_exactly_scaled_vector(vector: Vector, grid: Grid) -> None:
    for got, exact in zip(clip(Update(vector), grid).vector.tolist(), scaled_exactly(vector, grid), strict=True):
        assert abs(got - exact) < 1 + SLACK


@given(vectors, grids)
def test_a_vector_inside_the_ball_changes_by_less_than_one_grid_unit_a_coordinate(vector: Vector, grid: Grid) -> None:
    if squared_norm(vector) <= Fraction(grid.clip_norm) ** 2:
        unit = Fraction(grid.clip_norm) / grid.radius
        for got, value in zip(clip(Update(vector), grid).vector.tolist(), vector.tolist(), strict=True):
            assert abs(got * unit - Fraction(value)) < unit * (1 + SLACK)


@given(vectors, grids)
def test_truncation_is_toward_zero(vector: Vector, grid: Grid) -> None:
    for got, exact in zip(clip(Update(vector), grid).vector.tolist(), scaled_exactly(vector, grid), strict=True):
        assert abs(got) <= abs(exact) * (1 + Fraction(1, 2**48))
        assert got * exact >= 0


@given(hnp.arrays(np.int32, st.integers(1, 8), elements=st.integers(-(2**9), 2**9)), st.sampled_from([0.25, 1.0, 8.0]))
def test_a_vector_that_lies_on_the_grid_inside_the_ball_is_kept(integers: NDArray[np.int32], clip_norm: float) -> None:
    grid = Grid(clip_norm, 12)
    vector = (integers * grid.unit).astype(np.float32)
    assert clip(Update(vector), grid).vector.tolist() == integers.tolist()


def test_clipping_what_was_clipped_changes_nothing() -> None:
    random = np.random.Generator(np.random.PCG64(2))
    grid = Grid(1.0, 20)
    for _ in range(50):
        once = clip(Update(random.standard_normal(100).astype(np.float32)), grid)
        again = clip(Update((once.vector * grid.unit).astype(np.float32)), grid)
        assert np.array_equal(again.vector, once.vector)


@pytest.mark.parametrize("bits", [1, 12, 20, MAX_GRID_BITS])
@pytest.mark.parametrize("size", [1, 3, 1000, 300_000])
def test_a_long_vector_outside_the_ball_lands_at_its_surface(bits: int, size: int) -> None:
    grid = Grid(0.1, bits)
    vector = np.random.Generator(np.random.PCG64(3)).standard_normal(size).astype(np.float32) * 1e6
    clipped = clip(Update(vector), grid).vector.astype(np.float64)
    norm = float(np.linalg.norm(clipped))
    assert grid.radius - math.sqrt(size) - 1 <= norm <= grid.radius


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45])
def test_a_vector_of_nothing_becomes_zero(value: float) -> None:
    assert not clip(Update(np.full(5, value, dtype=np.float32)), Grid(1.0)).vector.any()
    assert clip(Update(np.zeros(0, dtype=np.float32)), Grid(1.0)).vector.shape == (0,)
