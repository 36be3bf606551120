"""What a run of the multi-stage trainer remembers: answers before they are first used, and weights. Who resumes never asks twice.

begin ──> keep ──> recalled, any number of times
  └─ the process ended in between: the answers are lost. Labels were read, and nobody knows who saw it: it stays paid for
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.vectors import FloatVector


class LostAnswers(RuntimeError):
    """Labels were read, the answers were not kept, and the budget has no room to ask once more."""


class BadMemory(ValueError):
    """What was kept is about other labels. Nothing is asked anew: the labels were read, and their answers may be elsewhere."""


class Memory(Protocol):
    """By names that the trainer chooses. Everything here is a function of answers: none of it needs protection any more.

    *Assumes* that `begin` and `keep` are durable when they return, and that nobody else writes: a resumed run trusts them.
    """

    def begin(self, name: str) -> None:
        """Labels are about to be read for this."""
        ...

    def lost(self, name: str) -> int:
        """How often it was begun without anything being kept."""
        ...

    def recall(self, name: str) -> Answers | None: ...

    def keep(self, name: str, answers: Answers) -> None:
        """Before the answers are used for anything."""
        ...

    def recall_counts(self, name: str) -> NDArray[np.int64] | None:
        """As `recall`, of noisy histograms."""
        ...

    def keep_counts(self, name: str, counts: NDArray[np.int64]) -> None: ...

    def recall_weights(self, name: str) -> FloatVector | None:
        """Weights are made from answers, as often as one likes: nothing is begun."""
        ...

    def keep_weights(self, name: str, weights: FloatVector) -> None: ...


def fitting(answers: Answers | None, count: int, classes: int, name: str) -> Answers | None:
    """What was recalled of so many labels; raises BadMemory where it cannot be about them."""
    if answers is not None and answers.likelihoods.shape != (count, classes):
        kept, own = len(answers), answers.classes
        raise BadMemory(f"{name}: {kept} answers of {own} classes were kept, about {count} labels of {classes}")
    return answers


class Forgetful:
    """The memory of a run that is not resumed: it holds everything as long as the process lives."""

    def __init__(self) -> None:
        self.answers: dict[str, Answers] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.weights: dict[str, FloatVector] = {}

    def recall(self, name: str) -> Answers | None:
        return self.answers.get(name)

    def begin(self, name: str) -> None:
        pass

    def lost(self, name: str) -> int:
        return 0

    def keep(self, name: str, answers: Answers) -> None:
        self.answers[name] = answers

    def recall_counts(self, name: str) -> NDArray[np.int64] | None:
        return self.counts.get(name)

    def keep_counts(self, name: str, counts: NDArray[np.int64]) -> None:
        self.counts[name] = counts

    def recall_weights(self, name: str) -> FloatVector | None:
        return self.weights.get(name)

    def keep_weights(self, name: str, weights: FloatVector) -> None:
        self.weights[name] = weights
