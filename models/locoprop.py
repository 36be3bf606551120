"""LocoProp: every Dense layer takes several steps on a loss of its own before the next batch.

Amid, Anil & Warmuth 2022, "LocoProp: Enhancing BackProp via Local Loss Optimization", arXiv 2106.06199. In a network of Dense
layers, let y be what enters a layer, a = y W + b, f its activation (softmax at the end of a classifier), and g the gradient of an
example's loss with respect to a. The layer's target is fixed, and its local loss, convex in W and b, is the batch's mean of

    locoprop-s   |y W + b - t|**2 / 2   with t = a - gamma g       (squared loss of pre-activations)
    locoprop-m   F(y W + b) - <t, y W + b>   with t = f(a) - gamma g   (matching loss of f, F its integral)

whose gradients are y' (y W + b - t) and y' (f(y W + b) - t). `STEPS` steps of gradient descent are taken on it with a rate of
learning_rate / gamma. In the first both are y' gamma g, so one step alone is plain SGD with the learning rate (section 3 there).
The article's pull back towards the old weights is left out: with as few steps as here they stay near them.

Steps and gamma belong to the name, since a plan says no more than optimizer, rate and momentum: devices and server could not
mean different ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedrho.models.backend import keras, tf
from fedrho.models.base import Outputs
from fedrho.models.optimizers import LOCOPROP, LOCOPROP_M, LocalOptimizer, UnknownOptimizer

if TYPE_CHECKING:
    from fedrho.models.flat import FlatModel

STEPS = 10
GAMMA = 1.0
MONOTONE = ("linear", "relu", "tanh", "sigmoid", "smelu", "softplus", "elu", "leaky_relu", "selu")
"""Activations that never fall, as matching losses ask for, by the beginning of their names."""
PASSED_OVER = ("InputLayer", "Flatten")


class LocopropSteps:
    """Steps of one model. Raises UnknownOptimizer for what is not a Sequential of Dense layers."""

    def __init__(self, model: FlatModel, wanted: LocalOptimizer, steps: int = STEPS, gamma: float = GAMMA) -> None:
        self._model, self._matching = model, wanted.name == LOCOPROP_M
        self._steps, self._gamma = steps, gamma
        self._dense = dense_layers(model, wanted.name)
        self._transfers = [self._transfer(layer, layer is self._dense[-1]) for layer in self._dense]
        rate = tf.TensorSpec((), tf.float32, "learning_rate")
        self._step = tf.function(self.step, input_signature=[*model.batch_of, rate], autograph=False)

    def anew(self, learning_rate: float) -> Callable[[Any, Any], float]:
        """Steps on features and labels; each returns the loss that the batch had before it. Nothing is kept between them."""
        rate = tf.constant(learning_rate, tf.float32)
        return lambda features, labels: float(self._step(tf.constant(features), tf.constant(labels), rate))

    def step(self, features: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        """One batch; returns its mean loss before it."""
        loss, read, before, slopes = self._forth_and_back(features, labels)
        count = tf.cast(tf.shape(features)[0], tf.float32)
        rate = learning_rate / (self._gamma * count)
        for layer, transfer, seen, a, slope in zip(self._dense, self._transfers, read, before, slopes, strict=True):
            # The loss is the batch's mean; an example's own gradient is `count` times its part of that.
            self._descend(layer, transfer, seen, transfer(a) - self._gamma * count * slope, rate)
        return loss

    def _forth_and_back(
        self, features: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        """The loss; of each layer what enters it, its pre-activations, and the loss's gradient with respect to them."""
        read: list[tf.Tensor] = []
        before: list[tf.Tensor] = []
        seen = tf.reshape(features, (tf.shape(features)[0], -1))
        with tf.GradientTape() as tape:
            for layer in self._dense:
                read.append(seen)
                a = _pre_activation(layer, seen)
                tape.watch(a)
                before.append(a)
                seen = layer.activation(a)
            loss = self._model.loss(labels, seen)
        return loss, read, before, tape.gradient(loss, before)

    def _descend(
        self,
        layer: keras.layers.Dense,
        transfer: Callable[[tf.Tensor], tf.Tensor],
        seen: tf.Tensor,
        target: tf.Tensor,
        rate: tf.Tensor,
    ) -> None:
        kernel, bias = tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias) if layer.use_bias else None
        for _ in range(self._steps):
            a = tf.matmul(seen, kernel)
            residual = transfer(a if bias is None else a + bias) - target
            kernel -= rate * tf.matmul(seen, residual, transpose_a=True)
            bias = None if bias is None else bias - rate * tf.reduce_sum(residual, axis=0)
        layer.kernel.assign(kernel)
        if bias is not None:
            layer.bias.assign(bias)

    def _transfer(self, layer: keras.layers.Dense, last: bool) -> Callable[[tf.Tensor], tf.Tensor]:
        """What the local loss compares with its target: pre-activations themselves, or what the activation makes of them."""
        made: Callable[[tf.Tensor], tf.Tensor] = layer.activation
        if not self._matching:
            made = tf.identity
        elif last and self._model.spec.outputs is Outputs.LOGITS:
            made = tf.nn.softmax
        return made


def check_trains(model: FlatModel, optimizer: str) -> None:
    """Raises UnknownOptimizer, with the reason, where a model cannot be trained by the optimizer of this name."""
    if optimizer in LOCOPROP:
        dense_layers(model, optimizer)


def dense_layers(model: FlatModel, optimizer: str) -> list[keras.layers.Dense]:
    """Raises UnknownOptimizer, with the reason, for a model that the optimizer cannot train."""
    network = model.keras_model
    if not model.spec.one_label:
        raise _refused(model, optimizer, "trains models with one label an example alone, all of which count")
    layers = [layer for layer in network.layers if type(layer).__name__ not in PASSED_OVER]
    strange = next((type(layer).__name__ for layer in layers if type(layer) is not keras.layers.Dense), "")
    if strange or type(network).__name__ != "Sequential" or model.spec.input_dtype != "float32":
        kind = f"has a {strange} layer" if strange else "is no Sequential model of numbers"
        raise _refused(model, optimizer, f"trains Sequential models of Dense layers alone, and it {kind}")
    for layer in layers:
        name = getattr(layer.activation, "__name__", "")
        if layer.kernel_regularizer or layer.bias_regularizer or layer.activity_regularizer:
            raise _refused(model, optimizer, "has a loss for each layer, beside which a regularizer has no place")
        if layer.kernel_constraint or layer.bias_constraint:
            raise _refused(model, optimizer, "keeps no constraint of a layer")
        if optimizer == LOCOPROP_M and not (name.startswith(MONOTONE) or (name == "softmax" and layer is layers[-1])):
            raise _refused(model, optimizer, f"needs activations that never fall, not {name or 'one without a name'}")
    return layers


def _pre_activation(layer: keras.layers.Dense, seen: tf.Tensor) -> tf.Tensor:
    a = tf.matmul(seen, tf.convert_to_tensor(layer.kernel))
    return a + tf.convert_to_tensor(layer.bias) if layer.use_bias else a


def _refused(model: FlatModel, optimizer: str, reason: str) -> UnknownOptimizer:
    return UnknownOptimizer(f"{optimizer} cannot train model {model.spec.name!r}: it {reason}; take sgd")
