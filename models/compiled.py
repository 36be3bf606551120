"""The whole local training of one client as TensorFlow operations: no Python between batches, nothing built anew."""

from __future__ import annotations

from fedrho.models.backend import tf
from fedrho.models.flat import FlatModel, KerasSteps
from fedrho.models.optimizers import PLAIN, LocalOptimizer


class WholeTraining:
    """Traced once for clients of any size, as a part of a `tf.function`; its steps are those of `FlatModel.local_steps`."""

    def __init__(self, model: FlatModel, optimizer: LocalOptimizer) -> None:
        self._model = model
        self._rate = optimizer.learning_rate
        plain = optimizer.name == PLAIN and not optimizer.momentum
        self._keras_steps = None if plain else KerasSteps(model, optimizer, optimizer.learning_rate)

    def __call__(
        self, weights: tf.Tensor, features: tf.Tensor, labels: tf.Tensor, order: tf.Tensor, ends: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What training changed, float32 of shape (size,), and the mean of the batches' losses.

        `order` are places in the examples, and batch k is `order[ends[k]:ends[k + 1]]`; both int32.
        """
        assign(self._model, weights)
        if self._keras_steps is not None:
            self._keras_steps.begin()
        steps = tf.shape(ends)[0] - 1

        def step(place: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = order[ends[place] : ends[place + 1]]
            loss, gradients = self._model.loss_and_gradients(tf.gather(features, chosen), tf.gather(labels, chosen))
            self._apply(gradients)
            return place + 1, total + tf.cast(loss, tf.float64)

        begin = (tf.constant(0), tf.constant(0.0, tf.float64))
        _, total = tf.while_loop(lambda place, _: place < steps, step, begin, parallel_iterations=1)
        return self._flat() - weights, total / tf.cast(steps, tf.float64)

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        if self._keras_steps is not None:
            return self._keras_steps.apply(gradients)
        rate = tf.constant(self._rate, tf.float32)
        for variable, gradient in zip(self._model.variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)

    def _flat(self) -> tf.Tensor:
        return tf.concat([tf.reshape(variable, [-1]) for variable in self._model.variables], 0)


class Measured:
    """How well weights do on held-out examples, as TensorFlow operations."""

    def __init__(self, model: FlatModel) -> None:
        self._model = model

    def __call__(self, weights: tf.Tensor, features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """How many of the largest outputs are those of the label, and the mean cross-entropy."""
        assign(self._model, weights)
        outputs = self._model.keras_model(features)
        right = tf.equal(tf.argmax(outputs, axis=1, output_type=tf.int32), labels)
        return tf.reduce_sum(tf.cast(right, tf.int32)), self._model.cross_entropy(labels, outputs)


def assign(model: FlatModel, weights: tf.Tensor) -> None:
    """Copies flat weights into the variables there are."""
    parts = tf.split(weights, [segment.size for segment in model.layout])
    for variable, part, segment in zip(model.variables, parts, model.layout, strict=True):
        variable.assign(tf.reshape(part, segment.shape))
