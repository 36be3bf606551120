"""Which labels count, and the loss and the accuracy over those alone; as TensorFlow operations.

A label below `ModelSpec.ignored` is the id of nothing or of an unknown word: padding, which no model should learn to guess. The
loss of a batch is

    sum of the cross-entropies of the labels that count / how many count, and 0 where none does

so that a sequence that is mostly padding weighs as much as it says, as in the language models of McMahan et al. 2018
(arXiv:1710.06963).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec, Outputs

AT_ONCE: Final = 1 << 24
"""Outputs, as float32, that a measurement holds at a time of a model with a label at every place: 64 MiB."""


@dataclass(frozen=True)
class Counting:
    """Labels int32 of shape (batch, *label_shape), and outputs (batch, *label_shape, classes)."""

    spec: ModelSpec

    def counts(self, labels: tf.Tensor) -> tf.Tensor:
        """Which labels count, bool of their shape."""
        return labels >= self.spec.ignored

    def losses(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Cross-entropies, float32 of the labels' shape; 0 of what does not count.

        Of Keras's function, and not its class: the class leaves out places that a layer masks, whatever their labels are.
        """
        logits = self.spec.outputs is Outputs.LOGITS
        losses = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=logits)
        return tf.where(self.counts(labels), losses, tf.zeros_like(losses))

    def mean(self, labels: tf.Tensor, outputs: tf.Tensor, there: tf.Tensor | None = None) -> tf.Tensor:
        """The loss of a batch, a float32; of the examples alone that are `there`, bool of shape (batch,), where that is given."""
        losses, counts = self.losses(labels, outputs), self.counts(labels)
        if there is not None:
            beside = tf.reshape(there, (-1, *(1 for _ in self.spec.label_shape)))
            losses, counts = tf.where(beside, losses, tf.zeros_like(losses)), tf.logical_and(beside, counts)
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(tf.cast(counts, tf.float32)))

    def measured(self, labels: tf.Tensor, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """How many of the largest outputs are those of a label that counts, how many count, both int32, and the sum of losses."""
        counts = self.counts(labels)
        right = tf.logical_and(counts, tf.equal(tf.argmax(outputs, axis=-1, output_type=tf.int32), labels))
        return _number(right), _number(counts), tf.reduce_sum(tf.cast(self.losses(labels, outputs), tf.float64))

    @property
    def at_once(self) -> int:
        """Examples that are measured at a time."""
        places = 1
        for size in self.spec.label_shape:
            places *= size
        return max(1, AT_ONCE // (places * self.spec.classes))


def _number(of: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(of, tf.int32))
