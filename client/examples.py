"""ExampleStore: the only thing in a client that touches data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedrho.protos.messages import RoundPlan

Features = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Batch:
    """Features of shape (batch, ...), float32; labels of shape (batch,), int32."""

    features: Features
    labels: Labels


class ExampleStore(Protocol):
    """What a user of the client writes: the examples of one device, in the batches that a plan asks for."""

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        """All batches of all `plan.epochs`, each of at most `plan.batch_size` examples."""
        ...


class ArrayExamples:
    """Examples held in two arrays, shuffled anew in each step and epoch.

    Raises ValueError when the arrays do not belong together, are empty, or hold NaN or infinite features.
    """

    def __init__(self, features: Features, labels: Labels) -> None:
        if len(features) != len(labels) or len(features) == 0 or labels.ndim != 1:
            raise ValueError(f"features {features.shape} and labels {labels.shape} are not examples of one device")
        if labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers, not {labels.dtype}")
        with np.errstate(over="ignore"):
            self._features = np.ascontiguousarray(features, dtype=np.float32)
        if not np.isfinite(self._features).all():
            raise ValueError("features hold NaN or infinite values, or values beyond float32")
        self._labels = np.ascontiguousarray(labels, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        for epoch in range(plan.epochs):
            order = np.random.default_rng((plan.step, epoch)).permutation(len(self))
            if plan.max_examples:
                order = order[: plan.max_examples]
            for start in range(0, len(order), plan.batch_size):
                chosen = order[start : start + plan.batch_size]
                yield Batch(self._features[chosen], self._labels[chosen])
