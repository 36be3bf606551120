"""The local training of many clients at once, for small models: every client has a row of weights, and each step is one batched
operation for all rows."""

from __future__ import annotations

import math
from typing import Final

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec
from fedrho.models.flat import FlatModel, innermost
from fedrho.models.optimizers import PLAIN, LocalOptimizer

MOST_WEIGHTS: Final = 100_000
"""Beyond about this many a row at a time is the faster way: the stacked rows no longer fit into the cache."""

ROW_BY_ROW: Final = frozenset(
    {"InputLayer", "Dense", "Flatten", "Reshape", "Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "Rescaling", "Embedding"}
    | {"GlobalAveragePooling1D", "Add", "Concatenate"}
)
"""Kinds of layers whose batched form was measured to be faster; that of a convolution is slower."""

HAS_OWN_LOSS: Final = ("kernel_regularizer", "bias_regularizer", "embeddings_regularizer", "activity_regularizer")


def vectorises(spec: ModelSpec, optimizer: str = PLAIN) -> bool:
    """Whether many clients are trained at once where a study says `auto`.

    A rule, not a measurement, so that the same study does the same everywhere: SGD, with momentum or without, at most 100,000
    weights, and none but layers of a list, without a loss of their own. Builds the model.
    """
    if optimizer not in ("", PLAIN):
        return False
    model = spec.build()
    if not hasattr(model, "stateless_call") or model.count_params() > MOST_WEIGHTS:
        return False
    return all(_batched(layer) and not _own_loss(layer) for layer in innermost(model))


def has_own_loss(spec: ModelSpec) -> bool:
    """Whether layers add a loss of their own, as regularizers do: such a model is trained for one device at a time."""
    return any(_own_loss(layer) for layer in innermost(spec.build()))


def _own_loss(layer: keras.Layer) -> bool:
    return any(getattr(layer, name, None) is not None for name in HAS_OWN_LOSS)


def _batched(layer: keras.Layer) -> bool:
    return type(layer).__name__ in ROW_BY_ROW and type(layer).__module__.startswith("keras.")


class NotVectorised(ValueError):
    """A model that cannot be trained as a row among others, and why."""


class StackedTraining:
    """As `WholeTraining`, for the rows of a stack; no row changes what another comes to. Tracing it raises NotVectorised."""

    def __init__(self, model: FlatModel, optimizer: LocalOptimizer) -> None:
        if optimizer.name != PLAIN:
            raise ValueError(f"many clients at once are trained with sgd alone, not {optimizer.name}; vectorised = false")
        self._model = model
        self._rate = optimizer.learning_rate
        self._momentum = optimizer.momentum

    def __call__(
        self, weights: tf.Tensor, features: tf.Tensor, labels: tf.Tensor, batches: tuple[tf.Tensor, tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What training changed, float32 of shape (clients, size), and each client's mean loss over its steps; NaN for all that
        changed of a client with a loss that is not finite.

        `features` and `labels` are the examples of all clients, one after another. `batches` are places int32 and shares float32
        of shape (batches, batch), and starts int32 of shape (steps + 1,): in step k, the batches from `starts[k]` to
        `starts[k + 1]` are those of the first clients, one each; who has more steps comes before who has fewer, and everybody
        has one. A place is that of an example, a share its share in the mean of the batch: 0 where a batch is filled up.
        """
        places, shares, starts = batches
        clients, size = starts[1], self._model.size
        begin = tf.broadcast_to(weights, (clients, size))
        stack = self._cut(begin)
        memory = [tf.zeros_like(part) for part in stack] if self._momentum else []

        def step(place: tf.Tensor, stack: list[tf.Tensor], memory: list[tf.Tensor], sums: tf.Tensor) -> tuple[object, ...]:
            first, last = starts[place], starts[place + 1]
            chosen, active = places[first:last], last - first
            batch = (tf.gather(features, chosen), tf.gather(labels, chosen), shares[first:last])
            now, held = ([part[:active] for part in parts] for parts in (stack, memory))
            losses, gradients = tf.vectorized_map(self._one, (now, *batch), fallback_to_while_loop=False)
            now, held = self._moved(now, held, gradients)
            sums = _onto(sums[:active] + tf.cast(losses, tf.float64), sums)
            return place + 1, list(map(_onto, now, stack)), list(map(_onto, held, memory)), sums

        shapes = [tf.TensorShape((None, *segment.shape)) for segment in self._model.layout]
        _, stack, _, sums = tf.while_loop(
            lambda place, *_: place < tf.shape(starts)[0] - 1,
            step,
            (tf.constant(0), stack, memory, tf.zeros((clients,), tf.float64)),
            shape_invariants=(tf.TensorShape(()), shapes, shapes[: len(memory)], tf.TensorShape((None,))),
            parallel_iterations=1,
        )
        flat = tf.concat([tf.reshape(part, (clients, part.shape[1:].num_elements())) for part in stack], axis=1)
        update = tf.where(tf.math.is_finite(sums)[:, None], flat - begin, tf.constant(math.nan, tf.float32))
        return update, sums / tf.cast(self._steps(starts, clients), tf.float64)

    def _steps(self, starts: tf.Tensor, clients: tf.Tensor) -> tf.Tensor:
        """How many steps each client has."""
        return tf.reduce_sum(tf.sequence_mask(starts[1:] - starts[:-1], clients, tf.int32), axis=0)

    def _cut(self, rows: tf.Tensor) -> list[tf.Tensor]:
        parts = tf.split(rows, [segment.size for segment in self._model.layout], axis=1)
        return [tf.reshape(part, (-1, *segment.shape)) for part, segment in zip(parts, self._model.layout, strict=True)]

    def _one(self, row: tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Loss and gradients of one client's batch."""
        variables, features, labels, share = row
        frozen = [variable.value for variable in self._model.keras_model.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            outputs, _, own = self._model.keras_model.stateless_call(
                variables, frozen, features, training=True, return_losses=True
            )
            if own:  # some are of all examples of a batch, and a batch that is filled up has too many
                raise NotVectorised(f"model {self._model.spec.name!r} has layers with a loss of their own, as regularizers are")
            loss = self._model.shared_loss(labels, outputs, share)
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _moved(
        self, stack: list[tf.Tensor], memory: list[tf.Tensor], gradients: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        moves = [-tf.constant(self._rate, tf.float32) * gradient for gradient in gradients]
        if memory:
            memory = moves = [self._momentum * old + move for old, move in zip(memory, moves, strict=True)]
        return [part + move for part, move in zip(stack, moves, strict=True)], memory


def _onto(rows: tf.Tensor, all_rows: tf.Tensor) -> tf.Tensor:
    """`all_rows`, with `rows` in place of its first."""
    return tf.concat([rows, all_rows[tf.shape(rows)[0] :]], axis=0)
