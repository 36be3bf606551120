"""A Keras classifier under flat weights: fresh ones, and what it predicts with some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import keras, tf
from fedrho.models.base import ModelSpec, no_label_privacy
from fedrho.models.fit_settings import FitError
from fedrho.models.whole import FloatVector, WholeModel, spec_of

PREDICTED_AT_ONCE: Final = 2048
FRESH_KEPT: Final = 32
"""Fresh weights remembered, one vector a seed."""

AnyModel = ModelSpec | Callable[..., Any]
"""A spec, a function that builds a model, or a built one, which then begins from the weights it has."""

Progress = Callable[[int, int, float], None]
"""Steps done, all steps, and the mean loss on what is trained on since it was called last."""


class KerasClassifier:
    """One built model, reused for any weights."""

    def __init__(self, model: AnyModel) -> None:
        self.model = _whole(model)
        spec = self.model.spec
        inputs = tf.TensorSpec((None, *spec.input_shape), tf.as_dtype(spec.input_dtype))
        self._predict = tf.function(self._log_probabilities, input_signature=[inputs], autograph=False)
        self._fresh: dict[int, FloatVector] = {}

    @property
    def classes(self) -> int:
        return self.model.spec.classes

    @property
    def size(self) -> int:
        """How many float32 numbers the weights are."""
        return self.model.size

    def fresh(self, seed: int) -> FloatVector:
        """Weights to begin with."""
        if seed not in self._fresh:
            while len(self._fresh) >= FRESH_KEPT:
                self._fresh.pop(next(iter(self._fresh)))
            self._fresh[seed] = self.model.fresh(seed)
        return self._fresh[seed].copy()

    def probabilities(self, weights: FloatVector, features: NDArray[Any]) -> NDArray[np.float64]:
        """What the model predicts, of shape (n, K); each row adds up to 1."""
        self.model.assign(weights)
        inputs = self.inputs(features)
        told = [self._predict(inputs[at : at + PREDICTED_AT_ONCE]).numpy() for at in range(0, len(features), PREDICTED_AT_ONCE)]
        shares = np.exp(np.concatenate([np.zeros((0, self.classes), np.float32), *told]).astype(np.float64))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def inputs(self, features: NDArray[Any]) -> tf.Tensor:
        """Features as the model takes them; raises FitError for others."""
        spec = self.model.spec
        if features.shape[1:] != spec.input_shape or features.dtype.kind not in "iuf":
            raise FitError(
                f"model {spec.name!r} takes numbers of shape {spec.input_shape}, not {features.dtype} {features.shape[1:]}"
            )
        return tf.constant(np.asarray(features, dtype=spec.input_dtype))

    def _log_probabilities(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.model.log_probabilities(self.model.keras_model(inputs, training=False))


@dataclass(frozen=True)
class _Copies:
    """Builds copies of a model with the weights it has."""

    model: keras.Model

    def __call__(self) -> keras.Model:
        copy = keras.models.clone_model(self.model)
        copy.set_weights(self.model.get_weights())
        return copy


def _whole(model: AnyModel) -> WholeModel:
    """Raises FitError for a model that has not just one label an example."""
    spec = model if isinstance(model, ModelSpec) else spec_of(_Copies(model) if isinstance(model, keras.Model) else model)
    if reason := no_label_privacy(spec):
        raise FitError(reason)
    return WholeModel(spec)
