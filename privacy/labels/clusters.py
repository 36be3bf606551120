"""Groups of similar records, by public features alone: k-means (Lloyd 1982), begun by k-means++ (Arthur & Vassilvitskii 2007).

A private histogram of the labels of each group is a prior for its records. The seed is public, and so are groups and their sizes;
on one machine the same features and seed give the same groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Features = NDArray[np.float64]

MOST_SWEEPS = 100
"""Of Lloyd's algorithm; it ends as soon as no record changes its group."""
ROWS = 8192
"""How many records are compared with all centres at once."""


def kmeans(features: NDArray[Any], groups: int, seed: int) -> NDArray[np.int64]:
    """The group of each of n records, from 0 up to but without `groups`; a group may stay empty where records are alike.

    `features` of shape (n, ...). Raises ValueError for features that are not finite, and for more groups than records.
    """
    return nearest(features, centres(features, groups, seed))


def centres(features: NDArray[Any], groups: int, seed: int) -> Features:
    """Of shape (groups, d); devices that are told them find their own groups with `nearest`."""
    rows = _rows(features)
    if not 1 <= groups <= len(rows):
        raise ValueError(f"{len(rows)} records make from 1 to {len(rows)} groups, not {groups}")
    middles = _begun(rows, groups, np.random.default_rng(seed))
    chosen = nearest(rows, middles)
    for _ in range(MOST_SWEEPS):
        middles = _middles(rows, chosen, middles)
        before, chosen = chosen, nearest(rows, middles)
        if np.array_equal(before, chosen):
            break
    return middles


def nearest(features: NDArray[Any], middles: Features) -> NDArray[np.int64]:
    """Of each record the closest centre; of several the first."""
    rows = _rows(features)
    if rows.shape[1] != middles.shape[1]:
        raise ValueError(f"records of {rows.shape[1]} features are not comparable with centres of {middles.shape[1]}")
    found = [(_half_squares(middles) - part @ middles.T).argmin(axis=1) for part in _parts(rows)]
    return np.concatenate([np.empty(0, dtype=np.int64), *found]).astype(np.int64)


def principal(features: NDArray[Any], count: int) -> Features:
    """The `count` coordinates in which records differ most (Pearson 1901), of shape (n, count): k-means on them is much faster.

    A direction's sign is that of its largest entry, so that the same features give the same coordinates.
    """
    rows = _rows(features)
    if not 1 <= count <= rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} features have from 1 to {rows.shape[1]} principal coordinates, not {count}")
    centred = rows - rows.mean(axis=0)
    _, directions = scipy.linalg.eigh(centred.T @ centred, subset_by_index=(rows.shape[1] - count, rows.shape[1] - 1))
    largest = np.abs(directions).argmax(axis=0)
    signed: Features = directions * np.sign(directions[largest, np.arange(count)])
    coordinates: Features = centred @ signed[:, ::-1]
    return coordinates


def _begun(rows: Features, groups: int, generator: np.random.Generator) -> Features:
    """Centres drawn one by one, each with a chance that grows with its squared distance from those before; of a few the best."""
    tries = 2 + int(np.log(groups))
    drawn = [int(generator.integers(len(rows)))]
    distances = _squares(rows, rows[drawn])[:, 0]
    while len(drawn) < groups:
        total = distances.cumsum()
        candidates = np.searchsorted(total, generator.random(tries) * total[-1], side="right").clip(max=len(rows) - 1)
        after = np.minimum(distances[:, None], _squares(rows, rows[candidates]))
        best = int(after.sum(axis=0).argmin())
        drawn.append(int(candidates[best]))
        distances = after[:, best]
    return rows[drawn]


def _middles(rows: Features, chosen: NDArray[np.int64], before: Features) -> Features:
    """Of each group the mean of its records; an empty one stays where it was."""
    groups, count = len(before), len(rows)
    member = scipy.sparse.csr_array((np.ones(count), (chosen, np.arange(count))), shape=(groups, count))
    sizes = np.bincount(chosen, minlength=groups)[:, None]
    middles: Features = np.where(sizes > 0, (member @ rows) / np.maximum(sizes, 1), before)
    return middles


def _squares(rows: Features, points: Features) -> Features:
    """Squared distances, of shape (n, points)."""
    squares = [2.0 * (_half_squares(part)[:, None] + _half_squares(points) - part @ points.T) for part in _parts(rows)]
    return np.maximum(np.concatenate(squares), 0.0)


def _half_squares(points: Features) -> Features:
    halves: Features = 0.5 * np.einsum("ij,ij->i", points, points)
    return halves


def _parts(rows: Features) -> Iterator[Features]:
    return (rows[begin : begin + ROWS] for begin in range(0, len(rows), ROWS))


def _rows(features: NDArray[Any]) -> Features:
    rows = np.asarray(features, dtype=np.float64).reshape(len(features), -1)
    if not np.isfinite(rows).all():
        raise ValueError("features to be grouped are finite numbers")
    return rows
