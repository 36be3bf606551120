"""Digits and made-up examples: any number of devices that cost nothing until they are asked for, the same in every process."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedrho.simulations.data.base import DataSource, FederatedDataset
from fedrho.simulations.data.catalogue import open_data
from fedrho.simulations.population import digits, drawn_digits, made_up
from tests.simulations.data.opening import digest, held_by_all, opened, rows

MADE_UP: dict[str, Any] = {"name": "made-up", "shape": [28, 28, 1], "classes": 62}
LAZY: list[dict[str, Any]] = [
    {"name": "digits-drawn", "examples": 5, "examples_most": 500},
    MADE_UP,
    {"name": "made-up", "shape": [8], "classes": 30, "vocabulary": 100, "noise": 0.2},
]
ALL: list[dict[str, Any]] = [
    *LAZY,
    {"name": "digits"},
    {"name": "digits", "split": "shards"},
    {"name": "digits", "split": "drawn"},
]


def of(section: dict[str, Any], **more: object) -> FederatedDataset:
    return open_data(DataSource.of({**section, **more}))


@pytest.mark.parametrize(("split", "devices"), [("dirichlet", 1), ("dirichlet", 40), ("dirichlet", 1437), ("shards", 40)])
def test_every_digit_belongs_to_one_device_or_to_the_test(split: str, devices: int) -> None:
    features, labels = load_digits(return_X_y=True)
    everything = sorted(
        (row.tobytes(), int(label)) for row, label in zip((features / 16).astype(np.float32), labels, strict=True)
    )
    data = opened("digits", split=split, devices=devices)
    assert data.size == devices
    assert sorted(held_by_all(data) + rows(data.held_out)) == everything
    assert [data.count(device) for device in range(devices)] == [len(data.examples(device)) for device in range(devices)]


def test_the_demo_and_a_simulation_split_alike() -> None:
    data, demo = opened("digits", devices=40, alpha=0.5, seed=3), digits(40, 0.5, 3)
    assert [len(device) for device in demo.devices] == [data.count(device) for device in range(40)]
    assert np.array_equal(demo.test_features, data.held_out.features)


@pytest.mark.parametrize("section", LAZY)
def test_a_million_devices_take_no_memory_and_the_last_is_like_the_first(section: dict[str, Any]) -> None:
    of(section, devices=3).held_out  # noqa: B018 - what is imported and computed once is not counted
    few, many = (peak(section, devices) for devices in (100, 10**6))
    assert many < 1.1 * few + 2**16


def peak(section: dict[str, Any], devices: int) -> int:
    """Bytes at most, of opening and of asking for three devices."""
    tracemalloc.start()
    data = of(section, devices=devices)
    for device in (0, devices // 2, devices - 1):
        assert data.count(device) == len(data.examples(device)) >= 1
    assert data.size == devices
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("section", LAZY)
def test_a_device_is_the_same_whatever_the_number_of_devices(section: dict[str, Any]) -> None:
    assert digest(of(section, devices=10).examples(7)) == digest(of(section, devices=10**9).examples(7))


@pytest.mark.parametrize("section", ALL)
def test_seeds_decide_and_devices_differ(section: dict[str, Any]) -> None:
    first, again, other = (of(section, seed=seed) for seed in (1, 1, 2))
    assert digest(first.examples(3)) == digest(again.examples(3))
    assert digest(first.held_out) == digest(again.held_out)
    assert digest(first.examples(3)) != digest(other.examples(3)) != digest(first.examples(4))


@pytest.mark.slow
def test_another_process_has_the_same_bytes() -> None:
    program = (
        "import json, sys\n"
        "from fedrho.simulations.data.base import DataSource\n"
        "from fedrho.simulations.data.catalogue import open_data\n"
        "from tests.simulations.data.opening import digest\n"
        "for section in json.loads(sys.argv[1]):\n"
        "    data = open_data(DataSource.of(section))\n"
        "    print(digest(data.examples(5)), digest(data.held_out))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, json.dumps(ALL)], capture_output=True, text=True, check=True)
    here = [f"{digest(of(section).examples(5))} {digest(of(section).held_out)}" for section in ALL]
    assert ran.stdout.splitlines() == here


@pytest.mark.parametrize("section", ALL)
def test_a_device_that_there_is_not_is_an_error(section: dict[str, Any]) -> None:
    data = of(section)
    for device in (-1, data.size):
        with pytest.raises(IndexError):
            data.examples(device)
        with pytest.raises(IndexError):
            data.count(device)


def test_drawn_devices_have_as_many_examples_as_asked_for() -> None:
    data = opened("digits-drawn", devices=10**6, examples=5, examples_most=9)
    counts = [data.count(device) for device in range(500)]
    assert set(counts) == {5, 6, 7, 8, 9}
    assert counts[:20] == [len(data.examples(device)) for device in range(20)]
    assert opened("digits-drawn", examples=20).count(3) == 20


def test_drawn_digits_are_never_held_out_ones() -> None:
    data = opened("digits-drawn", devices=200)
    held = set(rows(data.held_out))
    assert len(held) == 360
    assert not held & {row for device in range(200) for row in rows(data.examples(device))}


def test_a_small_alpha_leaves_a_device_with_fewer_classes() -> None:
    def classes(alpha: float) -> float:
        data = opened("digits-drawn", devices=50, alpha=alpha)
        return float(np.mean([len(set(data.examples(device).labels.tolist())) for device in range(50)]))

    assert classes(0.05) < 4 < classes(1.0) < classes(100.0)


def test_made_up_tokens_are_ids_below_the_vocabulary() -> None:
    examples = of(LAZY[2], devices=10**6).examples(999_999)
    assert examples.features.dtype == np.int32
    assert examples.features.shape == (100, 8)
    assert 0 <= examples.features.min() <= examples.features.max() < 100


def test_made_up_examples_can_be_told_apart() -> None:
    """The nearest mean of a class, over a hundred devices, says the class of most that is held out."""
    data = opened("made-up", devices=100)
    features = np.concatenate([data.examples(device).features for device in range(100)])
    labels = np.concatenate([data.examples(device).labels for device in range(100)])
    means = np.stack([features[labels == label].mean(axis=0) for label in range(10)])
    distances = ((data.held_out.features[:, np.newaxis] - means) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == data.held_out.labels).mean() > 0.95


def test_a_fleet_draws_what_a_simulation_draws() -> None:
    data = opened("digits-drawn", examples=20, seed=3, devices=10)
    assert len(drawn_digits(20, seed=3).device(7)) == data.count(7) == 20
    assert len(made_up((4,), 3, 5).device(2**33)) == 5
