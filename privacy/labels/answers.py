"""What randomizers told about labels: all that may be trained on, kept or sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Answers:
    """About n records with K classes; post-processing of any kind is free.

    `likelihoods` of shape (n, K), float64, none of them negative and no row all zero: how probable this answer was under each
    true label. Of mechanisms with few outputs it is their probability; of one with a density, the density over the largest of
    its row. `labels` of shape (n,), int64: the noisy label, or where the output is no label, the class of the largest
    likelihood. `sizes` of shape (n,), int64: how many labels could have been told (k of RRTop-k; K of other mechanisms).
    """

    labels: NDArray[np.int64]
    likelihoods: NDArray[np.float64]
    sizes: NDArray[np.int64]

    def __post_init__(self) -> None:
        rows, classes = self.likelihoods.shape
        if self.labels.shape != (rows,) or self.sizes.shape != (rows,):
            raise ValueError(f"{rows} rows of likelihoods, {len(self.labels)} labels and {len(self.sizes)} sizes")
        if rows and not (np.isfinite(self.likelihoods).all() and (self.likelihoods >= 0).all()):
            raise ValueError("a likelihood is finite and not negative")
        if rows and not (self.likelihoods.max(axis=1) > 0).all():
            raise ValueError("an answer is possible under one label at least")
        if rows and not (self.labels.min() >= 0 and self.labels.max() < classes):
            raise ValueError(f"a noisy label lies between 0 and {classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return int(self.likelihoods.shape[1])

    def at(self, places: NDArray[np.int64]) -> Answers:
        """Those of some records, in that order."""
        return Answers(self.labels[places], self.likelihoods[places], self.sizes[places])

    def as_labels(self) -> Answers:
        """The noisy labels taken at their word: a likelihood of 1 for the label that was told, and 0 for every other."""
        told = np.zeros_like(self.likelihoods)
        told[np.arange(len(self)), self.labels] = 1.0
        return Answers(self.labels, told, self.sizes)
