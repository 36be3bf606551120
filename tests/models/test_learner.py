"""Training on likelihoods: its loss against the losses that it stands for, its steps against plain numpy, the same bits again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from fedrho.models.augmenting import augmented
from fedrho.models.base import ModelSpec, UnknownModel
from fedrho.models.fit_settings import DROPS, FitError, FitSettings, Reweighting, Schedule, orders
from fedrho.models.learner import KerasLearner
from fedrho.models.likelihoods import class_weighted, likelihood_loss, log_weights, scaled_logs
from fedrho.models.normalized import BATCH_NORM_CNN, WIDE_BATCH_NORM_CNN
from fedrho.models.precision import in_bfloat16
from fedrho.models.whole import WholeModel

K = 10
RANDOM = np.random.default_rng(5)
LOGITS = RANDOM.normal(0.0, 3.0, (40, K))
LABELS = RANDOM.integers(0, K, 40)
POINTS = RANDOM.normal(size=(60, 4)).astype(np.float32)
SIDES = (POINTS[:, 0] + POINTS[:, 1] > 0).astype(np.int64)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def gradient(likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row's loss in its logits."""
    logits = tf.constant(LOGITS[: len(likelihoods)], tf.float32)
    logs = tf.constant(scaled_logs(likelihoods, likelihoods.shape[1]))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = likelihood_loss(tf.nn.log_softmax(logits), logs)
    return np.asarray(tape.gradient(loss, logits).numpy(), dtype=np.float64)


def differences(loss: Any) -> NDArray[np.float64]:
    """The same gradient by central differences in float64; `loss` maps probabilities of shape (rows, K) to losses."""
    steps = 1e-6 * np.eye(K)
    columns = [(loss(softmax(LOGITS + step)) - loss(softmax(LOGITS - step))) / 2e-6 for step in steps]
    return np.stack(columns, axis=1)


def test_one_likelihood_of_one_is_cross_entropy() -> None:
    told = np.eye(K)[LABELS]
    np.testing.assert_allclose(gradient(told), softmax(LOGITS) - told, atol=2e-6)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 30.0])
def test_a_channel_is_forward_correction(epsilon: float) -> None:
    """Of RRTop-k in its closed form, with the sets of each record its own."""
    sizes = RANDOM.integers(2, K + 1, 40)
    inside = RANDOM.permuted(np.tile(np.arange(K), (40, 1)), axis=1) < sizes[:, None]
    told = np.array([RANDOM.choice(np.flatnonzero(row)) for row in inside])
    grown = np.exp(epsilon) + sizes - 1.0
    channel = np.where(inside, 1.0 / grown[:, None], 1.0 / sizes[:, None])
    channel[np.arange(40), told] = np.exp(epsilon) / grown

    def loss(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        held = (shares * inside).sum(axis=1)
        return np.asarray(
            -np.log(shares[np.arange(40), told] * (np.exp(epsilon) - 1) / grown + held / grown + (1 - held) / sizes)
        )

    np.testing.assert_allclose(gradient(channel), differences(loss), atol=5e-6)


def test_alibis_gradient_is_that_of_its_posterior_held_fixed() -> None:
    """Posteriors that are known."""
    cases = [(1.0, (0.2, 1.4, -0.3), (1.0, 1.0, 1.0), (0.247263309, 0.550294615, 0.202442075))]
    cases += [(2.0, (0.9, 0.1, -2.0), (0.5, 0.3, 0.2), (0.842277289, 0.102031711, 0.055690999))]
    for epsilon, output, prior, posterior in cases:
        density = np.exp(-np.abs(np.array(output) - np.eye(3)).sum(axis=1) * epsilon / 2.0)[None]
        logits = tf.math.log(tf.constant([prior], tf.float32))
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = likelihood_loss(tf.nn.log_softmax(logits), tf.constant(scaled_logs(density, 3)))
        found = tape.gradient(loss, logits).numpy()[0]
        np.testing.assert_allclose(found, np.array(prior) / np.sum(prior) - posterior, atol=3e-7)


def test_an_answer_that_tells_nothing_changes_nothing_and_extremes_stay_finite() -> None:
    assert (gradient(np.full((40, K), 0.123456)) == 0.0).all()
    far = tf.nn.log_softmax(tf.constant([[300.0, -300.0, 0.0]]))
    assert likelihood_loss(far, tf.constant(scaled_logs(np.array([[0.0, 1e-300, 0.0]]), 3))).numpy() == pytest.approx([600.0])
    for wrong in (np.zeros((1, 3)), np.full((1, 3), np.nan), -np.eye(3), np.ones((2, 4))):
        with pytest.raises(FitError):
            scaled_logs(wrong, 3)


def test_schedules_rise_and_fall_where_they_say() -> None:
    line = FitSettings(learning_rate=2.0, steps=1000).rates(1000)
    assert line.argmax() in (149, 150)
    assert line[149] == pytest.approx(2.0)
    assert line[74] == pytest.approx(1.0)
    assert line[574] == pytest.approx(1.0, rel=0.01)
    assert 0 < line[-1] < 0.01
    for schedule, places in DROPS.items():
        rates = FitSettings(learning_rate=1.0, steps=1000, schedule=schedule).rates(1000)
        assert [int(at) for at in np.flatnonzero(np.diff(rates) < 0) + 1] == [int(1000 * place) for place in places]
        assert rates[-1] == pytest.approx(0.1 ** len(places))
    assert DROPS[Schedule.STEPS] == (0.3, 0.6, 0.9)


def test_every_record_comes_once_before_any_comes_again() -> None:
    places = orders(10, 7, 4, np.random.default_rng(1)).reshape(-1)
    assert places.shape == (28,)
    assert all(sorted(places[at : at + 10]) == list(range(10)) for at in (0, 10))


@cache
def linear(outputs: str = "linear") -> ModelSpec:
    from fedrho.models.whole import spec_of

    return spec_of(lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation=outputs)]), outputs)


