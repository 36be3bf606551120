"""ModelSpec and lookup by name; imports no TensorFlow until a model is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


class UnknownModel(ValueError):
    """No model of that name, or none that can be used under it."""


class Outputs(Enum):
    """What a classifier returns for each class, and so how its cross-entropy is computed."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class ModelSpec:
    """A classifier.

    `build` returns a fresh, built Keras model that maps inputs of shape (batch, *input_shape) to `outputs` of shape
    (batch, classes); labels are integers below `classes`, and the loss is the mean cross-entropy. Inputs are float32, or int32
    for ids of tokens, which are below `vocabulary` where that is not 0. `build` is a function of a module, or another object that
    can be pickled: it is called in the training process.
    """

    name: str
    summary: str
    input_shape: tuple[int, ...]
    classes: int
    build: Callable[[], keras.Model]
    input_dtype: str = "float32"
    vocabulary: int = 0
    outputs: Outputs = Outputs.LOGITS


_REGISTRY: dict[str, ModelSpec] = {}


def register(spec: ModelSpec) -> ModelSpec:
    """Adds a model to the zoo; raises ValueError when the name is taken."""
    if spec.name in _REGISTRY:
        raise ValueError(f"a model named {spec.name!r} is registered already")
    _REGISTRY[spec.name] = spec
    return spec


def names() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def registered(name: str) -> ModelSpec | None:
    return _REGISTRY.get(name)


def lookup(name: str) -> ModelSpec:
    """Raises UnknownModel, which lists the names there are."""
    if name not in _REGISTRY:
        raise UnknownModel(f"unknown model {name!r}; known models: {', '.join(names())}")
    return _REGISTRY[name]
