"""Banded noise: exactly a function of the Gaussian mechanism's output, streamed in integers that cannot overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy.banded import MOST_STEPS, BandedState, BandedToeplitz, optimal_bands
from fedrho.privacy.blocks import BLOCK
from fedrho.privacy.loss import max_loss, rmse_loss
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.toeplitz import square_root_coefficients, toeplitz_sensitivity
from fedrho.privacy.vectors import ClippedSum, Grid
from tests.privacy import dense_toeplitz
from tests.privacy.dense import SeededNoise
from tests.privacy.dense_toeplitz import GivenNoise, UnitNoise

GRID = Grid(0.5, 16)
TAILS = st.lists(st.floats(-0.15625, 0.15625, width=32), max_size=6)
"""Sums of absolute values below 1, so that the inverse dies away."""


def banded(*tail: float, noise_multiplier: float = 1.0) -> BandedToeplitz:
    return BandedToeplitz(GRID, noise_multiplier, (1.0, *tail))


def stream(mechanism: BandedToeplitz, steps: int, size: int, source: NoiseSource) -> NDArray[np.int64]:
    """The noise of the steps, shape (steps, size)."""
    state, rows = mechanism.init(size), []
    for _ in range(steps):
        row, state = mechanism.next_noise(state, source)
        rows.append(row)
    return np.array(rows)


@settings(max_examples=60, deadline=None)
@given(TAILS, st.integers(1, 9), st.integers(0, 2**32))
def test_what_is_published_is_a_function_of_the_gaussian_mechanisms_output(tail: list[float], steps: int, seed: int) -> None:
    """Bit for bit, in fractions: y = G + n against the recursion that sees nothing but 2**16 * C G + z."""
    mechanism, random = banded(*tail, noise_multiplier=0.01), np.random.Generator(np.random.PCG64(seed))
    sums = random.integers(-(2**30), 2**30, (steps, 1))
    rows = random.integers(-(2**32), 2**32, (steps, 1))
    state, published = mechanism.init(1), []
    for total in sums:
        released, state = mechanism.release(ClippedSum(total.copy(), GRID), state, GivenNoise(rows))
        published.append(int(released.vector[0]))
    scaled = [round(c * 2**16) for c in mechanism.coefficients]
    noisy = [sum(scaled[j] * int(sums[t - j, 0]) for j in range(min(t + 1, len(scaled)))) + int(rows[t, 0]) for t in range(steps)]
    assert published == dense_toeplitz.streamed_in_fractions(mechanism.coefficients, noisy)


@pytest.mark.parametrize("bands", [1, 2, 5, 64])
def test_impulses_show_the_rows_of_the_inverse(bands: int) -> None:
    """Each row is rounded to a unit of 2**30; its rounding echoes no further than the sum of the inverse."""
    mechanism = banded(*square_root_coefficients(bands)[1:].tolist())
    responses = stream(mechanism, 64, 64, UnitNoise(2**46)) / 2**30
    inverse = np.linalg.inv(dense_toeplitz.strategy(mechanism.coefficients, 64))
    assert responses == pytest.approx(inverse, abs=4 * 2.0**-30)


def test_random_coefficients_stream_the_inverse_times_the_rows() -> None:
    random = np.random.Generator(np.random.PCG64(3))
    mechanism, size = banded(*random.uniform(-0.4, 0.4, 6).tolist()), 100
    rows = random.integers(-(2**45), 2**45, (64, size))
    inverse = np.linalg.inv(dense_toeplitz.strategy(mechanism.coefficients, 64))
    rounding = np.abs(inverse).sum(axis=1, keepdims=True) / 2 + 1e-3
    assert np.all(np.abs(stream(mechanism, 64, size, GivenNoise(rows)) - inverse @ rows / 2**16) <= rounding)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
@pytest.mark.parametrize("multiplier", [3.0, 1194.0, 1e6])
def test_blocks_and_narrow_buffers_give_what_one_plain_loop_gives(size: int, multiplier: float) -> None:
    mechanism, steps = banded(0.5, 0.25, -0.125, noise_multiplier=multiplier), 6
    streamed = stream(mechanism, steps, size, SeededNoise("blocks"))
    scaled, plain, source = mechanism.scaled, np.zeros((steps, size), dtype=np.int64), SeededNoise("blocks")
    for t in range(steps):
        row, _ = source.draw(f"row.{t + 1}", size, mechanism.stddev * 2**16)
        echo = sum((scaled[j] * plain[t - j] for j in range(1, min(t + 1, 4))), np.zeros(size, dtype=np.int64))
        plain[t] = (row - echo + 2**15) // 2**16
    assert np.array_equal(streamed, plain)


def test_state_is_the_last_noise_vectors_in_32_bits_where_they_fit() -> None:
    """|1 / c| sums to 12 / 7, so that 16 standard deviations of 1194.6 * 2**16 grid units reach 2**31."""
    for multiplier, width in ((1194.0, np.int32), (1195.0, np.int64)):
        mechanism, source = banded(0.5, 0.25, noise_multiplier=multiplier), SeededNoise("state")
        state, rows = mechanism.init(5), []
        for _ in range(4):
            row, state = mechanism.next_noise(state, source)
            rows.append(row)
        assert [one.vector.dtype for one in state.kept] == [width, width]
        assert np.array_equal([one.vector for one in state.kept], [rows[3], rows[2]])
        assert state.live == ()


def test_a_step_leaves_the_state_before_it_alone() -> None:
    mechanism, source = banded(0.5, 0.25), SeededNoise("pure")
    _, before = mechanism.next_noise(mechanism.init(5), source)
    first, _ = mechanism.next_noise(before, source)
    again, _ = mechanism.next_noise(before, source)
    assert np.array_equal(first, again)


def test_noise_of_the_largest_possible_rows_does_not_overflow() -> None:
    """Rows of +-16 standard deviations, their signs those of the inverse: no stream can come closer to the end of int64."""
    tail = (0.5, -0.3, 0.1)
    with pytest.raises(ValueError, match="noise_multiplier must be less than") as refusal:
        banded(*tail, noise_multiplier=2.0**24)
    limit = float(str(refusal.value).split("less than ")[1].split()[0])
    mechanism = banded(*tail, noise_multiplier=limit * 0.9999)
    inverse = np.linalg.inv(dense_toeplitz.strategy(mechanism.coefficients, 80))
    largest = int(16 * mechanism.stddev * 2**16)
    rows = np.sign(inverse[-1]).astype(np.int64)[:, None] * largest
    streamed = stream(mechanism, 80, 1, GivenNoise(rows))
    exact = dense_toeplitz.streamed_in_fractions(mechanism.coefficients, rows[:, 0].tolist())
    assert streamed[:, 0].tolist() == exact
    with pytest.raises(ValueError, match="noise_multiplier must be less than"):
        banded(*tail, noise_multiplier=limit * 1.001)


def test_noise_that_grows_without_end_is_refused_and_slow_growth_is_stopped() -> None:
    with pytest.raises(ValueError, match="grow without end"):
        banded(1.5)
    steady = banded(1.0)  # the inverse is 1, -1, 1, ...
    with pytest.raises(ValueError, match="ends after"):
        steady.next_noise(BandedState(MOST_STEPS, 3), SeededNoise("long"))


def test_what_is_priced_is_what_is_streamed() -> None:
    mechanism = banded(1 / 3, 1e-9)
    assert mechanism.coefficients == (1.0, round(2**16 / 3) / 2**16)
    assert mechanism == banded(mechanism.coefficients[1])
    priced = mechanism.sensitivity(50, Participation(3, 10))
    assert priced == toeplitz_sensitivity(mechanism.coefficients, 50, Participation(3, 10))
    assert priced.exact
    assert mechanism.prefix_variances(30) == pytest.approx(
        dense_toeplitz.prefix_errors(dense_toeplitz.strategy(mechanism.coefficients, 30))
    )


def test_more_bands_than_the_separation_are_refused_with_the_valid_number() -> None:
    mechanism = banded(0.5, 0.25)
    with pytest.raises(ValueError, match="bands must be at most the separation, 2, not 3"):
        mechanism.cost(10, Participation(2, 2))
    with pytest.raises(ValueError, match="bands must be at most the separation, 2, not 3"):
        optimal_bands(10, Participation(2, 2), bands=3)
    assert mechanism.sensitivity(10, Participation(2, 3)).squared == 2 * 1.3125
    assert mechanism.sensitivity(10, Participation(1, 2)).squared == 1.3125
    assert mechanism.sensitivity(2, Participation(2, 2)).squared == 1.25  # no room for a second time


@pytest.mark.parametrize("coefficients", [(), (0.5,), (2.0, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_strategy_is_refused(coefficients: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="coefficients must be finite, and the first of them 1"):
        BandedToeplitz(GRID, 1.0, coefficients)


@pytest.mark.parametrize(("steps", "times", "separation", "bands"), [(40, 4, 10, 10), (37, 3, 9, 5), (24, 1, 1, 24)])
def test_no_nearby_coefficients_are_better_than_the_optimal_ones(steps: int, times: int, separation: int, bands: int) -> None:
    """The loss of the dense matrix, at 200 random steps away of several lengths."""
    participation, random = Participation(times, separation), np.random.Generator(np.random.PCG64(5))

    def loss(coefficients: NDArray[np.float64], last: bool) -> float:
        errors = dense_toeplitz.prefix_errors(dense_toeplitz.strategy(coefficients.tolist(), steps))
        squared = toeplitz_sensitivity(coefficients, steps, participation).squared
        return squared * float(errors[-1] if last else errors.mean())

    for last in (False, True):
        best = np.array(optimal_bands(steps, participation, bands, "max" if last else "rmse"))
        for length in (1e-4, 1e-3, 1e-2, 0.1):
            away = random.standard_normal((50, bands)) * length
            away[:, 0] = 0.0
            assert min(loss(best + step, last) for step in away) >= loss(best, last) * (1 - 1e-9)


def test_default_bands_are_what_separation_steps_and_memory_allow() -> None:
    assert len(optimal_bands(60, Participation(3, 20))) == 20
    assert len(optimal_bands(15, Participation(3, 20))) == 15
    assert len(optimal_bands(600, Participation.single())) == 512
    assert optimal_bands(1, Participation.single()) == (1.0,)
    assert optimal_bands(20, Participation(3, 1)) == (1.0,)
    assert optimal_bands(90, Participation(3, 20)) == optimal_bands(90, Participation(3, 20))


def test_one_participation_needs_no_more_than_the_square_root_for_its_largest_error() -> None:
    """Which is the optimal Toeplitz strategy there, with equal column norm and row norm (Fichtenberger et al. 2023)."""
    found = BandedToeplitz(GRID, 1.0, optimal_bands(256, Participation.single(), 256, "max"))
    root = square_root_coefficients(256)
    assert max_loss(found, 256, Participation.single()) == pytest.approx(float(root @ root), rel=1e-6)
    assert rmse_loss(found, 256, Participation.single()) < max_loss(found, 256, Participation.single())