def in_numpy(
    settings: FitSettings, start: NDArray[np.float32], likelihoods: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """The same training of a linear model, step by step, in float64."""
    from fedrho.models.fitting import Plan

    plan = Plan.drawn(settings, len(POINTS), seed)
    kernel, bias = start[:8].reshape(4, 2).astype(float), start[8:].astype(float)
    speed = [np.zeros_like(kernel), np.zeros_like(bias)]
    for chosen, rate, share in zip(plan.places, plan.rates, plan.shares, strict=True):
        inputs, told = POINTS[chosen].astype(float), likelihoods[chosen]
        inputs = share * inputs + (1 - share) * np.roll(inputs, 1, axis=0) if settings.mixup else inputs
        shares = softmax(inputs @ kernel + bias)
        posteriors = [shares * one / (shares * one).sum(axis=1, keepdims=True) for one in (told, np.roll(told, 1, axis=0))]
        error = (shares - share * posteriors[0] - (1 - share) * posteriors[1]) / len(chosen)
        for at, (weight, slope) in enumerate(
            ((kernel, inputs.T @ error + settings.weight_decay * kernel), (bias, error.sum(axis=0)))
        ):
            speed[at] = settings.momentum * speed[at] + slope
            weight -= rate * (slope + settings.momentum * speed[at])
    return np.concatenate([kernel.reshape(-1), bias])


CHANNEL = np.where(np.eye(2)[SIDES] > 0, 0.7, 0.3)


@pytest.mark.parametrize("mixup", [0.0, 4.0])
def test_training_is_that_of_numpy(mixup: float) -> None:
    settings = FitSettings(learning_rate=0.5, batch=16, steps=30, weight_decay=0.01, mixup=mixup)
    learner = KerasLearner(linear(), settings)
    start = learner.fresh(3)
    found = learner.fit(POINTS, CHANNEL, start, seed=3)
    np.testing.assert_allclose(found, in_numpy(settings, start, CHANNEL, 3), atol=2e-5)
    assert (learner.probabilities(found, POINTS).argmax(axis=1) == SIDES).mean() > 0.85


def test_probabilities_of_a_softmax_train_as_its_logits_do() -> None:
    settings = FitSettings(learning_rate=0.5, batch=16, steps=20)
    logits, shares = (KerasLearner(linear(outputs), settings) for outputs in ("linear", "softmax"))
    start = logits.fresh(1)
    np.testing.assert_allclose(shares.fit(POINTS, CHANNEL, start, 1), logits.fit(POINTS, CHANNEL, start, 1), atol=1e-5)
    np.testing.assert_allclose(shares.probabilities(start, POINTS).sum(axis=1), 1.0, atol=1e-12)


def noisy(classes: int = 2) -> keras.Model:
    """With running statistics, and random numbers of its own."""
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(classes)]
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), *layers])


