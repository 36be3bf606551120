"""What a node of noise, a restart and a price cost, beside the least that the same work could cost. Prints; asserts nothing.

Every figure is taken in one run on one machine, in passes that take turns, so that a busy neighbour slows both sides of a ratio.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from _figures import Row, cpu_of, show

from fedrho.privacy import tree_sensitivity
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.noise import ReplayedNoise, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import ClippedSum, Grid

SIZE = 1_300_000
SMALL = 10_000
PASSES = 7
GRID = Grid(1.0)


def measure_noise() -> None:
    generator, source = np.random.default_rng(), SystemNoise()
    bare, node = Row("numpy: standard_normal, PCG64"), Row("one node: AES-128, integers, SHA-256")
    independent, tree = Row("a step of independent noise"), Row("a step of the tree (mean of 16)")
    for turn in range(4):
        figures = (
            cpu_of(lambda: generator.standard_normal(SIZE), 4),
            cpu_of(lambda: source.draw("node", SIZE, 1e6), 4),
            _step_cost(IndependentGaussian(GRID, 1.0), 4),
            _step_cost(BinaryTree(GRID, 1.0), 16),
        )
        for row, figure in zip((bare, node, independent, tree), figures, strict=True):
            if turn:
                row.add(figure)
    show(f"noise for {SIZE:,} coordinates, CPU", [bare, node, independent, tree], "x numpy", bare)
    print("   limit: the Gaussian draw itself. A tree step draws two nodes on average.\n")


def _step_cost(mechanism: IndependentGaussian | BinaryTree, steps: int) -> float:
    state: Any = mechanism.init(SIZE)
    source = SystemNoise()
    sums = iter([ClippedSum(np.zeros(SIZE, dtype=np.int64), GRID) for _ in range(steps)])

    def one() -> None:
        nonlocal state
        _, state = mechanism.release(next(sums), state, source)

    return cpu_of(one, steps)


def measure_restore() -> None:
    steps, mechanism = 2047, BinaryTree(GRID, 1.0)
    state = mechanism.init(SMALL)
    for _ in range(steps):
        _, state = mechanism.next_noise(state, SystemNoise())
    replayed, nodes = ReplayedNoise(state.live), len(state.live)
    generator = np.random.default_rng()
    bare, restore = Row(f"numpy: standard_normal, {nodes} nodes"), Row(f"restore after {steps} steps")
    for _ in range(PASSES):
        bare.add(cpu_of(lambda: [generator.standard_normal(SMALL) for _ in range(nodes)]))
        restore.add(cpu_of(lambda: mechanism.restore(SMALL, steps, replayed, state.kept)))
    title = f"restart: the tree's noise from {nodes} stored seeds and {len(state.kept)} vectors, {SMALL:,} coordinates, CPU"
    show(title, [bare, restore], "x numpy", bare)
    print("   limit: the Gaussian draws of the 63 leaves, at most, since the latest kept vector.\n")


def measure_price() -> None:
    mechanism, limits = BinaryTree(GRID, 7.0), Participation(6, 314)
    cold, warm = Row("first time"), Row("again, from the cache")
    for _ in range(3):
        for cached in (tree_sensitivity._cached_table, tree_sensitivity._after, tree_sensitivity._separated):
            cached.cache_clear()
        cold.add(cpu_of(lambda: mechanism.cost(2000, limits)))
        warm.add(cpu_of(lambda: mechanism.cost(2000, limits)))
    show("exact price of a tree: 2,000 steps, at most 6 times, 314 apart, CPU", [cold, warm])
    print(f"   rho = {mechanism.cost(2000, limits):.6f} at noise multiplier 7, neighbours zero-out.\n")


def main() -> None:
    began = time.monotonic()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "randomgen"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}")
    print("ratios: of the best passes (of the medians)\n")
    for measure in (measure_noise, measure_restore, measure_price):
        measure()
        sys.stdout.flush()
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
