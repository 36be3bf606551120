"""The one loss of training on likelihoods, and the weights that constrained reweighting gives to records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import tf
from fedrho.models.fit_settings import FitError, Reweighting


def scaled_logs(likelihoods: NDArray[np.float64], classes: int) -> NDArray[np.float32]:
    """Logs of the likelihoods, with the largest of each row at 0: what is added to a whole row changes no gradient.

    Raises FitError for likelihoods of another shape, negative ones, and rows of zeros.
    """
    if likelihoods.ndim != 2 or likelihoods.shape[1] != classes:
        raise FitError(f"likelihoods have shape (records, {classes}), not {likelihoods.shape}")
    largest = likelihoods.max(axis=1, keepdims=True)
    if not (np.isfinite(likelihoods).all() and (likelihoods >= 0).all() and (largest > 0).all()):
        raise FitError("likelihoods are finite and not negative, and each row has one above 0")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(likelihoods / largest), dtype=np.float32)


def likelihood_loss(log_probabilities: tf.Tensor, logs: tf.Tensor) -> tf.Tensor:
    """-log of the sum over classes of probability times likelihood, of shape (batch,).

    Rows whose likelihoods are all alike tell nothing: their gradient is exactly 0. Its gradient in the logits is
    softmax - posterior, that of the cross-entropy with a posterior that is held fixed (ALIBI, Malek et al. 2021).
    """
    tells = tf.reduce_any(logs < 0.0, axis=1)
    return tf.where(tells, -tf.reduce_logsumexp(log_probabilities + logs, axis=1), 0.0)


def class_weighted(losses: tf.Tensor, log_probabilities: tf.Tensor, gamma: float, temperature: tf.Tensor) -> tf.Tensor:
    """Losses with the class weights of an L1 ball, which go from the told class to the likeliest; not while it burns in."""
    least = -tf.reduce_max(log_probabilities, axis=1)
    return tf.where(tf.math.is_finite(temperature), (1.0 - gamma) * losses + gamma * least, losses)


def log_weights(losses: tf.Tensor, weighting: Reweighting, temperature: tf.Tensor) -> tf.Tensor:
    """Of the records of a batch, up to what is added to all; 0 while it burns in. They carry no gradient."""
    losses = tf.stop_gradient(losses)
    if weighting.alpha > 1.0 - 1e-3:
        return -losses / temperature
    reached = tf.maximum((1.0 - weighting.alpha) * losses + temperature, 0.0)
    logs = tf.math.log(reached) / (weighting.alpha - 1.0)
    return tf.where(tf.math.is_finite(temperature), logs, tf.zeros_like(losses))
