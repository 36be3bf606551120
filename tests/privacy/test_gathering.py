"""A vector that arrives in pieces is judged exactly as the plain check judges the whole."""

from __future__ import annotations

import ast
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy.vectors import (
    MAX_GRID_BITS,
    Clipped,
    Gathering,
    Grid,
    InvalidVector,
)
from tests.privacy.test_vectors import product_sources

INT32 = np.iinfo(np.int32)


def exact(vector: NDArray[Any]) -> int:
    return sum(int(value) ** 2 for value in vector)


def verdicts(vector: NDArray[np.int32], grid: Grid, cuts: list[int]) -> tuple[bool, bool]:
    """Of the plain check, and of gathering the vector cut at `cuts`; whichever way it is gathered, the pieces are the vector."""
    try:
        Clipped(vector, grid)
        plain = True
    except InvalidVector:
        plain = False
    gathering = Gathering(vector.size, grid)
    hopeful = [gathering.add(piece) for piece in np.split(vector, sorted(cuts))]
    try:
        gathered = gathering.clipped()
    except InvalidVector:
        return plain, False
    assert all(hopeful)
    assert np.array_equal(gathered.vector, vector)
    assert (gathered.size, gathered.grid) == (vector.size, grid)
    return plain, True


@settings(deadline=None)
@given(data=st.data(), bits=st.integers(1, MAX_GRID_BITS), more=st.sampled_from([-1, 0, 1]))
def test_vectors_one_unit_around_the_radius_are_judged_as_the_plain_check_judges_them(
    data: st.DataObject, bits: int, more: int
) -> None:
    grid = Grid(1.0, bits)
    squares = 4 ** data.draw(st.integers(0, min(bits, 8)))
    vector = np.full(squares, grid.radius // int(squares**0.5), dtype=np.int32)
    assert exact(vector) == grid.radius**2
    vector = np.concatenate([vector * data.draw(st.sampled_from([1, -1])), np.zeros(3, dtype=np.int32)])
    np.random.default_rng(data.draw(st.integers(0, 9))).shuffle(vector)
    vector[data.draw(st.integers(0, vector.size - 1))] += more
    cuts = data.draw(st.lists(st.integers(0, vector.size), max_size=4))
    plain, gathered = verdicts(vector, grid, cuts)
    assert plain == gathered == (exact(vector) <= grid.radius**2)


@pytest.mark.parametrize("bits", [1, 20, MAX_GRID_BITS])
@pytest.mark.parametrize("extreme", [INT32.min, INT32.max, 2**24 + 1, -(2**24) - 1])
@pytest.mark.parametrize("size", [1, 257, 1_000_000])
def test_extreme_integers_are_refused_however_many(bits: int, extreme: int, size: int) -> None:
    vector = np.full(size, extreme, dtype=np.int32)
    assert verdicts(vector, Grid(1.0, bits), [size // 2]) == (False, False)


def test_a_coordinate_that_float32_would_round_to_the_radius_is_refused() -> None:
    grid = Grid(1.0, 24)
    assert np.float32(grid.radius + 1) == grid.radius
    assert verdicts(np.array([grid.radius + 1], dtype=np.int32), grid, []) == (False, False)
    assert verdicts(np.array([grid.radius], dtype=np.int32), grid, []) == (True, True)


def test_what_is_far_beyond_the_radius_is_known_before_the_end() -> None:
    grid = Grid(1.0, 10)
    gathering = Gathering(10, grid)
    assert gathering.add(np.array([2 * grid.radius], dtype=np.int32))
    assert not gathering.add(np.array([1], dtype=np.int32))


def test_int16_pieces_are_judged_like_int32() -> None:
    grid = Grid(1.0, 14)
    for last, sound in ((0, True), (1, False)):
        gathering = Gathering(3, grid)
        gathering.add(np.array([-grid.radius, 0], dtype=np.int16))
        gathering.add(np.array([last], dtype=np.int16))
        if sound:
            assert gathering.clipped().size == 3
        else:
            with pytest.raises(InvalidVector, match="norm"):
                gathering.clipped()


def test_a_piece_that_is_changed_after_it_was_checked_stays_as_it_was() -> None:
    piece = np.array([1, 2], dtype=np.int32)
    gathering = Gathering(2, Grid(1.0))
    gathering.add(piece)
    piece[:] = INT32.max
    held = gathering.clipped().vector
    assert held.tolist() == [1, 2]
    assert not held.flags.writeable


@pytest.mark.parametrize("large", [2**15 - 1, -(2**15), 2**15, -(2**15) - 1, 2**20])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_coordinate_that_int16_cannot_hold_widens_the_vector_and_changes_nothing_else(large: int, at: int) -> None:
    vector = np.array([5, -6, 7, -8, 9, -10], dtype=np.int32)
    vector[at] = large
    gathering = Gathering(6, Grid(1.0, 24))
    for piece in np.split(vector, [2, 4]):
        assert gathering.add(piece)
    held = gathering.clipped().vector
    assert held.tolist() == vector.tolist()
    assert held.dtype == (np.int16 if -(2**15) <= large < 2**15 else np.int32)


def test_a_vector_is_handed_over_once() -> None:
    gathering = Gathering(2, Grid(1.0))
    gathering.add(np.array([1, 2], dtype=np.int32))
    held = gathering.clipped().vector
    assert gathering.clipped().size == 0
    with pytest.raises(InvalidVector, match="at most 0"):
        gathering.add(np.array([9], dtype=np.int32))
    assert held.tolist() == [1, 2]


@pytest.mark.parametrize(
    "piece",
    [np.zeros(2, np.int64), np.zeros(2, np.uint16), np.zeros(2, np.float32), np.zeros((1, 2), np.int32), np.zeros(4, np.int32)],
)
def test_a_piece_of_another_type_or_shape_or_too_long_is_refused(piece: NDArray[Any]) -> None:
    with pytest.raises(InvalidVector, match="piece"):
        Gathering(3, Grid(1.0)).add(piece)


def test_a_vector_with_a_piece_missing_is_none() -> None:
    gathering = Gathering(3, Grid(1.0))
    gathering.add(np.zeros(2, dtype=np.int32))
    with pytest.raises(InvalidVector, match="1 of 3 coordinates are missing"):
        gathering.clipped()


def test_no_size_and_no_value_draws_a_warning_from_numpy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (INT32.min, INT32.max):
            assert not Gathering(5000, Grid(1.0)).add(np.full(5000, value, dtype=np.int32))


def test_only_gathering_makes_a_gathered_vector() -> None:
    makers = {
        (name, scope.name)
        for name, tree in product_sources().items()
        for scope in ast.walk(tree)
        if isinstance(scope, ast.ClassDef | ast.FunctionDef)
        for node in ast.walk(scope)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Gathered"
    }
    assert makers == {("privacy/vectors.py", "Gathering"), ("privacy/vectors.py", "clipped")}
