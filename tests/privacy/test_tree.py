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

from fedrho.privacy.mechanism import LARGEST_NODE_STDDEV, Sensitivity
from fedrho.privacy.noise import LARGEST_STDDEV, NoiseMismatch, NoiseNode, NoiseSource, ReplayedNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import KEPT_HEIGHT, LONGEST_TREE, BinaryTree, Block, TreeState, estimate
from fedrho.privacy.tree_sensitivity import Tree
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
    restarted_prefixes,
)

TREE = BinaryTree(Grid(1.0, 16), 3.0)


def run(steps: int, size: int, source: NoiseSource, tree: BinaryTree = TREE) -> tuple[list[IntVector], list[TreeState]]:
    """The noise of each step, and the state after each, the initial one first."""
    released, states = [], [tree.init(size)]
    for _ in range(steps):
        noise, state = tree.next_noise(states[-1], source)
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


def test_prefix_variances_are_those_of_the_coefficients() -> None:
    squares = (coefficients(200) / exact_scale(200)) ** 2
    np.testing.assert_allclose(TREE.prefix_variances(200), squares.sum(axis=1), rtol=1e-12)
    assert TREE.prefix_variances(0).size == 0


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
        replayed = t % 2**KEPT_HEIGHT
        assert len(states[t].live) == 2 * replayed - replayed.bit_count()
        trailing_ones = next(d for d in range(8) if not t - 1 >> d & 1)
        assert len(states[t].drawn) == 1 + trailing_ones
    assert [node.name for node in source.drawn] == names(100)


def test_only_logarithmically_many_vectors_are_kept() -> None:
    _, states = run(300, 1, SeededNoise("blocks"))
    for t in range(1, 301):
        heights = [block.height for block in states[t].blocks]
        assert heights == [d for d in reversed(range(9)) if t >> d & 1]
        large = [block for block in states[t].blocks if block.height >= KEPT_HEIGHT]
        assert [one.name for one in states[t].kept] == [block.name for block in large]
        assert all(one.vector is block.scaled for one, block in zip(states[t].kept, large, strict=True))


@given(st.integers(0, 12), st.integers(-(2**50), 2**50), st.integers(-(2**50), 2**50))
def test_adding_the_data_before_or_after_rounding_is_the_same(height: int, scaled: int, data: int) -> None:
    noise = int(estimate(height, np.array([scaled], dtype=np.int64))[0])
    assert data + noise == half_up(data + Fraction(scaled, 2 ** (height + 1) - 1))


def test_each_block_is_the_exact_rational_estimate_rounded_once() -> None:
    steps, size = 21, 3
    source = SeededNoise("rational")
    _, states = run(steps, size, source)
    noise = {node.name: source.replayed().draw(node.name, size, TREE.stddev)[0].tolist() for node in source.drawn}

    def from_below(height: int, index: int, i: int) -> Fraction:
        own = Fraction(noise[f"tree.0.{height}.{index}"][i])
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


RESTARTED = [
    BinaryTree(Grid(1.0, 16), 3.0, restarts, completed)
    for restarts in ((1,), (5,), (8, 3, 1, 6), (5, 5, 5))
    for completed in (False, True)
]


@pytest.fixture(params=RESTARTED, ids=lambda tree: f"{tree.restarts}{'c' * tree.completed}")
def restarted(request: pytest.FixtureRequest) -> BinaryTree:
    chosen: BinaryTree = request.param
    return chosen


class WeightedBasisNoise:
    """The j-th draw is 2**40 times its standard deviation, in those of a node, times the j-th unit vector."""

    scale = 2.0**40

    def __init__(self) -> None:
        self.names: list[str] = []

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        vector = np.zeros(size, dtype=np.int64)
        vector[len(self.names)] = round(self.scale * stddev / TREE.stddev)
        self.names.append(name)
        return vector, NoiseNode(name, b"", b"")


