"""Buffered Toeplitz noise against its dense matrix, and the optimiser's closed forms against sums over the steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy import blt_optimal
from fedrho.privacy.blocks import BLOCK
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.blt_optimal import optimal_buffers
from fedrho.privacy.loss import max_loss, rmse_loss
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import Grid
from tests.privacy import dense_toeplitz
from tests.privacy.dense import SeededNoise
from tests.privacy.dense_toeplitz import GivenNoise, UnitNoise

GRID = Grid(0.5, 16)
DECAY, SCALE = (0.95, 0.7, 0.2), (0.2, 0.3, 0.1)
PRODUCTION = (0.989739971, 0.735200176, 0.167762000, 0.167761999), (0.205028929, 0.233579394, 0.034795033, 0.034795099)
"""A four-buffer BLT quoted for production; two of its decays all but coincide."""


def blt(decay: tuple[float, ...] = DECAY, scale: tuple[float, ...] = SCALE, noise_multiplier: float = 1.0) -> BufferedToeplitz:
    return BufferedToeplitz(GRID, noise_multiplier, decay, scale)


def stream(mechanism: BufferedToeplitz, steps: int, size: int, source: NoiseSource) -> NDArray[np.int64]:
    """The noise of the steps, shape (steps, size)."""
    state, rows = mechanism.init(size), []
    for _ in range(steps):
        row, state = mechanism.next_noise(state, source)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("decay", "scale"), [(DECAY, SCALE), ((0.5,), (0.9,)), PRODUCTION])
def test_impulses_show_the_rows_of_the_inverse(decay: tuple[float, ...], scale: tuple[float, ...]) -> None:
    """Rows of 2**30 after the division by 2**16, each rounded to the nearest integer once."""
    coefficients = dense_toeplitz.blt_coefficients(decay, scale, 64)
    responses = stream(blt(decay, scale), 64, 64, UnitNoise(2**46)) / 2**30
    inverse = np.linalg.inv(dense_toeplitz.strategy(coefficients, 64))
    assert responses == pytest.approx(inverse, abs=0.51 * 2.0**-30)


def test_the_stream_is_the_inverse_times_the_rows_rounded_once() -> None:
    rows = np.random.Generator(np.random.PCG64(3)).integers(-(2**45), 2**45, (64, 50))
    coefficients = dense_toeplitz.blt_coefficients(DECAY, SCALE, 64)
    exact = np.linalg.inv(dense_toeplitz.strategy(coefficients, 64)) @ rows / 2**16
    assert np.abs(stream(blt(), 64, 50, GivenNoise(rows)) - exact).max() < 0.5 + 1e-4


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK + 1, 3 * BLOCK + 17])
def test_blocks_give_what_one_plain_loop_gives_bit_for_bit(size: int) -> None:
    streamed, source, mechanism = stream(blt(), 5, size, SeededNoise("blocks")), SeededNoise("blocks"), blt()
    buffers = [np.zeros(size) for _ in DECAY]
    for t in range(5):
        row = source.draw(f"row.{t + 1}", size, mechanism.stddev * 2**16)[0] / 2**16
        for scale, buffer in zip(SCALE, buffers, strict=True):
            row = row - scale * buffer
        buffers = [decay * buffer + row for decay, buffer in zip(DECAY, buffers, strict=True)]
        assert np.array_equal(streamed[t], np.rint(row))


def test_a_step_leaves_the_state_before_it_alone() -> None:
    source = SeededNoise("pure")
    _, before = blt().next_noise(blt().init(5), source)
    first, after = blt().next_noise(before, source)
    again, _ = blt().next_noise(before, source)
    assert np.array_equal(first, again)
    assert after.live == tuple(dict.fromkeys(source.drawn))


@pytest.mark.parametrize(("decay", "scale"), [(DECAY, SCALE), ((1e-6, 0.999), (0.4, 0.5)), PRODUCTION])
def test_series_and_errors_are_those_of_the_dense_matrix(decay: tuple[float, ...], scale: tuple[float, ...]) -> None:
    mechanism, coefficients = blt(decay, scale), dense_toeplitz.blt_coefficients(decay, scale, 200)
    assert mechanism.coefficients(200) == pytest.approx(np.array(coefficients), rel=1e-13)
    matrix = dense_toeplitz.strategy(coefficients, 200)
    assert mechanism.inverse(200) == pytest.approx(np.linalg.inv(matrix)[:, 0], abs=1e-12)
    assert mechanism.prefix_variances(200) == pytest.approx(dense_toeplitz.prefix_errors(matrix), rel=1e-10)


@pytest.mark.parametrize("participation", [Participation(3, 2), Participation(2, 5, cyclic=True), Participation(12, 1)])
def test_sensitivity_is_that_of_the_worst_client(participation: Participation) -> None:
    matrix = dense_toeplitz.strategy(dense_toeplitz.blt_coefficients(DECAY, SCALE, 11), 11)
    claimed = blt().sensitivity(11, participation)
    assert claimed.exact
    worst = dense_toeplitz.worst_same_direction(matrix.T @ matrix, participation)
    assert claimed.squared == pytest.approx(worst, rel=1e-11)
    assert claimed.squared >= worst


def test_decays_so_slow_that_rounding_shows_are_priced_exactly_all_the_same() -> None:
    slow = blt((1 - 1e-12, 1 - 2e-12, 0.5), (0.3, 0.2, 0.1))
    assert slow.sensitivity(5000, Participation(5, 700)).exact
    assert np.all(np.diff(slow.coefficients(5000)) <= 0)


def test_the_production_strategy_costs_what_was_published() -> None:
    """n = 430, b = 93, k = 4: 21.565; RMSE and max loss at (2000, 400, 5): 8.498 and 10.504."""
    mechanism = BufferedToeplitz(GRID, 3.12, *PRODUCTION)
    assert mechanism.sensitivity(430, Participation(4, 93)).squared == pytest.approx(21.565, abs=5e-4)
    assert float(mechanism.cost(430, Participation(4, 93))) == pytest.approx(1.1077, abs=5e-5)
    assert rmse_loss(mechanism, 2000, Participation(5, 400)) == pytest.approx(8.498, abs=5e-4)
    assert max_loss(mechanism, 2000, Participation(5, 400)) == pytest.approx(10.504, abs=5e-4)


@pytest.mark.parametrize(
    ("decay", "scale", "complaint"),
    [
        ((), (), "every buffer"),
        ((0.5,), (0.1, 0.1), "every buffer"),
        ((1.0,), (0.1,), "decays"),
        ((0.0,), (0.1,), "decays"),
        ((math.nan,), (0.1,), "decays"),
        ((0.5,), (0.0,), "scales"),
        ((0.5,), (math.nan,), "scales"),
        ((0.5, 0.4), (1.1, -0.2), "scales"),
        ((0.5, 0.4), (0.5, 0.5), "scales"),
    ],
)
def test_what_does_not_fall_or_die_away_is_refused(decay: tuple[float, ...], scale: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        blt(decay, scale)


def test_noise_that_float64_cannot_hold_exactly_is_refused() -> None:
    blt(noise_multiplier=2.0**17)
    with pytest.raises(ValueError, match="noise_multiplier must be at most 131072"):
        blt(noise_multiplier=2.0**17 * 1.001)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.003, 1.5), min_size=2, max_size=8).filter(lambda gaps: len(gaps) % 2 == 0),
    st.integers(1, 60),
    st.builds(Participation, st.integers(1, 6), st.integers(1, 20)),
)
def test_the_closed_forms_are_the_sums_over_the_steps(gaps: list[float], steps: int, participation: Participation) -> None:
    poles = np.cumsum(gaps)
    mechanism = blt(*blt_optimal._to_buffers(poles))
    for objective, loss, count in (("rmse", rmse_loss, steps), ("max", max_loss, 1)):
        closed = blt_optimal.log_loss(poles[None], steps, participation, objective)  # type: ignore[arg-type]
        assert math.exp(closed[0].real / 2) == pytest.approx(loss(mechanism, steps, participation) * math.sqrt(count), rel=1e-9)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_no_nearby_buffers_are_better_than_the_optimal_ones(buffers: int) -> None:
    participation, random = Participation(4, 50), np.random.Generator(np.random.PCG64(6))
    decay, scale = (np.array(values) for values in optimal_buffers(200, participation, buffers))
    best = rmse_loss(blt(tuple(decay), tuple(scale)), 200, participation)
    for length in (1e-4, 1e-3, 1e-2):
        for _ in range(30):
            one = decay * np.exp(random.standard_normal(buffers) * length)
            two = scale * np.exp(random.standard_normal(buffers) * length)
            if one.max() < 1 and two.sum() < 1:
                assert rmse_loss(blt(tuple(one), tuple(two)), 200, participation) >= best * (1 - 1e-9)


@pytest.mark.slow
def test_the_best_number_of_buffers_is_kept_and_the_answer_is_always_the_same() -> None:
    participation = Participation(4, 50)
    decay, scale = optimal_buffers(200, participation)
    chosen = rmse_loss(blt(decay, scale), 200, participation)
    for buffers in (1, 2, 3):
        assert chosen <= rmse_loss(blt(*optimal_buffers(200, participation, buffers)), 200, participation) * (1 + 1e-6)
    assert optimal_buffers(200, participation) == (decay, scale)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_have_an_answer_too(steps: int) -> None:
    decay, scale = optimal_buffers(steps, Participation.single())
    assert rmse_loss(blt(decay, scale), steps, Participation.single()) >= 1.0
    with pytest.raises(ValueError, match="at least 1"):
        optimal_buffers(0, Participation.single())
    with pytest.raises(ValueError, match="buffers must be at least 1"):
        optimal_buffers(5, Participation.single(), 0)