def test_a_users_model_with_dropout_and_running_statistics_gives_the_same_bits_again() -> None:
    told: list[tuple[int, int]] = []
    settings = FitSettings(steps=30, batch=16, mixup=1.0, reweighting=Reweighting(gamma=0.2))
    learner = KerasLearner(noisy, settings)
    weights = learner.fit(POINTS, CHANNEL, None, seed=7)
    learner.fit(POINTS, CHANNEL, None, seed=8)
    learner.progress = lambda done, steps, loss: told.append((done, steps))
    assert np.array_equal(weights, learner.fit(POINTS, CHANNEL, None, seed=7))
    assert told[-1] == (30, 30)
    assert learner.size == 4 * 8 + 8 + 4 * 8 + 8 * 2 + 2  # of the last term but two: scale, shift, mean, variance
    assert not np.array_equal(weights[-8:], learner.fresh(7)[-8:])
    kept = learner.probabilities(weights, POINTS)
    assert np.array_equal(kept, KerasLearner(noisy, settings).probabilities(weights, POINTS))


@pytest.mark.slow
def test_a_built_model_begins_from_the_weights_it_has_and_keeps_them() -> None:
    model = noisy()
    learner = KerasLearner(model, FitSettings(steps=3, batch=16))
    before = learner.fresh(0)
    assert np.array_equal(before, learner.fresh(1))
    learner.fit(POINTS, CHANNEL, None, seed=0)
    assert np.array_equal(before, KerasLearner(model, learner.settings).fresh(0))


def test_reweighting_follows_its_formulas() -> None:
    losses, told = np.array([0.1, 2.0, 5.0]), np.log(softmax(LOGITS[:3]))
    inner = class_weighted(tf.constant(losses), tf.constant(told), 0.25, tf.constant(1.0))
    np.testing.assert_allclose(inner, 0.75 * losses - 0.25 * told.max(axis=1), rtol=1e-6)
    assert np.array_equal(class_weighted(tf.constant(losses), tf.constant(told), 0.25, tf.constant(np.inf)), losses)
    for alpha, expected in ((1.0, np.exp(-losses / 2.0)), (0.5, (0.5 * losses + 2.0) ** -2.0)):
        logs = log_weights(tf.constant(losses), Reweighting(alpha=alpha), tf.constant(2.0, tf.float64))
        np.testing.assert_allclose(softmax(logs.numpy()), expected / expected.sum(), rtol=1e-6)
        burning = log_weights(tf.constant(losses), Reweighting(alpha=alpha), tf.constant(np.inf, tf.float64))
        assert (burning.numpy() == 0.0).all()
    temperatures = Reweighting(temperature=2.0, burn_in=0.4).temperatures(100)
    assert np.isinf(temperatures[:40]).all()
    assert temperatures[[40, 70, 99]] == pytest.approx([20.0, 2.0, 2.0])


