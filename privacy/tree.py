"""DP-FTRL's binary tree: every completed node over the steps gets noise once, and prefix sums are estimated from the nodes.

For n steps keep the nodes whose whole subtree lies in the first n leaves (Kairouz et al. 2021, arXiv 2103.00039). Node noise
v ~ N(0, sigma**2). With Honaker's estimate "from below", which is the best linear one from all nodes completed so far,

    u_leaf = v        u_node = v + (u_left + u_right) / 2        noise of a block of height d: u / (2 - 2**-d)

the prefix sum at t has variance sigma**2 * sum over set bits d of t of 1 / (2 - 2**-d). Here everything is an integer:
U = 2**d * u obeys U_node = 2**d * v + U_left + U_right, the block's noise is U / (2**(d+1) - 1), rounded to the grid. The block's
data are integers too, so that rounding is post-processing of the noisy nodes: sum + round(x) = round(sum + x).

At a *restart* the noise of the prefix stays as it is for ever and an empty tree begins. Before that the old tree can be
*completed*: virtual zero leaves up to the next power of two make it one block of height h, whose noise has the lower variance
sigma**2 / (2 - 2**-h). Since U_root is the sum of the U of the blocks so far and of 2**d * v over all nodes that completion adds,
and nothing else is said of those nodes, they are drawn together: one Gaussian of variance
sigma**2 * (2**h * (2**(h+1) - 1) - sum over the blocks of 2**d * (2**(d+1) - 1)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.mechanism import Mechanism, Sensitivity, shown
from fedrho.privacy.noise import KeptVector, NoiseNode, NoiseSource, find_kept
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree_sensitivity import Tree, forest_sensitivity
from fedrho.privacy.vectors import IntVector

MOST_LEAVES = 2**18
"""Of any tree: what `LARGEST_NODE_STDDEV` has room for."""
LONGEST_TREE = 2**17
"""Leaves of a tree before a restart; so the noise of its completion stays below what `noise.expand` can hold."""


KEPT_HEIGHT = 6
"""Blocks of at least 2**6 leaves are kept as vectors: a restart replays fewer leaves than that, and O(log n) seeds are live."""


@dataclass(frozen=True, eq=False)
class Block:
    """A maximal completed subtree: its node, its height d, its scaled noise U = 2**d * u, and that of the prefix that it ends.

    Both int64, shape (size,), in grid units; `prefix` counts from the latest restart.
    """

    name: str
    height: int
    scaled: IntVector
    prefix: IntVector


def estimate(height: int, scaled: IntVector) -> IntVector:
    """Noise of a block's sum: U / (2**(d+1) - 1), rounded to nearest."""
    if height == 0:
        return scaled
    divisor = 2 ** (height + 1) - 1
    rounded: IntVector = 2 * scaled
    rounded += divisor
    rounded //= 2 * divisor
    return rounded


@dataclass(frozen=True, eq=False)
class TreeState:
    """Blocks of the current tree as a stack, largest first: O(log step) vectors; seeds of the nodes below the small ones."""

    step: int
    size: int
    blocks: tuple[Block, ...] = ()
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()

    @property
    def kept(self) -> tuple[KeptVector, ...]:
        """The scaled noise of large blocks."""
        return tuple(KeptVector(block.name, block.scaled) for block in self.blocks if block.height >= KEPT_HEIGHT)

    @property
    def prefix(self) -> IntVector:
        """Noise of the sum of all steps since the latest restart."""
        return self.blocks[-1].prefix if self.blocks else np.zeros(self.size, dtype=np.int64)


