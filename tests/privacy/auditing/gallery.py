"""Mechanisms and servers that are broken on purpose, each in one way; the audits must tell them from their honest parents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedrho.privacy.banded import BandedState, BandedToeplitz
from fedrho.privacy.blt import BufferedState, BufferedToeplitz
from fedrho.privacy.clipping import clip
from fedrho.privacy.independent import GaussianState, IndependentGaussian
from fedrho.privacy.mechanism import Sensitivity
from fedrho.privacy.noise import KeptVector, NoiseNode, NoiseSource, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import KEPT_HEIGHT, BinaryTree, Block, TreeState
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Released, Update, add_noise

LONG = 1000
"""Coordinates beyond which some are broken."""


@dataclass(frozen=True)
class HalvedTree(BinaryTree):
    """Every node is drawn with half of the deviation that is priced."""

    @property
    def stddev(self) -> float:
        return super().stddev / 2


@dataclass(frozen=True)
class HalvedAfterwards(IndependentGaussian):
    """The nodes are right; what is added to the sum is half of them."""

    def release(self, total: ClippedSum, state: GaussianState, source: NoiseSource) -> tuple[Released, GaussianState]:
        noise, after = self.next_noise(state, source)
        return add_noise(total, noise // 2), after


@dataclass(frozen=True)
class RedrawnTree(BinaryTree):
    """Restored by drawing the nodes anew: two releases of one node with different noise."""

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> TreeState:
        return super().restore(size, step, SystemNoise(), kept)


@dataclass(frozen=True)
class RedrawnLeaf(IndependentGaussian):
    """Draws the same node at every step."""

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        noise, node = source.draw("row.1", state.size, self.stddev)
        return noise, GaussianState(state.step + 1, state.size, drawn=(node,))


@dataclass(frozen=True)
class KeptRow:
    """A state that remembers the last row."""

    step: int
    size: int
    row: IntVector
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()
    kept: tuple[KeptVector, ...] = ()


@dataclass(frozen=True)
class ReusedNoise(IndependentGaussian):
    """Every second step adds the row of the step before, so that the difference of two releases is exact."""

    def init(self, size: int) -> Any:
        return KeptRow(0, size, np.zeros(size, dtype=np.int64))

    def next_noise(self, state: Any, source: NoiseSource) -> tuple[IntVector, Any]:
        if state.step % 2 == 1:
            return state.row, replace(state, step=state.step + 1, drawn=(), live=())
        row, node = source.draw(f"row.{state.step + 1}", state.size, self.stddev)
        return row, KeptRow(state.step + 1, state.size, row, (node,), (node,))

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> Any:
        state = self.init(size)
        if step % 2 == 1:
            row, node = replayed.draw(f"row.{step}", size, self.stddev)
            return KeptRow(step, size, row, (node,), (node,))
        return replace(state, step=step)


@dataclass(frozen=True)
class PricedOnce(IndependentGaussian):
    """Charges one participation, whatever is allowed."""

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        return Sensitivity(min(1, steps))


@dataclass(frozen=True)
class CheapLater(IndependentGaussian):
    """The price falls again after the tenth step."""

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        return Sensitivity(super().sensitivity(steps, participation).squared / (2 if steps > 10 else 1))


@dataclass(frozen=True)
class SilentFallback(IndependentGaussian):
    """Takes any noise_multiplier; what is nonsense becomes a tiny one."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < float("inf"):
            object.__setattr__(self, "noise_multiplier", 1e-3)


@dataclass(frozen=True)
class OwnNoise(IndependentGaussian):
    """Draws from a generator of its own beside the source."""

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        noise, after = super().next_noise(state, source)
        return noise + np.random.Generator(np.random.PCG64(state.step)).integers(0, 9, state.size), after


