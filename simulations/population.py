"""Federated data sets: who holds which examples. scikit-learn's handwritten digits, split by a Dirichlet distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import ArrayExamples, Features, Labels

HELD_OUT = 360
"""Of the 1,797 digits, these belong to no device and measure accuracy."""


@dataclass(frozen=True, eq=False)
class FederatedData:
    """The examples of every device, and those of none."""

    devices: tuple[ArrayExamples, ...]
    test_features: Features
    test_labels: Labels


def digits(devices: int, alpha: float = 1.0, seed: int = 0) -> FederatedData:
    """UCI optical digits as they ship with scikit-learn: 8x8 grey, scaled to [0, 1]; non-IID over `devices`.

    `alpha` is the Dirichlet concentration per class: small means that a device knows few classes. Raises ValueError when
    there are more devices than examples.
    """
    features, labels = _load()
    test, train = _divided(labels, seed)
    parts = dirichlet_split(labels[train], devices, alpha, np.random.default_rng((seed, 1)))
    held = tuple(ArrayExamples(features[train[part]], labels[train[part]]) for part in parts)
    return FederatedData(held, features[test], labels[test])


def _load() -> tuple[Features, Labels]:
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    return (features / 16.0).astype(np.float32), labels.astype(np.int32)


def _divided(labels: Labels, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of those held out, and of the others."""
    order = np.random.default_rng((seed, 0)).permutation(len(labels))
    return order[:HELD_OUT], order[HELD_OUT:]


@dataclass(frozen=True, eq=False)
class DrawnDevices:
    """Any number of devices, whose examples are drawn with replacement from a pool, anew whenever they are asked for.

    A device's mix of classes is a Dirichlet draw with concentration `alpha`.
    """

    features: Features
    labels: Labels
    examples: int
    alpha: float
    seed: int

    def device(self, number: int) -> ArrayExamples:
        """The same at every call."""
        generator = np.random.default_rng((self.seed, 2, number))
        classes = np.unique(self.labels)
        mix = generator.dirichlet(np.full(len(classes), self.alpha))
        wanted = generator.choice(classes, self.examples, p=mix)
        chosen = [generator.choice(np.flatnonzero(self.labels == label)) for label in wanted]
        return ArrayExamples(self.features[chosen], self.labels[chosen])


def drawn_digits(examples: int, alpha: float = 1.0, seed: int = 0) -> DrawnDevices:
    """From the digits that `digits` with this seed does not keep for its accuracy."""
    features, labels = _load()
    _, train = _divided(labels, seed)
    return DrawnDevices(features[train], labels[train], examples, alpha, seed)


def made_up(shape: tuple[int, ...], classes: int, examples: int, alpha: float = 1.0, seed: int = 0) -> DrawnDevices:
    """Normals around one centre a class, for a model of any input."""
    generator = np.random.default_rng((seed, 3))
    labels = np.arange(100 * classes, dtype=np.int32) % classes
    centres = generator.normal(size=(classes, *shape))
    features = centres[labels] + 0.5 * generator.normal(size=(len(labels), *shape))
    return DrawnDevices(features.astype(np.float32), labels, examples, alpha, seed)


def dirichlet_split(labels: Labels, parts: int, alpha: float, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Indices of each part: every class is divided by its own Dirichlet(alpha) draw; no part is empty.

    Source: Hsu, Qi & Brown 2019 (arXiv 1909.06335), with the draw per class.
    """
    if not 1 <= parts <= len(labels):
        raise ValueError(f"{len(labels)} examples cannot be shared among {parts} devices; allowed: 1 to {len(labels)}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a finite number above 0, not {alpha}")
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(parts, alpha))
        owner[members] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(members)) + 0.5) / len(members))
    for part in range(parts):
        while not (owner == part).any():
            richest = np.bincount(owner, minlength=parts).argmax()
            owner[generator.choice(np.flatnonzero(owner == richest))] = part
    return [np.flatnonzero(owner == part) for part in range(parts)]
