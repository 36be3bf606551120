"""Who holds which example of a pool: every example belongs to exactly one device, and no device is empty."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import Labels

Indices = NDArray[np.int64]


def dirichlet_owners(labels: Labels, devices: int, alpha: float, generator: np.random.Generator) -> Indices:
    """Each example's device: every class is divided by its own Dirichlet(alpha) draw; no device is empty.

    Source: Hsu, Qi & Brown 2019 (arXiv 1909.06335), with the draw per class.
    """
    _check(len(labels), devices)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a finite number above 0, not {alpha}")
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(devices, alpha))
        owner[members] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(members)) + 0.5) / len(members))
    _fill_empty(owner, devices, generator)
    return owner


def _fill_empty(owner: Indices, devices: int, generator: np.random.Generator) -> None:
    """The richest device gives one example to each that has none."""
    counts = np.bincount(owner, minlength=devices)
    for device in np.flatnonzero(counts == 0).tolist():
        richest = int(counts.argmax())
        owner[generator.choice(np.flatnonzero(owner == richest))] = device
        counts[richest] -= 1
        counts[device] += 1


def shard_owners(labels: Labels, devices: int, shards_each: int, generator: np.random.Generator) -> Indices:
    """Each example's device: sorted by label, cut into `devices` times `shards_each` runs, which are dealt at random.

    Source: McMahan et al. 2017 (arXiv 1602.05629), section 3; examples of one label are shuffled first.
    """
    shards = devices * shards_each
    if devices < 1 or shards > len(labels):
        raise ValueError(f"{len(labels)} examples cannot be cut into {devices} times {shards_each} shards that are not empty")
    shuffled = generator.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    dealt = generator.permutation(shards)
    owner = np.empty(len(labels), dtype=np.int64)
    for shard, part in enumerate(np.array_split(order, shards)):
        owner[part] = dealt[shard] // shards_each
    return owner


def grouped(owner: Indices, devices: int) -> tuple[Indices, Indices]:
    """The examples in the order of their devices, and where each device's begin; one more beginning than devices."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=devices))])
    return np.argsort(owner, kind="stable"), starts


def dirichlet_split(labels: Labels, parts: int, alpha: float, generator: np.random.Generator) -> list[Indices]:
    """Indices of each part, in order; see `dirichlet_owners`."""
    order, starts = grouped(dirichlet_owners(labels, parts, alpha, generator), parts)
    return [order[starts[part] : starts[part + 1]] for part in range(parts)]


def _check(examples: int, devices: int) -> None:
    if not 1 <= devices <= examples:
        raise ValueError(f"{examples} examples cannot be shared among {devices} devices; allowed: 1 to {examples}")
