"""LocoProp against plain numpy, and against SGD where the article proves that they are one."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.models.backend import tf
from fedrho.models.base import ModelSpec, Outputs
from fedrho.models.compiled import WholeTraining
from fedrho.models.flat import FlatModel
from fedrho.models.locoprop import GAMMA, STEPS, LocopropSteps, check_trains
from fedrho.models.optimizers import LocalOptimizer, UnknownOptimizer
from fedrho.models.zoo import lookup
from fedrho.server.app import initial_weights
from fedrho.server.tasks import TaskFile, TaskFileError, build_task
from fedrho.simulations.checks import check_locoprop
from fedrho.simulations.data.base import DataError
from tests.models import golden
from tests.simulations.toy import toy_values

Floats = NDArray[np.float64]
RATE = 0.05
BOTH = pytest.mark.parametrize("name", ["locoprop-s", "locoprop-m"])
TRANSFERS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(float)),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
}


def build_three() -> keras.Model:
    dense = [keras.layers.Dense(5, "relu"), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3, use_bias=False)]
    return keras.Sequential([keras.Input((2, 3)), keras.layers.Flatten(), *dense])


def three() -> FlatModel:
    model = FlatModel(ModelSpec("three", "", (2, 3), 3, build_three))
    model.assign(golden.weights(model))
    return model


def softmax(a: Floats) -> Floats:
    shares = np.exp(a - a.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def plain_step(model: FlatModel, features: Floats, labels: NDArray[np.int32], matching: bool) -> list[Floats]:
    """The weights after one batch, layer by layer, from the formulas in the head of `models/locoprop.py`."""
    values = [variable.numpy().astype(np.float64) for variable in model.variables]
    layers = [(values[0], values[1], "relu"), (values[2], values[3], "tanh"), (values[4], np.zeros(3), "")]
    seen, read, before = features.reshape(len(features), -1), [], []
    for kernel, bias, kind in layers:
        read.append(seen)
        before.append(seen @ kernel + bias)
        seen = TRANSFERS[kind][0](before[-1]) if kind else before[-1]
    slope = softmax(before[-1]) - np.eye(3)[labels]
    slopes = [slope]
    for place in (2, 1):
        slope = (slope @ layers[place][0].T) * TRANSFERS[layers[place - 1][2]][1](before[place - 1])
        slopes.insert(0, slope)
    after = []
    for (kernel, bias, kind), inputs, a, slope in zip(layers, read, before, slopes, strict=True):
        transfer = (TRANSFERS[kind][0] if kind else softmax) if matching else (lambda values: values)
        target = transfer(a) - GAMMA * slope
        for _ in range(STEPS):
            residual = transfer(inputs @ kernel + bias) - target
            kernel = kernel - RATE / GAMMA * inputs.T @ residual / len(features)
            bias = bias - RATE / GAMMA * residual.mean(axis=0) * (kind != "")  # the last layer has none
        after += [kernel, bias] if kind else [kernel]
    return after


@BOTH
def test_a_step_is_that_of_the_formulas(name: str) -> None:
    model = three()
    features, labels = golden.inputs(model), golden.labels(model)
    before = float(model.loss(labels, model.keras_model(features)))
    wanted = plain_step(model, features.astype(np.float64), labels, name == "locoprop-m")
    loss = model.local_steps(LocalOptimizer(name, RATE))(features, labels)
    assert loss == pytest.approx(before, rel=1e-5)
    found = np.concatenate([part.reshape(-1) for part in wanted])
    assert np.abs(model.weights() - found).max() < 1e-5


@BOTH
def test_one_inner_step_is_plain_sgd_whatever_gamma_is(name: str) -> None:
    model = three()
    begin = model.weights()
    features, labels = golden.inputs(model), golden.labels(model)
    model.sgd_step(features, labels, RATE)
    wanted = model.weights()
    model.assign(begin)
    LocopropSteps(model, LocalOptimizer(name, RATE), steps=1, gamma=7.0).anew(RATE)(features, labels)
    assert np.abs(wanted - begin).max() > 1e-3
    assert np.abs(model.weights() - wanted).max() < 1e-6


def test_whole_training_takes_the_same_steps() -> None:
    model, optimizer = three(), LocalOptimizer("locoprop-m", RATE)
    begin, features, labels = model.weights(), golden.inputs(model), golden.labels(model)
    step = model.local_steps(optimizer)
    for rows in ([0, 1], [2]):
        step(features[rows], labels[rows])
    wanted = model.weights() - begin
    told = WholeTraining(model, optimizer)(begin, features, labels, tf.constant([0, 1, 2]), tf.constant([0, 2, 3]))
    assert np.abs(np.asarray(told[0]) - wanted).max() < 1e-6


REFUSED = {
    "has a Conv2D layer": [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(2)],
    "regularizer": [keras.Input((4,)), keras.layers.Dense(2, kernel_regularizer="l2")],
    "constraint": [keras.Input((4,)), keras.layers.Dense(2, kernel_constraint="max_norm")],
}


def test_a_model_with_a_label_at_every_place_is_refused() -> None:
    layers = [keras.Input((5, 4)), keras.layers.Dense(2)]
    model = FlatModel(ModelSpec("places", "", (5, 4), 2, lambda: keras.Sequential(layers), label_shape=(5,)))
    with pytest.raises(
        UnknownOptimizer, match="locoprop-s cannot train model 'places': it trains models with one label an example"
    ):
        check_trains(model, "locoprop-s")


@pytest.mark.parametrize("reason", REFUSED)
def test_another_model_is_refused_with_the_reason(reason: str) -> None:
    layers = REFUSED[reason]
    model = FlatModel(ModelSpec("other", "", tuple(layers[0].shape[1:]), 2, lambda: keras.Sequential(layers)))
    with pytest.raises(UnknownOptimizer, match=f"locoprop-s cannot train model 'other': it .*{reason}.*; take sgd"):
        model.local_steps(LocalOptimizer("locoprop-s", RATE))


def test_server_and_simulation_refuse_a_task_that_no_device_could_train() -> None:
    local = {"optimizer": "locoprop-m", "learning_rate": 0.1, "epochs": 1}
    values = {**toy_values(), "model": "movielens-ratings", "local": local}
    with pytest.raises(TaskFileError, match=r"local[.]optimizer: locoprop-m cannot train model 'movielens-ratings'"):
        initial_weights(build_task(TaskFile.model_validate(values)))
    with pytest.raises(DataError, match=r"task[.]local[.]optimizer: locoprop-m cannot train model 'words'"):
        check_locoprop(lookup("words"), "locoprop-m")


def test_matching_losses_need_an_activation_that_never_falls() -> None:
    model = FlatModel(lookup("digits-mlp+gelu"))
    model.local_steps(LocalOptimizer("locoprop-s", RATE))
    with pytest.raises(UnknownOptimizer, match="needs activations that never fall, not gelu"):
        model.local_steps(LocalOptimizer("locoprop-m", RATE))


@pytest.mark.slow
def test_a_softmax_in_the_model_is_the_same_as_one_in_the_loss() -> None:
    def build(activation: str | None) -> keras.Model:
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3, activation)])

    weights = []
    for activation, outputs in ((None, Outputs.LOGITS), ("softmax", Outputs.PROBABILITIES)):
        model = FlatModel(ModelSpec("one", "", (6,), 3, lambda kind=activation: build(kind), outputs=outputs))  # type: ignore[misc]
        model.assign(golden.weights(model))
        model.local_steps(LocalOptimizer("locoprop-m", RATE))(golden.inputs(model), golden.labels(model))
        weights.append(model.weights())
    assert np.abs(weights[0] - weights[1]).max() < 1e-5
