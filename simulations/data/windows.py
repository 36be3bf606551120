"""Text as examples: a window of ids, and the id that comes next. Every device has one stream of ids of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.simulations.data.base import Examples
from fedrho.simulations.data.cache import Arrays
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import check_device
from fedrho.simulations.data.splits import Indices

FIRST_TARGET = 2
"""Ids below are nothing and unknown: they are read, and never to be guessed."""

WINDOW_OPTIONS = (
    Option("held_out", "0.1", "0.01 to 0.9", "share of the devices that are held out, chosen by a hash of the name"),
    Option("stride", "1", "1 to 1000", "every so manieth place of a text makes an example"),
    Option("least", "1", "1 to 1000000", "devices with fewer examples are left out"),
    Option("test_examples", "10000", "1 to 1048576", "at most so many held-out examples, spread evenly"),
)


class Windows:
    """Streams one behind the other in `ids`; that of stream s begins at `starts[s]`. The window before a stream is zeros."""

    def __init__(self, arrays: Arrays, names: Sequence[str], window: int, chosen: WindowOptions) -> None:
        self._ids, self._window = arrays["ids"], window
        starts = np.asarray(arrays["starts"], dtype=np.int64)
        targets = arrays["targets"][:: chosen.stride]
        first = np.searchsorted(targets, starts)
        counts = np.diff(first)
        tests = held_out(names, chosen.share)
        self._targets, self._first, self._starts = targets, first, starts
        self._devices: Indices = np.flatnonzero(~tests & (counts >= chosen.least))
        self._tests: Indices = np.flatnonzero(tests & (counts >= 1))
        self._test_examples = chosen.test_examples
        if not len(self._devices) or not len(self._tests):
            raise ValueError(f"no device has {chosen.least} examples; take a smaller `least` or `stride`")
        self.names = tuple(names[stream] for stream in self._devices.tolist())
        """Of the devices: who speaks."""
        self.test_names = tuple(names[stream] for stream in self._tests.tolist())

    @property
    def size(self) -> int:
        return len(self._devices)

    @cached_property
    def held_out(self) -> Examples:
        places = np.concatenate([np.arange(self._first[one], self._first[one + 1]) for one in self._tests.tolist()])
        owners = np.repeat(self._tests, self._first[self._tests + 1] - self._first[self._tests])
        spread = np.linspace(0, len(places) - 1, min(len(places), self._test_examples)).astype(np.int64)
        return self._examples(self._targets[places[spread]], self._starts[owners[spread]])

    def count(self, device: int) -> int:
        stream = self._devices[check_device(device, self.size)]
        return int(self._first[stream + 1] - self._first[stream])

    def examples(self, device: int) -> Examples:
        stream = self._devices[check_device(device, self.size)]
        return self._examples(self._targets[self._first[stream] : self._first[stream + 1]], self._starts[stream])

    def _examples(self, targets: NDArray[Any], starts: NDArray[np.int64] | np.int64) -> Examples:
        targets = np.asarray(targets, dtype=np.int64)
        places = targets[:, np.newaxis] + np.arange(-self._window, 0)
        inside = places >= (starts[:, np.newaxis] if isinstance(starts, np.ndarray) else starts)
        features = np.where(inside, self._ids[np.maximum(places, 0)], 0)
        return Examples(features.astype(np.int32), self._ids[targets].astype(np.int32))


class WindowOptions:
    """What a study may say about windows. Raises DataError."""

    def __init__(self, options: Options) -> None:
        self.share = options.number("held_out", 0.1, 0.01, 0.9)
        self.stride = options.integer("stride", 1, 1, 1000)
        self.least = options.integer("least", 1, 1, 1_000_000)
        self.test_examples = options.integer("test_examples", 10_000, 1, 2**20)


def streams(texts: Mapping[str, Sequence[NDArray[Any]]], separator: int) -> Arrays:
    """The arrays of `Windows`: of every name, in sorted order, its pieces with a separator between them."""
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
