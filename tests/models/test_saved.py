"""Saved Keras models: what is read of the file, what is refused, and what Keras makes of it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from fedrho.models.base import Outputs, UnknownModel
from fedrho.models.flat import FlatModel
from fedrho.models.optimizers import LocalOptimizer
from fedrho.models.saved import SavedModelError, add_saved, is_saved
from fedrho.models.zoo import lookup, names
from fedrho.server.tasks import TaskFileError, load_task
from tests.client.fleet import TASK

Layers = Callable[[], list[keras.Layer]]


def saved(path: Path, *layers: keras.Layer, loss: Any = None) -> Path:
    model = keras.Sequential([keras.Input((8,)), *layers])
    if loss is not None:
        model.compile(loss=loss)
    model.save(path)
    return path


def functional(path: Path, softmax: bool) -> Path:
    inputs = keras.Input((4, 2))
    hidden = keras.layers.Flatten()(inputs)
    hidden = keras.layers.Concatenate()([keras.layers.Dense(3)(hidden), keras.layers.Dense(4, activation="relu")(hidden)])
    outputs = keras.layers.Dense(5)(hidden)
    keras.Model(inputs, keras.layers.Activation("softmax")(outputs) if softmax else outputs).save(path)
    return path


def test_saved_model_is_described_without_tensorflow(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", keras.layers.Dense(4), keras.layers.Dense(3))
    script = (
        "import sys; from pathlib import Path; from fedrho.models.saved import add_saved; "
        "spec = add_saved(Path(sys.argv[1])); "
        "print(spec.name, spec.input_shape, spec.classes, spec.outputs.value, 'keras' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    spec = add_saved(path)
    assert ran.stdout == f"{spec.name} (8,) 3 logits False\n"
    assert (spec.input_shape, spec.classes, spec.outputs) == ((8,), 3, Outputs.LOGITS)


def test_name_is_that_of_the_content(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", keras.layers.Dense(3))
    copy = tmp_path / "copy.keras"
    copy.write_bytes(path.read_bytes())
    assert add_saved(path) is add_saved(copy) is lookup(add_saved(path).name)
    assert add_saved(path).name in names()
    assert is_saved(add_saved(path).name)
    assert add_saved(saved(tmp_path / "other.keras", keras.layers.Dense(3))).name != add_saved(path).name


def test_weights_are_those_that_were_saved(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.save(tmp_path / "m.keras")
    flat = FlatModel(add_saved(tmp_path / "m.keras"))
    assert flat.weights().tolist() == np.concatenate([part.reshape(-1) for part in model.get_weights()]).tolist()
    assert pickle.loads(pickle.dumps(flat.spec)) == flat.spec


@pytest.mark.parametrize("softmax", [False, True])
def test_functional_model_is_read_to_its_last_dense_layer(tmp_path: Path, softmax: bool) -> None:
    spec = add_saved(functional(tmp_path / "m.keras", softmax))
    assert (spec.input_shape, spec.classes) == ((4, 2), 5)
    assert spec.outputs is (Outputs.PROBABILITIES if softmax else Outputs.LOGITS)
    assert FlatModel(spec).size == 8 * 3 + 3 + 8 * 4 + 4 + 7 * 5 + 5


OUTPUTS: dict[str, tuple[Layers, Any, Outputs]] = {
    "softmax": (lambda: [keras.layers.Dense(3, activation="softmax")], None, Outputs.PROBABILITIES),
    "softmax layer": (lambda: [keras.layers.Dense(3), keras.layers.Softmax()], None, Outputs.PROBABILITIES),
    "compiled by name": (lambda: [keras.layers.Dense(3)], "sparse_categorical_crossentropy", Outputs.PROBABILITIES),
    "compiled for logits": (
        lambda: [keras.layers.Dense(3)],
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        Outputs.LOGITS,
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_are_what_the_compiled_loss_says_or_the_last_layer(tmp_path: Path, case: str) -> None:
    layers, loss, outputs = OUTPUTS[case]
    assert add_saved(saved(tmp_path / "m.keras", *layers(), loss=loss)).outputs is outputs


def test_probabilities_and_logits_of_one_model_have_the_same_gradient(tmp_path: Path) -> None:
    logits = FlatModel(add_saved(saved(tmp_path / "a.keras", keras.layers.Dense(3))))
    soft = FlatModel(add_saved(saved(tmp_path / "b.keras", keras.layers.Dense(3), keras.layers.Softmax())))
    features, labels = np.eye(8, dtype=np.float32), np.arange(8, dtype=np.int32) % 3
    for model in (logits, soft):
        model.assign(np.linspace(-1, 1, 27, dtype=np.float32))
        model.local_steps(LocalOptimizer("sgd", 0.5))(features, labels)
    assert np.abs(logits.weights() - soft.weights()).max() < 1e-6


REFUSED: dict[str, tuple[Layers, Any, str]] = {
    "another last layer": (
        lambda: [keras.layers.Dense(3), keras.layers.LayerNormalization()],
        None,
        "ends in a LayerNormalization",
    ),
    "one output": (lambda: [keras.layers.Dense(1)], None, "has one output"),
    "another loss": (lambda: [keras.layers.Dense(3)], "mse", "was compiled with the loss 'mse'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_model_of_another_form_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    layers, loss, reason = REFUSED[case]
    with pytest.raises(SavedModelError, match=reason) as refused:
        add_saved(saved(tmp_path / "m.keras", *layers(), loss=loss))
    assert "m.keras: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_models_of_several_inputs_or_no_fixed_shape_are_refused(tmp_path: Path) -> None:
    first, second = keras.Input((2,)), keras.Input((2,))
    keras.Model([first, second], keras.layers.Dense(2)(keras.layers.Add()([first, second]))).save(tmp_path / "two.keras")
    with pytest.raises(SavedModelError, match="several inputs or outputs"):
        add_saved(tmp_path / "two.keras")
    ids = keras.Input((5,), dtype="int32")
    seen = keras.layers.Concatenate()([keras.layers.Embedding(9, 4)(ids), keras.layers.Reshape((5, 1))(ids)])
    keras.Model(ids, keras.layers.Dense(2)(keras.layers.Flatten()(seen))).save(tmp_path / "ids.keras")
    with pytest.raises(SavedModelError, match="takes int32 inputs, and not into Embedding layers alone"):
        add_saved(tmp_path / "ids.keras")
    keras.Sequential([keras.Input((8, 4, 2)), keras.layers.Dense(3)]).save(tmp_path / "places.keras")
    with pytest.raises(SavedModelError, match=r"gives a label for each of \(8, 4\) places"):
        add_saved(tmp_path / "places.keras")


def test_ids_are_below_what_every_embedding_of_them_knows(tmp_path: Path) -> None:
    ids = keras.Input((5,), dtype="int32")
    both = keras.layers.Concatenate()([keras.layers.Embedding(9, 4)(ids), keras.layers.Embedding(7, 2)(ids)])
    keras.Model(ids, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(both))).save(tmp_path / "m.keras")
    spec = add_saved(tmp_path / "m.keras")
    assert (spec.input_shape, spec.input_dtype, spec.vocabulary, spec.label_shape, spec.ignored) == ((5,), "int32", 7, (), 0)


def test_a_model_of_sequences_has_a_label_at_every_place(tmp_path: Path) -> None:
    """Of text, where it guesses the ids that it takes; nothing and unknown words are then not to be guessed."""
    for classes, ignored in ((9, 2), (4, 0)):
        path = tmp_path / f"{classes}.keras"
        layers = [keras.layers.Embedding(9, 4), keras.layers.LSTM(3, return_sequences=True), keras.layers.Dense(classes)]
        keras.Sequential([keras.Input((5,), dtype="int32"), *layers]).save(path)
        spec = add_saved(path)
        assert (spec.label_shape, spec.classes, spec.ignored) == ((5,), classes, ignored)
        model = FlatModel(spec)
        before = model.weights()
        model.sgd_step(np.ones((2, 5), np.int32), np.full((2, 5), 3, np.int32), 0.1)
        assert not np.array_equal(model.weights(), before)


def test_frozen_layers_of_a_file_stay_as_they_are_and_are_no_part_of_the_vector(tmp_path: Path) -> None:
    """A batch normalization among them normalizes by the statistics of the file, in training as in prediction."""
    norm = keras.layers.BatchNormalization(trainable=False)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, trainable=False), norm, keras.layers.Dense(3)])
    norm.set_weights([np.full(4, value, np.float32) for value in (2, 1, 0.5, 3)])
    model.save(tmp_path / "m.keras")
    flat = FlatModel(add_saved(tmp_path / "m.keras"))
    assert (flat.size, [segment.shape for segment in flat.layout]) == (4 * 3 + 3, [(4, 3), (3,)])
    begin = [np.array(part) for part in flat.keras_model.get_weights()]
    for step in (flat.local_steps(LocalOptimizer("sgd", 0.5)), flat.local_steps(LocalOptimizer("adam", 0.5))):
        step(np.random.default_rng(0).random((16, 8), np.float32), np.arange(16, dtype=np.int32) % 3)
    changed = [not np.array_equal(one, other) for one, other in zip(begin, flat.keras_model.get_weights(), strict=True)]
    assert changed == [False] * 6 + [True] * 2
    with pytest.raises(UnknownModel, match="frozen weights, which may differ where it is built anew"):
        FlatModel(dataclasses.replace(flat.spec, frozen=False))


def archive(path: Path, config: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", config)
    return path


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "truncated": lambda path: path.write_bytes(saved(path, keras.layers.Dense(3)).read_bytes()[:-200]),
    "no config": lambda path: zipfile.ZipFile(path, "w").close(),
    "not json": lambda path: archive(path, "{"),
    "a list": lambda path: archive(path, "[1, 2]"),
    "deep": lambda path: archive(path, "[" * 100_000),
    "nothing in it": lambda path: archive(path, "{}"),
    "no layers": lambda path: archive(path, json.dumps({"class_name": "Sequential", "config": {"layers": []}})),
    "layers of numbers": lambda path: archive(path, json.dumps({"class_name": "Sequential", "config": {"layers": [1, 2]}})),
    "a class of its own": lambda path: archive(path, json.dumps({"class_name": "Mine", "config": {}})),
    "long": lambda path: archive(path, json.dumps("x" * (17 << 20))),
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("case", BROKEN)
def test_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    BROKEN[case](tmp_path / "m.keras")
    with pytest.raises(SavedModelError, match=r"m\.keras: ") as refused:
        add_saved(tmp_path / "m.keras")
    assert "\n" not in str(refused.value)


def test_file_that_was_changed_after_it_was_named_is_not_loaded(tmp_path: Path) -> None:
    spec = add_saved(saved(tmp_path / "m.keras", keras.layers.Dense(3)))
    saved(tmp_path / "m.keras", keras.layers.Dense(3))
    with pytest.raises(UnknownModel, match="is not the file any more"):
        FlatModel(spec)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(3))
    with pytest.raises(UnknownModel, match="has a Lambda layer, which is code that would run here"):
        FlatModel(add_saved(path))


ESCAPING: dict[str, tuple[Layers, str]] = {
    "batch statistics": (lambda: [keras.layers.BatchNormalization()], "statistics of the examples"),
    "random state": (lambda: [keras.layers.Dropout(0.5)], "the state of random numbers"),
    "frozen random state": (lambda: [keras.layers.Dropout(0.5, trainable=False)], "the state of random numbers"),
    "state of a frozen layer": (
        lambda: [keras.layers.SpectralNormalization(keras.layers.Dense(4), trainable=False)],
        "a state of SpectralNormalization, which training may change although the layer is frozen",
    ),
    "half precision": (lambda: [keras.layers.Dense(4, dtype="float16")], "float16 weights"),
}


@pytest.mark.parametrize("case", ESCAPING)
def test_model_with_state_that_would_escape_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    layers, reason = ESCAPING[case]
    spec = add_saved(saved(tmp_path / "m.keras", *layers(), keras.layers.Dense(3)))
    with pytest.raises(UnknownModel, match=reason) as refused:
        FlatModel(spec)
    assert "\n" not in str(refused.value)


def test_what_regularisers_add_is_part_of_the_loss(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5)))
    model = FlatModel(add_saved(path))
    model.assign(np.ones(27, dtype=np.float32))
    model.local_steps(LocalOptimizer("sgd", 0.1))(np.zeros((1, 8), np.float32), np.zeros(1, np.int32))
    assert model.weights()[:24] == pytest.approx(np.full(24, 0.9))  # w - 0.1 * d/dw 0.5 w^2


def test_task_names_the_file_beside_it_by_its_content(tmp_path: Path) -> None:
    name = add_saved(saved(tmp_path / "mine.keras", keras.layers.Dense(3))).name
    text = TASK.format(steps=2, goal=1, overselect=2.0, max_times=2, min_separation=1, server_window="false")
    task = tmp_path / "task.toml"
    task.write_text(text.replace("digits-logistic", "mine.keras"))
    assert load_task(task).file.model == name
    task.write_text(text.replace("digits-logistic", "other.keras"))
    with pytest.raises(TaskFileError, match=r"task\.toml: model: .*other\.keras: cannot be read"):
        load_task(task)
    task.write_text(text.replace("digits-logistic", "keras:" + "0" * 16))
    assert load_task(task).file.model == "keras:" + "0" * 16
    with pytest.raises(UnknownModel, match="was not given here"):
        lookup("keras:" + "0" * 16)


def test_a_recurrent_layer_that_draws_nothing_is_allowed_both_ways_round(tmp_path: Path) -> None:
    def sequences(dropout: float) -> Path:
        both = keras.layers.Bidirectional(keras.layers.LSTM(2, dropout=dropout))
        path = tmp_path / f"{dropout}.keras"
        keras.Sequential([keras.Input((3, 2)), both, keras.layers.Dense(2)]).save(path)
        return path

    assert FlatModel(add_saved(sequences(0.0))).size == 2 * 4 * 2 * (2 + 2 + 1) + 2 * 5
    with pytest.raises(UnknownModel, match="the state of random numbers"):
        FlatModel(add_saved(sequences(0.5)))


def test_a_file_with_weights_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    dense = keras.layers.Dense(3, bias_initializer=keras.initializers.Constant(float("nan")))
    with pytest.raises(UnknownModel, match="weights that are not finite"):
        FlatModel(add_saved(saved(tmp_path / "n.keras", dense)))
