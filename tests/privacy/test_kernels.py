"""What C does, numpy does: both are held to Python's integers, at every width, length and address."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy import kernels

WAYS = [
    pytest.param(kernels.copy_by_numpy, kernels.add_by_numpy, id="numpy"),
    pytest.param(
        kernels.copy,
        kernels.add,
        id="compiled",
        marks=pytest.mark.skipif(not kernels.COMPILED, reason="fedrho was installed without a C compiler"),
    ),
]
LENGTHS = (0, 1, 7, 8, 15, 16, 17, 4095, 4096, 4097, 10_000)
Copy = Callable[[NDArray[Any], NDArray[Any]], tuple[float, bool]]
Add = Callable[[NDArray[np.int32], list[NDArray[Any]]], None]
both = pytest.mark.parametrize(("copy", "add"), WAYS)


def anywhere(values: NDArray[Any], offset: int) -> NDArray[Any]:
    """The same numbers, read only, at an address that is `offset` beyond an aligned one."""
    return np.frombuffer(bytes(offset) + values.tobytes(), dtype=values.dtype, offset=offset)


@both
@settings(deadline=None)
@given(data=st.data(), length=st.sampled_from(LENGTHS), wide=st.booleans(), target=st.sampled_from([np.int16, np.int32]))
def test_copies_squares_and_says_what_did_not_fit(
    copy: Copy, add: Add, data: st.DataObject, length: int, wide: bool, target: Any
) -> None:
    limits = np.iinfo(np.int32 if wide else np.int16)
    reach = data.draw(st.sampled_from([1, 300, 2**15 - 1, 2**15, 2**24, limits.max]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = random.integers(max(-reach - 1, limits.min), min(reach, limits.max) + 1, length).astype(limits.dtype)
    source = anywhere(values, data.draw(st.integers(0, 9)))
    written = np.full(length + 2, 7, dtype=target)
    squared, fits = copy(written[1:-1], source)
    truth = sum(int(value) ** 2 for value in values)
    assert squared == truth if truth <= 2**53 else squared >= 2**53
    assert fits == all(np.iinfo(target).min <= value <= np.iinfo(target).max for value in values.tolist())
    assert written[1:-1].tolist() == values.astype(target).tolist()
    assert (written[0], written[-1]) == (7, 7)


@both
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("many", [0, 1, 4, 64])
def test_adds_vectors_of_both_widths(copy: Copy, add: Add, length: int, many: int) -> None:
    random = np.random.default_rng(length)
    vectors = [random.integers(-9999, 9999, length).astype(np.int16 if one % 3 else np.int32) for one in range(many)]
    lane = np.full(length, -5, dtype=np.int32)
    add(lane, [anywhere(vector, one % 5) for one, vector in enumerate(vectors)])
    assert lane.tolist() == [-5 + sum(int(vector[at]) for vector in vectors) for at in range(length)]


@both
@pytest.mark.parametrize("value", [np.iinfo(np.int32).min, np.iinfo(np.int32).max])
def test_a_million_of_the_largest_integers_are_never_below_two_to_the_53(copy: Copy, add: Add, value: int) -> None:
    source = np.full(1_000_000, value, dtype=np.int32)
    squared, fits = copy(np.empty(source.size, dtype=np.int16), source)
    assert squared >= 2.0**53
    assert not fits


@pytest.mark.skipif(not kernels.COMPILED, reason="fedrho was installed without a C compiler")
class TestCompiledRefuses:
    """Anything that could make it read or write where it must not."""

    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros(4, np.int64),
            np.zeros(4, np.float32),
            np.zeros(4, np.uint16),
            np.zeros((2, 2), np.int32),
            np.zeros(8, np.int32)[::2],
            np.zeros(4, ">i4"),
            b"1234",
            [1, 2, 3, 4],
            None,
        ],
    )
    def test_what_is_no_flat_vector(self, wrong: Any) -> None:
        good = np.zeros(4, np.int32)
        calls: list[tuple[Callable[..., Any], Any, Any]] = [
            (kernels.copy, wrong, good),
            (kernels.copy, good, wrong),
            (kernels.add, wrong, [good]),
            (kernels.add, good, [good, wrong]),
        ]
        for call, first, second in calls:
            with pytest.raises((TypeError, ValueError, BufferError)):
                call(first, second)
        assert not good.any()

    def test_other_lengths_a_narrow_lane_and_too_many(self) -> None:
        lane, vector = np.zeros(4, np.int32), np.ones(4, np.int32)
        calls: list[tuple[Callable[..., Any], Any, Any]] = [
            (kernels.copy, lane, np.ones(5, np.int32)),
            (kernels.copy, lane, np.ones(3, np.int32)),
            (kernels.add, lane, [vector, np.ones(5, np.int32)]),
            (kernels.add, np.zeros(4, np.int16), [np.ones(4, np.int16)]),
            (kernels.add, lane, [vector] * 65),
            (kernels.add, lane, (vector,)),
        ]
        for call, first, second in calls:
            with pytest.raises((TypeError, ValueError)):
                call(first, second)
        assert not lane.any()

    def test_a_target_that_nobody_may_write(self) -> None:
        fixed = np.zeros(4, np.int32)
        fixed.flags.writeable = False
        with pytest.raises((ValueError, BufferError)):
            kernels.copy(fixed, np.ones(4, np.int32))
        with pytest.raises((ValueError, BufferError)):
            kernels.add(fixed, [np.ones(4, np.int32)])

    def test_holds_nothing_of_what_it_was_given(self) -> None:
        lane, vector = np.zeros(4, np.int32), np.ones(4, np.int16)
        before = sys.getrefcount(lane), sys.getrefcount(vector)
        for _ in range(100):
            kernels.add(lane, [vector])
            kernels.copy(lane, vector)
            with pytest.raises(ValueError, match="lane"):
                kernels.add(lane, [np.ones(3, np.int16), vector])
        assert (sys.getrefcount(lane), sys.getrefcount(vector)) == before


def test_without_the_compiled_module_numpy_does_the_same() -> None:
    """As on a machine that had no C compiler when fedrho was installed."""
    program = """
import sys
sys.modules["fedrho.privacy._compiled"] = None
import numpy as np
from fedrho.privacy import kernels
assert not kernels.COMPILED
from fedrho.privacy.vectors import Gathering, Grid
gathering = Gathering(3, Grid(1.0, 20))
assert gathering.add(np.array([-3, 40_000, 4], dtype=np.int32))
assert gathering.clipped().vector.tolist() == [-3, 40_000, 4]
lane = np.zeros(2, dtype=np.int32)
kernels.add(lane, [np.array([1, 2], dtype=np.int16)] * 3)
assert lane.tolist() == [3, 6]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_it_was_compiled_where_there_is_a_compiler() -> None:
    import shutil

    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    assert importlib.util.find_spec("fedrho.privacy._compiled") is not None, (
        "install fedrho again: `uv sync --reinstall-package fedrho`"
    )


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=70))
def test_squared_length_adds_the_second_half_onto_the_first_until_one_is_left(values: list[float]) -> None:
    vector = np.array(values, dtype=np.float32)
    squares = [float(value) ** 2 for value in vector]
    while len(squares) > 1:
        half = (len(squares) + 1) // 2
        squares = [sum(pair) for pair in zip(squares[: len(squares) - half], squares[half:], strict=True)] + squares[
            len(squares) - half : half
        ]
    assert kernels.squared_length(vector) == (squares[0] if squares else 0.0)
