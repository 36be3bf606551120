"""Three small models for 8x8 grey digits (64 inputs scaled to [0, 1], 10 classes)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras

INPUT_SHAPE = (64,)
CLASSES = 10


def build_logistic() -> keras.Model:
    """Multinomial logistic regression from zero weights: 64 * 10 + 10 = 650 parameters, convex."""
    from fedrho.models.backend import keras

    return keras.Sequential([keras.Input(INPUT_SHAPE), keras.layers.Dense(CLASSES, kernel_initializer="zeros", name="logits")])


def build_mlp(activation: str = "relu") -> keras.Model:
    """One hidden layer of 32 rectified units: 64 * 32 + 32 + 32 * 10 + 10 = 2,410 parameters."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(INPUT_SHAPE),
            keras.layers.Dense(32, activation=activated(activation), name="hidden"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


def build_wide_mlp(activation: str = "relu") -> keras.Model:
    """One hidden layer of 128 rectified units: 64 * 128 + 128 + 128 * 10 + 10 = 9,610 parameters."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(INPUT_SHAPE),
            keras.layers.Dense(128, activation=activated(activation), name="hidden"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


LOGISTIC = register(
    ModelSpec("digits-logistic", "logistic regression on 8x8 digits", INPUT_SHAPE, CLASSES, build_logistic, parameters=650)
)
MLP = register(ModelSpec("digits-mlp", "one hidden layer on 8x8 digits", INPUT_SHAPE, CLASSES, build_mlp, parameters=2410))
WIDE_MLP = register(
    ModelSpec("digits-wide-mlp", "a wider hidden layer on 8x8 digits", INPUT_SHAPE, CLASSES, build_wide_mlp, parameters=9610)
)
