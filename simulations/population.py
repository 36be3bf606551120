"""Federated data as the demo and the fleet hold it: scikit-learn's digits and made-up examples, as stores of devices.

What a simulation uses is in `simulations/data`; these are the same splits and draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrho.client.examples import ArrayExamples, Features, Labels
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.digits import HELD_OUT, pools
from fedrho.simulations.data.options import MOST_DEVICES
from fedrho.simulations.data.pools import SPLIT, Drawing, Drawn, MadeUp, MadeUpInputs
from fedrho.simulations.data.splits import dirichlet_split

__all__ = ["HELD_OUT", "DrawnDevices", "FederatedData", "digits", "dirichlet_split", "drawn_digits", "made_up"]


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
    train, test = pools(seed)
    parts = dirichlet_split(train.labels, devices, alpha, np.random.default_rng((seed, SPLIT)))
    held = tuple(ArrayExamples(train.features[part], train.labels[part]) for part in parts)
    return FederatedData(held, test.features, test.labels)


@dataclass(frozen=True, eq=False)
class DrawnDevices:
    """Any number of devices, whose examples are drawn anew whenever they are asked for."""

    dataset: FederatedDataset

    def device(self, number: int) -> ArrayExamples:
        """The same at every call."""
        drawn = self.dataset.examples(number)
        return ArrayExamples(drawn.features, drawn.labels)


def drawn_digits(examples: int, alpha: float = 1.0, seed: int = 0) -> DrawnDevices:
    """From the digits that `digits` with this seed does not keep for its accuracy."""
    train, test = pools(seed)
    return DrawnDevices(Drawn(train, Drawing(MOST_DEVICES, examples, examples, alpha, seed), test))


def made_up(shape: tuple[int, ...], classes: int, examples: int, alpha: float = 1.0, seed: int = 0) -> DrawnDevices:
    """Normals around one centre a class, for a model of any input."""
    return DrawnDevices(MadeUp(MadeUpInputs(shape, classes), Drawing(MOST_DEVICES, examples, examples, alpha, seed), classes))
