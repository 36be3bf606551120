"""Independent Gaussian noise (DP-FedAvg): fresh at every step, C is the identity, no amplification claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.mechanism import Mechanism, Sensitivity
from fedrho.privacy.noise import KeptVector, NoiseNode, NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import IntVector


@dataclass(frozen=True)
class GaussianState:
    step: int
    size: int
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()
    kept: tuple[KeptVector, ...] = ()


@dataclass(frozen=True)
class IndependentGaussian(Mechanism[GaussianState]):
    """N(0, (noise_multiplier * clip_norm)**2) on the sum of every step.

    k participations cost k / (2 z**2) (McMahan et al. 2018, arXiv 1710.06963, composed in zCDP).
    """

    name = "independent-gaussian"
    words = "that is drawn anew for each step"

    def init(self, size: int) -> GaussianState:
        return GaussianState(step=0, size=size)

    def next_noise(self, state: GaussianState, source: NoiseSource) -> tuple[IntVector, GaussianState]:
        noise, node = source.draw(f"row.{state.step + 1}", state.size, self.stddev)
        return noise, GaussianState(state.step + 1, state.size, drawn=(node,))

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        return Sensitivity(participation.most_times(steps))

    def prefix_variances(self, steps: int) -> NDArray[np.float64]:
        return np.arange(1.0, steps + 1.0)

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> GaussianState:
        return GaussianState(step=step, size=size)
