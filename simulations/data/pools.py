"""A pool of examples and who holds them: shared out once, or drawn anew for each of any number of devices.

Randomness is keyed by (seed, purpose, device), so that a device holds the same in every process and costs nothing until asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import Features, Labels
from fedrho.simulations.data.base import Examples, FederatedDataset
from fedrho.simulations.data.options import MOST_DEVICES, MOST_SEED, Option, Options
from fedrho.simulations.data.splits import Indices, dirichlet_owners, grouped, shard_owners

SPLIT, HELD, EXAMPLES, COUNT, CENTRES = 1, 0, 2, 4, 3
"""Purposes of random numbers; the first four are those of the demo and of fleets, whose devices must stay the same."""

MOST_EXAMPLES = 2**20
"""Of one drawn device."""
DEVIATIONS = 1024
MOST_DEVIATION = 2**22
"""Numbers of all deviations together, where examples are large."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples as they are kept, often memory-mapped bytes; `divisor` scales them as they become features."""

    features: NDArray[Any]
    labels: Labels
    divisor: float = 1.0
    shape: tuple[int, ...] = ()
    """Of one example, where it is not as it is kept."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Indices | slice) -> Examples:
        labels = np.ascontiguousarray(self.labels[chosen], dtype=np.int32)
        kept = self.features[chosen]
        if kept.dtype == np.int32:
            features: Features = np.ascontiguousarray(kept)
        else:
            features = np.ascontiguousarray(kept, dtype=np.float32)
            if self.divisor != 1.0:
                features = features / np.float32(self.divisor)
        return Examples(features.reshape(len(labels), *(self.shape or kept.shape[1:])), labels)


class HeldOut:
    """The held-out examples of a pool, made once when they are first asked for."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @cached_property
    def held_out(self) -> Examples:
        return self._pool.take(slice(None))


class Divided(HeldOut):
    """Every example of the pool belongs to exactly one device.

    A pool in memory is put into the order of its devices, whose examples are then views; one that is mapped stays as it is, so
    that processes share it.
    """

    def __init__(self, pool: Pool, owner: Indices, devices: int, test: Pool) -> None:
        super().__init__(test)
        self._train = pool
        self._order, self._starts = grouped(owner, devices)
        self._sorted = None if isinstance(pool.features, np.memmap) else pool.take(self._order)
        if self._sorted is not None:
            self._sorted.features.flags.writeable = self._sorted.labels.flags.writeable = False

    @property
    def size(self) -> int:
        return len(self._starts) - 1

    def count(self, device: int) -> int:
        return int(self._starts[check_device(device, self.size) + 1] - self._starts[device])

    def members(self, device: int) -> Indices:
        """Which examples of the pool a device holds."""
        return self._order[self._starts[check_device(device, self.size)] : self._starts[device + 1]]

    def examples(self, device: int) -> Examples:
        if self._sorted is None:
            return self._train.take(self.members(device))
        held = slice(self._starts[check_device(device, self.size)], self._starts[device + 1])
        return Examples(self._sorted.features[held], self._sorted.labels[held])


@dataclass(frozen=True)
class Drawing:
    """How many devices, how many examples each, how unlike one another, from which seed."""

    devices: int
    least: int
    most: int
    alpha: float
    seed: int

    def count(self, device: int) -> int:
        if self.least == self.most:
            return self.least
        return int(np.random.default_rng((self.seed, COUNT, device)).integers(self.least, self.most, endpoint=True))

    def classes(self, device: int, classes: int) -> tuple[np.random.Generator, NDArray[np.int64]]:
        """The places of a device's classes, by its own Dirichlet mix; and the generator for what follows."""
        generator = np.random.default_rng((self.seed, EXAMPLES, device))
        mix = generator.dirichlet(np.full(classes, self.alpha))
        return generator, generator.choice(classes, self.count(device), p=mix)


class Drawn(HeldOut):
    """Any number of devices, whose examples are drawn with replacement from a pool whenever they are asked for."""

    def __init__(self, pool: Pool, drawing: Drawing, test: Pool) -> None:
        super().__init__(test)
        self._train, self._drawing = pool, drawing
        self._order = np.argsort(pool.labels, kind="stable")
        _, self._starts, self._sizes = np.unique(pool.labels[self._order], return_index=True, return_counts=True)

    @property
    def size(self) -> int:
        return self._drawing.devices

    def count(self, device: int) -> int:
        return self._drawing.count(check_device(device, self.size))

    def examples(self, device: int) -> Examples:
        generator, wanted = self._drawing.classes(check_device(device, self.size), len(self._sizes))
        return self._train.take(self._order[self._starts[wanted] + generator.integers(0, self._sizes[wanted])])


@dataclass(frozen=True)
class MadeUpInputs:
    """What made-up examples look like: normals around one centre a class, or ids of tokens of which each class has its own."""

    shape: tuple[int, ...]
    classes: int
    vocabulary: int = 0
    noise: float = 0.5


