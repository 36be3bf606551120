"""Who the records of a store are, and in which order they stand, whatever their labels.

A record's name is a keyed hash of its features, and a number where several have the same ones. The order is that of the features'
bytes: a store's own may be by class, and its batches may be balanced by class, so neither is used.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import AnsweredExamples, ExampleStore, Features
from fedrho.models.base import ModelSpec
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.local import FORWARD
from fedrho.protos.messages import RoundPlan

RECORD_BYTES: Final = 16


@dataclass(frozen=True, eq=False)
class Records:
    """All that a store holds, in the order of the features' bytes: features (n, ...), labels (n,), and who each record is."""

    features: Features
    labels: NDArray[np.int64]
    names: tuple[bytes, ...]
    first: tuple[bytes, ...]
    """Of each record, the name of the first that has the same features."""


def view_of(spec: ModelSpec) -> str:
    """Models that take the same inputs see the same features. In another view a record has another name, and pays anew."""
    return json.dumps([spec.input_dtype, list(spec.input_shape), spec.vocabulary])


class Names:
    """Names of records: a keyed hash of view and features, and how many had the same features before."""

    def __init__(self, view: str, key: bytes) -> None:
        self._begin = hashlib.blake2b(view.encode() + b"\0", digest_size=RECORD_BYTES, key=key)
        self._seen: Counter[bytes] = Counter()

    def features(self, row: NDArray[np.generic]) -> bytes:
        hashed = self._begin.copy()
        hashed.update(_bytes(row))
        return hashed.digest()

    def next(self, features: bytes) -> tuple[bytes, bytes]:
        """The record's name, and that of the first of the same features."""
        number, self._seen[features] = self._seen[features], self._seen[features] + 1
        return self.numbered(features, number), self.numbered(features, 0)

    def numbered(self, features: bytes, number: int) -> bytes:
        hashed = self._begin.copy()
        hashed.update(features + number.to_bytes(8, "big"))
        return hashed.digest()


def read_records(plan: RoundPlan, examples: ExampleStore, view: str, key: bytes) -> Records:
    """Every record that the store has, once: one epoch without a limit."""
    whole = replace(plan, epochs=1, local_steps=0, max_examples=0)
    names, read = Names(view, key), list(examples.batches(whole))
    if not read:
        return Records(np.zeros((0,), np.float32), np.zeros(0, np.int64), (), ())
    features: Features = np.concatenate([batch.features for batch in read])
    labels = np.concatenate([batch.labels for batch in read])
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError("labels are whole numbers, one for each record")
    order = sorted(range(len(features)), key=lambda place: _bytes(features[place]))
    told = [names.next(names.features(features[place])) for place in order]
    return Records(
        features[order], labels[order].astype(np.int64), tuple(one for one, _ in told), tuple(first for _, first in told)
    )


def told_of(plan: RoundPlan, records: Records, answers: Answers, kept: NDArray[np.int64]) -> AnsweredExamples:
    """The records `kept`, which are those with an answer, each with its answer as the plan's loss takes it."""
    forward = plan.labels is not None and plan.labels.correction == FORWARD
    told = answers.likelihoods.astype(np.float32) if forward else answers.labels.astype(np.int32)
    return AnsweredExamples(records.features[kept], told)


def mixed(labels: NDArray[np.int64], groups: Sequence[bytes], chance: Chance) -> NDArray[np.int64]:
    """The labels of records of the same group, which nobody can tell apart, among each other by chance.

    Stores may keep equal records in an order that comes from their labels; one label that is replaced would then move others.
    """
    keys = chance.words(len(labels))
    there = sorted(range(len(labels)), key=lambda place: groups[place])
    drawn = sorted(range(len(labels)), key=lambda place: (groups[place], int(keys[place])))
    among = labels.copy()
    among[there] = labels[drawn]
    return among


def _bytes(row: NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(row).tobytes()
