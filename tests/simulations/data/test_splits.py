"""Whoever shares out examples: everything once, nothing twice, nobody empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.simulations.data.splits import dirichlet_owners, dirichlet_split, grouped, shard_owners

LABELS = np.repeat(np.arange(10, dtype=np.int32), 100)[np.random.default_rng(0).permutation(1000)]


@settings(deadline=None, max_examples=60)
@given(devices=st.integers(1, 1000), alpha=st.floats(1e-3, 1e4), seed=st.integers(0, 2**32))
def test_dirichlet_gives_every_example_to_one_device_and_none_nothing(devices: int, alpha: float, seed: int) -> None:
    owner = dirichlet_owners(LABELS, devices, alpha, np.random.default_rng(seed))
    assert set(owner.tolist()) == set(range(devices))
    assert len(owner) == len(LABELS)


@settings(deadline=None, max_examples=60)
@given(devices=st.integers(1, 300), shards_each=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_shards_give_every_example_to_one_device_and_equal_shares(devices: int, shards_each: int, seed: int) -> None:
    owner = shard_owners(LABELS, devices, shards_each, np.random.default_rng(seed))
    counts = np.bincount(owner, minlength=devices)
    assert counts.sum() == len(LABELS)
    assert len(counts) == devices
    assert counts.max() - counts.min() <= shards_each


def test_two_shards_each_are_two_labels_at_most() -> None:
    """McMahan et al. 2017: shards of 5 of 100 alike never straddle labels here, so that no device knows more than two."""
    owner = shard_owners(LABELS, 100, 2, np.random.default_rng(0))
    assert max(len(set(LABELS[owner == device].tolist())) for device in range(100)) == 2
    assert set(np.bincount(owner).tolist()) == {10}


def test_grouping_says_what_each_device_holds() -> None:
    owner = np.array([2, 0, 2, 1, 0])
    order, starts = grouped(owner, 4)
    assert [order[starts[device] : starts[device + 1]].tolist() for device in range(4)] == [[1, 4], [3], [0, 2], []]


def test_a_split_is_the_grouping_of_its_owners() -> None:
    parts = dirichlet_split(LABELS, 7, 0.5, np.random.default_rng(1))
    owner = dirichlet_owners(LABELS, 7, 0.5, np.random.default_rng(1))
    assert all((owner[part] == device).all() for device, part in enumerate(parts))


@pytest.mark.parametrize(("devices", "shards_each"), [(0, 1), (501, 2), (1001, 1)])
def test_more_shards_than_examples_are_refused(devices: int, shards_each: int) -> None:
    with pytest.raises(ValueError, match="1000 examples cannot be cut"):
        shard_owners(LABELS, devices, shards_each, np.random.default_rng(0))


def test_as_many_devices_as_examples_get_one_each() -> None:
    owner = dirichlet_owners(np.tile(LABELS, 20), 20_000, 1.0, np.random.default_rng(0))
    assert np.bincount(owner).tolist() == [1] * 20_000
