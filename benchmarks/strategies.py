"""What finding a strategy of correlated noise takes, what it loses, and what a step of noise costs. Prints; asserts nothing.

A step's noise is measured beside one plain numpy draw of as many normals, in passes that take turns, so that a busy neighbour
slows both. CPU is of the whole process, so a step on two threads costs what both of them do; the wall clock is shown next to it.
A tree's cost varies from step to step: it draws one node for every trailing one of the step's number. A pass takes its first 64
steps, 127 draws, just as 2,048 steps take 4,095. All other mechanisms cost the same at every step, once their buffers are full.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedrho.privacy.banded import BandedState, BandedToeplitz, optimal_bands
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.blt_optimal import optimal_buffers
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.loss import lower_bound, max_loss, rmse_loss
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import KeptVector, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid

SIZE = 1_300_000
PASSES = 7
TREE_STEPS = 64
GRID = Grid(1.0)
NOISE_MULTIPLIER = 7.0
RUNS = (2052, Participation(6, 342)), (10_000, Participation(6, 1666))
AnyMechanism = Mechanism[Any]


@dataclass
class Row:
    """One measurement: milliseconds of CPU and of wall clock, of every pass."""

    name: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], object], times: int = 1) -> None:
        """The mean of `times` calls."""
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(times):
            work()
        self.cpu.append(1000 * (time.process_time() - cpu) / times)
        self.wall.append(1000 * (time.perf_counter() - wall) / times)

    def show(self, limit: Row) -> None:
        cpu, wall = min(self.cpu) / min(limit.cpu), min(self.wall) / min(limit.wall)
        median = statistics.median(self.cpu) / statistics.median(limit.cpu)
        print(f"   {self.name:<38} {min(self.cpu):>9.1f} {min(self.wall):>9.1f}   {cpu:>5.1f} ({median:.1f}) {wall:>8.1f}")


# -- finding strategies -----------------------------------------------------------------------------------------------------


def measure_strategies() -> None:
    for steps, participation in RUNS:
        bound, b = lower_bound(steps, participation), participation.min_separation
        print(f"== {steps:,} steps, at most {participation.max_times} times, {b} apart; no RMSE loss is below {bound:.4f}")
        print(f"   {'':<38} {'seconds':>9} {'RMSE loss':>9}   x bound {'max loss':>8}")
        for name, find in _searches(steps, participation):
            began = time.perf_counter()
            mechanism = find()
            seconds = time.perf_counter() - began
            rmse, largest = (loss(mechanism, steps, participation) for loss in (rmse_loss, max_loss))
            print(f"   {name:<38} {seconds:>9.2f} {rmse:>9.4f} {rmse / bound:>9.3f} {largest:>8.3f}")
        print()


def _searches(steps: int, participation: Participation) -> list[tuple[str, Callable[[], AnyMechanism]]]:
    def blt(buffers: int | None = None) -> BufferedToeplitz:
        return BufferedToeplitz(GRID, NOISE_MULTIPLIER, *optimal_buffers(steps, participation, buffers))

    def banded(bands: int | None = None) -> BandedToeplitz:
        return BandedToeplitz(GRID, NOISE_MULTIPLIER, optimal_bands(steps, participation, bands))

    return [
        ("independent", lambda: IndependentGaussian(GRID, NOISE_MULTIPLIER)),
        ("BLT, 2 buffers", lambda: blt(2)),
        ("BLT, best of up to 4 buffers", blt),
        ("banded, 8 bands", lambda: banded(8)),
        ("banded, 32 bands", lambda: banded(32)),
        (f"banded, {participation.min_separation} bands", banded),
    ]


# -- a step of noise --------------------------------------------------------------------------------------------------------


class Steps:
    """A mechanism on its way: each call takes the next step."""

    def __init__(self, mechanism: AnyMechanism, state: Any = None) -> None:
        self._mechanism, self._source = mechanism, SystemNoise()
        self._state = mechanism.init(SIZE) if state is None else state

    def __call__(self) -> None:
        _, self._state = self._mechanism.next_noise(self._state, self._source)


def measure_noise() -> None:
    generator, source = np.random.default_rng(), SystemNoise()
    bare, node = Row("numpy: standard_normal, PCG64"), Row("one node: AES-128, integers, SHA-256")
    kept: list[tuple[Row, Steps]] = [(Row(name), Steps(mechanism, state)) for name, mechanism, state in _in_full_swing()]
    tree = Row(f"tree (mean of {TREE_STEPS} steps)")
    for _ in range(PASSES):
        bare.measure(lambda: generator.standard_normal(SIZE), 4)
        node.measure(lambda: source.draw("node", SIZE, 1e6), 2)
        for row, step in kept:
            row.measure(step, 2)
    for _ in range(2):
        bare.measure(lambda: generator.standard_normal(SIZE), 4)
        tree.measure(Steps(BinaryTree(GRID, NOISE_MULTIPLIER)), TREE_STEPS)
    print(f"== noise of a step, {SIZE:,} coordinates")
    print(f"   {'':<38} {'CPU ms':>9} {'wall ms':>9}   x numpy, CPU   wall")
    for row in (bare, node, kept[0][0], tree, *(row for row, _ in kept[1:])):
        row.show(bare)
    print("   limit: the Gaussian draw, and memory bandwidth for many bands: each is one vector read a step.\n")


def _in_full_swing() -> list[tuple[str, AnyMechanism, Any]]:
    """Name, mechanism and a state that has all its buffers; the steps after it cost the same for ever."""
    steps, participation = RUNS[0]
    cases: list[tuple[str, AnyMechanism, Any]] = [("independent", IndependentGaussian(GRID, NOISE_MULTIPLIER), None)]
    for buffers in (2, 4):
        blt = BufferedToeplitz(GRID, NOISE_MULTIPLIER, *optimal_buffers(steps, participation, buffers))
        cases.append((f"BLT, {buffers} buffers", blt, None))
    for bands in (8, 32, 342):
        banded = BandedToeplitz(GRID, NOISE_MULTIPLIER, optimal_bands(steps, participation, bands))
        cases.append((f"banded, {bands} bands ({4 * SIZE * (bands - 1) / 1e9:.2f} GB)", banded, _full(bands)))
    return cases


def _full(bands: int) -> BandedState:
    """Earlier noise of the right size, a vector of its own for each band; its values do not matter to the clock."""
    earlier = np.random.default_rng().integers(-(2**24), 2**24, SIZE, dtype=np.int32)
    return BandedState(bands, SIZE, tuple(KeptVector("", earlier.copy()) for _ in range(bands - 1)))


def main() -> None:
    began = time.monotonic()
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, numpy {np.__version__}")
    print("ratios: of the best passes (of the medians)\n")
    for measure in (measure_strategies, measure_noise):
        measure()
        sys.stdout.flush()
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
