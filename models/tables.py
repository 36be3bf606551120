"""Two small models for the 104 numbers of a row of Adult, in [0, 1], and 2 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras

INPUT_SHAPE = (104,)
CLASSES = 2


def build_logistic() -> keras.Model:
    """Logistic regression from zero weights: 104 * 2 + 2 = 210 parameters, convex."""
    from fedrho.models.backend import keras

    return keras.Sequential([keras.Input(INPUT_SHAPE), keras.layers.Dense(CLASSES, kernel_initializer="zeros", name="logits")])


def build_mlp() -> keras.Model:
    """One hidden layer of 32 rectified units: 104 * 32 + 32 + 32 * 2 + 2 = 3,426 parameters."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(INPUT_SHAPE),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


LOGISTIC = register(ModelSpec("adult-logistic", "logistic regression on census rows", INPUT_SHAPE, CLASSES, build_logistic))
MLP = register(ModelSpec("adult-mlp", "one hidden layer on census rows", INPUT_SHAPE, CLASSES, build_mlp))
