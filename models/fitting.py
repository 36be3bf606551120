"""A whole training on likelihoods as TensorFlow operations: no Python between batches, traced once for any records and steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.models.augmenting import augmented, stream
from fedrho.models.backend import tf
from fedrho.models.fit_settings import FitError, FitSettings, orders
from fedrho.models.likelihoods import class_weighted, likelihood_loss, log_weights
from fedrho.models.whole import FloatVector, WholeModel

RANDOM_PER_STEP = 8
"""Seeds of stateless draws that a step may use."""


@dataclass(frozen=True)
class Plan:
    """What is drawn and known of all steps before the first; each array has a row a step."""

    places: NDArray[np.int32]
    rates: NDArray[np.float32]
    shares: NDArray[np.float32]
    """Mixup's lambda; 1 where nothing is mixed."""
    temperatures: NDArray[np.float32]
    """Of reweighting; infinite where nothing is weighted."""

    @classmethod
    def drawn(cls, settings: FitSettings, records: int, seed: int) -> Plan:
        random = np.random.default_rng((seed, 0))
        steps, weighting = settings.steps_for(records), settings.reweighting
        shares = random.beta(settings.mixup, settings.mixup, steps) if settings.mixup else np.ones(steps)
        temperatures = weighting.temperatures(steps) if weighting else np.full(steps, np.inf, np.float32)
        places = orders(records, steps, settings.batch, random)
        return cls(places, settings.rates(steps), shares.astype(np.float32), temperatures)

    def __len__(self) -> int:
        return len(self.places)

    def cut(self, first: int, last: int) -> list[tf.Tensor]:
        return [tf.constant(one[first:last]) for one in (self.places, self.rates, self.shares, self.temperatures)]


class Fitting:
    """The training of one model with one optimizer, put back to its beginning by `begin`."""

    def __init__(self, model: WholeModel, settings: FitSettings) -> None:
        _check(model, settings)
        self._model = model
        self._settings = settings
        self._velocity = [tf.Variable(tf.zeros_like(variable)) for variable in model.trained]
        spec = model.spec
        signature = [
            tf.TensorSpec((None, *spec.input_shape), tf.as_dtype(spec.input_dtype)),
            tf.TensorSpec((None, spec.classes), tf.float32),
            tf.TensorSpec((None, None), tf.int32),
            *[tf.TensorSpec((None,), tf.float32)] * 3,
            tf.TensorSpec((2,), tf.int32),
        ]
        self.run = tf.function(self._run, input_signature=signature, autograph=False)

    def begin(self, weights: FloatVector, seed: int) -> None:
        self._model.assign(weights)
        self._model.reseed(seed)
        for velocity in self._velocity:
            velocity.assign(tf.zeros_like(velocity))

    def _run(
        self,
        features: tf.Tensor,
        logs: tf.Tensor,
        places: tf.Tensor,
        rates: tf.Tensor,
        shares: tf.Tensor,
        temperatures: tf.Tensor,
        begin: tf.Tensor,
    ) -> tf.Tensor:
        """Some steps, and the mean of their losses; `begin` is (steps done before, seed)."""
        steps = tf.shape(places)[0]

        def step(at: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            seed = begin * [RANDOM_PER_STEP, 1] + tf.stack([RANDOM_PER_STEP * at, 0])
            inputs = tf.gather(features, places[at])
            if self._settings.augments:
                inputs = augmented(inputs, self._settings, seed)
            loss, gradients = self._gradients(inputs, tf.gather(logs, places[at]), shares[at], temperatures[at], seed)
            self._apply(gradients, rates[at])
            return at + 1, total + tf.cast(loss, tf.float64)

        first = (tf.constant(0), tf.constant(0.0, tf.float64))
        _, total = tf.while_loop(lambda at, _: at < steps, step, first, parallel_iterations=1)
        return total / tf.cast(steps, tf.float64)

    def _gradients(
        self, inputs: tf.Tensor, logs: tf.Tensor, share: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        model = self._model
        if self._settings.mixup:
            partners = self._partners(inputs, logs, temperature, seed)
            others = tf.gather(logs, partners)
            inputs = share * inputs + (1.0 - share) * tf.gather(inputs, partners)
        with tf.GradientTape() as tape:
            told = model.log_probabilities(model.keras_model(inputs, training=True))
            if self._settings.mixup:
                loss = tf.reduce_mean(share * likelihood_loss(told, logs) + (1.0 - share) * likelihood_loss(told, others))
            else:
                loss = self._weighted(told, logs, temperature)
            whole = tf.add_n([loss, *model.keras_model.losses])
        found = tape.gradient(whole, model.trained, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, [tf.convert_to_tensor(gradient) for gradient in found]

    def _partners(self, inputs: tf.Tensor, logs: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Whom each record of a batch is mixed with: anyone, or by weight."""
        weighting, count = self._settings.reweighting, tf.shape(inputs)[0]
        if weighting is None:
            return tf.roll(tf.range(count), 1, 0)  # the batch is in random order: a neighbour is anyone
        told = self._model.log_probabilities(self._model.keras_model(inputs, training=False))
        losses = class_weighted(likelihood_loss(told, logs), told, weighting.gamma, temperature)
        weights = log_weights(losses, weighting, temperature)
        return tf.random.stateless_categorical(weights[None], count, stream(seed, 4), tf.int32)[0]

    def _weighted(self, told: tf.Tensor, logs: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """The mean of a batch, even or by weight."""
        losses, weighting = likelihood_loss(told, logs), self._settings.reweighting
        if weighting is None:
            return tf.reduce_mean(losses)
        losses = class_weighted(losses, told, weighting.gamma, temperature)
        return tf.reduce_sum(tf.nn.softmax(log_weights(losses, weighting, temperature)) * losses)

    def _apply(self, gradients: list[tf.Tensor], rate: tf.Tensor) -> None:
        momentum = self._settings.momentum
        for variable, velocity, gradient in zip(self._model.trained, self._velocity, gradients, strict=True):
            if self._settings.weight_decay and variable.shape.rank > 1:
                gradient += self._settings.weight_decay * variable
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient, momentum=momentum, use_nesterov=True
            )


def _check(model: WholeModel, settings: FitSettings) -> None:
    spec = model.spec
    if settings.mixup and not tf.as_dtype(spec.input_dtype).is_floating:
        raise FitError(f"mixup averages inputs, and model {spec.name!r} takes ids; leave mixup at 0")
    if settings.augments and len(spec.input_shape) != 3:
        raise FitError(f"crop, flip and cutout are for images, and model {spec.name!r} takes {spec.input_shape}")
