"""A Keras model seen as one flat float32 vector: `trainable_variables` in their order, each in C order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec

FloatVector = NDArray[np.float32]


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

    Raises ValueError for a model with non-trainable weights: they would be neither clipped nor averaged.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        keras.utils.set_random_seed(seed)
        self.spec = spec
        self.keras_model = spec.build()
        self._variables = [variable.value for variable in self.keras_model.trainable_variables]
        if self.keras_model.non_trainable_variables:
            raise ValueError(f"model {spec.name!r} has non-trainable weights, which would escape clipping")
        self.layout = _layout(self.keras_model)
        self.size = sum(segment.size for segment in self.layout)
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        features = tf.TensorSpec((None, *spec.input_shape), tf.float32)
        labels = tf.TensorSpec((None,), tf.int32)
        self._step = tf.function(self._sgd_step, input_signature=[features, labels, tf.TensorSpec((), tf.float32)])
        self._logits = tf.function(self.keras_model, input_signature=[features])

    def weights(self) -> FloatVector:
        return np.concatenate([variable.numpy().reshape(-1) for variable in self._variables]).astype(np.float32)

    def assign(self, weights: FloatVector) -> None:
        """Raises ValueError when the vector has another length."""
        if weights.shape != (self.size,):
            raise ValueError(f"model {self.spec.name!r} has {self.size} weights, not {weights.shape}")
        for variable, segment in zip(self._variables, self.layout, strict=True):
            variable.assign(weights[segment.offset : segment.offset + segment.size].reshape(segment.shape))

    def sgd_step(self, features: NDArray[np.float32], labels: NDArray[np.int32], learning_rate: float) -> None:
        """One step of plain SGD on the mean cross-entropy of a batch."""
        self._step(tf.constant(features), tf.constant(labels), tf.constant(learning_rate, tf.float32))

    def accuracy(self, features: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
        """Share of examples whose largest logit is their label, with the weights assigned last."""
        predicted = np.argmax(self._logits(tf.constant(features)).numpy(), axis=1)
        return float(np.mean(predicted == labels))

    def _sgd_step(self, features: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = self._loss(labels, self.keras_model(features, training=True))
        for variable, gradient in zip(self._variables, tape.gradient(loss, self._variables), strict=True):
            variable.assign_sub(learning_rate * gradient)


def _layout(model: keras.Model) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for variable in model.trainable_variables:
        offset = segments[-1].offset + segments[-1].size if segments else 0
        segments.append(Segment(variable.path, tuple(variable.shape), offset))
    return tuple(segments)
