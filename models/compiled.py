"""The whole local training of one client as TensorFlow operations: no Python between batches, nothing built anew."""

from __future__ import annotations

import math

from fedrho.models.backend import tf
from fedrho.models.flat import FlatModel, KerasSteps
from fedrho.models.locoprop import LocopropSteps
from fedrho.models.optimizers import LOCOPROP, PLAIN, LocalOptimizer


class WholeTraining:
    """Traced once for clients of any size, as a part of a `tf.function`; its steps are those of `FlatModel.local_steps`."""

    def __init__(self, model: FlatModel, optimizer: LocalOptimizer) -> None:
        self._model = model
        self._rate = optimizer.learning_rate
        self._locoprop = LocopropSteps(model, optimizer) if optimizer.name in LOCOPROP else None
        plain = self._locoprop is not None or (optimizer.name == PLAIN and not optimizer.momentum)
        self._keras_steps = None if plain else KerasSteps(model, optimizer, optimizer.learning_rate)

    def __call__(
        self, weights: tf.Tensor, features: tf.Tensor, labels: tf.Tensor, order: tf.Tensor, ends: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What training changed, float32 of shape (size,), and the mean of the batches' losses. Training stops at the first loss
        that is not finite: the change is NaN then, whatever the weights are.

        `order` are places in the examples, and batch k is `order[ends[k]:ends[k + 1]]`; both int32.
        """
        assign(self._model, weights)
        if self._keras_steps is not None:
            self._keras_steps.begin()
        steps = tf.shape(ends)[0] - 1

        def step(place: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = order[ends[place] : ends[place + 1]]
            loss = self._step(tf.gather(features, chosen), tf.gather(labels, chosen))
            return place + 1, total + tf.cast(loss, tf.float64)

        begin = (tf.constant(0), tf.constant(0.0, tf.float64))

        def on(place: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(place < steps, tf.math.is_finite(total))

        _, total = tf.while_loop(on, step, begin, parallel_iterations=1)
        nothing = tf.constant(math.nan, tf.float32)
        update = tf.cond(tf.math.is_finite(total), lambda: self._flat() - weights, lambda: tf.fill(tf.shape(weights), nothing))
        return update, total / tf.cast(steps, tf.float64)

    def _step(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """One batch; its mean loss before it."""
        if self._locoprop is not None:
            return self._locoprop.step(features, labels, tf.constant(self._rate, tf.float32))
        loss, gradients = self._model.loss_and_gradients(features, labels)
        self._apply(gradients)
        return loss

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

    def __call__(self, weights: tf.Tensor, features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """How many largest outputs are those of a label that counts, how many labels count, and their mean cross-entropy."""
        assign(self._model, weights)
        if not self._model.spec.one_label:
            return self._counted(features, labels)
        outputs = self._model.keras_model(features)
        right = tf.equal(tf.argmax(outputs, axis=1, output_type=tf.int32), labels)
        return tf.reduce_sum(tf.cast(right, tf.int32)), tf.size(labels), self._model.cross_entropy(labels, outputs)

    def _counted(self, features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Some examples at a time: a language model has thousands of outputs at every place."""
        counting = self._model.counting

        def step(start: tf.Tensor, right: tf.Tensor, counted: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
            part = slice(start, start + counting.at_once)
            told = counting.measured(labels[part], self._model.keras_model(features[part]))
            return start + counting.at_once, right + told[0], counted + told[1], total + told[2]

        begin = (tf.constant(0), tf.constant(0), tf.constant(0), tf.constant(0.0, tf.float64))
        more = tf.shape(labels)[0]
        _, right, counted, total = tf.while_loop(lambda start, *_: start < more, step, begin, parallel_iterations=1)
        return right, counted, tf.math.divide_no_nan(total, tf.cast(counted, tf.float64))


def assign(model: FlatModel, weights: tf.Tensor) -> None:
    """Copies flat weights into the variables there are."""
    parts = tf.split(weights, [segment.size for segment in model.layout])
    for variable, part, segment in zip(model.variables, parts, model.layout, strict=True):
        variable.assign(tf.reshape(part, segment.shape))
