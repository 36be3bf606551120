"""Buffered Toeplitz noise (BLT): C^-1 Z for a C whose coefficients fall like a sum of few exponentials, in few vectors of memory.

With d buffers, decays theta and scales omega (Dvijotham et al. 2024, arXiv 2404.16706; McMahan et al. 2024, arXiv 2408.08868)

    c_0 = 1     c_i = sum over j of omega_j * theta_j**(i-1)     c(x) = prod (1 - hat_j x) / prod (1 - theta_j x)

and row t of C^-1 Z is x_t of the recursion, u = 0 at first: x_t = z_t - sum omega_j u_j, then u_j <- theta_j u_j + x_t.

With 0 < theta_j < 1, omega_j > 0 and sum of omega < 1, c falls, so that its sensitivity has a closed form; and the poles hat_j of
the inverse, the eigenvalues of diag(theta) - sqrt(omega) sqrt(omega)^T, lie between those theta and above -1: errors die away.

What is published is the sum plus round(x_t). The sum is an integer, so this is round(sum + x_t), post-processing of the Gaussian
mechanism. The recursion runs in float64: its rounding involves no data, and its caveat is that of float64 normals themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from fedrho.privacy.blocks import each_block
from fedrho.privacy.mechanism import Mechanism, Sensitivity
from fedrho.privacy.noise import KeptVector, NoiseNode, NoiseSource, find_kept
from fedrho.privacy.participation import Participation
from fedrho.privacy.toeplitz import Series, prefix_variances, toeplitz_sensitivity
from fedrho.privacy.vectors import IntVector

FINE_BITS = 16
"""Z is drawn on a grid 2**16 times finer than the sums, and divided exactly."""
KEPT_EVERY = 64
"""Steps between two copies of the buffers: a restart replays fewer rows than that."""
LARGEST_STDDEV = 2.0**33
"""In grid units: 16 standard deviations of the finer grid are integers that float64 holds."""


@dataclass(frozen=True, eq=False)
class BufferedState:
    """The buffers u, float64 of shape (size,), in grid units: kept at every 64th step; seeds of the rows since then."""

    step: int
    size: int
    buffers: tuple[NDArray[np.float64], ...]
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()
    kept: tuple[KeptVector, ...] = ()


@dataclass(frozen=True)
class BufferedToeplitz(Mechanism[BufferedState]):
    """C^-1 Z of the BLT with these decays (theta) and scales (omega), rounded to integers.

    Guarantees: the same seeds give the same noise on every machine; each coordinate is a fixed order of float64 operations.
    Raises ValueError unless 0 < theta < 1, omega > 0 and sum of omega < 1.
    """

    name = "buffered-toeplitz"
    words = "that is correlated with that of all steps before"
    decay: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.decay) == len(self.scale) > 0:
            raise ValueError(f"every buffer has a decay and a scale, not {len(self.decay)} and {len(self.scale)} of them")
        if not all(0 < theta < 1 for theta in self.decay):
            raise ValueError(f"decays must lie strictly between 0 and 1, not {self.decay}")
        if not (all(omega > 0 for omega in self.scale) and math.fsum(self.scale) < 1):
            raise ValueError(f"scales must be positive and sum to less than 1, not {self.scale}")
        if self.stddev > LARGEST_STDDEV:
            most = LARGEST_STDDEV / self.grid.radius
            raise ValueError(
                f"noise_multiplier must be at most {most:g} on a grid of {self.grid.bits} bits, not {self.noise_multiplier}"
            )

    def init(self, size: int) -> BufferedState:
        return BufferedState(step=0, size=size, buffers=tuple(np.zeros(size) for _ in self.decay))

    def next_noise(self, state: BufferedState, source: NoiseSource) -> tuple[IntVector, BufferedState]:
        fresh, node = source.draw(f"row.{state.step + 1}", state.size, math.ldexp(self.stddev, FINE_BITS))
        noise, buffers = np.empty(state.size, dtype=np.int64), tuple(np.empty(state.size) for _ in self.decay)

        def work(part: slice) -> None:
            row = fresh[part] * 2.0**-FINE_BITS
            for scale, before in zip(self.scale, state.buffers, strict=True):
                row -= scale * before[part]
            for decay, before, after in zip(self.decay, state.buffers, buffers, strict=True):
                np.multiply(before[part], decay, out=after[part])
                after[part] += row
            noise[part] = np.rint(row, out=row)

        each_block(state.size, work)
        step = state.step + 1
        if step % KEPT_EVERY:
            return noise, BufferedState(step, state.size, buffers, (node,), (*state.live, node), state.kept)
        kept = tuple(KeptVector(name, buffer) for name, buffer in zip(self._kept_names(step), buffers, strict=True))
        return noise, BufferedState(step, state.size, buffers, (node,), (), kept)

    def coefficients(self, steps: int) -> Series:
        """c_0 ... c_(steps-1), which fall: where rounding says otherwise, the earlier one stands."""
        powers = np.power.outer(np.array(self.decay), np.arange(steps - 1.0))
        return np.minimum.accumulate(np.concatenate(([1.0], np.array(self.scale) @ powers)))[:steps]

    def inverse(self, steps: int) -> Series:
        """The first coefficients of 1 / c(x), one pole pair after the other."""
        roots = np.sqrt(self.scale)
        poles = np.linalg.eigvalsh(np.diag(self.decay) - np.outer(roots, roots))
        series = np.zeros(steps)
        series[:1] = 1.0
        for theta, pole in zip(sorted(self.decay), poles, strict=True):
            series = scipy.signal.lfilter([1.0, -theta], [1.0, -pole], series)
        return series

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        """Exact, whatever the participation: c falls."""
        return toeplitz_sensitivity(self.coefficients(max(steps, 1)), steps, participation)

    def prefix_variances(self, steps: int) -> NDArray[np.float64]:
        """Without the rounding, which adds 1/12 of a squared grid unit to each step."""
        return prefix_variances(self.inverse(steps))

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> BufferedState:
        state, since = self.init(size), step % KEPT_EVERY
        if step > since:
            found = find_kept(kept, self._kept_names(step - since), size, "f")
            state = BufferedState(step - since, size, tuple(one.vector for one in found), kept=found)
        for _ in range(since):
            _, state = self.next_noise(state, replayed)
        return state

    def _kept_names(self, step: int) -> list[str]:
        return [f"buffer.{step}.{number}" for number in range(len(self.decay))]
