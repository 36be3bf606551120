"""Who holds which digits: everything once, nothing twice, nobody empty."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedrho.client.examples import ArrayExamples, Features
from fedrho.protos.messages import Encoding, RoundPlan
from fedrho.simulations.population import HELD_OUT, FederatedData, digits, dirichlet_split

EVERYTHING = RoundPlan(bytes(16), 1, 1, "m", bytes(32), 650, 1.0, 20, Encoding.INT32_LE, 1, 10_000, 0.1, 1, 0)
LABELS = np.repeat(np.arange(10, dtype=np.int32), 100)

Digit = tuple[bytes, int]
split = cache(digits)


def rows(features: Features, labels: NDArray[np.int32]) -> list[Digit]:
    return [(row.tobytes(), int(label)) for row, label in zip(features, labels, strict=True)]


def held(device: ArrayExamples) -> list[Digit]:
    """A device's digits, as its training would see them."""
    (batch,) = device.batches(EVERYTHING)
    return rows(batch.features, batch.labels)


def held_by_all(data: FederatedData) -> list[Digit]:
    return [digit for device in data.devices for digit in held(device)]


def mean_classes(data: FederatedData) -> float:
    return float(np.mean([len({label for _, label in held(device)}) for device in data.devices]))


@pytest.mark.parametrize("devices", [1, 40, 400])
def test_every_digit_belongs_to_one_device_or_to_the_test(devices: int) -> None:
    features, labels = load_digits(return_X_y=True)
    everything = rows((features / 16.0).astype(np.float32), labels.astype(np.int32))
    data = split(devices)
    assert sorted(held_by_all(data) + rows(data.test_features, data.test_labels)) == sorted(everything)
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("devices", [1, 40, 400])
def test_no_device_is_empty_and_none_is_missing(devices: int) -> None:
    data = split(devices)
    assert len(data.devices) == devices
    assert min(len(device) for device in data.devices) >= 1
    assert sum(len(device) for device in data.devices) == 1797 - HELD_OUT


def test_test_digits_are_the_same_for_any_number_of_devices_and_belong_to_none() -> None:
    tests = [rows(split(devices).test_features, split(devices).test_labels) for devices in (1, 40, 400)]
    assert tests[0] == tests[1] == tests[2]
    assert len(tests[0]) == HELD_OUT
    assert not set(tests[0]) & set(held_by_all(split(40)))


def test_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    first, again, other = digits(40, 1.0, 3), digits(40, 1.0, 3), digits(40, 1.0, 4)
    assert [held(device) for device in first.devices] == [held(device) for device in again.devices]
    assert [held(device) for device in first.devices] != [held(device) for device in other.devices]
    assert set(rows(first.test_features, first.test_labels)) != set(rows(other.test_features, other.test_labels))


def test_features_are_float32_between_0_and_1_and_labels_are_classes() -> None:
    data = split(40)
    assert data.test_features.dtype == np.float32
    assert data.test_features.shape == (HELD_OUT, 64)
    assert (data.test_features.min(), data.test_features.max()) == (0.0, 1.0)
    assert data.test_labels.dtype == np.int32
    assert set(data.test_labels.tolist()) == set(range(10))


def test_small_alpha_leaves_a_device_with_fewer_classes() -> None:
    few, some, many = (mean_classes(digits(40, alpha, 0)) for alpha in (0.05, 1.0, 100.0))
    assert few < some < many
    assert few < 4
    assert many > 9


@settings(deadline=None, max_examples=60)
@given(parts=st.integers(1, 125), alpha=st.floats(1e-6, 1e6), seed=st.integers(0, 2**32))
def test_any_split_is_a_partition_into_parts_that_are_not_empty(parts: int, alpha: float, seed: int) -> None:
    found = dirichlet_split(LABELS[::8], parts, alpha, np.random.default_rng(seed))
    assert len(found) == parts
    assert all(len(part) > 0 for part in found)
    assert sorted(int(index) for part in found for index in part) == list(range(125))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_concentration_that_is_no_positive_number_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        dirichlet_split(LABELS, 5, alpha, np.random.default_rng(0))


@pytest.mark.parametrize("parts", [-1, 0, 1001])
def test_more_devices_than_examples_or_none_are_refused(parts: int) -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 1000"):
        dirichlet_split(LABELS, parts, 1.0, np.random.default_rng(0))


def test_one_device_for_every_digit_is_the_limit() -> None:
    assert {len(device) for device in digits(1437).devices} == {1}
    with pytest.raises(ValueError, match="allowed: 1 to 1437"):
        digits(1438)
