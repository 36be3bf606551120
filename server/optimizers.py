"""What a release does to the weights; a pure function of what was released, never of anything un-noised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import FloatVector, Released

Velocity = NDArray[np.float64]


@dataclass(frozen=True)
class ServerSgd:
    """Heavy-ball SGD on the noisy mean update: v <- momentum * v + mean; weights <- weights + learning_rate * v.

    On the residuals of a prefix-sum mechanism this is FTRL with momentum (Kairouz et al. 2021, arXiv 2103.00039, Alg. 1).
    """

    learning_rate: float
    momentum: float = 0.0

    def init(self, size: int) -> Velocity:
        return np.zeros(size, dtype=np.float64)

    def apply(self, released: Released, goal: int, weights: FloatVector, velocity: Velocity) -> tuple[FloatVector, Velocity]:
        velocity = self.momentum * velocity + released.mean(goal)
        return (weights + self.learning_rate * velocity).astype(np.float32), velocity
