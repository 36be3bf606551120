"""Heavy-ball SGD on the tree's releases is FTRL with momentum on its noisy prefix sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.privacy.noise import NoiseNode, ReplayedNoise
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Released
from fedrho.server.optimizers import ServerSgd
from tests.privacy.dense import SeededNoise, completed_nodes, honaker_prefixes

GRID = Grid(1.0, 2)


def weights_after_each(optimizer: ServerSgd, released: list[IntVector], goal: int, grid: Grid = GRID) -> NDArray[np.float32]:
    size = released[0].size
    weights, velocity, seen = np.zeros(size, np.float32), optimizer.init(size), []
    for vector in released:
        weights, velocity = optimizer.apply(Released(vector, grid), goal, weights, velocity)
        seen.append(weights)
    return np.array(seen)


def test_momentum_on_known_gradients_gives_the_published_weights() -> None:
    """Gradients 1, -.5, 2, .25 are descended, so the updates are their negatives; 4 grid units are 1."""
    updates = [np.array([round(-4 * gradient)], dtype=np.int64) for gradient in (1, -0.5, 2, 0.25)]
    weights = weights_after_each(ServerSgd(0.1, 0.9), updates, goal=1)
    assert weights.ravel() == pytest.approx([-0.1, -0.14, -0.376, -0.6134], abs=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_on_residuals_equals_ftrl_on_noisy_prefix_sums(momentum: float) -> None:
    """FTRL: v <- momentum * v + prefix mean, weights = start + rate * v, from the noisy prefix sums alone."""
    steps, size, goal, rate = 30, 4, 5, 0.3
    tree, source = BinaryTree(GRID, 2.0), SeededNoise("ftrl")
    state, released = tree.init(size), []
    for total in np.random.Generator(np.random.PCG64(10)).integers(-20, 20, (steps, size)):
        out, state = tree.release(ClippedSum(total.copy(), GRID), state, source)
        released.append(out.vector)
    expected, velocity = [], np.zeros(size)
    for prefix in np.cumsum(released, axis=0):
        velocity = momentum * velocity + prefix * GRID.unit / goal
        expected.append(rate * velocity)
    # Weights are float32, rounded at each of the steps.
    np.testing.assert_allclose(weights_after_each(ServerSgd(rate, momentum), released, goal), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_restart_freezes_the_noise_and_keeps_the_momentum(momentum: float, completed: bool) -> None:
    """FTRL with momentum on prefix sums that keep growing: data before and after a restart, frozen noise, and the new tree's.

    The prefix sums are made here from the node noise by the dense table, not from what was released.
    """
    steps, size, goal, rate = 30, 4, 5, 0.3
    grid = Grid(1.0, 16)
    tree, source = BinaryTree(grid, 2.0, (5, 8), completed), SeededNoise("ftrl restarts")
    totals = np.random.Generator(np.random.PCG64(10)).integers(-(2**17), 2**17, (steps, size))
    state, released = tree.init(size), []
    for total in totals:
        out, state = tree.release(ClippedSum(total.copy(), grid), state, source)
        released.append(out.vector)
    expected, velocity = [], np.zeros(size)
    for prefix in (np.cumsum(totals, axis=0) + prefix_noise(tree, steps, source, size)) * grid.unit / goal:
        velocity = momentum * velocity + prefix
        expected.append(rate * velocity)
    # A prefix is off by half a grid unit for each of its blocks, at most ten here; momentum adds up ten times as much at most.
    found = weights_after_each(ServerSgd(rate, momentum), released, goal, grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 + rate * 10 * 5 * grid.unit / goal)


def prefix_noise(tree: BinaryTree, steps: int, source: SeededNoise, size: int) -> NDArray[np.float64]:
    """N_t of every step, in grid units: of completed trees what all added nodes sum up to is taken as one column."""
    noise = {node.name: node for node in source.drawn}
    rows, frozen = [], np.zeros(size)
    for i, one in enumerate(tree.trees(steps)):
        nodes = [f"tree.{i}.{height}.{index}" for height, index in completed_nodes(one.steps)]
        drawn = np.array([replay(noise[name], size, tree.stddev) for name in nodes])
        prefixes = honaker_prefixes(one.steps) @ drawn
        rows.append(frozen + prefixes)
        if one.completed:
            weights = [2.0 ** int(name.split(".")[2]) for name in nodes]
            leaves = 1 << one.height
            added = leaves * (2 * leaves - 1) - sum(weight**2 for weight in weights)
            root = np.array(weights) @ drawn
            if added:
                root = root + replay(noise[f"tree.{i}.completion"], size, tree.stddev * math.sqrt(added))
            frozen = frozen + root / (2 * leaves - 1)
        else:
            frozen = frozen + prefixes[-1]
    return np.vstack(rows)


def replay(node: NoiseNode, size: int, stddev: float) -> NDArray[np.int64]:
    return ReplayedNoise([node]).draw(node.name, size, stddev)[0]
