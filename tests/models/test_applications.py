"""Networks of keras.applications by name: one name is one network, and none of them has a state that would escape."""

from __future__ import annotations

import pickle
import types

import keras
import numpy as np
import pytest

from fedrho.models.applications import NETWORKS, application, groups, has_state, stateless
from fedrho.models.base import ModelSpec, UnknownModel
from fedrho.models.flat import FlatModel
from fedrho.models.zoo import lookup

SMALL = "applications:MobileNetV3Small:32x32x3:10:stateless"
REFUSED = {
    "applications:MobileNetV2:32x32x3:10": "has batch normalization.*take applications:MobileNetV2:32x32x3:10:stateless instead",
    "applications:VGG16:32x32x3:10:stateless": "has no layer with a state; leave `:stateless` out",
    "applications:MobileNetV4:32x32x3:10:stateless": "no such network.*did you mean 'MobileNetV2'",
    "applications:VGG16:28x28x1:10": "takes images of at least 32 x 32",
    "applications:Xception:70x99x3:10:stateless": "takes images of at least 71 x 71",
    "applications:VGG16:32x32x3:1": "one class; allowed: 2 or more",
    "applications:VGG16:032x32x3:10": "allowed: applications:NETWORK:HEIGHTxWIDTHxCHANNELS:CLASSES",
    "applications:VGG16": "allowed: applications:NETWORK:HEIGHTxWIDTHxCHANNELS:CLASSES",
    "applications:VGG16:32x32x3:10:": "allowed: applications:NETWORK:HEIGHTxWIDTHxCHANNELS:CLASSES",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_no_network_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UnknownModel, match=REFUSED[name]) as refused:
        lookup(name)
    assert "\n" not in str(refused.value)


def test_the_networks_are_those_of_the_installed_keras() -> None:
    there = {name for name, value in vars(keras.applications).items() if isinstance(value, types.FunctionType)}
    assert set(NETWORKS) <= there
    assert all(lookup(f"applications:{one}:96x80x1:4{':stateless' if has_state(one) else ''}").paper for one in NETWORKS)


def test_a_name_says_what_a_device_has_to_know_without_building_it() -> None:
    spec = lookup(SMALL)
    assert (spec.input_shape, spec.classes, spec.input_dtype) == ((32, 32, 3), 10, "float32")
    assert pickle.loads(pickle.dumps(spec)).name == spec.name == SMALL
    assert lookup(SMALL) is spec
    assert application("mnist-cnn") is None


@pytest.mark.parametrize(
    ("channels", "count"), [(512, 32), (1280, 32), (64, 4), (24, 1), (16, 1), (72, 4), (17, 1), (3, 1), (96, 6)]
)
def test_groups_have_sixteen_channels_or_more_and_are_at_most_32(channels: int, count: int) -> None:
    assert groups(channels) == count


def normalized() -> keras.Model:
    """All kinds of layers with a state, a branch, and names that Keras counted."""
    image = keras.Input((8, 8, 2))
    seen = keras.layers.Rescaling(1 / 255)(image)
    seen = keras.layers.Normalization(mean=[0.5, 0.5], variance=[1, 1])(seen)
    one = keras.layers.BatchNormalization(scale=False, epsilon=0.01)(keras.layers.Conv2D(32, 3, use_bias=False)(seen))
    other = keras.layers.BatchNormalization(name="own")(keras.layers.Conv2D(32, 3, use_bias=False)(seen))
    both = keras.layers.Dropout(0.5)(keras.layers.Add()([one, keras.layers.ReLU(name="active")(other)]))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(both)))


def test_layers_with_a_state_are_replaced_and_trained_weights_stay_as_they_are() -> None:
    """Against the same in numpy: groups of 16 channels, each with mean 0 and variance 1, then scale and offset."""
    original = normalized()
    for layer in original.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.linspace(0.5, 1.5, len(part)).astype(np.float32) for part in layer.get_weights()])
    copy = stateless(original)
    assert copy.non_trainable_variables == []
    for before, after in zip(original.trainable_variables, copy.trainable_variables, strict=True):
        assert np.array_equal(before.numpy(), after.numpy())
    norm = copy.get_layer("own")
    values = np.random.default_rng(0).random((2, 6, 6, 32), np.float32)
    grouped = values.reshape(2, 36, 2, 16).astype(np.float64)
    mean, variance = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-3)).reshape(values.shape) * norm.gamma.numpy() + norm.beta.numpy()
    assert np.abs(norm(values).numpy() - expected).max() < 1e-5


def test_a_step_of_training_reaches_every_weight_of_a_network_without_state() -> None:
    spec = ModelSpec("without-state", "", (8, 8, 2), 3, lambda: stateless(normalized()))
    model = FlatModel(spec)
    before = model.weights()
    features = np.random.default_rng(0).random((8, 8, 8, 2), np.float32)
    model.sgd_step(features, np.arange(8, dtype=np.int32) % 3, 0.5)
    for segment in model.layout:
        part = slice(segment.offset, segment.offset + segment.size)
        assert np.mean(before[part] != model.weights()[part]) > 0.5, segment.name


@pytest.mark.slow
def test_names_do_not_depend_on_what_was_built_before_in_the_process() -> None:
    def names() -> list[str]:
        return [layer.name for layer in stateless(normalized()).layers[1:]]

    first = names()
    assert first == names()
    assert "own" in first
    assert "conv2d_1" in first


@pytest.mark.slow
def test_a_network_without_state_is_a_flat_vector_and_takes_values_as_they_are() -> None:
    model = FlatModel(lookup(SMALL))
    assert model.size == 927_008 + 5_770  # of Keras's own, without top, its trainable weights; a linear layer of 576 x 10 + 10
    assert model.keras_model.non_trainable_variables == []
    assert not any(type(layer).__name__ == "Rescaling" for layer in model.keras_model.layers)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ConvNeXtTiny", "MobileNetV2", "VGG16"])
def test_networks_build_at_their_smallest_size_and_tell_images_apart(network: str) -> None:
    model = FlatModel(lookup(f"applications:{network}:32x32x3:10{':stateless' if has_state(network) else ''}"))
    outputs = model.keras_model(np.random.default_rng(0).random((2, 32, 32, 3), np.float32)).numpy()
    assert np.isfinite(outputs).all()
    assert not np.array_equal(outputs[0], outputs[1])
