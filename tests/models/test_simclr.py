"""SimCLR: its loss is the one of the paper, copies are what they should be, and what it learns groups images by class."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedrho.models.backend import tf
from fedrho.models.simclr import Alterations, Encoder, SimclrSettings, _order, altered, nt_xent, train_encoder
from fedrho.privacy.labels.clusters import kmeans

UNCHANGED = Alterations(crop=1.0, turn=0.0, slant=0.0, light=0.0, blur=0.0, cutout=0.0)
SMALL = SimclrSettings(steps=3, batch=16, width=4, projection=8)


def images(count: int, channels: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, 12, 12, channels)).astype(np.float32)


def purity(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    return sum(int(np.bincount(labels[groups == one]).max()) for one in np.unique(groups)) / len(labels)


def test_the_loss_is_the_cross_entropy_of_finding_the_other_copy() -> None:
    rows = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    odds = np.exp(unit @ unit.T / 0.3)
    pairs = [(place, (place + 3) % 6) for place in range(6)]
    plain = np.mean([-np.log(odds[i, j] / (odds[i].sum() - odds[i, i])) for i, j in pairs])
    assert float(nt_xent(tf.constant(rows), 0.3)) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_images_that_the_seed_decides_and_without_alterations_the_same(channels: int) -> None:
    given = images(40, channels)
    by = Alterations(flip=True, blur=0.5, colour=0.3, grey=0.2)
    first, again, other = (altered(tf.constant(given), tf.constant([1, seed]), by).numpy() for seed in (2, 2, 3))
    assert first.shape == given.shape
    assert (first.min() >= 0, first.max() <= 1) == (True, True)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(altered(tf.constant(given), tf.constant([1, 2]), UNCHANGED).numpy(), given, atol=1e-5)


def test_a_flip_turns_a_half_of_images_around_and_a_crop_keeps_its_share() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 12, dtype=np.float32)[None, None, :, None], (200, 12, 12, 1))
    flipped = altered(tf.constant(ramp), tf.constant([0, 1]), Alterations(1.0, 0.0, 0.0, True, 0.0, 0.0, 0.0)).numpy()
    turned = flipped[:, 5, 0, 0] > flipped[:, 5, -1, 0]
    assert 60 < turned.sum() < 140
    np.testing.assert_allclose(flipped[turned], ramp[turned][:, :, ::-1], atol=1e-5)
    cropped = altered(tf.constant(ramp), tf.constant([0, 1]), Alterations(0.5, 0.0, 0.0, False, 0.0, 0.0, 0.0)).numpy()
    spans = cropped[:, 5, -1, 0] - cropped[:, 5, 0, 0]
    assert (spans.min() >= 0.49, spans.max() <= 1.0) == (True, True)
    assert 0.7 < spans.mean() < 0.8


def test_every_image_comes_once_before_any_comes_again() -> None:
    order = _order(50, SimclrSettings(steps=7, batch=16))
    assert order.shape == (7, 16)
    assert len(set(order[:3].ravel().tolist())) == 48
    assert len(set(order[3:6].ravel().tolist())) == 48


def test_what_is_no_image_and_what_is_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="float32 of shape"):
        train_encoder(images(20).astype(np.float64), SMALL)
    with pytest.raises(ValueError, match="float32 of shape"):
        train_encoder(images(20)[:, 0], SMALL)
    with pytest.raises(ValueError, match="fewer than a batch"):
        train_encoder(images(10), SMALL)
    with pytest.raises(ValueError, match="at least 2 images"):
        SimclrSettings(batch=1)


@pytest.mark.slow
def test_training_is_decided_by_its_seed_and_outlives_the_process_as_weights() -> None:
    told: list[tuple[int, float]] = []
    first = train_encoder(images(40), SMALL, lambda steps, loss: told.append((steps, loss)))
    again = train_encoder(images(40), SMALL)
    np.testing.assert_array_equal(first.weights(), again.weights())
    assert [steps for steps, _ in told] == [3]
    fresh = Encoder((12, 12, 1), SMALL)
    assert not np.array_equal(fresh.weights(), first.weights())
    fresh.assign(first.weights())
    vectors = fresh.encode(images(40))
    np.testing.assert_array_equal(vectors, first.encode(images(40)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="weights, not"):
        fresh.assign(first.weights()[:-1])


@pytest.mark.slow
def test_the_loss_falls_and_groups_are_purer_than_an_untrained_encoder_s() -> None:
    """Of 1797 digits of 8x8 pixels, in 20 groups; the mean of three starts of k-means."""
    digits = load_digits()
    given = (digits.images[..., None] / 16).astype(np.float32)
    settings = SimclrSettings(steps=200, batch=128, width=16)
    losses: list[float] = []
    trained = train_encoder(given, settings, lambda steps, loss: losses.append(loss))
    untrained = Encoder((8, 8, 1), settings)
    pure, before = (
        np.mean([purity(kmeans(encoder.encode(given), 20, seed), digits.target) for seed in range(3)])
        for encoder in (trained, untrained)
    )
    assert losses[-1] < losses[0] - 0.5
    assert pure > before + 0.05
