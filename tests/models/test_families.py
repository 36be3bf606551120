"""The models of the data sets: their sizes, what they take, and where their training begins."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedrho.models import base
from fedrho.models.flat import FlatModel
from fedrho.models.saved import is_saved
from fedrho.models.zoo import lookup
from tests.models import golden


def cifg(vocabulary: int, width: int, units: int) -> int:
    """Embeddings and a bias for each word; three gates that read it and the last output; a projection."""
    return vocabulary * (width + 1) + 3 * (2 * width + 1) * units + units * width


def lstm(inputs: int, units: int) -> int:
    return 4 * (inputs + units + 1) * units


def transformer(length: int, vocabulary: int, width: int = 64) -> int:
    """Two blocks of two norms, four projections of attention, and a hidden layer four times as wide."""
    block = 2 * 2 * width + 4 * (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width
    return vocabulary * (width + 1) + length * width + 2 * block + 2 * width


SIZES = {
    "adult-logistic": 104 * 2 + 2,
    "adult-mlp": 104 * 32 + 32 + 32 * 2 + 2,
    "adult-raw-mlp": (3 + 11 + 6 + 5 + 3 + 107) * 32 + 32 + 32 * 2 + 2,
    "characters": 126 * 16 + 20 * 16 * 128 + 128 + 128 * 126 + 126,
    "cifar-cnn": 5 * 5 * 3 * 32 + 32 + 5 * 5 * 32 * 64 + 64 + 5 * 5 * 64 * 128 + 128 + 128 * 10 + 10,
    "digits-wide-mlp": 64 * 128 + 128 + 128 * 10 + 10,
    "emnist-cnn": 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 12 * 12 * 64 * 128 + 128 + 128 * 62 + 62,
    "mnist-cnn": 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 12 * 12 * 64 * 128 + 128 + 128 * 10 + 10,
    "mnist-logistic": 7850,
    "mnist-small-cnn": 3 * 3 * 16 + 16 + 3 * 3 * 16 * 32 + 32 + 3 * 3 * 32 * 64 + 64 + 7 * 7 * 64 * 10 + 10,
    "movielens-ratings": (6041 + 3953) * 32 + 64 * 64 + 64 + 64 * 64 + 64 + 64 * 5 + 5,
    "movies": 3954 * 16 + 8 * 16 * 64 + 64 + 64 * 3954 + 3954,
    "words-cifg": cifg(2048, 64, 128),
    "words": 2048 * 32 + 8 * 32 * 64 + 64 + 64 * 2048 + 2048,
}
STAGE_CONVOLUTIONS = [4 * 64 * 64] + [width * width // 2 + 3 * width * width for width in (128, 256, 512)]
LARGE = {
    "cifar-resnet18": 3 * 3 * (3 * 64 + sum(STAGE_CONVOLUTIONS))  # of 3x3
    + (64 * 128 + 128 * 256 + 256 * 512)  # of 1x1, beside the stages that halve
    + 2 * (64 + 3 * 64 + sum(width // 2 + 3 * width for width in (128, 256, 512)) + 512)  # scales and offsets of 17 norms
    + (512 * 10 + 10),
    "characters-lstm": 126 * 8 + lstm(8, 256) + lstm(256, 256) + 257 * 126,
    "characters-small-lstm": 126 * 8 + lstm(8, 128) + 129 * 126,
    "characters-transformer": transformer(80, 126),
    "spanish-cifg": cifg(10_000, 96, 512),
    "words-transformer": transformer(20, 2048),
}
"""Whose building takes seconds."""
DIGITS = {"digits-logistic": 650, "digits-mlp": 2410}
"""For which test_flat.py has formulas."""
ALL = {**SIZES, **LARGE, **DIGITS}


PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_model_is_documented_with_its_weights() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| [^|]+ \| ([\d,]+) \| ([\d,]+) \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = {name: (int(classes.replace(",", "")), int(weights.replace(",", ""))) for name, classes, weights in rows}
    assert documented == {name: (lookup(name).classes, size) for name, size in ALL.items()}


@pytest.mark.parametrize(
    "name", [*SIZES, *(pytest.param(name, marks=pytest.mark.slow) for name in (*LARGE, *DIGITS, *golden.CHOSEN))]
)
def test_a_model_has_the_weights_that_its_layers_add_up_to_and_does_with_them_what_is_written(name: str) -> None:
    """Layout, outputs and a step of training as in `golden.json`; the step changes weights, and leaves them finite."""
    model = FlatModel(lookup(name))
    assert model.size == ALL[name.partition("+")[0]] == model.spec.parameters
    told = golden.measured(model)
    golden.assert_same(told, golden.known(name))
    assert told["change"][0] > 0


def test_what_is_written_is_of_every_model_there_is() -> None:
    own = {name for name in base.names() if not is_saved(name)}  # other tests add files
    assert set(golden.NAMES) == {*own, *golden.CHOSEN} == {*ALL, *golden.CHOSEN}


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


def test_a_list_knows_every_size_without_building_a_model() -> None:
    assert {name: lookup(name).parameters for name in ALL} == ALL
