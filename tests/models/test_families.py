"""The models of the data sets: their sizes, what they take, and where their training begins."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedrho.models.flat import FlatModel
from fedrho.models.zoo import lookup

SIZES = {
    "adult-logistic": 104 * 2 + 2,
    "adult-mlp": 104 * 32 + 32 + 32 * 2 + 2,
    "characters": 126 * 16 + 20 * 16 * 128 + 128 + 128 * 126 + 126,
    "cifar-cnn": 5 * 5 * 3 * 32 + 32 + 5 * 5 * 32 * 64 + 64 + 5 * 5 * 64 * 128 + 128 + 128 * 10 + 10,
    "digits-wide-mlp": 64 * 128 + 128 + 128 * 10 + 10,
    "emnist-cnn": 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 12 * 12 * 64 * 128 + 128 + 128 * 62 + 62,
    "mnist-cnn": 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 12 * 12 * 64 * 128 + 128 + 128 * 10 + 10,
    "mnist-logistic": 7850,
    "mnist-small-cnn": 3 * 3 * 16 + 16 + 3 * 3 * 16 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 7 * 7 * 64 * 10 + 10,
    "movielens-ratings": (6041 + 3953) * 32 + 64 * 64 + 64 + 64 * 64 + 64 + 64 * 5 + 5,
    "movies": 3954 * 16 + 8 * 16 * 64 + 64 + 64 * 3954 + 3954,
    "words": 2048 * 32 + 8 * 32 * 64 + 64 + 64 * 2048 + 2048,
}
STAGE_CONVOLUTIONS = [4 * 64 * 64] + [width * width // 2 + 3 * width * width for width in (128, 256, 512)]
LARGE = {
    "cifar-resnet18": 3 * 3 * (3 * 64 + sum(STAGE_CONVOLUTIONS))  # of 3x3
    + (64 * 128 + 128 * 256 + 256 * 512)  # of 1x1, beside the stages that halve
    + 2 * (64 + 3 * 64 + sum(width // 2 + 3 * width for width in (128, 256, 512)) + 512)  # scales and offsets of 17 norms
    + (512 * 10 + 10)
}
"""Whose building takes seconds."""


PAGE = Path(__file__).parents[2] / "docs" / "own-model.md"


def test_every_model_is_documented_with_its_weights() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| [^|]+ \| ([\d,]+) \| ([\d,]+) \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = {name: (int(classes.replace(",", "")), int(weights.replace(",", ""))) for name, classes, weights in rows}
    sizes = {**SIZES, **LARGE, "digits-logistic": 650, "digits-mlp": 2410}
    assert documented == {name: (lookup(name).classes, size) for name, size in sizes.items()}


@pytest.mark.parametrize("name", [*SIZES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_model_has_the_weights_that_its_layers_add_up_to_and_takes_what_it_says(name: str) -> None:
    spec = lookup(name)
    model = FlatModel(spec)
    assert model.size == {**SIZES, **LARGE}[name]
    shape = (3, *spec.input_shape)
    inputs = np.ones(shape, dtype=np.int32) if spec.vocabulary else np.ones(shape, dtype=np.float32)
    labels = np.array([0, 1, spec.classes - 1], dtype=np.int32)
    before = model.weights()
    model.sgd_step(inputs, labels, 0.1)
    assert np.isfinite(model.weights()).all()
    assert not np.array_equal(before, model.weights())


def test_the_benchmark_network_has_1_206_590_weights() -> None:
    assert SIZES["emnist-cnn"] == 1_206_590
    assert "1,206,590 parameters" in (lookup("emnist-cnn").build.func.__doc__ or "")  # type: ignore[attr-defined]


def test_the_same_seed_begins_with_the_same_weights_and_another_with_others() -> None:
    first, again, other = (FlatModel(lookup("emnist-cnn"), seed).weights() for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_biases_begin_at_zero_and_kernels_in_kerass_uniform_interval() -> None:
    model = FlatModel(lookup("mnist-cnn"), 0)
    parts = {segment.name: model.weights()[segment.offset : segment.offset + segment.size] for segment in model.layout}
    kernel = next(values for name, values in parts.items() if "hidden/kernel" in name)
    limit = np.sqrt(6 / (12 * 12 * 64 + 128))
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert all(not values.any() for name, values in parts.items() if "bias" in name)
