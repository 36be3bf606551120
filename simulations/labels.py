"""Answers for labels of virtual devices: one for each label and study, from the study's seed, so they protect nobody.

A device in the field draws from its operating system and keeps what it has answered (`client/labels.py`). Here the answers of a
device are a function of the seed, the device and its labels: the same in every step, in every process and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Words
from fedrho.privacy.labels.local import FORWARD, randomizer, rows_of
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.protos.messages import LabelTerms
from fedrho.simulations.data.base import Answered, Examples
from fedrho.simulations.seeded import generator

OUTSIDE = -1
"""Stands for all labels of a device that has one outside the classes: its training fails, and it sends zeros."""


@dataclass
class SeededChance:
    """Words that anybody can compute who knows the study's seed: for simulations alone. Whoever knows it can undo answers."""

    seed: int
    device: int

    def __post_init__(self) -> None:
        self._generator = generator(self.seed, "label answers", self.device)

    def words(self, count: int) -> Words:
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


def answered(examples: Examples, device: int, terms: LabelTerms, classes: int, seed: int) -> Answered:
    """What the device trains on: noisy labels, or how probable its answers are under each label."""
    told = answers_of(examples, device, terms, classes, seed)
    if terms.correction != FORWARD:
        labels = np.full(len(examples), OUTSIDE, np.int32) if told is None else told.labels.astype(np.int32)
        return Answered(examples.features, labels)
    if told is None:
        return Answered(examples.features, np.full((len(examples), classes), np.nan, np.float32))
    return Answered(examples.features, told.likelihoods.astype(np.float32))


def answers_of(examples: Examples, device: int, terms: LabelTerms, classes: int, seed: int) -> Answers | None:
    """None where a label is outside the classes, whichever: nothing is answered then."""
    try:
        private = PrivateLabels(examples.labels, classes, budget=terms.epsilon)
    except ValueError:
        return None
    priors = rows_of(terms.prior, len(examples), classes)
    mechanism, chance = randomizer(terms.mechanism, terms.epsilon), SeededChance(seed, device)
    return private.answer(np.arange(len(examples)), mechanism, priors, chance)
