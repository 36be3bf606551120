"""DP-FTRL's binary tree: every completed node over the steps gets noise once, and prefix sums are estimated from the nodes.

For n steps keep the nodes whose whole subtree lies in the first n leaves (Kairouz et al. 2021, arXiv 2103.00039). Node noise
v ~ N(0, sigma**2). With Honaker's estimate "from below", which is the best linear one from all nodes completed so far,

    u_leaf = v        u_node = v + (u_left + u_right) / 2        noise of a block of height d: u / (2 - 2**-d)

the prefix sum at t has variance sigma**2 * sum over set bits d of t of 1 / (2 - 2**-d). Here everything is an integer:
U = 2**d * u obeys U_node = 2**d * v + U_left + U_right, the block's noise is U / (2**(d+1) - 1), rounded to the grid. The block's
data are integers too, so that rounding is post-processing of the noisy nodes: sum + round(x) = round(sum + x).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import NoiseNode, NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree_sensitivity import tree_sensitivity_squared
from fedrho.privacy.vectors import IntVector


@dataclass(frozen=True, eq=False)
class Block:
    """A maximal completed subtree: its height d and its scaled noise U = 2**d * u, int64, shape (size,)."""

    height: int
    scaled: IntVector

    def estimate(self) -> IntVector:
        """Noise of this block's sum: U / (2**(d+1) - 1), rounded to nearest."""
        divisor = 2 ** (self.height + 1) - 1
        rounded: IntVector = np.floor_divide(2 * self.scaled + divisor, 2 * divisor, dtype=np.int64)
        return rounded


@dataclass(frozen=True, eq=False)
class TreeState:
    """Blocks as a stack, largest first: O(log step) vectors; seeds of the nodes below them, for replay."""

    step: int
    size: int
    blocks: tuple[Block, ...]
    prefix: IntVector
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()


@dataclass(frozen=True)
class BinaryTree(Mechanism[TreeState]):
    """Tree aggregation with the variance-reduced prefix estimate, published as residuals.

    Step t publishes x_t + (N_t - N_{t-1}), where N_t is the noise of the prefix sum. Fed to heavy-ball SGD this is FTRL with
    momentum. Every node below a live block is kept as a seed: the estimate of a
    block depends on all of them.
    """

    name = "binary-tree"

    def init(self, size: int) -> TreeState:
        return TreeState(step=0, size=size, blocks=(), prefix=np.zeros(size, dtype=np.int64))

    def next_noise(self, state: TreeState, source: NoiseSource) -> tuple[IntVector, TreeState]:
        leaf, node = source.draw(f"tree.0.{state.step}", state.size, self.stddev)
        blocks, drawn = [*state.blocks, Block(0, leaf)], [node]
        while len(blocks) > 1 and blocks[-2].height == blocks[-1].height:
            right, left = blocks.pop(), blocks.pop()
            height = left.height + 1
            noise, node = source.draw(f"tree.{height}.{state.step >> height}", state.size, self.stddev)
            blocks.append(Block(height, 2**height * noise + left.scaled + right.scaled))
            drawn.append(node)
        prefix: IntVector = np.sum([block.estimate() for block in blocks], axis=0, dtype=np.int64)
        after = TreeState(state.step + 1, state.size, tuple(blocks), prefix, tuple(drawn), (*state.live, *drawn))
        return prefix - state.prefix, after

    def sensitivity_squared(self, steps: int, participation: Participation) -> int:
        return tree_sensitivity_squared(steps, participation)

    def restore(self, size: int, step: int, replayed: NoiseSource) -> TreeState:
        state = self.init(size)
        for _ in range(step):
            _, state = self.next_noise(state, replayed)
        return state
