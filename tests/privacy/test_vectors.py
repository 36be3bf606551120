"""The stations of a vector hold what they promise, exactly, whatever a stranger sends."""

from __future__ import annotations

import ast
import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.privacy.vectors import (
    MAX_GRID_BITS,
    Clipped,
    ClippedSum,
    Grid,
    InvalidVector,
    Released,
    Update,
    add_noise,
    within,
)

TOP = Path(__file__).parents[2]
FOLDERS = ("fedrho", "server", "client", "privacy", "protos", "models", "simulations")
INT32 = np.iinfo(np.int32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def product_sources() -> dict[str, ast.Module]:
    paths = [path for folder in FOLDERS for path in sorted((TOP / folder).glob("*.py"))]
    return {path.relative_to(TOP).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.mark.parametrize("bits", [1, 2, 10, 20, MAX_GRID_BITS])
def test_a_norm_equal_to_the_radius_is_accepted_and_one_unit_more_is_refused(bits: int) -> None:
    grid = Grid(1.0, bits)
    vector = np.array([grid.radius, 0], dtype=np.int32)
    Clipped(vector, grid)
    for change in ([1, 0], [0, 1], [0, -1]):
        with pytest.raises(InvalidVector):
            Clipped(vector + np.array(change, dtype=np.int32), grid)


@pytest.mark.parametrize("bits", [2, 20, MAX_GRID_BITS])
def test_the_norm_of_many_small_coordinates_is_decided_to_the_last_unit(bits: int) -> None:
    grid = Grid(1.0, bits)
    length, size = 2 ** (bits // 2), 4 ** (bits - bits // 2)
    vector = np.full(size, length, dtype=np.int32)
    vector[1::2] *= -1
    assert length**2 * size == grid.radius**2
    Clipped(vector, grid)
    with pytest.raises(InvalidVector):
        Clipped(np.append(vector, np.int32(1)), grid)


@pytest.mark.parametrize("bits", [20, MAX_GRID_BITS])
@pytest.mark.parametrize("extreme", [INT32.min, INT32.max])
@pytest.mark.parametrize("size", [1, 4, 1_000_000])
def test_extreme_integers_are_refused_however_many(bits: int, extreme: int, size: int) -> None:
    with pytest.raises(InvalidVector):
        Clipped(np.full(size, extreme, dtype=np.int32), Grid(1.0, bits))


def test_random_vectors_at_the_boundary_are_judged_as_exact_integer_arithmetic_judges_them() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    seen = set()
    for _ in range(300):
        grid = Grid(1.0, int(random.integers(4, MAX_GRID_BITS + 1)))
        direction = random.standard_normal(int(random.integers(1, 8)))
        vector = np.rint(direction / np.linalg.norm(direction) * grid.radius).astype(np.int32)
        truth = sum(int(value) ** 2 for value in vector) <= grid.radius**2
        assert within(vector, grid) == truth
        seen.add(truth)
    assert seen == {True, False}


@pytest.mark.parametrize("vector", [np.zeros(2, np.int64), np.zeros(2, np.float32), np.zeros((1, 2), np.int32), np.int32(0)])
def test_a_clipped_vector_of_another_type_or_shape_is_refused(vector: NDArray[np.int32]) -> None:
    with pytest.raises(InvalidVector):
        Clipped(np.asarray(vector), Grid(1.0))


@pytest.mark.parametrize("vector", [np.zeros(2, np.float64), np.zeros(2, np.int32), np.zeros((2, 1), np.float32), np.float32(0)])
def test_an_update_of_another_type_or_shape_is_refused(vector: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidVector):
        Update(np.asarray(vector))


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_an_update_with_one_entry_that_is_not_finite_is_refused(hole: float) -> None:
    vector = np.zeros(1000, dtype=np.float32)
    Update(vector)
    vector[617] = hole
    with pytest.raises(InvalidVector):
        Update(vector)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_grid_needs_a_finite_positive_clip_norm(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        Grid(clip_norm)


@pytest.mark.parametrize("bits", [-1, 0, MAX_GRID_BITS + 1])
def test_a_grid_refuses_bits_with_which_the_norm_check_would_not_be_exact(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Grid(1.0, bits)


def test_a_sum_cannot_be_pickled_or_copied() -> None:
    total = ClippedSum(ints(3, 4), Grid(1.0))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(total, protocol)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            duplicate(total)


def test_a_sum_shows_its_size_and_grid_and_none_of_its_numbers() -> None:
    total = ClippedSum(ints(31337, -4242), Grid(1.0))
    assert [name for name in dir(total) if not name.startswith("_")] == ["grid", "size"]
    assert total.size == 2
    assert not hasattr(total, "__dict__")
    assert not any(hasattr(total, way) for way in ("__array__", "__iter__", "__getitem__", "__len__", "__buffer__"))
    for text in (repr(total), str(total), f"{total}"):
        assert "31337" not in text
        assert "4242" not in text


def test_a_sum_of_another_type_or_shape_is_refused() -> None:
    for total in (np.zeros(2, np.int32), np.zeros(2, np.float64), np.zeros((2, 1), np.int64)):
        with pytest.raises(InvalidVector):
            ClippedSum(total, Grid(1.0))  # type: ignore[arg-type]


def test_noise_that_is_not_int64_or_has_another_shape_is_refused() -> None:
    total = ClippedSum(ints(3, 4), Grid(1.0))
    bad = (np.zeros(2), np.zeros(2, np.int32), np.zeros(1, np.int64), np.zeros((1, 2), np.int64), np.array(0, np.int64))
    for noise in bad:
        with pytest.raises(InvalidVector):
            add_noise(total, noise)  # type: ignore[arg-type]


def test_a_release_is_the_sum_plus_the_noise_and_lies_on_the_grid() -> None:
    released = add_noise(ClippedSum(ints(3, 4, -5), Grid(0.3, 7)), ints(10, -20, 2**40))
    assert released.vector.dtype == np.int64
    assert released.vector.tolist() == [13, -16, 2**40 - 5]
    assert released.grid == Grid(0.3, 7)
    assert (released.mean(1) / released.grid.unit).tolist() == [13.0, -16.0, 2.0**40 - 5]


def test_the_mean_divides_by_the_public_goal() -> None:
    assert Released(ints(4, -2), Grid(1.0, 2)).mean(8).tolist() == [4 * 0.25 / 8, -2 * 0.25 / 8]


def test_only_the_vectors_module_reads_the_numbers_of_a_sum() -> None:
    """`self._total` is an object's own; but nothing else may be a ClippedSum, or reach for a `_total` of another."""
    readers = set()
    for name, tree in product_sources().items():
        for node in ast.walk(tree):
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            reads = isinstance(node, ast.Attribute) and node.attr == "_total" and not own
            spells = isinstance(node, ast.Constant) and node.value == "_total"
            inherits = isinstance(node, ast.ClassDef) and any("ClippedSum" in ast.unparse(base) for base in node.bases)
            if reads or spells or inherits:
                readers.add(name)
    assert readers == {"privacy/vectors.py"}


def test_only_a_mechanism_calls_the_door_out_of_a_sum() -> None:
    callers = {
        name
        for name, tree in product_sources().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "add_noise")
        or (isinstance(node, ast.Attribute) and node.attr == "add_noise")
    }
    assert callers == {"privacy/mechanism.py"}


def test_a_sum_goes_through_the_door_once_and_is_empty_afterwards() -> None:
    values = ints(3, 4)
    total = ClippedSum(values, Grid(1.0))
    assert add_noise(total, ints(0, 0)).vector.tolist() == [3, 4]
    assert values.tolist() == [0, 0]
    with pytest.raises(InvalidVector):
        add_noise(total, ints(0, 0))
