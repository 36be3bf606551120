"""A Keras model as one flat vector, against plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import keras
import numpy as np
import pytest

from fedrho.models.base import ModelSpec
from fedrho.models.flat import FlatModel, FloatVector
from fedrho.models.zoo import lookup
from tests.models import reference

PARAMETERS = {"digits-logistic": 650, "digits-mlp": 2410}
FEATURES, LABELS = reference.made_up(17, seed=1)

every_model = pytest.mark.parametrize("name", PARAMETERS)


@cache
def built(name: str) -> FlatModel:
    return FlatModel(lookup(name))


def some_weights(size: int, seed: int = 2) -> FloatVector:
    return np.random.default_rng(seed).normal(0.0, 0.3, size).astype(np.float32)


@every_model
def test_model_has_the_parameters_that_its_docstring_counts(name: str) -> None:
    counted = f"{PARAMETERS[name]:,} parameters"
    assert built(name).size == PARAMETERS[name] == built(name).keras_model.count_params()
    assert counted in (lookup(name).build.__doc__ or "")


@every_model
def test_layout_covers_the_vector_without_gap_or_overlap(name: str) -> None:
    covered = np.zeros(built(name).size, dtype=int)
    for segment in built(name).layout:
        covered[segment.offset : segment.offset + segment.size] += 1
    assert (covered == 1).all()
    assert [segment.offset for segment in built(name).layout] == sorted(segment.offset for segment in built(name).layout)


@every_model
def test_layout_says_where_keras_keeps_each_variable(name: str) -> None:
    model = built(name)
    weights = some_weights(model.size)
    model.assign(weights)
    for segment, variable in zip(model.layout, model.keras_model.trainable_variables, strict=True):
        assert segment.name == variable.path
        cut = weights[segment.offset : segment.offset + segment.size]
        assert variable.numpy().tolist() == cut.reshape(segment.shape).tolist()


@every_model
def test_weights_come_back_bit_for_bit(name: str) -> None:
    weights = some_weights(built(name).size)
    weights[:4] = np.array([-0.0, 1e-45, 3.4028235e38, -1.1754944e-38], dtype=np.float32)
    built(name).assign(weights)
    assert built(name).weights().tobytes() == weights.tobytes()


@every_model
def test_weights_are_a_copy_that_later_steps_do_not_change(name: str) -> None:
    model = built(name)
    model.assign(some_weights(model.size))
    before = model.weights()
    kept = before.copy()
    model.sgd_step(FEATURES, LABELS, 1.0)
    assert (before == kept).all()
    assert (model.weights() != kept).any()


@every_model
@pytest.mark.parametrize("wrong", [0, -1, 1])
def test_vector_of_another_length_is_refused_and_changes_nothing(name: str, wrong: int) -> None:
    model = built(name)
    before = model.weights()
    size = model.size + wrong if wrong else 0
    with pytest.raises(ValueError, match=rf"has {model.size} weights, not \({size},\)"):
        model.assign(np.zeros(size, dtype=np.float32))
    with pytest.raises(ValueError, match="weights, not"):
        model.assign(np.zeros((model.size, 1), dtype=np.float32))
    assert (model.weights() == before).all()


@every_model
@pytest.mark.parametrize("examples", [1, 5, 17])
def test_sgd_step_is_a_plain_gradient_step(name: str, examples: int) -> None:
    model, weights = built(name), some_weights(built(name).size)
    features, labels = FEATURES[:examples], LABELS[:examples]
    model.assign(weights)
    model.sgd_step(features, labels, 0.5)
    expected = weights - 0.5 * reference.gradient(name, weights, features, labels)
    assert np.abs(model.weights() - expected).max() < 1e-5


@every_model
def test_reference_has_the_loss_that_keras_names(name: str) -> None:
    model, weights = built(name), some_weights(built(name).size)
    model.assign(weights)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = float(cross_entropy(LABELS, model.keras_model(FEATURES)))
    assert loss == pytest.approx(reference.loss(name, weights, FEATURES, LABELS), rel=1e-5)


@every_model
def test_reference_gradient_is_the_slope_of_its_loss(name: str) -> None:
    weights = some_weights(PARAMETERS[name]).astype(np.float64)
    direction = some_weights(PARAMETERS[name], seed=3).astype(np.float64)
    ahead, behind = (reference.loss(name, weights + step * direction, FEATURES, LABELS) for step in (1e-6, -1e-6))
    slope = reference.gradient(name, weights, FEATURES, LABELS) @ direction
    assert (ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-6)


@every_model
def test_accuracy_is_the_share_of_right_answers(name: str) -> None:
    features, labels = reference.made_up(200, seed=4)
    model, weights = built(name), some_weights(built(name).size)
    model.assign(weights)
    assert model.accuracy(features, labels) == pytest.approx(reference.accuracy(name, weights, features, labels), abs=1e-12)


@every_model
def test_same_seed_starts_equal(name: str) -> None:
    first, second = FlatModel(lookup(name), seed=5), FlatModel(lookup(name), seed=5)
    assert (first.weights() == second.weights()).all()


def test_another_seed_starts_elsewhere_but_logistic_regression_starts_at_zero() -> None:
    mlp, logistic = lookup("digits-mlp"), lookup("digits-logistic")
    assert (FlatModel(mlp, seed=5).weights() != FlatModel(mlp, seed=6).weights()).any()
    assert not FlatModel(logistic, seed=5).weights().any()


@pytest.mark.parametrize("layer", [keras.layers.BatchNormalization, lambda: keras.layers.Dense(4, trainable=False)])
def test_model_with_weights_that_would_escape_clipping_is_refused(layer: Callable[[], keras.Layer]) -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((64,)), layer(), keras.layers.Dense(10)])

    with pytest.raises(ValueError, match="'leaky' has non-trainable weights"):
        FlatModel(ModelSpec("leaky", "keeps something beside its weights", (64,), 10, build))
