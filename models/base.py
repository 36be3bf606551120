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
    """A classifier: of an example, or of each place in it, as a language model guesses every next token of a sequence.

    `build` returns a fresh, built Keras model that maps inputs of shape (batch, *input_shape) to `outputs` of shape
    (batch, *label_shape, classes); labels are integers of shape (batch, *label_shape) below `classes`, and the loss is the mean
    cross-entropy over the labels that are not below `ignored`. Inputs are float32, or int32 for ids of tokens, which are below
    `vocabulary` where that is not 0. `build` is a function of a module, or another object that can be pickled: it is called in
    the training process.
    """

    name: str
    summary: str
    input_shape: tuple[int, ...]
    classes: int
    build: Callable[[], keras.Model]
    input_dtype: str = "float32"
    vocabulary: int = 0
    outputs: Outputs = Outputs.LOGITS
    label_shape: tuple[int, ...] = ()
    """Of one example's labels: () of a class, (length,) of a sequence that has a label at every place."""
    ignored: int = 0
    """Labels below it are never to be guessed, such as the ids of nothing and of unknown words: they count neither in the loss
    nor in the accuracy."""
    tokens: str = ""
    """What turns text into its inputs, by its name in `models/tokens.py`; empty for models that take no text."""
    paper: str = ""
    """Where the network was published."""
    frozen: bool = False
    """Whether layers may be frozen: their weights are the same wherever it is built, as those in a file are."""
    parameters: int = 0
    """How many weights are trained, so that a list of models builds none; 0 where that is not known beforehand."""

    @property
    def one_label(self) -> bool:
        """Whether an example has one label, and all labels count. Only such a model can have label privacy."""
        return not self.label_shape and not self.ignored


def no_label_privacy(spec: ModelSpec) -> str:
    """Why nobody can answer for the labels of such a model; empty where it is possible."""
    if spec.one_label:
        return ""
    has = "a label at every place of an example" if spec.label_shape else f"labels below {spec.ignored} that do not count"
    return f"model {spec.name!r} has {has}; label privacy is for one label an example"


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
