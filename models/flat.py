"""A Keras model seen as one flat float32 vector: `trainable_variables` in their order, each in C order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec, Outputs, UnknownModel
from fedrho.models.likelihoods import likelihood_loss
from fedrho.models.optimizers import PLAIN, LocalOptimizer

FloatVector = NDArray[np.float32]
Inputs = NDArray[np.float32] | NDArray[np.int32]
Targets = NDArray[np.int32] | NDArray[np.float32]
LocalStep = Callable[[Inputs, Targets], None]
"""Takes the features and labels of a batch, or the likelihoods of answers about them, and changes the weights."""


@dataclass(frozen=True)
class Segment:
    """Where one variable lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class FlatModel:
    """One built model, reused for any weights.

    Its trainable weights are what is trained, clipped and averaged. Raises UnknownModel for a model that has others: running
    statistics, frozen layers or the state of random numbers would escape all three, and pass from one training to the next.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0, on_likelihoods: bool = False) -> None:
        """`on_likelihoods`: what is trained on are not labels, but how probable an answer about each was under every label,
        float32 of shape (batch, classes); the loss is `likelihood_loss`.
        """
        keras.utils.set_random_seed(seed)
        self.spec = spec
        self.keras_model = spec.build()
        _check(spec, self.keras_model)
        self.variables: list[tf.Variable] = [_inner(variable) for variable in self.keras_model.trainable_variables]
        self.layout = _layout(self.keras_model)
        self.size = sum(segment.size for segment in self.layout)
        from_logits = spec.outputs is Outputs.LOGITS
        self.cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        self._losses = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits, reduction="none")
        inputs = tf.TensorSpec((None, *spec.input_shape), tf.as_dtype(spec.input_dtype), "features")
        self.tested_of = [inputs, tf.TensorSpec((None,), tf.int32, "labels")]
        self.batch_of = [inputs, tf.TensorSpec((None, spec.classes), tf.float32, "labels")] if on_likelihoods else self.tested_of
        self.loss = self._likelihood_loss if on_likelihoods else self.cross_entropy
        # Without autograph, which writes source files: training must leave nothing on the disk.
        self._step = tf.function(
            self._sgd_step, input_signature=[*self.batch_of, tf.TensorSpec((), tf.float32, "learning_rate")], autograph=False
        )
        self._outputs = tf.function(self.keras_model, input_signature=self.batch_of[:1], autograph=False)
        self._kept: dict[tuple[str, float], KerasSteps] = {}

    def weights(self) -> FloatVector:
        return np.concatenate([variable.numpy().reshape(-1) for variable in self.variables]).astype(np.float32)

    def assign(self, weights: FloatVector) -> None:
        """Raises ValueError when the vector has another length."""
        if weights.shape != (self.size,):
            raise ValueError(f"model {self.spec.name!r} has {self.size} weights, not {weights.shape}")
        for variable, segment in zip(self.variables, self.layout, strict=True):
            variable.assign(weights[segment.offset : segment.offset + segment.size].reshape(segment.shape))

    def sgd_step(self, features: Inputs, labels: Targets, learning_rate: float) -> None:
        """One step of plain SGD on the mean cross-entropy of a batch."""
        self._step(tf.constant(features), tf.constant(labels), tf.constant(learning_rate, tf.float32))

    def local_steps(self, optimizer: LocalOptimizer) -> LocalStep:
        """Steps of an optimizer that has just begun: nothing of an earlier training is left in it."""
        if optimizer.name == PLAIN and not optimizer.momentum:
            return lambda features, labels: self.sgd_step(features, labels, optimizer.learning_rate)
        key = (optimizer.name, optimizer.momentum)
        if key not in self._kept:
            self._kept[key] = KerasSteps(self, optimizer)
        return self._kept[key].anew(optimizer.learning_rate)

    def accuracy(self, features: Inputs, labels: NDArray[np.int32]) -> float:
        """Share of examples whose largest output is that of their label, with the weights assigned last."""
        predicted = np.argmax(self._outputs(tf.constant(features)).numpy(), axis=1)
        return float(np.mean(predicted == labels))

    def gradients(self, features: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        """Of the mean cross-entropy of a batch, and of what the layers add to it; one for each variable."""
        return self.loss_and_gradients(features, labels)[1]

    def loss_and_gradients(self, features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = self.loss(labels, self.keras_model(features, training=True))
            if self.keras_model.losses:
                loss += tf.add_n(self.keras_model.losses)
        return loss, list(tape.gradient(loss, self.variables, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def losses(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Of each example of shape (batch,), on labels or on likelihoods, as this model is trained."""
        if self.batch_of is self.tested_of:
            return self._losses(labels, outputs)
        return likelihood_loss(self._log_probabilities(outputs), tf.math.log(labels))

    def _log_probabilities(self, outputs: tf.Tensor) -> tf.Tensor:
        if self.spec.outputs is Outputs.LOGITS:
            return tf.nn.log_softmax(outputs)
        shares = outputs / tf.reduce_sum(outputs, axis=1, keepdims=True)
        return tf.math.log(tf.clip_by_value(shares, keras.config.epsilon(), 1.0))

    def _likelihood_loss(self, likelihoods: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(self.losses(likelihoods, outputs))

    def traced(self, step: Callable[[tf.Tensor, tf.Tensor], None]) -> Callable[[tf.Tensor, tf.Tensor], None]:
        """`step` as one TensorFlow function of a batch."""
        made: Callable[[tf.Tensor, tf.Tensor], None] = tf.function(step, input_signature=self.batch_of, autograph=False)
        return made

    def _sgd_step(self, features: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> None:
        for variable, gradient in zip(self.variables, self.gradients(features, labels), strict=True):
            variable.assign_sub(learning_rate * gradient)


class KerasSteps:
    """A Keras optimizer of one model, put back to its beginning for every training."""

    def __init__(self, model: FlatModel, wanted: LocalOptimizer, learning_rate: float = 1.0) -> None:
        momentum = {"momentum": wanted.momentum} if wanted.momentum else {}
        config = {"learning_rate": learning_rate, **momentum}
        self._optimizer = keras.optimizers.get({"class_name": wanted.name, "config": config})
        self._trained = model.keras_model.trainable_variables
        self._optimizer.build(self._trained)
        self._beginning = [state.numpy() for state in self._state()]
        self._step = model.traced(lambda features, labels: self.apply(model.gradients(features, labels)))

    def anew(self, learning_rate: float) -> LocalStep:
        self.begin()
        self._optimizer.learning_rate = learning_rate
        return lambda features, labels: self._step(tf.constant(features), tf.constant(labels))

    def begin(self) -> None:
        """Puts the optimizer back to its beginning."""
        for state, value in zip(self._state(), self._beginning, strict=True):
            state.assign(value)

    def apply(self, gradients: list[tf.Tensor]) -> None:
        """One step."""
        self._optimizer.apply_gradients(zip(gradients, self._trained, strict=True))

    def _state(self) -> list[tf.Variable]:
        variables = self._optimizer.variables
        return [getattr(variable, "value", variable) for variable in (variables() if callable(variables) else variables)]


def _check(spec: ModelSpec, model: keras.Model) -> None:
    """Raises UnknownModel for what could not be trained, clipped and averaged as one float32 vector."""
    for layer in innermost(model):
        kept = [_path(variable) for variable in layer.non_trainable_variables]
        if kept:
            raise UnknownModel(f"model {spec.name!r} has non-trainable weights, {kept[0]!r}: {_why(layer)}")
    if model.non_trainable_variables:
        raise UnknownModel(f"model {spec.name!r} has non-trainable weights, which would be neither clipped nor averaged")
    if not model.trainable_variables:
        raise UnknownModel(f"model {spec.name!r} has no weights to train")
    for variable in model.trainable_variables:
        if tf.as_dtype(variable.dtype) != tf.float32:
            raise UnknownModel(f"model {spec.name!r} has {variable.dtype} weights, {_path(variable)!r}; allowed: float32")
    shape = tuple(model.output_shape)
    if shape != (None, spec.classes) or tuple(model.input_shape) != (None, *spec.input_shape):
        raise UnknownModel(
            f"model {spec.name!r} maps {model.input_shape} to {shape}, not {(None, *spec.input_shape)} to {(None, spec.classes)}"
        )


def innermost(model: keras.Model) -> list[keras.Layer]:
    """Its layers, and those of the models in it, without these models themselves."""
    return [layer for layer in model._flatten_layers(include_self=False) if not getattr(layer, "layers", None)]


def _why(layer: keras.Layer) -> str:
    if "Normalization" in type(layer).__name__ and getattr(layer, "trainable", False):
        return "statistics of the examples, which would be neither clipped nor averaged; take GroupNormalization instead"
    if any("seed" in _path(variable) for variable in layer.non_trainable_variables):
        return "the state of random numbers, which would pass from one training to the next; leave dropout and noise out"
    return "frozen weights, which are neither trained nor averaged; make them trainable, or leave them out of the model"


def _layout(model: keras.Model) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for variable in model.trainable_variables:
        offset = segments[-1].offset + segments[-1].size if segments else 0
        segments.append(Segment(_path(variable), tuple(variable.shape), offset))
    return tuple(segments)


def _inner(variable: keras.Variable | tf.Variable) -> tf.Variable:
    """TensorFlow's own variable; in Keras 2 there is no other."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def _path(variable: keras.Variable | tf.Variable) -> str:
    return str(getattr(variable, "path", variable.name))