def test_images_are_shifted_mirrored_and_blanked() -> None:
    images = tf.constant(1.0 + np.arange(200 * 36, dtype=np.float32).reshape(200, 6, 6, 1))
    seed = tf.constant([8, 3])
    shifted = augmented(images, FitSettings(steps=1, crop=2), seed).numpy()
    wide = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    cuts = {(row, column): wide[:, row : row + 6, column : column + 6] for row in range(5) for column in range(5)}
    found = [[key for key, cut in cuts.items() if np.array_equal(cut[at], shifted[at])] for at in range(200)]
    assert all(len(keys) == 1 for keys in found)
    assert len({keys[0] for keys in found}) == 25
    mirrored = augmented(images, FitSettings(steps=1, flip=True), seed).numpy()
    turned = (mirrored[:, :, 0] != images.numpy()[:, :, 0]).any(axis=(1, 2))
    assert np.array_equal(mirrored[turned], images.numpy()[turned][:, :, ::-1])
    assert 60 < turned.sum() < 140
    blanked = (augmented(images, FitSettings(steps=1, cutout=3), seed).numpy() == 0).sum(axis=(1, 2, 3))
    assert set(blanked) <= {1, 2, 3, 4, 6, 9}
    assert np.array_equal(shifted, augmented(images, FitSettings(steps=1, crop=2), seed).numpy())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "steps or the epochs"),
        ({"steps": 1, "epochs": 1.0}, "one of the two"),
        ({"steps": 1, "momentum": 1.0}, "momentum"),
        ({"steps": 1, "mixup": float("nan")}, "mixup"),
        ({"steps": 1, "learning_rate": 0.0}, "learning rate"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(FitError, match=says):
        FitSettings(**wrong)


def test_what_does_not_suit_the_model_is_refused() -> None:
    settings = FitSettings(steps=1)
    with pytest.raises(FitError, match="for images"):
        KerasLearner(linear(), FitSettings(steps=1, crop=2))
    with pytest.raises(FitError, match="takes numbers of shape"):
        KerasLearner(linear(), settings).fit(POINTS[:, :3], CHANNEL, None, 0)
    with pytest.raises(FitError, match="60 records"):
        KerasLearner(linear(), settings).fit(POINTS, CHANNEL[:5], None, 0)
    with pytest.raises(UnknownModel, match="one output a class"):
        KerasLearner(lambda: keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(2)]), settings)


ANOTHER_PROCESS = """
from tests.models.test_learner import *
weights = KerasLearner(noisy, FitSettings(steps=30, batch=16, mixup=1.0)).fit(POINTS, CHANNEL, None, seed=7)
print(weights.tobytes().hex())
"""


@pytest.mark.slow
def test_another_process_gives_the_same_bits() -> None:
    here = KerasLearner(noisy, FitSettings(steps=30, batch=16, mixup=1.0)).fit(POINTS, CHANNEL, None, seed=7)
    there = subprocess.run([sys.executable, "-c", ANOTHER_PROCESS], capture_output=True, text=True, check=True, timeout=120)
    assert there.stdout.split()[-1] == here.tobytes().hex()


@pytest.mark.parametrize(
    ("spec", "normalized"), [(BATCH_NORM_CNN, 24 + 48 + 96 + 96), (WIDE_BATCH_NORM_CNN, 64 + 128 + 256 + 256)]
)
def test_a_model_of_one_place_is_as_large_as_it_says_and_carries_its_running_statistics(spec: ModelSpec, normalized: int) -> None:
    model = WholeModel(spec)
    assert sum(int(np.prod(one.shape)) for one in model.trained) == spec.parameters
    assert model.size - (spec.parameters or 0) == 2 * normalized


def test_a_model_in_bfloat16_keeps_weights_and_answers_in_float32_and_its_weights_fit_the_other() -> None:
    mixed, plain = WholeModel(in_bfloat16(WIDE_BATCH_NORM_CNN)), WholeModel(WIDE_BATCH_NORM_CNN)
    model = mixed.keras_model
    assert {variable.dtype for variable in model.variables} == {"float32"}
    assert model.output.dtype == "float32"
    assert {layer.compute_dtype for layer in model.layers if layer.name != "logits" and layer.weights} == {"bfloat16"}
    assert {layer.compute_dtype for layer in plain.keras_model.layers} == {"float32"}  # the policy is as it was
    images = np.random.default_rng(0).random((4, 28, 28, 1), dtype=np.float32)
    plain.assign(mixed.fresh(3))
    mixed.assign(plain.weights())
    answers, exact = model(images).numpy(), plain.keras_model(images).numpy()
    assert not np.array_equal(answers, exact)
    np.testing.assert_allclose(answers, exact, atol=0.05 * np.abs(exact).max())


def test_a_model_that_would_round_its_answers_or_has_a_precision_of_its_own_is_refused() -> None:
    with pytest.raises(UnknownModel, match="answer in bfloat16"):
        in_bfloat16(BATCH_NORM_CNN)
    built = WIDE_BATCH_NORM_CNN.build()
    with pytest.raises(UnknownModel, match="its own precision"):
        in_bfloat16(replace(WIDE_BATCH_NORM_CNN, build=lambda: built))