@dataclass(frozen=True)
class BinaryTree(Mechanism[TreeState]):
    """Tree aggregation with the variance-reduced prefix estimate, published as residuals.

    Step t publishes x_t + (N_t - N_{t-1}), where N_t is the noise of the prefix sum. Fed to heavy-ball SGD this is FTRL with
    momentum. `restarts` are the lengths, in steps, of the trees before the last one, which is open-ended; `completed` says that
    each of them is completed by the first step of the next. A restart is one of the noise alone: weights and momentum go on.

    The estimate of a block depends on all nodes below it. Those of large blocks are kept as one vector, those of small blocks as
    seeds. A frozen prefix is never published again, so an earlier tree is needed by nobody.
    """

    name = "binary-tree"
    words = "that is summed in a binary tree"
    restarts: tuple[int, ...] = ()
    completed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for length in self.restarts:
            if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= LONGEST_TREE:
                raise ValueError(f"restarts must be whole numbers of steps from 1 to {LONGEST_TREE}, not {length!r}")

    def details(self) -> Iterator[str]:
        if not self.restarts:
            yield "one tree without restarts"
            return
        yield f"restarted after trees of {shown(self.restarts)} steps"
        if self.completed:
            yield "each completed before the next begins"

    def init(self, size: int) -> TreeState:
        return TreeState(step=0, size=size)

    def next_noise(self, state: TreeState, source: NoiseSource) -> tuple[IntVector, TreeState]:
        tree, leaf = self._position(state.step)
        if leaf >= MOST_LEAVES:
            raise ValueError(f"the noise of a tree is proved to fit 64 bits up to {MOST_LEAVES} steps; add a restart")
        if leaf == 0 and state.blocks:
            return self._restart(state, source)
        after = self._grow(state, source, tree, leaf)
        noise: IntVector = after.prefix - state.prefix
        if not self.completed and self._position(after.step)[1] == 0:
            after = replace(after, blocks=(), live=())
        return noise, after

    def _restart(self, state: TreeState, source: NoiseSource) -> tuple[IntVector, TreeState]:
        """The first step after a completed tree, which changes the noise of its prefix from N to that of the root."""
        tree, _ = self._position(state.step)
        height = Tree(self.restarts[tree - 1], completed=True).height
        if state.blocks[0].height == height:  # complete without virtual leaves
            return self.next_noise(TreeState(state.step, state.size), source)
        root, node = self._complete(state, source, tree - 1, height)
        noise, after = self.next_noise(TreeState(state.step, state.size), source)
        noise += root
        noise -= state.prefix
        return noise, replace(after, drawn=(node, *after.drawn))

    def _complete(self, state: TreeState, source: NoiseSource, tree: int, height: int) -> tuple[IntVector, NoiseNode]:
        """Noise of the root of this height over the blocks of `state` and as many virtual leaves as it takes."""
        added = _squared_weights(height) - sum(_squared_weights(block.height) for block in state.blocks)
        root, node = source.draw(f"tree.{tree}.completion", state.size, self.stddev * math.sqrt(added))
        for block in state.blocks:
            root += block.scaled
        return estimate(height, root), node

    def _grow(self, state: TreeState, source: NoiseSource, tree: int, leaf: int) -> TreeState:
        """One more leaf, and every node that it is the last leaf of; drawn vectors become the blocks, nothing else is copied."""
        blocks, height = list(state.blocks), 0
        scaled, node = source.draw(_node_name(tree, height, leaf), state.size, self.stddev)
        drawn, right = [node], scaled
        while blocks and blocks[-1].height == height:
            height += 1
            scaled, node = source.draw(_node_name(tree, height, leaf), state.size, self.stddev)
            scaled <<= height
            scaled += blocks.pop().scaled
            scaled += right
            drawn.append(node)
            right = scaled
        live = () if height >= KEPT_HEIGHT else (*state.live, *drawn)
        return TreeState(state.step + 1, state.size, _stacked(blocks, node.name, height, scaled), tuple(drawn), live)

    def _position(self, step: int) -> tuple[int, int]:
        """Tree and leaf of the step after `step` steps, both from 0."""
        for tree, length in enumerate(self.restarts):
            if step < length:
                return tree, step
            step -= length
        return len(self.restarts), step

    def trees(self, steps: int) -> tuple[Tree, ...]:
        """The trees that `steps` steps fill; the one in progress is not completed."""
        before = []
        for length in self.restarts:
            if steps <= length:
                break
            before.append(Tree(length, self.completed))
            steps -= length
        return (*before, Tree(max(0, steps)))

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        return forest_sensitivity(self.trees(steps), participation)

    def prefix_variances(self, steps: int) -> NDArray[np.float64]:
        """What earlier trees froze, and the sum over the set bits d of t, counted from the restart, of 1 / (2 - 2**-d)."""
        parts, frozen = [], 0.0
        for tree in self.trees(steps):
            within = _block_variances(tree.steps)
            parts.append(frozen + within)
            frozen += 1 / (2 - 2.0**-tree.height) if tree.completed else within[-1:].sum()
        return np.concatenate(parts)

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> TreeState:
        tree, leaf = self._position(step)
        if leaf == 0 and tree > 0 and self.completed:
            tree, leaf = tree - 1, self.restarts[tree - 1]
        since = leaf % 2**KEPT_HEIGHT
        state = TreeState(step - since, size, _restacked(tree, leaf - since, size, kept))
        for _ in range(since):
            _, state = self.next_noise(state, replayed)
        return state


def _node_name(tree: int, height: int, leaf: int) -> str:
    """Of the node of this height above `leaf`."""
    return f"tree.{tree}.{height}.{leaf >> height}"


def _stacked(blocks: Sequence[Block], name: str, height: int, scaled: IntVector) -> tuple[Block, ...]:
    """One more block on the stack."""
    prefix = estimate(height, scaled)
    if blocks:
        prefix = prefix + blocks[-1].prefix
    return (*blocks, Block(name, height, scaled, prefix))


def _restacked(tree: int, leaves: int, size: int, kept: Sequence[KeptVector]) -> tuple[Block, ...]:
    """The stack over the first `leaves` leaves of a tree, a multiple of 2**KEPT_HEIGHT; raises NoiseMismatch."""
    blocks: tuple[Block, ...] = ()
    start = 0
    for height in reversed(range(leaves.bit_length())):
        if leaves >> height & 1:
            (found,) = find_kept(kept, [_node_name(tree, height, start)], size, "i")
            blocks = _stacked(blocks, found.name, height, found.vector)
            start += 2**height
    return blocks


def _squared_weights(height: int) -> int:
    """The sum of (2**d)**2 over the nodes, of heights d, of a complete block."""
    return (1 << height) * ((2 << height) - 1)


def _block_variances(steps: int) -> NDArray[np.float64]:
    """Of the prefixes of one tree, shape (steps,)."""
    t, heights = np.arange(1, steps + 1)[:, None], np.arange(steps.bit_length())
    variances: NDArray[np.float64] = ((t >> heights & 1) / (2 - 2.0**-heights)).sum(axis=1)
    return variances
