"""Which models are trained many clients at once; and that every layer of the list can be."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from fedrho.models.base import ModelSpec
from fedrho.models.compiled import WholeTraining
from fedrho.models.flat import FlatModel
from fedrho.models.optimizers import LocalOptimizer
from fedrho.models.vectorised import MOST_WEIGHTS, ROW_BY_ROW, StackedTraining, vectorises
from fedrho.models.zoo import lookup

L = keras.layers


def spec(*layers: Callable[[], object], inputs: tuple[int, ...] = (6,), dtype: str = "float32", classes: int = 3) -> ModelSpec:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input(inputs, dtype=dtype), *(layer() for layer in layers), L.Dense(classes)])

    return ModelSpec("made-up", "", inputs, classes, build, dtype)


def branches() -> keras.Model:
    inputs = keras.Input((6,))
    left, right = L.Dense(4)(inputs), L.Dense(4)(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Concatenate()([L.Add()([left, right]), left])))


MODELS = [
    spec(lambda: L.Rescaling(0.5), lambda: L.Dense(5), lambda: L.ReLU(), lambda: L.Dense(4), lambda: L.Softmax()),
    spec(lambda: L.Flatten(), lambda: L.Dense(5, "tanh"), lambda: L.LeakyReLU(), lambda: L.ELU(), inputs=(2, 3)),
    spec(lambda: L.Reshape((2, 3)), lambda: L.Activation("sigmoid"), lambda: L.Flatten()),
    spec(lambda: L.Embedding(9, 4), lambda: L.GlobalAveragePooling1D(), inputs=(5,), dtype="int32"),
    ModelSpec("branches", "", (6,), 3, branches),
]


def examples(model: ModelSpec, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(count)
    shape = (count, *model.input_shape)
    features = generator.integers(0, 9, shape) if model.input_dtype == "int32" else generator.normal(size=shape)
    return features.astype(model.input_dtype), generator.integers(0, 3, count).astype(np.int32)


@pytest.mark.parametrize("model", MODELS)
def test_rows_come_to_what_each_comes_to_alone(model: ModelSpec) -> None:
    flat, sgd = FlatModel(model, seed=1), LocalOptimizer("sgd", 0.5)
    (features, labels), weights = examples(model, 10), flat.weights()
    places = np.array([[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 9, 9]], dtype=np.int32)
    shares = np.array([[1 / 3] * 3] * 3 + [[1, 0, 0]], dtype=np.float32)
    starts = np.array([0, 2, 4], dtype=np.int32)
    stacked, losses = StackedTraining(flat, sgd)(weights, features, labels, (places, shares, starts))
    orders = np.arange(6, dtype=np.int32), np.arange(6, 10, dtype=np.int32)
    for row, loss, order, last in zip(stacked, losses, orders, (6, 4), strict=True):
        ends = np.array([0, 3, last], dtype=np.int32)
        alone, its_loss = WholeTraining(flat, sgd)(weights, features, labels, order, ends)
        assert np.abs(row - alone).max() < 1e-6
        assert float(loss) == pytest.approx(float(its_loss), rel=1e-5)


def test_every_kind_of_layer_on_the_list_is_tried() -> None:
    kinds = {type(layer).__name__ for model in MODELS for layer in model.build()._flatten_layers(include_self=False)}
    assert kinds == ROW_BY_ROW


@pytest.mark.parametrize("model", [*MODELS, lookup("digits-logistic"), lookup("digits-mlp")])
def test_small_models_of_those_layers_are_vectorised_with_sgd_alone(model: ModelSpec) -> None:
    assert vectorises(model)
    assert not vectorises(model, "adam")


def test_large_models_convolutions_and_losses_of_their_own_are_not() -> None:
    large = spec(lambda: L.Dense(MOST_WEIGHTS // 6))
    convolution = spec(lambda: L.Conv2D(2, 2), lambda: L.Flatten(), inputs=(4, 4, 1))
    regularised = spec(lambda: L.Dense(4, kernel_regularizer="l2"))
    assert not any(map(vectorises, (large, convolution, regularised)))


def test_an_optimizer_with_a_state_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="sgd alone, not adam"):
        StackedTraining(FlatModel(MODELS[0]), LocalOptimizer("adam", 0.1))
