"""The streaming tree against dense matrices, exact rationals, and the figures of the literature."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy.noise import NoiseMismatch, NoiseSource, ReplayedNoise
from fedrho.privacy.tree import BinaryTree, Block, TreeState
from fedrho.privacy.vectors import Grid, IntVector
from tests.privacy.dense import (
    BasisNoise,
    ConstantNoise,
    SeededNoise,
    best_linear_prefixes,
    completed_nodes,
    exact_scale,
    honaker_prefixes,
    names,
    residuals,
)

TREE = BinaryTree(Grid(1.0, 16), 3.0)


def run(steps: int, size: int, source: NoiseSource) -> tuple[list[IntVector], list[TreeState]]:
    """The noise of each step, and the state after each, the initial one first."""
    released, states = [], [TREE.init(size)]
    for _ in range(steps):
        noise, state = TREE.next_noise(states[-1], source)
        released.append(noise)
        states.append(state)
    return released, states


def coefficients(steps: int) -> NDArray[np.int64]:
    """What each node contributes to each prefix, times `exact_scale(steps)`."""
    _, states = run(steps, len(completed_nodes(steps)), BasisNoise(steps))
    return np.array([state.prefix for state in states[1:]])


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 21, 32, 33])
def test_prefixes_are_honakers_recursion_and_the_best_linear_estimate(steps: int) -> None:
    streamed = coefficients(steps) / exact_scale(steps)
    np.testing.assert_allclose(streamed, honaker_prefixes(steps), rtol=0, atol=1e-12)
    np.testing.assert_allclose(streamed, best_linear_prefixes(steps), rtol=0, atol=1e-12)


def test_released_noise_is_the_difference_of_prefixes() -> None:
    released, states = run(21, len(completed_nodes(21)), BasisNoise(21))
    np.testing.assert_allclose(np.array(released) / exact_scale(21), residuals(honaker_prefixes(21)), rtol=0, atol=1e-12)
    for t in range(1, 22):
        assert np.array_equal(np.sum(released[:t], axis=0), states[t].prefix)


def test_prefix_variances_are_exactly_the_published_ones() -> None:
    scale = exact_scale(200)
    variances = [Fraction(sum(int(c) ** 2 for c in row), scale**2) for row in coefficients(200)]
    assert variances[:4] == [1, Fraction(2, 3), Fraction(5, 3), Fraction(4, 7)]
    for t, variance in enumerate(variances, start=1):
        assert variance == sum(1 / (2 - Fraction(1, 2**d)) for d in range(8) if t >> d & 1)


def test_the_third_and_fourth_prefix_have_covariance_three_sevenths() -> None:
    third, fourth = coefficients(4)[2:]
    assert Fraction(sum(int(a) * int(b) for a, b in zip(third, fourth, strict=True)), exact_scale(4) ** 2) == Fraction(3, 7)
    size = 200_000
    _, states = run(4, size, SeededNoise("covariance"))
    a, b = states[3].prefix / TREE.stddev, states[4].prefix / TREE.stddev
    # The standard error of a sample covariance is sqrt((var a * var b + cov**2) / size); six of them fail once in 5e8.
    assert abs((a * b).mean() - 3 / 7) < 6 * math.sqrt((5 / 3 * 4 / 7 + 9 / 49) / size)


def test_equal_noise_at_every_node_sums_to_the_closed_form() -> None:
    scale = exact_scale(100)
    _, states = run(100, 1, ConstantNoise(scale))
    for t in range(1, 101):
        expected = sum((d + 1) / (2 - Fraction(1, 2**d)) for d in range(7) if t >> d & 1)
        assert Fraction(int(states[t].prefix[0]), scale) == expected


def test_each_node_is_drawn_once_when_its_last_leaf_comes() -> None:
    source = SeededNoise("draws")
    _, states = run(100, 1, source)
    for t in range(1, 101):
        assert len(states[t].live) == 2 * t - t.bit_count()
        trailing_ones = next(d for d in range(8) if not t - 1 >> d & 1)
        assert len(states[t].drawn) == 1 + trailing_ones
    assert [node.name for node in source.drawn] == names(100)


def test_only_logarithmically_many_vectors_are_kept() -> None:
    _, states = run(300, 1, SeededNoise("blocks"))
    for t in range(1, 301):
        heights = [block.height for block in states[t].blocks]
        assert heights == [d for d in reversed(range(9)) if t >> d & 1]


@given(st.integers(0, 12), st.integers(-(2**50), 2**50), st.integers(-(2**50), 2**50))
def test_adding_the_data_before_or_after_rounding_is_the_same(height: int, scaled: int, data: int) -> None:
    estimate = int(Block(height, np.array([scaled], dtype=np.int64)).estimate()[0])
    assert data + estimate == half_up(data + Fraction(scaled, 2 ** (height + 1) - 1))


def test_each_block_is_the_exact_rational_estimate_rounded_once() -> None:
    steps, size = 21, 3
    source = SeededNoise("rational")
    _, states = run(steps, size, source)
    noise = {node.name: source.replayed().draw(node.name, size, TREE.stddev)[0].tolist() for node in source.drawn}

    def from_below(height: int, index: int, i: int) -> Fraction:
        own = Fraction(noise[f"tree.{height}.{index}"][i])
        if height == 0:
            return own
        return own + (from_below(height - 1, 2 * index, i) + from_below(height - 1, 2 * index + 1, i)) / 2

    for t in range(1, steps + 1):
        for i in range(size):
            start, prefix = 0, 0
            for height in (d for d in reversed(range(5)) if t >> d & 1):
                prefix += half_up(from_below(height, start >> height, i) / (2 - Fraction(1, 2**height)))
                start += 2**height
            assert states[t].prefix[i] == prefix


@pytest.mark.parametrize("step", range(0, 18))
def test_a_restored_state_continues_as_if_nothing_had_happened(step: int) -> None:
    source = SeededNoise("restore")
    released, states = run(20, 5, source)
    state = TREE.restore(5, step, ReplayedNoise(states[step].live))
    assert (state.step, state.drawn, state.live) == (step, states[step].drawn, states[step].live)
    for expected in released[step:]:
        noise, state = TREE.next_noise(state, source.replayed())
        assert noise.tobytes() == expected.tobytes()


@pytest.mark.parametrize("which", range(2 * 11 - 3))
def test_one_tampered_or_missing_node_stops_the_restore(which: int) -> None:
    live = run(11, 5, SeededNoise("tampered"))[1][-1].live
    assert len(live) == 2 * 11 - 3
    node = live[which]
    tampered = dataclasses.replace(node, seed=node.seed[:-1] + bytes([node.seed[-1] ^ 1]))
    for nodes in ([tampered if other is node else other for other in live], [other for other in live if other is not node]):
        with pytest.raises(NoiseMismatch, match=node.name):
            TREE.restore(5, 11, ReplayedNoise(nodes))
