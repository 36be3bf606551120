"""Every device has one stream of ids of its own, as it has written them: who is a device, who is held out, what each has.

What an example is, a window or a sequence, is left to the kinds of streams.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.models.tokens import FIRST, NOTHING, Tokens
from fedrho.simulations.data.base import Examples
from fedrho.simulations.data.cache import Arrays
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import check_device
from fedrho.simulations.data.splits import Indices

FIRST_TARGET = FIRST
"""Ids below are nothing and unknown: they are read, and never to be guessed."""

HELD_OUT = Option("held_out", "0.1", "0.01 to 0.9", "share of the devices that are held out, chosen by a hash of the name")
LEAST = Option("least", "1", "1 to 1000000", "devices with fewer examples are left out")


@dataclass(frozen=True)
class Chosen:
    """Whose streams count: `share` of all are held out, devices have `least` examples, `test_examples` of others are taken."""

    share: float
    least: int
    test_examples: int

    @staticmethod
    def of(options: Options, test_examples: int) -> Chosen:
        """Raises DataError."""
        return Chosen(
            options.number("held_out", 0.1, 0.01, 0.9),
            options.integer("least", 1, 1, 1_000_000),
            options.integer("test_examples", test_examples, 1, 2**20),
        )


class Streams(ABC):
    """Streams one behind the other in `ids`, that of stream s from `starts[s]` on. Its examples are numbered from `first[s]` to
    below `first[s + 1]`.
    """

    def __init__(
        self, arrays: Arrays, names: Sequence[str], first: NDArray[np.int64], chosen: Chosen, tokens: Tokens | None = None
    ) -> None:
        """Raises ValueError where no device, or nobody who is held out, is left."""
        self.tokens = tokens
        """What the ids are of, where they are of a text."""
        self._ids = arrays["ids"]
        self._starts = np.asarray(arrays["starts"], dtype=np.int64)
        self._first = first
        counts, tests = np.diff(first), held_out(names, chosen.share)
        self._devices: Indices = np.flatnonzero(~tests & (counts >= chosen.least))
        self._tests: Indices = np.flatnonzero(tests & (counts >= 1))
        self._test_examples = chosen.test_examples
        if not len(self._devices) or not len(self._tests):
            raise ValueError(f"no device has {chosen.least} examples; take a smaller `least`, or a smaller step between examples")
        self.names = tuple(names[stream] for stream in self._devices.tolist())
        """Of the devices: who speaks."""
        self.test_names = tuple(names[stream] for stream in self._tests.tolist())

    @property
    def size(self) -> int:
        return len(self._devices)

    @cached_property
    def held_out(self) -> Examples:
        """At most as many as were asked for, spread evenly over all of those who are held out."""
        numbers = np.concatenate([np.arange(self._first[one], self._first[one + 1]) for one in self._tests.tolist()])
        owners = np.repeat(self._tests, self._first[self._tests + 1] - self._first[self._tests])
        spread = np.linspace(0, len(numbers) - 1, min(len(numbers), self._test_examples)).astype(np.int64)
        return self._made(numbers[spread], owners[spread])

    def count(self, device: int) -> int:
        stream = self._devices[check_device(device, self.size)]
        return int(self._first[stream + 1] - self._first[stream])

    def examples(self, device: int) -> Examples:
        stream = self._devices[check_device(device, self.size)]
        numbers = np.arange(self._first[stream], self._first[stream + 1])
        return self._made(numbers, np.full(len(numbers), stream))

    @abstractmethod
    def _made(self, numbers: NDArray[np.int64], streams: Indices) -> Examples:
        """The examples of these numbers, each of which is of the stream beside it."""

    def known(self, held_out: bool = False) -> tuple[int, int]:
        """Of all that the devices wrote, or those who are held out: how many ids are known, and how many there are."""
        known = there = 0
        for stream in (self._tests if held_out else self._devices).tolist():
            ids = self._ids[self._starts[stream] : self._starts[stream + 1]]
            known, there = known + int(np.count_nonzero(ids >= FIRST)), there + int(np.count_nonzero(ids != NOTHING))
        return known, there


def streams(texts: Mapping[str, Sequence[NDArray[Any]]], separator: int) -> Arrays:
    """The arrays of `Streams`: of every name, in sorted order, its pieces with a separator between them. `targets` are the places
    of what can be guessed."""
    parts: list[NDArray[Any]] = []
    starts = [0]
    for name in sorted(texts):
        pieces = texts[name]
        between = np.array([separator], dtype=pieces[0].dtype)
        whole = [part for piece in pieces for part in (piece, between)][:-1]
        parts.extend(whole)
        starts.append(starts[-1] + sum(len(part) for part in whole))
    ids = np.concatenate(parts)
    return {
        "ids": ids,
        "starts": np.array(starts, dtype=np.int64),
        "targets": np.flatnonzero(ids >= FIRST_TARGET).astype(np.uint32),
    }


def held_out(names: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Which of the names are held out: those of the smallest hashes, at least one. What they wrote plays no part."""
    hashes = [hashlib.sha256(name.encode()).digest() for name in names]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[order[: max(1, round(share * len(names)))]] = True
    return chosen
