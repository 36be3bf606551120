"""Models with batch normalization, for training in one place: running statistics would be neither clipped nor averaged.

No federation can have them, and DP-SGD neither, so they are no part of the zoo's names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedrho.models.base import ModelSpec
from fedrho.models.images import GREY

if TYPE_CHECKING:
    import keras


def build_batch_norm_cnn() -> keras.Model:
    """Four convolutions of 3x3, each normalized, three maxima of four, a linear layer: 144,178 parameters that are trained.

    A small network for noisy labels of pictures of clothes, between `mnist-small-cnn` and the small Inception of Ghazi et al.
    2021, appendix E.
    """
    from fedrho.models.backend import keras

    image = keras.Input(GREY)
    seen = image
    for name, filters, halved in (("first", 24, True), ("second", 48, True), ("third", 96, False), ("fourth", 96, True)):
        seen = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(seen)
        seen = keras.layers.ReLU(name=f"{name}-relu")(keras.layers.BatchNormalization(name=f"{name}-norm")(seen))
        if halved:
            seen = keras.layers.MaxPooling2D(2, name=f"{name}-maximum")(seen)
    return keras.Model(image, keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(seen)))


def build_wide_batch_norm_cnn() -> keras.Model:
    """The same with more than twice the filters: 983,498 parameters that are trained.

    The maximum is taken before the normalization, which then sees a quarter of the places; ReLU and positive scales do not mind
    the order. Logits are float32 in any policy, for `fedrho.models.precision`.
    """
    from fedrho.models.backend import keras

    layers = keras.layers
    image = keras.Input(GREY)
    seen = image
    for name, filters, halved in (("first", 64, True), ("second", 128, True), ("third", 256, False), ("fourth", 256, True)):
        seen = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(seen)
        if halved:
            seen = layers.MaxPooling2D(2, name=f"{name}-maximum")(seen)
        seen = layers.ReLU(name=f"{name}-relu")(layers.BatchNormalization(name=f"{name}-norm")(seen))
    return keras.Model(image, layers.Dense(10, name="logits", dtype="float32")(layers.Flatten()(seen)))


BATCH_NORM_CNN: Final = ModelSpec(
    "mnist-batch-norm-cnn",
    "a convolutional network with batch normalization on 28x28 grey",
    GREY,
    10,
    build_batch_norm_cnn,
    paper="Ioffe & Szegedy 2015, arXiv 1502.03167",
    parameters=144_178,
)
WIDE_BATCH_NORM_CNN: Final = ModelSpec(
    "mnist-wide-batch-norm-cnn",
    "a wide convolutional network with batch normalization on 28x28 grey",
    GREY,
    10,
    build_wide_batch_norm_cnn,
    paper="Ioffe & Szegedy 2015, arXiv 1502.03167",
    parameters=983_498,
)
OF_ONE_PLACE: Final = {spec.name: spec for spec in (BATCH_NORM_CNN, WIDE_BATCH_NORM_CNN)}
