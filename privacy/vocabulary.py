"""A vocabulary chosen by private text: the public candidates that most devices use, as far as noise lets us see.

    each device   names at most `words_per_device` different words of a public list of candidates: a vector of zeros and ones
    the sum       of these vectors is a histogram: how many devices name each candidate
    released      the histogram with Gaussian noise, and what follows from it alone, as the order of its words does

A device's vector has an L2 norm of at most C = sqrt(words_per_device), whatever it wrote and however often. So the histogram is
one step of `IndependentGaussian` with clip norm C, in which every device takes part once: rho = 1 / (2 * noise_multiplier**2),
and the noise of one count has a standard deviation of noise_multiplier * C (Bun & Steinke 2016, Proposition 1.6).

The candidates must be public. A word that is no candidate is never counted, so no rare word of one device can come out; those
that find unknown words need a threshold and a delta (Korolova et al. 2009; Gopi et al. 2020), and are not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.calibration import least_noise_multiplier
from fedrho.privacy.clipping import clip
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.vectors import Clipped, ClippedSum, Grid, Update
from fedrho.privacy.zcdp import Rho

ONCE = Participation(1)


@dataclass(frozen=True)
class WordHistogram:
    """How many devices name each of `candidates` words, released once with the least noise that costs no more than `budget`.

    Guarantees: `counts` satisfies `statement().rho`-zCDP for one device, its vector replaced by zeros.
    Assumes: each device gives at most one `contribution`, and the candidates are public.
    """

    candidates: int
    words_per_device: int
    budget: Rho

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"a histogram needs candidates, not {self.candidates}")
        if not 1 <= self.words_per_device <= self.candidates:
            raise ValueError(f"words_per_device must be 1 to {self.candidates}, not {self.words_per_device}")
        _ = self.mechanism  # refuses a budget that cannot be priced

    @cached_property
    def mechanism(self) -> IndependentGaussian:
        """Of one step, whose clip norm is that of a device with `words_per_device` words."""
        grid = Grid(math.sqrt(self.words_per_device))
        return IndependentGaussian(grid, least_noise_multiplier(1.0, self.budget))

    @property
    def rho(self) -> Rho:
        return self.mechanism.cost(1, ONCE)

    @property
    def stddev(self) -> float:
        """Of the noise of one count, in devices."""
        return self.mechanism.noise_multiplier * self.mechanism.grid.clip_norm

    def contribution(self, named: NDArray[np.integer]) -> Clipped:
        """One device's vector, shape (candidates,), of the candidates it names, which are numbers from 0 on; twice is once.

        Raises ValueError for a number of no candidate. More than `words_per_device` are not refused: their vector is scaled down
        to the same norm, as it would be on its way from a device that does not keep to the rule.
        """
        vector = np.zeros(self.candidates, dtype=np.float32)
        if named.size and not 0 <= named.min() <= named.max() < self.candidates:
            raise ValueError(f"candidates are 0 to {self.candidates - 1}, not {named.min()} to {named.max()}")
        vector[named] = 1.0
        return clip(Update(vector), self.mechanism.grid)

    def counts(self, contributions: Iterable[Clipped], source: NoiseSource) -> NDArray[np.float64]:
        """The noisy histogram, shape (candidates,), in devices: at most one contribution a device, each of which is checked.

        Noise is drawn at every call: each is a release of its own, with a price of its own.
        """
        mechanism = self.mechanism
        total = np.zeros(self.candidates, dtype=np.int64)
        for one in contributions:
            if one.grid != mechanism.grid or one.size != self.candidates:
                raise ValueError("a contribution was made for another histogram")
            total += one.vector
        released, _ = mechanism.release(ClippedSum(total, mechanism.grid), mechanism.init(self.candidates), source)
        return released.mean(1)

    def statement(self, candidates: str) -> PrivacyStatement:
        """About one release, of counts of the public list named `candidates`."""
        return PrivacyStatement(
            unit=Unit.DEVICE,
            neighbours=Neighbours.ZERO_OUT,
            rho=self.rho,
            assumptions=(
                f"each device adds at most once to the histogram of words that the vocabulary is chosen by, and names at most "
                f"{self.words_per_device} of the {self.candidates} words of {candidates}, each with 1: an L2 norm of at most "
                f"sqrt({self.words_per_device}), kept before it is added",
                f"{candidates} is public and was made without these devices' text, and so were the numbers of the histogram",
                "which words a device names depends on its own text and its own chance alone",
                f"the histogram was released once, with noise {self.mechanism.described()}, drawn by a cryptographic "
                "generator as float64 Gaussians rounded to the grid, and kept secret; nothing else of the words was released",
            ),
        )


def most_named(counts: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """The candidates of the `most` largest counts, largest first, ties in the public order: computed from what was released."""
    return np.argsort(-counts, kind="stable")[:most].astype(np.int64)
