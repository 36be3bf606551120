"""Models for a row of Adult and 2 classes: for its 104 encoded numbers in [0, 1], and for its 13 columns as they are.

The one for raw columns encodes them itself, with Keras's preprocessing layers. Every constant in them is public, and none
is adapted to examples, so that preprocessing has no state and is the same on every device; `preprocessing.py` refuses others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras

INPUT_SHAPE = (104,)
CLASSES = 2
NUMBERS = ("age", "education-num", "hours-per-week", "capital-gain", "capital-loss")
"""The first raw columns, in years, hours and dollars."""
CATEGORIES = {
    "workclass": 8,
    "education": 16,
    "marital-status": 7,
    "occupation": 14,
    "relationship": 6,
    "race": 5,
    "sex": 2,
    "native-country": 41,
}
"""The other raw columns: categories as `adult.names` counts them from 0, and their number for what is missing."""
RAW_COLUMNS = len(NUMBERS) + len(CATEGORIES)
MEANS, DEVIATIONS = (40.0, 10.0, 40.0), (15.0, 3.0, 12.0)
"""Round numbers for a working population, not those of the examples; of the first three columns."""
BOUNDARIES = {
    "age": (0, [20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0, 65.0]),
    "hours": (2, [20.0, 35.0, 40.5, 50.0, 60.0]),
    "gain": (3, [1.0, 5000.0, 10000.0, 20000.0]),
    "loss": (4, [1.0, 1500.0]),
}
"""Of cut columns the place, and where they are cut: round numbers too."""


def build_logistic() -> keras.Model:
    """Logistic regression from zero weights: 104 * 2 + 2 = 210 parameters, convex."""
    from fedrho.models.backend import keras

    return keras.Sequential([keras.Input(INPUT_SHAPE), keras.layers.Dense(CLASSES, kernel_initializer="zeros", name="logits")])


def build_mlp(activation: str = "relu") -> keras.Model:
    """One hidden layer of 32 rectified units: 104 * 32 + 32 + 32 * 2 + 2 = 3,426 parameters."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(INPUT_SHAPE),
            keras.layers.Dense(32, activation=activated(activation), name="hidden"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


def build_raw_mlp(activation: str = "relu") -> keras.Model:
    """Raw columns to 135 numbers by Keras's preprocessing layers, then a hidden layer of 32: 4,418 parameters.

    Age, years of education and hours are standardised; age, hours, capital gain and loss are cut at public boundaries; categories
    become one of as many places as they have, with one for what is missing.
    """
    from fedrho.models.backend import keras
    from fedrho.models.layers import Columns

    row = keras.Input((RAW_COLUMNS,))
    scaling = keras.layers.Normalization(mean=MEANS, variance=[sd**2 for sd in DEVIATIONS], name="scaled")
    parts = [scaling(Columns(0, len(MEANS), name="numbers")(row))]
    for name, (place, boundaries) in BOUNDARIES.items():
        cut = keras.layers.Discretization(bin_boundaries=boundaries, output_mode="one_hot", name=f"{name}_cut")
        parts.append(cut(Columns(place, place + 1, name=name)(row)))
    for place, (name, size) in enumerate(CATEGORIES.items(), len(NUMBERS)):
        encoded = keras.layers.CategoryEncoding(num_tokens=size + 1, output_mode="one_hot", name=f"{name}_encoded")
        parts.append(encoded(Columns(place, place + 1, name=name)(row)))
    hidden = keras.layers.Dense(32, activation=activated(activation), name="hidden")(keras.layers.Concatenate()(parts))
    return keras.Model(row, keras.layers.Dense(CLASSES, name="logits")(hidden))


LOGISTIC = register(
    ModelSpec("adult-logistic", "logistic regression on census rows", INPUT_SHAPE, CLASSES, build_logistic, parameters=210)
)
MLP = register(ModelSpec("adult-mlp", "one hidden layer on census rows", INPUT_SHAPE, CLASSES, build_mlp, parameters=3426))
RAW_MLP = register(
    ModelSpec(
        "adult-raw-mlp",
        "one hidden layer on census rows as they are, encoded by Keras's preprocessing layers with public constants",
        (RAW_COLUMNS,),
        CLASSES,
        build_raw_mlp,
        parameters=4418,
    )
)
