"""The slow and plain counterparts: the tree as dense matrices, admissible sets by enumeration, noise that tests can predict."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import NoiseNode, ReplayedNoise, expand
from fedrho.privacy.tree_sensitivity import Tree
from fedrho.privacy.vectors import IntVector

Matrix = NDArray[np.float64]


def completed_nodes(steps: int) -> list[tuple[int, int]]:
    """(height, index) of every node whose subtree lies in the first `steps` leaves, by completion time, then from below."""
    return [
        (height, leaf >> height)
        for leaf in range(steps)
        for height in range(steps.bit_length())
        if (leaf + 1) % 2**height == 0  # `leaf` is the last leaf below that node
    ]


def node_by_leaf(steps: int) -> Matrix:
    """1 where the node is above the leaf, 0 elsewhere; rows as in `completed_nodes`."""
    return np.array([[float(leaf >> height == index) for leaf in range(steps)] for height, index in completed_nodes(steps)])


def honaker_prefixes(steps: int) -> Matrix:
    """Row t - 1: what each node's noise contributes to the estimate of the prefix sum at t, by Honaker's recursion in floats."""
    column = {node: j for j, node in enumerate(completed_nodes(steps))}

    def from_below(height: int, index: int) -> Matrix:
        own: Matrix = np.eye(len(column))[column[height, index]]
        if height == 0:
            return own
        halves: Matrix = (from_below(height - 1, 2 * index) + from_below(height - 1, 2 * index + 1)) / 2
        return own + halves

    rows = np.zeros((steps, len(column)))
    for t in range(1, steps + 1):
        start = 0
        for height in reversed(range(t.bit_length())):
            if t >> height & 1:
                rows[t - 1] += from_below(height, start >> height) / (2 - 2.0**-height)
                start += 2**height
    return rows


def best_linear_prefixes(steps: int) -> Matrix:
    """The same table from generalised least squares over all nodes completed by t: coefficients H (H'H)^-1 1."""
    rows = np.zeros((steps, len(completed_nodes(steps))))
    for t in range(1, steps + 1):
        nodes = node_by_leaf(t)
        rows[t - 1, : len(nodes)] = nodes @ np.linalg.solve(nodes.T @ nodes, np.ones(t))
    return rows


def residuals(prefixes: Matrix) -> Matrix:
    return np.diff(prefixes, axis=0, prepend=0.0)


def admissible_sets(steps: int, max_times: int, min_separation: int) -> Iterator[tuple[int, ...]]:
    """Every set of steps (from 0) with at most `max_times` members at differences of at least `min_separation`."""

    def grow(chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        yield chosen
        if len(chosen) < max_times:
            for step in range(chosen[-1] + min_separation if chosen else 0, steps):
                yield from grow((*chosen, step))

    return grow(())


def nodes_of_trees(trees: Sequence[Tree]) -> Matrix:
    """`node_by_leaf` of several trees after each other: a completed one has the nodes of its next power of two."""
    columns = sum(tree.steps for tree in trees)
    rows, start = [], 0
    for tree in trees:
        leaves = 1 << (tree.steps - 1).bit_length() if tree.completed else tree.steps
        block = np.zeros((len(completed_nodes(leaves)), columns))
        block[:, start : start + tree.steps] = node_by_leaf(leaves)[:, : tree.steps]
        rows.append(block)
        start += tree.steps
    return np.vstack(rows)


def restarted_prefixes(trees: Sequence[Tree]) -> Matrix:
    """The table of prefix estimates over several trees: the last one of a tree, or that of its root, stays in all that follow.

    Columns are the nodes of all trees, the virtual ones of completed trees too.
    """
    tables = []
    for tree in trees:
        table = honaker_prefixes(1 << (tree.steps - 1).bit_length() if tree.completed else tree.steps)
        tables.append((table[: tree.steps], table[-1]))
    rows = []
    for i, (within, _) in enumerate(tables):
        frozen = [np.tile(last, (len(within), 1)) for _, last in tables[:i]]
        later = [np.zeros((len(within), last.size)) for _, last in tables[i + 1 :]]
        rows.append(np.hstack([*frozen, within, *later]))
    return np.vstack(rows)


def names(steps: int) -> list[str]:
    """The nodes' names in the product, rows of `node_by_leaf`, of the first tree."""
    return [f"tree.0.{height}.{index}" for height, index in completed_nodes(steps)]


def exact_scale(steps: int) -> int:
    """Noise that is a multiple of this is divided by every block's weight without rounding."""
    return math.lcm(*(2 ** (height + 1) - 1 for height in range(steps.bit_length())))


class BasisNoise:
    """The j-th node gets `scale` times the j-th unit vector, so that what comes out shows the coefficients."""

    def __init__(self, steps: int) -> None:
        self.scale = exact_scale(steps)
        self._row = {name: j for j, name in enumerate(names(steps))}

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        vector = np.zeros(size, dtype=np.int64)
        vector[self._row[name]] = self.scale
        return vector, NoiseNode(name, b"", b"")


class ConstantNoise:
    """Every node gets the same number."""

    def __init__(self, value: int) -> None:
        self._value = value

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return np.full(size, self._value, dtype=np.int64), NoiseNode(name, b"", b"")


class SeededNoise:
    """Gaussian noise that is the same in every run of the test; remembers what was drawn."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self.drawn: list[NoiseNode] = []

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        vector, node = expand(name, hashlib.sha256(f"{self._seed} {name}".encode()).digest(), size, stddev)
        self.drawn.append(node)
        return vector, node

    def replayed(self) -> ReplayedNoise:
        return ReplayedNoise(self.drawn)
