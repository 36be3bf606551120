"""Heavy-ball SGD on the tree's releases is FTRL with momentum on its noisy prefix sums."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Released
from fedrho.server.optimizers import ServerSgd
from tests.privacy.dense import SeededNoise

GRID = Grid(1.0, 2)


def weights_after_each(optimizer: ServerSgd, released: list[IntVector], goal: int) -> NDArray[np.float32]:
    size = released[0].size
    weights, velocity, seen = np.zeros(size, np.float32), optimizer.init(size), []
    for vector in released:
        weights, velocity = optimizer.apply(Released(vector, GRID), goal, weights, velocity)
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
