"""Preprocessing has public constants or is refused, and the raw columns of Adult are encoded as the page says."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from fedrho.models.base import ModelSpec, UnknownModel
from fedrho.models.flat import FlatModel
from fedrho.models.tables import BOUNDARIES, CATEGORIES, DEVIATIONS, MEANS
from fedrho.models.zoo import lookup
from tests.models import golden


def adapted(layer: keras.layers.Layer) -> keras.layers.Layer:
    layer.adapt(np.arange(8, dtype=np.float32).reshape(4, 2))
    return layer


LAYERS: dict[str, Callable[[], keras.layers.Layer]] = {
    "Normalization": lambda: adapted(keras.layers.Normalization()),
    "Discretization": lambda: adapted(keras.layers.Discretization(num_bins=3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_adapted_to_examples_is_refused_with_the_reason(name: str) -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((2,)), LAYERS[name](), keras.layers.Dense(2)])

    with pytest.raises(UnknownModel, match=f"{name} is adapted to examples.* give it public constants, "):
        FlatModel(ModelSpec("own", "", (2,), 2, build))


def test_raw_columns_are_encoded_as_by_hand() -> None:
    model = FlatModel(lookup("adult-raw-mlp"))
    model.assign(golden.weights(model))
    kernel, bias, last, last_bias = (variable.numpy() for variable in model.variables)
    rows = golden.inputs(model)
    parts = [(rows[:, :3] - MEANS) / DEVIATIONS]
    for column, edges in BOUNDARIES.values():
        parts.append(np.eye(len(edges) + 1)[np.searchsorted(edges, rows[:, column], side="right")])
    for place, size in enumerate(CATEGORIES.values(), 5):
        parts.append(np.eye(size + 1)[rows[:, place].astype(int)])
    hidden = np.maximum(np.concatenate(parts, axis=1) @ kernel + bias, 0)
    assert np.abs(np.asarray(model.keras_model(rows)) - (hidden @ last + last_bias)).max() < 1e-5