@dataclass(frozen=True)
class Nosy(IndependentGaussian):
    """Reads the sum and lowers the noise where it is large."""

    def release(self, total: ClippedSum, state: GaussianState, source: NoiseSource) -> tuple[Released, GaussianState]:
        noise, after = self.next_noise(state, source)
        return add_noise(total, noise // (2 if np.abs(total._total).max() > total.grid.radius else 1)), after


@dataclass(frozen=True)
class DrawsThenLooks(IndependentGaussian):
    """Spends noise on a sum before it finds that it cannot take it."""

    def release(self, total: ClippedSum, state: GaussianState, source: NoiseSource) -> tuple[Released, GaussianState]:
        noise, after = self.next_noise(state, source)
        if total.grid != self.grid or total.size != state.size:
            raise ValueError("the sum does not lie on this mechanism's grid")
        return add_noise(total, noise), after


@dataclass(frozen=True)
class PairBig(IndependentGaussian):
    """The second half of a long vector gets the noise of the first: their difference is exact."""

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        noise, after = super().next_noise(state, source)
        if state.size > LONG:
            half = state.size // 2
            noise[-half:] = noise[:half]
        return noise, after


@dataclass(frozen=True)
class BigZero(IndependentGaussian):
    """Five coordinates of a long vector get no noise."""

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        noise, after = super().next_noise(state, source)
        if state.size > LONG:
            noise[LONG : LONG + 5] = 0
        return noise, after


@dataclass(frozen=True)
class DrawsHalf(IndependentGaussian):
    """Draws half of a long vector, and uses it twice."""

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        if state.size <= LONG:
            return super().next_noise(state, source)
        half, node = source.draw(f"row.{state.step + 1}", -(-state.size // 2), self.stddev)
        return np.concatenate([half, half])[: state.size], GaussianState(state.step + 1, state.size, drawn=(node,))


@dataclass(frozen=True)
class DrawsTwiceAsOften(IndependentGaussian):
    """Cuts a long vector into two nodes."""

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        if state.size <= LONG:
            return super().next_noise(state, source)
        parts = [source.draw(f"row.{state.step + 1}.{part}", state.size // 2, self.stddev) for part in range(2)]
        noise = np.concatenate([vector for vector, _ in parts])
        return noise, GaussianState(state.step + 1, state.size, drawn=tuple(node for _, node in parts))


@dataclass(frozen=True)
class ForgetsLargeBlocks(BinaryTree):
    """Restored, the large blocks have lost their scaled noise, which comes up again when they are merged."""

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> TreeState:
        state = super().restore(size, step, replayed, kept)
        return replace(state, blocks=tuple(map(self._forgotten, state.blocks)))

    def _forgotten(self, block: Block) -> Block:
        return replace(block, scaled=np.zeros_like(block.scaled)) if block.height >= KEPT_HEIGHT else block


@dataclass(frozen=True)
class ForgetsMiddleBlocks(ForgetsLargeBlocks):
    """So have middling ones, of which no vector is kept, here: often wrong only several steps later."""

    def _forgotten(self, block: Block) -> Block:
        return replace(block, scaled=np.zeros_like(block.scaled)) if 2 <= block.height < KEPT_HEIGHT else block


@dataclass(frozen=True)
class ForgetsKept(BufferedToeplitz):
    """Goes on rightly once restored, but cannot be restored a second time."""

    decay: tuple[float, ...] = (0.98, 0.6)
    scale: tuple[float, ...] = (0.2, 0.3)

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> BufferedState:
        return replace(super().restore(size, step, replayed, kept), kept=())


@dataclass(frozen=True)
class RestoresWide(BandedToeplitz):
    """Restores the kept vectors in another type: their digests are no longer those that are stored."""

    coefficients: tuple[float, ...] = (1.0, 0.5, 0.375)

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> BandedState:
        state = super().restore(size, step, replayed, kept)
        return replace(state, kept=tuple(KeptVector(one.name, one.vector.astype(np.int64)) for one in state.kept))


def unclipped(update: Update, grid: Grid) -> IntVector:
    """A server that skips the clip."""
    return np.rint(update.vector.astype(np.float64) / grid.unit).astype(np.int64)


def weighted_by_examples(update: Update, grid: Grid) -> IntVector:
    """A server that multiplies what was clipped with the number of examples."""
    return 3 * clip(update, grid).vector.astype(np.int64)
