"""DP-SGD: per-example gradients clipped, summed over a Poisson sample, and noised (Abadi et al. 2016, arXiv 1607.00133).

It protects whole examples, hence labels too, at the price of (epsilon, delta): the baseline beside label privacy. Unlike training
on noisy labels it reads true labels at every step, and its coins and noise come from who calls it, not from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import tf
from fedrho.models.base import UnknownModel
from fedrho.models.classifier import AnyModel, KerasClassifier, Progress
from fedrho.models.fit_settings import FitError, FitSettings, Schedule
from fedrho.models.pauses import Pauses
from fedrho.models.whole import FloatVector

NOISE_AT_ONCE: Final = 1 << 24
"""About how many normals are drawn before steps go on."""

Normals = Callable[[int], NDArray[np.float64]]
"""So many independent standard normals."""
Uniforms = Callable[[int], NDArray[np.float64]]
"""So many independent numbers in [0, 1)."""


@dataclass(frozen=True)
class DpSgdSettings:
    """A record joins a step with probability `rate`; clipped gradients are summed, and the sum with its noise, of standard
    deviation `noise_multiplier * clip_norm`, is divided by the expected size of a sample. Raises FitError."""

    noise_multiplier: float
    clip_norm: float = 1.0
    rate: float = 0.1
    steps: int = 500
    learning_rate: float = 0.5
    momentum: float = 0.0
    schedule: Schedule = Schedule.LINEAR
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise FitError(f"DP-SGD needs noise: a finite multiplier above 0, not {self.noise_multiplier}")
        if not 0 < self.clip_norm < math.inf:
            raise FitError(f"a clip norm is finite and above 0, not {self.clip_norm}")
        if not 0 < self.rate <= 1:
            raise FitError(f"a sampling rate lies above 0 and is at most 1, not {self.rate}")
        self.optimizer()

    def optimizer(self) -> FitSettings:
        """Steps and rates alone."""
        return FitSettings(self.learning_rate, 1, self.steps, 0.0, self.momentum, self.schedule, self.ramp, 0.0)


class DpSgdTrainer(KerasClassifier):
    """Raises UnknownModel for a model with running statistics, dropout or frozen layers, and for one with losses of its own:
    no clipping would bound those."""

    def __init__(self, model: AnyModel, settings: DpSgdSettings, progress: Progress | None = None) -> None:
        super().__init__(model)
        whole = self.model
        if whole.random or len(whole.carried) > len(whole.trained):
            raise UnknownModel(
                f"model {whole.spec.name!r}: DP-SGD clips trainable weights alone; it has others, or random layers"
            )
        if whole.keras_model.losses:
            raise UnknownModel(
                f"model {whole.spec.name!r}: DP-SGD clips the cross-entropy's gradient; its layers add other losses"
            )
        self.settings = settings
        self.progress = progress
        self._velocity = [tf.Variable(tf.zeros_like(variable)) for variable in whole.trained]
        spec = whole.spec
        signature = [
            tf.TensorSpec((None, *spec.input_shape), tf.as_dtype(spec.input_dtype)),
            tf.TensorSpec((None, spec.classes), tf.float32),
            tf.TensorSpec((None, None), tf.int32),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None,), tf.float32),
            tf.TensorSpec((None, whole.size), tf.float32),
        ]
        self._run = tf.function(self._steps, input_signature=signature, autograph=False)

    def fit(
        self, features: NDArray[Any], labels: NDArray[np.int64], seed: int, normals: Normals, uniforms: Uniforms
    ) -> FloatVector:
        """The weights after training from fresh ones of this seed; `normals` and `uniforms` are as secret as the labels."""
        settings, inputs = self.settings, self.inputs(features)
        if labels.shape != (len(features),) or not len(labels) or labels.min() < 0 or labels.max() >= self.classes:
            raise FitError(f"labels are whole numbers from 0 to {self.classes - 1}, one a record")
        targets = tf.one_hot(labels, self.classes)
        self.model.assign(self.fresh(seed))
        for velocity in self._velocity:
            velocity.assign(tf.zeros_like(velocity))
        rates = settings.optimizer().rates(settings.steps)
        most = max(1, min(settings.steps, NOISE_AT_ONCE // self.size))
        pauses = Pauses(most if self.progress is None else 1, most)
        first = 0
        while first < settings.steps:
            steps = min(pauses.steps, settings.steps - first)
            places, sizes = poisson_samples(len(labels), steps, settings.rate, uniforms)
            noise = normals(steps * self.size).reshape(steps, self.size).astype(np.float32)
            self._run(inputs, targets, places, sizes, rates[first : first + steps], noise)
            if self.progress:
                self.progress(first + steps, settings.steps, math.nan)  # the loss on true labels is nobody's to see
                pauses.told()
            first += steps
        return self.model.weights()

    def clipped_sum(self, features: tf.Tensor, targets: tf.Tensor, counted: tf.Tensor) -> list[tf.Tensor]:
        """The sum of per-example gradients, each scaled down to the clip norm; `counted` is 1 for who is in the sample, or 0."""
        gradients = tf.vectorized_map(self._one, (features, targets), fallback_to_while_loop=False)
        squares = [tf.reduce_sum(tf.square(one), axis=list(range(1, one.shape.rank))) for one in gradients]
        norms = tf.sqrt(tf.add_n(squares))
        scales = counted * self.settings.clip_norm / tf.maximum(norms, self.settings.clip_norm)
        return [tf.tensordot(scales, one, 1) for one in gradients]

    def _one(self, example: tuple[tf.Tensor, tf.Tensor]) -> list[tf.Tensor]:
        """One example's gradients."""
        features, target = example
        with tf.GradientTape() as tape:
            told = self.model.log_probabilities(self.model.keras_model(features[None], training=True))
            loss = -tf.reduce_sum(target * told)
        found = tape.gradient(loss, self.model.trained, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in found]

    def _steps(
        self, features: tf.Tensor, targets: tf.Tensor, places: tf.Tensor, sizes: tf.Tensor, rates: tf.Tensor, noise: tf.Tensor
    ) -> tf.Tensor:
        expected = self.settings.rate * tf.cast(tf.shape(features)[0], tf.float32)
        stddev = self.settings.noise_multiplier * self.settings.clip_norm

        def step(at: tf.Tensor) -> tuple[tf.Tensor]:
            chosen = places[at]
            counted = tf.cast(tf.range(tf.shape(chosen)[0]) < sizes[at], tf.float32)
            sums = self.clipped_sum(tf.gather(features, chosen), tf.gather(targets, chosen), counted)
            noises = tf.split(noise[at], self.model.sizes)
            for variable, velocity, total, drawn in zip(self.model.trained, self._velocity, sums, noises, strict=True):
                gradient = (total + stddev * tf.reshape(drawn, total.shape)) / expected
                tf.raw_ops.ResourceApplyMomentum(
                    var=variable.handle,
                    accum=velocity.handle,
                    lr=rates[at],
                    grad=gradient,
                    momentum=self.settings.momentum,
                    use_nesterov=True,
                )
            return (at + 1,)

        (done,) = tf.while_loop(lambda at: at < tf.shape(places)[0], step, (tf.constant(0),), parallel_iterations=1)
        return done


def poisson_samples(records: int, steps: int, rate: float, uniforms: Uniforms) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Who is in each step's sample: places of shape (steps, most), filled up with zeros, and how many of them count."""
    taken = [np.flatnonzero(uniforms(records) < rate) for _ in range(steps)]
    sizes = np.array([len(one) for one in taken], dtype=np.int32)
    places = np.zeros((steps, max(1, int(sizes.max()))), dtype=np.int32)
    for row, one in zip(places, taken, strict=True):
        row[: len(one)] = one
    return places, sizes
