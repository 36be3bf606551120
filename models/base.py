"""ModelSpec and lookup by name; imports no TensorFlow until a model is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


class UnknownModel(ValueError):
    """No model of that name."""


@dataclass(frozen=True)
class ModelSpec:
    """A classifier of the zoo.

    `build` returns a fresh, built Keras model that maps float32 inputs of shape (batch, *input_shape) to logits of shape
    (batch, classes); labels are integers below `classes`.
    """

    name: str
    summary: str
    input_shape: tuple[int, ...]
    classes: int
    build: Callable[[], keras.Model]


_REGISTRY: dict[str, ModelSpec] = {}


def register(spec: ModelSpec) -> ModelSpec:
    """Adds a model to the zoo; raises ValueError when the name is taken."""
    if spec.name in _REGISTRY:
        raise ValueError(f"a model named {spec.name!r} is registered already")
    _REGISTRY[spec.name] = spec
    return spec


def names() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def lookup(name: str) -> ModelSpec:
    """Raises UnknownModel, which lists the names there are."""
    if name not in _REGISTRY:
        raise UnknownModel(f"unknown model {name!r}; known models: {', '.join(names())}")
    return _REGISTRY[name]