class MadeUp:
    """Any number of devices with examples of no pool, for a model of any input.

    An example is the centre of its class and one of a thousand deviations, which are drawn once: normal draws for every number
    would take longer than small models take to train. What is held out has deviations of its own.
    """

    def __init__(self, inputs: MadeUpInputs, drawing: Drawing, test_examples: int) -> None:
        self._inputs, self._drawing, self._test_examples = inputs, drawing, test_examples
        generator = np.random.default_rng((drawing.seed, CENTRES))
        size = (inputs.classes, *inputs.shape)
        self._centres: NDArray[Any]
        if inputs.vocabulary:
            self._centres = generator.integers(0, inputs.vocabulary, size, dtype=np.int32)
            return
        self._centres = generator.standard_normal(size, np.float32)
        rows = max(1, min(DEVIATIONS, MOST_DEVIATION // math.prod(inputs.shape)))
        self._deviations = np.float32(inputs.noise) * generator.standard_normal((rows, *inputs.shape), np.float32)

    @property
    def size(self) -> int:
        return self._drawing.devices

    @cached_property
    def held_out(self) -> Examples:
        generator = np.random.default_rng((self._drawing.seed, HELD))
        labels = (np.arange(self._test_examples) % self._inputs.classes).astype(np.int32)
        if self._inputs.vocabulary:
            return self._tokens(generator, labels)
        noise = np.float32(self._inputs.noise) * generator.standard_normal((len(labels), *self._inputs.shape), np.float32)
        return Examples(noise + self._centres[labels], labels)

    def count(self, device: int) -> int:
        return self._drawing.count(check_device(device, self.size))

    def examples(self, device: int) -> Examples:
        generator, classes = self._drawing.classes(check_device(device, self.size), self._inputs.classes)
        labels = classes.astype(np.int32)
        if self._inputs.vocabulary:
            return self._tokens(generator, labels)
        features = self._deviations[generator.integers(0, len(self._deviations), len(labels))]
        features += self._centres[labels]
        return Examples(features, labels)

    def _tokens(self, generator: np.random.Generator, labels: Labels) -> Examples:
        """Each token is that of the class, or any other."""
        usual = self._centres[labels]
        strange = generator.random(usual.shape) < self._inputs.noise
        other = generator.integers(0, self._inputs.vocabulary, usual.shape, dtype=np.int32)
        return Examples(np.where(strange, other, usual), labels)


def check_device(device: int, size: int) -> int:
    """The device; raises IndexError for one that there is not."""
    if not 0 <= device < size:
        raise IndexError(f"device {device} of {size}")
    return device


# -- what a study may say about it ---------------------------------------------------------------------------------------------

SplitPool = Callable[[Pool, Pool], FederatedDataset]
"""A pool and the held-out one, to devices; raises ValueError where there are too few examples."""

SEED = Option("seed", "0", "0 or more", "of the split; never of noise")
DRAWN_OPTIONS = (
    Option("devices", "100", "1 or more", "how many"),
    Option("examples", "100", "1 to 1048576", "examples of a device"),
    Option(
        "examples_most", "as `examples`", "`examples` to 1048576", "a device has between `examples` and so many, equally likely"
    ),
    Option("alpha", "1.0", "0.001 to 1e6", "Dirichlet concentration of a device's classes; small means few classes"),
)
SPLIT_OPTIONS = (
    Option("devices", "100", "1 to the number of examples; `drawn`: 1 or more", "how many"),
    Option("alpha", "1.0", "0.001 to 1e6", "`dirichlet`, `drawn`: concentration; small means that a device knows few classes"),
    Option("shards_each", "2", "1 to 1000", "`shards`: runs of sorted examples that a device gets (McMahan et al. 2017)"),
    Option("examples", "100", "1 to 1048576", "`drawn`: examples of a device"),
    Option("examples_most", "as `examples`", "`examples` to 1048576", "`drawn`: a device has between `examples` and so many"),
    SEED,
)


def split_of(options: Options, kind: str) -> SplitPool:
    """`dirichlet`, `shards` or `drawn`, with its options. Raises DataError."""
    if kind == "drawn":
        drawing = drawing_of(options)
        return lambda train, test: Drawn(train, drawing, test)
    devices = options.integer("devices", 100, 1, MOST_DEVICES)
    alpha = options.number("alpha", 1.0, 0.001, 1e6) if kind == "dirichlet" else 1.0
    shards_each = options.integer("shards_each", 2, 1, 1000) if kind == "shards" else 0
    seed = seed_of(options)

    def split(train: Pool, test: Pool) -> FederatedDataset:
        try:
            generator = np.random.default_rng((seed, SPLIT))
            if kind == "shards":
                owner = shard_owners(train.labels, devices, shards_each, generator)
            else:
                owner = dirichlet_owners(train.labels, devices, alpha, generator)
        except ValueError as error:
            raise options.wrong("devices", str(error)) from error
        return Divided(train, owner, devices, test)

    return split


def drawing_of(options: Options) -> Drawing:
    devices = options.integer("devices", 100, 1, MOST_DEVICES)
    least = options.integer("examples", 100, 1, MOST_EXAMPLES)
    most = options.integer("examples_most", least, least, MOST_EXAMPLES)
    return Drawing(devices, least, most, options.number("alpha", 1.0, 0.001, 1e6), seed_of(options))


def seed_of(options: Options) -> int:
    return options.integer("seed", 0, 0, MOST_SEED)
