"""A Keras classifier with all it carries as one flat float32 vector, for training in one place.

Unlike `FlatModel`, whose vectors are clipped and averaged, this one takes running statistics and frozen layers along: they follow
the trainable weights in the vector. The states of random layers, as of dropout, are no part of it: a training's seed sets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec, Outputs, UnknownModel

FloatVector = NDArray[np.float32]
PROBABILITIES = frozenset({"softmax", "sigmoid"})


class WholeModel:
    """One built model, reused for any weights; raises UnknownModel for one that is no classifier of the spec's shape."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.keras_model = spec.build()
        _check(spec, self.keras_model)
        self.trained = _variables(self.keras_model.trainable_variables)
        others = _variables(self.keras_model.non_trainable_variables)
        self.random = [variable for variable in others if variable.dtype.is_integer]
        self.carried = self.trained + [variable for variable in others if not variable.dtype.is_integer]
        self.sizes = [int(np.prod(variable.shape, dtype=np.int64)) for variable in self.carried]
        self.size = sum(self.sizes)

    @property
    def has_others(self) -> bool:
        """Whether its weights are more than the trained ones: running statistics, or frozen layers."""
        return len(self.carried) > len(self.trained)

    def fresh(self, seed: int) -> FloatVector:
        """What `build` makes after this seed: other weights for another seed, where its layers draw them."""
        keras.utils.set_random_seed(seed)
        made = self.spec.build()
        others = _variables(made.non_trainable_variables)
        return _flat([*_variables(made.trainable_variables), *(one for one in others if not one.dtype.is_integer)])

    def weights(self) -> FloatVector:
        return _flat(self.carried)

    def assign(self, weights: FloatVector) -> None:
        """Raises ValueError when the vector has another length."""
        if weights.shape != (self.size,):
            raise ValueError(f"model {self.spec.name!r} has {self.size} weights, not {weights.shape}")
        parts = np.split(weights, np.cumsum(self.sizes)[:-1])
        for variable, part in zip(self.carried, parts, strict=True):
            variable.assign(part.reshape(variable.shape))

    def reseed(self, seed: int) -> None:
        """Puts the states of random layers where this seed says."""
        random = np.random.default_rng((seed, 1))
        for state in self.random:
            state.assign(random.integers(0, 2**31, tuple(state.shape)).astype(state.dtype.as_numpy_dtype))

    def log_probabilities(self, outputs: tf.Tensor) -> tf.Tensor:
        """Of each class, of shape (batch, classes), from what the model returns."""
        if self.spec.outputs is Outputs.LOGITS:
            return tf.nn.log_softmax(outputs)
        shares = outputs / tf.reduce_sum(outputs, axis=1, keepdims=True)
        return tf.math.log(tf.clip_by_value(shares, keras.config.epsilon(), 1.0))


def spec_of(build: Callable[[], keras.Model], name: str = "own") -> ModelSpec:
    """That of a function which builds a model; inputs, classes and whether it ends in a softmax are read off what it builds."""
    made = build()
    if len(made.inputs) != 1 or len(made.outputs) != 1:
        raise UnknownModel(f"model {name!r} has {len(made.inputs)} inputs and {len(made.outputs)} outputs; allowed: one of each")
    inputs, shape = made.inputs[0], tuple(made.output_shape)
    if len(shape) != 2 or None in (*shape[1:], *tuple(made.input_shape)[1:]):
        raise UnknownModel(f"model {name!r} maps {made.input_shape} to {shape}; allowed: fixed inputs, one output a class")
    last = made.layers[-1]
    ends_in = "softmax" if type(last).__name__ == "Softmax" else getattr(getattr(last, "activation", None), "__name__", "")
    outputs = Outputs.PROBABILITIES if ends_in in PROBABILITIES else Outputs.LOGITS
    dtype = tf.as_dtype(inputs.dtype).name
    return ModelSpec(name, "a Keras model of its own", tuple(made.input_shape)[1:], shape[1], build, dtype, outputs=outputs)


def _check(spec: ModelSpec, model: keras.Model) -> None:
    maps = tuple(model.input_shape), tuple(model.output_shape)
    wanted = (None, *spec.input_shape), (None, spec.classes)
    if maps != wanted:
        raise UnknownModel(f"model {spec.name!r} maps {maps[0]} to {maps[1]}, not {wanted[0]} to {wanted[1]}")
    if not model.trainable_variables:
        raise UnknownModel(f"model {spec.name!r} has no weights to train")
    for variable in _variables((*model.trainable_variables, *model.non_trainable_variables)):
        if variable.dtype != tf.float32 and not variable.dtype.is_integer:
            raise UnknownModel(f"model {spec.name!r} has {variable.dtype.name} weights, {variable.name!r}; allowed: float32")


def _variables(found: Iterable[keras.Variable | tf.Variable]) -> list[tf.Variable]:
    """TensorFlow's own variables; in Keras 2 there are no others."""
    return [variable if isinstance(variable, tf.Variable) else variable.value for variable in found]


def _flat(variables: list[tf.Variable]) -> FloatVector:
    return np.concatenate([variable.numpy().reshape(-1) for variable in variables]).astype(np.float32)
