"""What a simulation asks of a data set: how many devices there are, and what each of them holds. Nothing is loaded for a device
that does not take part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedrho.client.examples import Features, Labels, Likelihoods


class DataError(ValueError):
    """A data set that cannot be used: its name, the key and what is allowed, in one line."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of shape (n, ...), float32 or int32 ids; labels int32 of shape (n,), or (n, length) of a model with a label at
    every place. n is at least 1.
    """

    features: Features
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Answered:
    """What a device trains on where a task has label privacy: features, and instead of labels their noisy answers int32 (n,), or
    how probable each answer was under every label, float32 (n, classes).
    """

    features: Features
    labels: Labels | Likelihoods

    def __len__(self) -> int:
        return len(self.labels)


class FederatedDataset(Protocol):
    """Devices are numbers from 0 to `size` - 1. Memory and time do not grow with `size`, but for what the data take."""

    @property
    def size(self) -> int:
        """How many devices there are."""

    @property
    def held_out(self) -> Examples:
        """Examples of no device, which measure accuracy."""

    def count(self, device: int) -> int:
        """How many examples a device holds, without loading them."""
        ...

    def examples(self, device: int) -> Examples:
        """The same at every call, in every process."""
        ...


@dataclass(frozen=True)
class DataSource:
    """What a study says in `[data]`; small, and pickled to every worker, which opens the data set by itself."""

    name: str
    options: tuple[tuple[str, object], ...] = ()

    @staticmethod
    def of(section: Mapping[str, object]) -> DataSource:
        """From the section of a study; raises DataError where it has no name."""
        name = section.get("name")
        if not isinstance(name, str):
            raise DataError("data.name: missing; `fedrho data` lists the data sets")
        return DataSource(name, tuple(sorted((key, value) for key, value in section.items() if key != "name")))
