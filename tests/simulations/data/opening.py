"""Short ways to a data set and to what stands in it."""

from __future__ import annotations

import hashlib

from fedrho.simulations.data.base import DataSource, Examples, FederatedDataset
from fedrho.simulations.data.catalogue import open_data

Example = tuple[bytes, int]


def opened(name: str, **options: object) -> FederatedDataset:
    return open_data(DataSource.of({"name": name, **options}))


def rows(examples: Examples) -> list[Example]:
    return [(row.tobytes(), int(label)) for row, label in zip(examples.features, examples.labels, strict=True)]


def held_by_all(data: FederatedDataset) -> list[Example]:
    return [row for device in range(data.size) for row in rows(data.examples(device))]


def digest(examples: Examples) -> str:
    """Of type, shape and every byte."""
    parts = (examples.features, examples.labels)
    said = b"".join(f"{one.dtype}{one.shape}".encode() + one.tobytes() for one in parts)
    return hashlib.sha256(said).hexdigest()
