"""DP-SGD: its sum against per-example gradients one at a time, its samples against their coins, its steps against numpy."""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from fedrho.models.base import UnknownModel
from fedrho.models.dp_sgd import DpSgdSettings, DpSgdTrainer, poisson_samples
from fedrho.models.fit_settings import FitError

RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.normal(size=(9, 6, 6, 1)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 9)
C = 0.7


def small() -> keras.Model:
    layers = [keras.layers.Conv2D(2, 3, activation="relu"), keras.layers.MaxPooling2D(2), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(3)])


@cache
def trainer(momentum: float = 0.5) -> DpSgdTrainer:
    return DpSgdTrainer(small, DpSgdSettings(1.5, C, 0.5, 4, 0.3, momentum))


def one_at_a_time() -> NDArray[np.float32]:
    """Each example's clipped gradient, with the weights there are, of shape (examples, size)."""
    model, rows = trainer().model, []
    for image, label in zip(IMAGES, LABELS, strict=True):
        with tf.GradientTape() as tape:
            loss = -tf.nn.log_softmax(model.keras_model(image[None]))[0, int(label)]
        flat = np.concatenate([one.numpy().reshape(-1) for one in tape.gradient(loss, model.trained)])
        rows.append(flat * min(1.0, C / np.linalg.norm(flat)))
    return np.array(rows)


def summed(counted: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = trainer().clipped_sum(tf.constant(IMAGES), tf.one_hot(LABELS, 3), tf.constant(counted))
    return np.concatenate([part.numpy().reshape(-1) for part in parts])


def test_each_gradient_is_clipped_by_itself_before_the_sum() -> None:
    trainer().model.assign(trainer().fresh(0))
    rows = one_at_a_time()
    assert (np.linalg.norm(rows, axis=1) <= C * (1 + 1e-6)).all()
    assert (np.linalg.norm(rows, axis=1) > C * (1 - 1e-6)).any()
    for counted in (np.ones(9), np.eye(9)[4], np.zeros(9)):
        np.testing.assert_allclose(summed(counted.astype(np.float32)), counted @ rows, atol=2e-6)


def test_a_step_is_the_noised_sum_over_the_expected_size_whoever_came() -> None:
    """Four steps with momentum; the coins and the noise are what was handed in, and nobody joins the last step."""
    coins, noise = np.random.default_rng(1).random((4, 9)), np.random.default_rng(2).normal(size=(4, trainer().size))
    coins[3] = 0.99
    drawn = iter(coins)
    found = trainer().fit(IMAGES, LABELS, 5, lambda count: noise.reshape(-1)[:count], lambda count: next(drawn)[:count])
    weights, speed = trainer().fresh(5).astype(float), np.zeros(trainer().size)
    for joined, normals, rate in zip(coins < 0.5, noise, trainer().settings.optimizer().rates(4), strict=True):
        trainer().model.assign(weights.astype(np.float32))
        slope = (one_at_a_time()[joined].sum(axis=0) + 1.5 * C * normals) / 4.5
        speed = 0.5 * speed + slope
        weights -= rate * (slope + 0.5 * speed)
    np.testing.assert_allclose(found, weights, atol=2e-5)


def test_samples_are_those_whose_coin_fell_below_the_rate() -> None:
    coins = RANDOM.random((50, 20))
    drawn = iter(coins)
    places, sizes = poisson_samples(20, 50, 0.3, lambda _: next(drawn))
    assert places.shape == (50, sizes.max())
    for row, size, expected in zip(places, sizes, coins < 0.3, strict=True):
        assert row[:size].tolist() == np.flatnonzero(expected).tolist()


def test_what_clipping_would_not_bound_is_refused() -> None:
    settings = DpSgdSettings(1.0)
    with_statistics = [keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    with_own_loss = [keras.layers.Flatten(), keras.layers.Dense(3, kernel_regularizer="l2")]
    for layers in (with_statistics, with_own_loss):
        with pytest.raises(UnknownModel, match="DP-SGD clips"):
            DpSgdTrainer(lambda layers=layers: keras.Sequential([keras.Input((6, 6, 1)), *layers]), settings)
    for wrong in (DpSgdSettings(1.0).__class__, lambda noise: DpSgdSettings(1.0, clip_norm=noise)):
        with pytest.raises(FitError):
            wrong(0.0)
    with pytest.raises(FitError, match="from 0 to 2"):
        trainer().fit(IMAGES, np.full(9, 3), 0, np.zeros, np.zeros)