def test_restarted_prefixes_have_the_covariance_of_the_dense_table(restarted: BinaryTree) -> None:
    """Of a completed tree the virtual nodes are drawn together, so columns differ from the table's; the covariance does not."""
    steps = sum(restarted.restarts) + 11
    released, _ = run(steps, 200, WeightedBasisNoise(), restarted)
    streamed = np.cumsum(released, axis=0) / WeightedBasisNoise.scale
    table = restarted_prefixes(restarted.trees(steps))
    np.testing.assert_allclose(streamed @ streamed.T, table @ table.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("restarts", [(1,), (5,), (8, 3, 1, 6)])
def test_restarted_prefixes_are_the_frozen_ones_plus_those_of_the_new_tree(restarts: tuple[int, ...]) -> None:
    tree = BinaryTree(Grid(1.0, 16), 3.0, restarts)
    steps, source = sum(restarts) + 11, SeededNoise("restarted")
    released, _ = run(steps, 5, source, tree)
    noise = {node.name: source.replayed().draw(node.name, 5, TREE.stddev)[0] for node in source.drawn}
    rows = [f"tree.{i}.{h}.{j}" for i, one in enumerate(tree.trees(steps)) for h, j in completed_nodes(one.steps)]
    expected = restarted_prefixes(tree.trees(steps)) @ np.array([noise[name] for name in rows])
    assert list(noise) == rows
    # Half a unit for each block of a prefix, and trees of 11 leaves or fewer have three at most.
    np.testing.assert_allclose(np.cumsum(released, axis=0), expected, rtol=0, atol=1.5 * (len(restarts) + 1))


def test_prefix_variances_follow_the_schedule(restarted: BinaryTree) -> None:
    for steps in range(sum(restarted.restarts) + 11):
        squares = restarted_prefixes(restarted.trees(steps)) ** 2 if steps else np.zeros((0, 1))
        np.testing.assert_allclose(restarted.prefix_variances(steps), squares.sum(axis=1), rtol=1e-12)


def test_only_the_tree_in_progress_is_not_completed() -> None:
    tree = BinaryTree(Grid(1.0), 1.0, (5, 3), completed=True)
    assert tree.trees(0) == (Tree(0),)
    assert tree.trees(5) == (Tree(5),)
    assert tree.trees(6) == (Tree(5, True), Tree(1))
    assert tree.trees(8) == (Tree(5, True), Tree(3))
    assert tree.trees(50) == (Tree(5, True), Tree(3, True), Tree(42))


def test_a_schedule_costs_what_its_trees_cost() -> None:
    limits = Participation(2, 5)
    assert BinaryTree(Grid(1.0), 1.0, (5,), completed=True).sensitivity(10, limits).squared == 7
    assert BinaryTree(Grid(1.0), 1.0, (5,), completed=True).sensitivity(5, limits).squared == 3
    assert BinaryTree(Grid(1.0), 1.0, (5,)).sensitivity(10, limits).squared == 6
    published = BinaryTree(Grid(1.0), 46.3, (2000,) * 4, completed=True)
    assert published.sensitivity(10_000, Participation(100, 100)) == Sensitivity(4129)
    assert published.cost(10_000, Participation.epochs(100, 100)) == pytest.approx(0.963059, abs=1e-6)


def test_each_tree_draws_its_own_nodes_and_completion_one_more(restarted: BinaryTree) -> None:
    source = SeededNoise("names")
    run(sum(restarted.restarts) + 11, 1, source, restarted)
    expected: list[str] = []
    for i, length in enumerate((*restarted.restarts, 11)):
        whole = i > 0 and restarted.restarts[i - 1].bit_count() == 1  # complete without virtual leaves
        expected += [f"tree.{i - 1}.completion"] * (restarted.completed and i > 0 and not whole)
        expected += [f"tree.{i}.{height}.{index}" for height, index in completed_nodes(length)]
    assert [node.name for node in source.drawn] == expected


def test_seeds_of_a_frozen_tree_are_not_kept(restarted: BinaryTree) -> None:
    """Of a tree that will be completed until the next step has done it; of another one not even until then."""
    _, states = run(sum(restarted.restarts) + 11, 1, SeededNoise("live"), restarted)
    for state in states[1:]:
        *before, current = restarted.trees(state.step)
        ended = len(before) < len(restarted.restarts) and current.steps == restarted.restarts[len(before)]
        nodes = completed_nodes(current.steps) if restarted.completed or not ended else []
        assert [node.name for node in state.live] == [f"tree.{len(before)}.{height}.{index}" for height, index in nodes]


def test_a_restored_state_of_any_step_continues_as_if_nothing_had_happened(restarted: BinaryTree) -> None:
    source = SeededNoise("restore")
    released, states = run(sum(restarted.restarts) + 5, 5, source, restarted)
    for step, before in enumerate(states):
        state = restarted.restore(5, step, ReplayedNoise(before.live))
        assert (state.step, state.live) == (step, before.live)
        for expected in released[step:]:
            noise, state = restarted.next_noise(state, source.replayed())
            assert noise.tobytes() == expected.tobytes()


@pytest.mark.parametrize("length", [0, -1, 1.5, True, "5", LONGEST_TREE + 1])
def test_a_length_that_is_no_number_of_steps_is_refused(length: object) -> None:
    with pytest.raises(ValueError, match=f"restarts must be whole numbers of steps from 1 to {LONGEST_TREE}, not {length!r}"):
        BinaryTree(Grid(1.0), 1.0, (5, length))  # type: ignore[arg-type]


def test_the_completion_of_the_longest_tree_with_the_largest_noise_does_not_wrap() -> None:
    """The most that completion can draw: 2**16 + 1 leaves, a block of 2**16 and one of 1, at 12 standard deviations."""
    grid = Grid(1.0, 16)
    tree = BinaryTree(grid, LARGEST_NODE_STDDEV / grid.radius, (2**16 + 1,), completed=True)
    sigma, large = int(LARGEST_NODE_STDDEV), 12

    class Largest:
        def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
            assert stddev <= LARGEST_STDDEV
            return np.full(size, large * int(stddev), dtype=np.int64), NoiseNode(name, b"", b"")

    scaled = [np.array([large * sigma * 2**16], dtype=np.int64), np.array([large * sigma], dtype=np.int64)]
    blocks = tuple(Block("", height, u, u) for height, u in zip((16, 0), scaled, strict=True))
    root, node = tree._complete(TreeState(2**16 + 1, 1, blocks), Largest(), 0, 17)
    assert node.name == "tree.0.completion"
    added = 2**17 * (2**18 - 1) - 2**16 * (2**17 - 1) - 1
    expected = sum(int(u[0]) for u in scaled) + large * int(LARGEST_NODE_STDDEV * math.sqrt(added))
    assert int(root[0]) == half_up(Fraction(expected, 2**18 - 1))
