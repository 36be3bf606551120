"""ExampleStore: the only thing in a client that touches data.

A store is one method, `batches(plan)`. Training runs in a process of its own, so a store travels there by pickle: it holds paths
and settings, opens its files inside `batches`, and keeps nothing of them afterwards. Every user's store is one of

    a class with `batches`     all of it in your own hands
    a ShuffledExamples         you write `read`; order, limit and batches are done
    an ArrayExamples           you have two arrays
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.protos.messages import RoundPlan

Features = NDArray[np.float32] | NDArray[np.int32]
"""Numbers, or the ids of tokens."""
Labels = NDArray[np.int32]
Likelihoods = NDArray[np.float32]
Example = tuple[ArrayLike, ArrayLike]
"""Features, and a label; or a label at every place, for a model that has them so."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Features of shape (batch, ...), float32 or, of models that take token ids, int32; labels int32 of shape (batch,), or
    (batch, length) of a model with a label at every place (`ModelSpec.label_shape`).
    """

    features: Features
    labels: Labels
    likelihoods: Likelihoods | None = None
    """Where a task has label privacy with a correction: how probable each record's answer is under each label, float32 (batch,
    classes). Nobody's own store gives them."""


class ExampleStore(Protocol):
    """What a user of the client writes: the examples of one device, in the batches that a plan asks for.

    It is pickled and used in another process: hold paths and settings, open files in `batches`. It may be asked again for the
    same plan, and should then give the same. What it raises ends the training, and the device uploads zeros: whether a device
    is counted must not depend on its data. A store that is empty yields nothing, and the update is zero, too.
    """

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        """All batches of all `plan.epochs`, each of 1 to `plan.batch_size` examples, of at most `plan.max_examples` (0: all)."""
        ...


def orders(count: int, plan: RoundPlan) -> Iterator[NDArray[np.int64]]:
    """Which of `count` examples are in each batch: shuffled anew in each step and epoch, and the same whenever asked again."""
    for epoch in range(plan.epochs):
        order = np.random.default_rng((plan.step, epoch)).permutation(count)
        if plan.max_examples:
            order = order[: plan.max_examples]
        for start in range(0, len(order), plan.batch_size):
            yield order[start : start + plan.batch_size]


class ShuffledExamples(ABC):
    """A store whose author writes `read` alone."""

    @abstractmethod
    def read(self) -> Sequence[Example]:
        """Opens the data: pairs of features and label, or labels at every place, in a list, or in a sequence that loads each when
        it is asked for it.
        """

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        examples = self.read()
        for chosen in orders(len(examples), plan):
            features, labels = zip(*(examples[place] for place in chosen.tolist()), strict=True)
            yield Batch(_features(np.stack([np.asarray(one) for one in features])), integers(np.stack(labels), "labels"))


class ArrayExamples:
    """Examples held in two arrays, and pickled with them: labels of shape (examples,), or (examples, length) for a model with a
    label at every place. Features of int32 stay so; all others become float32.

    Raises ValueError when the arrays do not belong together, are empty, or hold NaN or infinite features.
    """

    def __init__(self, features: NDArray[np.generic], labels: NDArray[np.generic]) -> None:
        if not len(features) or labels.ndim not in (1, 2) or labels.shape != features.shape[: labels.ndim]:
            raise ValueError(f"features {features.shape} and labels {labels.shape} are not examples of one device")
        self._features: Features = integers(features, "features") if features.dtype == np.int32 else finite(features)
        self._labels = integers(labels, "labels")

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        for chosen in orders(len(self), plan):
            yield Batch(self._features[chosen], self._labels[chosen])


class AnsweredExamples:
    """What the training process is given where a task has label privacy: features and answers, and no true label.

    `told` are noisy labels int32 (n,), or likelihoods float32 (n, classes).
    """

    def __init__(self, features: Features, told: Labels | Likelihoods) -> None:
        self._features, self._told = features, told

    def __len__(self) -> int:
        return len(self._told)

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        for chosen in orders(len(self), plan):
            told = self._told[chosen]
            if told.ndim == 1:
                yield Batch(self._features[chosen], told.astype(np.int32))
            else:
                yield Batch(self._features[chosen], np.zeros(len(chosen), np.int32), told.astype(np.float32))


def batches(plan: RoundPlan, examples: ExampleStore) -> Iterator[Batch]:
    """What a plan trains on: all batches of its epochs; or exactly `local_steps` of them, where epochs follow one another."""
    if not plan.local_steps:
        return iter(examples.batches(plan))
    return islice(_epoch_after_epoch(replace(plan, epochs=plan.local_steps), examples), plan.local_steps)


def _epoch_after_epoch(plan: RoundPlan, examples: ExampleStore) -> Iterator[Batch]:
    """Without end, even of a store that gives fewer epochs than it is asked for; nothing of one that is empty."""
    found = True
    while found:
        found = False
        for batch in examples.batches(plan):
            found = True
            yield batch


def finite(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """The same numbers as float32; raises ValueError for NaN, infinity and what float32 cannot hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(converted).all():
        raise ValueError("features hold NaN or infinite values, or values beyond float32")
    return converted


def integers(values: NDArray[np.generic], name: str) -> NDArray[np.int32]:
    """The same integers as int32; raises ValueError for anything else."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, not {values.dtype}")
    bounds = np.iinfo(np.int32)
    if values.size and not (bounds.min <= values.min() and values.max() <= bounds.max):
        raise ValueError(f"{name} hold values beyond int32")
    return np.ascontiguousarray(values, dtype=np.int32)


def _features(values: NDArray[np.generic]) -> Features:
    return integers(values, "features") if values.dtype.kind in "iu" else finite(values)


def described(error: BaseException) -> str:
    """What was raised and where, without its text: that may hold examples."""
    place, last = "", error.__traceback__
    while isinstance(last, TracebackType):
        place, last = f" ({last.tb_frame.f_code.co_filename.replace(chr(92), '/').split('/')[-1]}:{last.tb_lineno})", last.tb_next
    return f"{type(error).__name__}{place}"
