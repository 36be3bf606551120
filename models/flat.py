"""A Keras model seen as one flat float32 vector: `trainable_variables` in their order, each in C order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec, Outputs, UnknownModel, no_label_privacy
from fedrho.models.counting import Counting
from fedrho.models.likelihoods import likelihood_loss
from fedrho.models.locoprop import LocopropSteps
from fedrho.models.optimizers import LOCOPROP, PLAIN, LocalOptimizer
from fedrho.models.preprocessing import why_adapted

FloatVector = NDArray[np.float32]
Inputs = NDArray[np.float32] | NDArray[np.int32]
Targets = NDArray[np.int32] | NDArray[np.float32]
LocalStep = Callable[[Inputs, Targets], float]
"""Takes the features and labels of a batch, or the likelihoods of answers about them, changes the weights, and returns the loss
that the batch had before."""


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
    statistics or the state of random numbers would escape all three, and pass from one training to the next. Frozen layers do
    not change: they may be in a model whose file has their weights (`ModelSpec.frozen`).
    """

    def __init__(self, spec: ModelSpec, seed: int = 0, on_likelihoods: bool = False) -> None:
        """`on_likelihoods`: what is trained on are not labels, but how probable an answer about each was under every label,
        float32 of shape (batch, classes); the loss is `likelihood_loss`. Raises UnknownModel for a model that has a label at
        every place, or labels that do not count: answers are about one label an example.
        """
        keras.utils.set_random_seed(seed)
        self.spec = spec
        if on_likelihoods and not spec.one_label:
            raise UnknownModel(no_label_privacy(spec))
        self.keras_model = spec.build()
        _check(spec, self.keras_model)
        self.variables: list[tf.Variable] = [_inner(variable) for variable in self.keras_model.trainable_variables]
        self.layout = _layout(self.keras_model)
        self.size = sum(segment.size for segment in self.layout)
        self.counting = Counting(spec)
        self.cross_entropy = _mean_loss(spec) if spec.one_label else self.counting.mean
        self._losses = keras.losses.SparseCategoricalCrossentropy(from_logits=spec.outputs is Outputs.LOGITS, reduction="none")
        inputs = tf.TensorSpec((None, *spec.input_shape), tf.as_dtype(spec.input_dtype), "features")
        self.tested_of = [inputs, tf.TensorSpec((None, *spec.label_shape), tf.int32, "labels")]
        self.batch_of = [inputs, tf.TensorSpec((None, spec.classes), tf.float32, "labels")] if on_likelihoods else self.tested_of
        self.loss = self._likelihood_loss if on_likelihoods else self.cross_entropy
        # Without autograph, which writes source files: training must leave nothing on the disk.
        self._step = tf.function(
            self._sgd_step, input_signature=[*self.batch_of, tf.TensorSpec((), tf.float32, "learning_rate")], autograph=False
        )
        self._outputs = tf.function(self.keras_model, input_signature=self.batch_of[:1], autograph=False)
        self._kept: dict[tuple[str, float], KerasSteps | LocopropSteps] = {}

    def weights(self) -> FloatVector:
        return np.concatenate([variable.numpy().reshape(-1) for variable in self.variables]).astype(np.float32)

    def assign(self, weights: FloatVector) -> None:
        """Raises ValueError when the vector has another length."""
        if weights.shape != (self.size,):
            raise ValueError(f"model {self.spec.name!r} has {self.size} weights, not {weights.shape}")
        for variable, segment in zip(self.variables, self.layout, strict=True):
            variable.assign(weights[segment.offset : segment.offset + segment.size].reshape(segment.shape))

    def sgd_step(self, features: Inputs, labels: Targets, learning_rate: float) -> float:
        """One step of plain SGD on the mean cross-entropy of the labels of a batch that count, which it returns."""
        return float(self._step(tf.constant(features), tf.constant(labels), tf.constant(learning_rate, tf.float32)))

    def local_steps(self, optimizer: LocalOptimizer) -> LocalStep:
        """Steps of an optimizer that has just begun: nothing of an earlier training is left in it.

        Raises UnknownOptimizer for one that cannot train this model.
        """
        if optimizer.name == PLAIN and not optimizer.momentum:
            return lambda features, labels: self.sgd_step(features, labels, optimizer.learning_rate)
        key = (optimizer.name, optimizer.momentum)
        if key not in self._kept:
            self._kept[key] = LocopropSteps(self, optimizer) if optimizer.name in LOCOPROP else KerasSteps(self, optimizer)
        return self._kept[key].anew(optimizer.learning_rate)

    def accuracy(self, features: Inputs, labels: NDArray[np.int32]) -> float:
        """Share of the labels that count, one an example or one at every place, whose output is the largest, with the weights
        assigned last; NaN where none counts.
        """
        if self.spec.one_label:
            predicted = np.argmax(self._outputs(tf.constant(features)).numpy(), axis=1)
            return float(np.mean(predicted == labels))
        parts = [slice(start, start + self.counting.at_once) for start in range(0, len(labels), self.counting.at_once)]
        told = [self.counting.measured(labels[part], self._outputs(tf.constant(features[part]))) for part in parts]
        counted = sum(int(one[1]) for one in told)
        return sum(int(one[0]) for one in told) / counted if counted else math.nan

    def gradients(self, features: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        """Of the loss of a batch, which is the mean cross-entropy of the labels that count, and of what the layers add to it; one
        for each variable.
        """
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

    def shared_loss(self, labels: tf.Tensor, outputs: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
        """The loss of a batch that is filled up: `shares`, float32 of shape (batch,), are 0 where it is, equal elsewhere."""
        if self.spec.one_label:
            return tf.reduce_sum(self.losses(labels, outputs) * shares)
        return self.counting.mean(labels, outputs, shares > 0)

    def _log_probabilities(self, outputs: tf.Tensor) -> tf.Tensor:
        if self.spec.outputs is Outputs.LOGITS:
            return tf.nn.log_softmax(outputs)
        shares = outputs / tf.reduce_sum(outputs, axis=1, keepdims=True)
        return tf.math.log(tf.clip_by_value(shares, keras.config.epsilon(), 1.0))

    def _likelihood_loss(self, likelihoods: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(self.losses(likelihoods, outputs))

    def traced(self, step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """`step` as one TensorFlow function of a batch."""
        made: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.function(step, input_signature=self.batch_of, autograph=False)
        return made

    def _sgd_step(self, features: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        loss, gradients = self.loss_and_gradients(features, labels)
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.assign_sub(learning_rate * gradient)
        return loss


class KerasSteps:
    """A Keras optimizer of one model, put back to its beginning for every training."""

    def __init__(self, model: FlatModel, wanted: LocalOptimizer, learning_rate: float = 1.0) -> None:
        momentum = {"momentum": wanted.momentum} if wanted.momentum else {}
        config = {"learning_rate": learning_rate, **momentum}
        self._optimizer = keras.optimizers.get({"class_name": wanted.name, "config": config})
        self._trained = model.keras_model.trainable_variables
        self._optimizer.build(self._trained)
        self._beginning = [state.numpy() for state in self._state()]
        self._model = model
        self._step = model.traced(self._one)

    def anew(self, learning_rate: float) -> LocalStep:
        self.begin()
        self._optimizer.learning_rate = learning_rate
        return lambda features, labels: float(self._step(tf.constant(features), tf.constant(labels)))

    def begin(self) -> None:
        """Puts the optimizer back to its beginning."""
        for state, value in zip(self._state(), self._beginning, strict=True):
            state.assign(value)

    def apply(self, gradients: list[tf.Tensor]) -> None:
        """One step."""
        self._optimizer.apply_gradients(zip(gradients, self._trained, strict=True))

    def _one(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss, gradients = self._model.loss_and_gradients(features, labels)
        self.apply(gradients)
        return loss

    def _state(self) -> list[tf.Variable]:
        variables = self._optimizer.variables
        return [getattr(variable, "value", variable) for variable in (variables() if callable(variables) else variables)]


def _check(spec: ModelSpec, model: keras.Model) -> None:
    """Raises UnknownModel for what could not be trained, clipped and averaged as one float32 vector."""
    idle = {id(one) for layer in innermost(model) if _draws_nothing(layer) for one in layer.non_trainable_variables}
    for layer in innermost(model):
        if adapted := why_adapted(layer):
            raise UnknownModel(f"model {spec.name!r}: {adapted}")
        kept = [_path(variable) for variable in layer.non_trainable_variables if id(variable) not in idle]
        if kept and not (spec.frozen and _constant(layer)):
            raise UnknownModel(f"model {spec.name!r} has non-trainable weights, {kept[0]!r}: {_why(layer)}")
    in_layers = {id(variable) for layer in innermost(model) for variable in layer.non_trainable_variables}
    if any(id(variable) not in in_layers for variable in model.non_trainable_variables):
        raise UnknownModel(f"model {spec.name!r} has non-trainable weights, which would be neither clipped nor averaged")
    if not model.trainable_variables:
        raise UnknownModel(f"model {spec.name!r} has no weights to train")
    for variable in model.trainable_variables:
        if tf.as_dtype(variable.dtype) != tf.float32:
            raise UnknownModel(f"model {spec.name!r} has {variable.dtype} weights, {_path(variable)!r}; allowed: float32")
    if spec.frozen and not all(np.isfinite(variable.numpy()).all() for variable in model.variables):
        raise UnknownModel(f"model {spec.name!r}: its file has weights that are not finite, which nobody could train")
    inputs, outputs = (None, *spec.input_shape), (None, *spec.label_shape, spec.classes)
    if (tuple(model.input_shape), tuple(model.output_shape)) != (inputs, outputs):
        raise UnknownModel(f"model {spec.name!r} maps {model.input_shape} to {model.output_shape}, not {inputs} to {outputs}")


def _mean_loss(spec: ModelSpec) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    mean: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = keras.losses.SparseCategoricalCrossentropy(
        from_logits=spec.outputs is Outputs.LOGITS
    )
    return mean


def innermost(model: keras.Model) -> list[keras.Layer]:
    """Its layers, and those of the models in it, without these models themselves."""
    return [layer for layer in model._flatten_layers(include_self=False) if not getattr(layer, "layers", None)]


def _constant(layer: keras.Layer) -> bool:
    """Whether no training changes its other weights: a frozen BatchNormalization normalizes by the statistics that it has."""
    return not layer.trainable and not _draws(layer) and not _has_state(layer)


def _has_state(layer: keras.Layer) -> bool:
    """Whether it has weights of its own that are never trained; a frozen layer may go on changing them, as SpectralNormalization
    does, and what one training left would reach the next.
    """
    own = getattr(layer, "_non_trainable_variables", None) or getattr(layer, "_non_trainable_weights", ())
    return bool(own) and type(layer) is not keras.layers.BatchNormalization


def _draws(layer: keras.Layer) -> bool:
    return any("seed" in _path(variable) for variable in layer.non_trainable_variables)


def _draws_nothing(layer: keras.Layer) -> bool:
    """Whether it is a recurrent layer without dropout: Keras gives it a state of random numbers, which it then never draws."""
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    return rates == [0.0, 0.0] and all("seed" in _path(variable) for variable in layer.non_trainable_variables)


def _why(layer: keras.Layer) -> str:
    if "Normalization" in type(layer).__name__ and getattr(layer, "trainable", False):
        return "statistics of the examples, which would be neither clipped nor averaged; take GroupNormalization instead"
    if _draws(layer):
        return "the state of random numbers, which would pass from one training to the next; leave dropout and noise out"
    if _has_state(layer):
        return f"a state of {type(layer).__name__}, which training may change although the layer is frozen; leave the layer out"
    return "frozen weights, which may differ where it is built anew; save it as a .keras file, or make them trainable"


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
