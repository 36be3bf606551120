"""Language models that guess at every place: against plain numpy and Keras's own LSTM, and blind to what comes later."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.models.base import ModelSpec
from fedrho.models.flat import FlatModel
from fedrho.models.recurrent import build_cifg, build_lstm
from fedrho.models.saved import LoadSaved, _digest
from fedrho.models.transformer import build_transformer
from fedrho.models.zoo import lookup
from tests.models import golden

LENGTH, VOCABULARY = 7, 11
BUILDS = {
    "cifg": partial(build_cifg, LENGTH, VOCABULARY, 4, 6),
    "lstm": partial(build_lstm, LENGTH, VOCABULARY, 4, 6, 2),
    "transformer": partial(build_transformer, LENGTH, VOCABULARY, 8, 2, 2),
}
Floats = NDArray[np.float64]


def small(name: str) -> FlatModel:
    """A network of the zoo, of a size that numpy can follow, with fixed weights."""
    spec = ModelSpec(name, "", (LENGTH,), VOCABULARY, BUILDS[name], "int32", VOCABULARY, label_shape=(LENGTH,), ignored=2)
    model = FlatModel(spec)
    model.assign(golden.weights(model))
    return model


def sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)))


def parts_of(model: FlatModel) -> list[Floats]:
    return [variable.numpy().astype(np.float64) for variable in model.variables]


def test_cifg_is_the_plain_loop_over_places_and_units() -> None:
    model = small("cifg")
    words, bias, kernel, gate_bias, recurrent, projection = parts_of(model)
    ids = golden.inputs(model)
    wanted = np.empty((len(ids), LENGTH, VOCABULARY))
    for example, sequence in enumerate(ids):
        read, cell = np.zeros(4), np.zeros(6)
        for place, one in enumerate(sequence):
            forget, new, output = np.split(words[one] @ kernel + gate_bias + read @ recurrent, 3)
            cell = sigmoid(forget) * cell + (1 - sigmoid(forget)) * np.tanh(new)
            read = (sigmoid(output) * np.tanh(cell)) @ projection
            wanted[example, place] = words @ read + bias
    assert np.abs(np.asarray(model.keras_model(ids)) - wanted).max() < 1e-5


def test_lstm_is_that_of_keras_with_one_in_the_bias_of_its_forget_gates() -> None:
    model = small("lstm")
    embedding, first, first_bias, first_recurrent, second, second_bias, second_recurrent, last, last_bias = parts_of(model)
    ids = keras.Input((LENGTH,), dtype="int32")
    seen = keras.layers.Embedding(VOCABULARY, 4)(ids)
    for _ in range(2):
        seen = keras.layers.LSTM(6, return_sequences=True)(seen)
    twin = keras.Model(ids, keras.layers.Dense(VOCABULARY)(seen))
    remembering = np.repeat([0.0, 1.0, 0.0, 0.0], 6)
    layers = [first, first_recurrent, first_bias + remembering, second, second_recurrent, second_bias + remembering]
    twin.set_weights([embedding, *layers, last, last_bias])
    inputs = golden.inputs(model)
    assert np.abs(np.asarray(model.keras_model(inputs)) - np.asarray(twin(inputs))).max() < 1e-5


@pytest.mark.parametrize("name", BUILDS)
def test_what_comes_later_changes_no_guess_before_it(name: str) -> None:
    """So padding, id 0 at the end, changes none either; and the guess at the changed place itself does change."""
    model = small(name)
    ids = golden.inputs(model)[:1]
    places = [(place, other) for place in range(LENGTH) for other in (0, 9)]
    changed = np.repeat(ids, len(places) + 1, axis=0)
    for row, (place, other) in enumerate(places):
        changed[row, place:] = other
    *found, plain = np.asarray(model.keras_model(changed))
    for (place, _), guesses in zip(places, found, strict=True):
        assert np.abs(guesses[:place] - plain[:place]).max(initial=0.0) < 1e-6
        assert np.abs(guesses[place] - plain[place]).max() > 1e-4


@pytest.mark.parametrize("name", ["cifg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "transformer"))])
def test_a_saved_one_loads_in_safe_mode_with_the_same_guesses(name: str, tmp_path: Path) -> None:
    model = small(name)
    path = tmp_path / "model.keras"
    model.keras_model.save(path)
    again = LoadSaved(str(path), _digest(path))()
    ids = golden.inputs(model)
    assert np.array_equal(np.asarray(again(ids)), np.asarray(model.keras_model(ids)))


@pytest.mark.slow
def test_tied_embeddings_are_one_matrix_and_learn_from_both_its_uses() -> None:
    """The gradient of reading an id and of scoring it add up: the slope of the loss along a change of the matrix."""
    model = small("cifg")
    ids, labels = golden.inputs(model), golden.labels(model)
    begin = model.weights()
    model.sgd_step(ids, labels, 1.0)
    change = (model.weights() - begin).astype(np.float64)

    def loss(weights: Floats) -> float:
        model.assign(weights.astype(np.float32))
        return float(model.loss(labels, model.keras_model(ids)))

    matrix = np.zeros(model.size)
    matrix[: VOCABULARY * 4] = change[: VOCABULARY * 4] / np.linalg.norm(change[: VOCABULARY * 4])
    slope = (loss(begin + 0.01 * matrix) - loss(begin - 0.01 * matrix)) / 0.02
    assert slope == pytest.approx(-np.linalg.norm(change[: VOCABULARY * 4]), rel=1e-2)


def test_a_language_model_says_what_it_reads_and_which_labels_count() -> None:
    for name in ("spanish-cifg", "words-cifg", "characters-lstm", "characters-transformer", "words-transformer"):
        spec = lookup(name)
        assert spec.label_shape == spec.input_shape
        assert (spec.input_dtype, spec.vocabulary, spec.ignored) == ("int32", spec.classes, 2)
        assert spec.tokens
        assert spec.paper
