"""k-means finds what lies together, the same way every time, and from features alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from fedrho.privacy.labels import clusters


def blobs(count: int, groups: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    middles = generator.normal(0, 20, (groups, 5))
    of = generator.integers(0, groups, count)
    return middles[of] + generator.normal(0, 1, (count, 5)), of


def spread(features: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
    """Sum of squared distances to the means of the groups."""
    return sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in (features[chosen == one] for one in np.unique(chosen)))


def test_groups_that_lie_apart_are_found() -> None:
    features, of = blobs(600, 12)
    chosen = clusters.kmeans(features, 12, seed=3)
    assert len({(a, b) for a, b in zip(chosen.tolist(), of.tolist(), strict=True)}) == 12


def test_the_spread_is_no_larger_than_that_of_scipy_s() -> None:
    features = np.random.default_rng(1).normal(size=(2000, 8))
    own = np.mean([spread(features, clusters.kmeans(features, 20, seed)) for seed in range(5)])
    theirs = np.mean([spread(features, scipy.cluster.vq.kmeans2(features, 20, minit="++", rng=seed)[1]) for seed in range(5)])
    assert own <= 1.01 * theirs


def test_the_seed_decides_everything_and_shape_and_precision_of_features_nothing() -> None:
    features, _ = blobs(300, 4)
    chosen = clusters.kmeans(features, 9, seed=5)
    np.testing.assert_array_equal(chosen, clusters.kmeans(features.reshape(300, 5, 1), 9, seed=5))
    np.testing.assert_array_equal(chosen, clusters.nearest(features, clusters.centres(features, 9, seed=5)))
    assert not np.array_equal(chosen, clusters.kmeans(features, 9, seed=6))


def test_records_that_are_all_alike_are_one_group() -> None:
    assert set(clusters.kmeans(np.ones((50, 3)), 4, seed=0).tolist()) == {0}


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to 3 groups, not 4"):
        clusters.kmeans(np.zeros((3, 2)), 4, seed=0)
    with pytest.raises(ValueError, match="finite"):
        clusters.kmeans(np.array([[np.nan], [1.0]]), 1, seed=0)
    with pytest.raises(ValueError, match="comparable"):
        clusters.nearest(np.zeros((3, 2)), np.zeros((1, 4)))


def test_principal_coordinates_are_those_of_the_singular_value_decomposition() -> None:
    features = np.random.default_rng(2).normal(size=(200, 6)) * np.array([9.0, 1, 4, 1, 2, 1])
    centred = features - features.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(clusters.principal(features, 3)), np.abs(left * values)[:, :3], atol=1e-9)
    with pytest.raises(ValueError, match="from 1 to 6"):
        clusters.principal(features, 7)
