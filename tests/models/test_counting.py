"""Labels at every place, and labels that do not count, against a small language model in plain float64 numpy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.models.base import ModelSpec, Outputs, UnknownModel
from fedrho.models.compiled import Measured, WholeTraining
from fedrho.models.counting import Counting
from fedrho.models.flat import FlatModel
from fedrho.models.optimizers import LocalOptimizer
from fedrho.models.vectorised import StackedTraining

WORDS, SIZE, LENGTH, IGNORED = 7, 3, 5, 2
SGD = LocalOptimizer("sgd", 0.5)
L = keras.layers
Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


def bigrams(mask: bool = False) -> keras.Model:
    """A word, its three numbers, the next word."""
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), L.Embedding(WORDS, SIZE, mask_zero=mask), L.Dense(WORDS)])


def masked() -> keras.Model:
    return bigrams(mask=True)


def sure() -> keras.Model:
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), L.Embedding(WORDS, SIZE), L.Dense(WORDS, "softmax")])


def last() -> keras.Model:
    return keras.Sequential([keras.Input((1,), dtype="int32"), L.Embedding(WORDS, SIZE), L.Flatten(), L.Dense(WORDS)])


def of(build: object, **changes: object) -> ModelSpec:
    spec = ModelSpec("bigrams", "", (LENGTH,), WORDS, build, "int32", WORDS, label_shape=(LENGTH,), ignored=IGNORED)  # type: ignore[arg-type]
    return replace(spec, **changes)  # type: ignore[arg-type]


EVERY_PLACE = of(bigrams)
ALL_COUNT = of(bigrams, ignored=0)
MASKED = of(masked)
SURE = of(sure, outputs=Outputs.PROBABILITIES)
ONE = of(last, input_shape=(1,), label_shape=())
SPECS = [EVERY_PLACE, ALL_COUNT, MASKED, SURE, ONE]


@cache
def built(spec: ModelSpec) -> FlatModel:
    return FlatModel(spec, seed=3)


def texts(spec: ModelSpec, count: int, seed: int = 1) -> tuple[Ints, Ints]:
    """Some end early and are filled up with 0; the last has no label that counts."""
    generator = np.random.default_rng(seed)
    words = generator.integers(1, WORDS, (count, LENGTH + 1)).astype(np.int32)
    words[::2, 3:] = 0
    words[-1, 1:] = 1
    if not spec.label_shape:
        return words[:, :1].copy(), words[:, 1].copy()
    return words[:, :-1].copy(), words[:, 1:].copy()


def plain(spec: ModelSpec, weights: NDArray[np.floating], features: Ints, labels: Ints) -> tuple[float, Floats, int, int]:
    """Loss and gradient, label after label; how many are right, of how many that count."""
    table, kernel, bias = np.split(weights.astype(np.float64), [WORDS * SIZE, 2 * WORDS * SIZE])
    table, kernel = table.reshape(WORDS, SIZE), kernel.reshape(SIZE, WORDS)
    loss, right, counted = 0.0, 0, 0
    of_table, of_kernel, of_bias = np.zeros_like(table), np.zeros_like(kernel), np.zeros_like(bias)
    for word, label in zip(features.reshape(-1), labels.reshape(-1), strict=True):
        if label < spec.ignored:
            continue
        logits = table[word] @ kernel + bias
        chances = np.exp(logits) / np.exp(logits).sum()
        loss, right, counted = loss - np.log(chances[label]), right + int(chances.argmax() == label), counted + 1
        error = chances - np.eye(WORDS)[label]
        of_table[word] += kernel @ error
        of_kernel += np.outer(table[word], error)
        of_bias += error
    gradient = np.concatenate([of_table.reshape(-1), of_kernel.reshape(-1), of_bias])
    return loss / max(1, counted), gradient / max(1, counted), right, counted


def trained(spec: ModelSpec, features: Ints, labels: Ints, batches: list[list[int]]) -> tuple[Floats, float]:
    """What plain SGD changes, and the mean of the batches' losses."""
    begin = built(spec).weights().astype(np.float64)
    now, losses = begin.copy(), []
    for batch in batches:
        loss, gradient, _, _ = plain(spec, now, features[batch], labels[batch])
        now -= SGD.learning_rate * gradient
        losses.append(loss)
    return now - begin, float(np.mean(losses))


BATCHES = [[0, 1, 2], [3, 4, 5], [6, 7]]


def compiled(spec: ModelSpec, begin: NDArray[np.float32], batches: list[list[int]]) -> tuple[NDArray[np.float32], float]:
    features, labels = texts(spec, 8)
    order = np.concatenate(batches).astype(np.int32)
    ends = np.cumsum([0, *map(len, batches)], dtype=np.int32)
    update, loss = WholeTraining(built(spec), SGD)(begin, features, labels, order, ends)[:2]
    return update.numpy(), float(loss)


@pytest.mark.parametrize("spec", SPECS)
def test_training_is_that_of_plain_numpy(spec: ModelSpec) -> None:
    features, labels = texts(spec, 8)
    wanted, wanted_loss = trained(spec, features, labels, BATCHES)
    model, begin = built(spec), built(spec).weights()
    update, loss = compiled(spec, begin, BATCHES)
    assert np.abs(update - wanted).max() < 1e-5
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    model.assign(begin)
    step = model.local_steps(SGD)
    for batch in BATCHES:
        step(features[batch], labels[batch])
    assert np.abs(model.weights() - begin - wanted).max() < 1e-5
    model.assign(begin)


@pytest.mark.parametrize("spec", [EVERY_PLACE, pytest.param(ONE, marks=pytest.mark.slow)])
def test_many_devices_at_once_come_to_the_same(spec: ModelSpec) -> None:
    """Two devices, of two and of one batch; the last batch of the first is filled up with an example that must not count."""
    features, labels = texts(spec, 8)
    first, second = trained(spec, features, labels, [[0, 1, 2], [3, 4]]), trained(spec, features, labels, [[5, 6, 7]])
    places = np.array([[0, 1, 2], [5, 6, 7], [3, 4, 3]], dtype=np.int32)
    shares = np.array([[1 / 3] * 3, [1 / 3] * 3, [1 / 2, 1 / 2, 0]], dtype=np.float32)
    batches = (places, shares, np.array([0, 2, 3], dtype=np.int32))
    rows, losses = StackedTraining(built(spec), SGD)(built(spec).weights(), features, labels, batches)[:2]
    for row, loss, (wanted, its_loss) in zip(rows, losses, (first, second), strict=True):
        assert np.abs(row - wanted).max() < 1e-5
        assert float(loss) == pytest.approx(its_loss, rel=1e-5)


@pytest.mark.parametrize("spec", [EVERY_PLACE, ONE])
def test_where_no_label_counts_nothing_is_learnt(spec: ModelSpec) -> None:
    features, labels = texts(spec, 8)
    update, loss = compiled(spec, built(spec).weights(), [[7], [7]])
    assert not update.any()
    assert loss == 0.0
    assert np.isnan(built(spec).accuracy(features[7:], labels[7:]))
    right, counted, its_loss = Measured(built(spec))(built(spec).weights(), features[7:], labels[7:])
    assert (int(right), int(counted), float(its_loss)) == (0, 0, 0.0)


@pytest.mark.parametrize(
    "spec", [EVERY_PLACE, MASKED, ONE, *(pytest.param(one, marks=pytest.mark.slow) for one in (ALL_COUNT, SURE))]
)
def test_accuracy_is_of_the_labels_that_count(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured three examples at a time, so that parts of unequal weight are joined."""
    monkeypatch.setattr("fedrho.models.counting.AT_ONCE", 3 * WORDS * (LENGTH if spec.label_shape else 1))
    assert Counting(spec).at_once == 3
    features, labels = texts(spec, 40)
    weights = np.random.default_rng(5).normal(size=built(spec).size).astype(np.float32)
    wanted_loss, _, right, counted = plain(spec, weights, features, labels)
    told = Measured(built(spec))(weights, features, labels)
    assert (int(told[0]), int(told[1])) == (right, counted)
    assert 0 < right < counted <= labels.size
    assert float(told[2]) == pytest.approx(wanted_loss, rel=1e-5)
    built(spec).assign(weights)
    assert built(spec).accuracy(features, labels) == pytest.approx(right / counted, abs=1e-12)
    built(spec).assign(FlatModel(spec, seed=3).weights())


def test_a_model_that_maps_to_one_class_has_no_label_at_every_place() -> None:
    with pytest.raises(UnknownModel, match=r"maps \(None, 5\) to \(None, 5, 7\), not \(None, 5\) to \(None, 7\)"):
        FlatModel(of(bigrams, label_shape=()))


@pytest.mark.parametrize(("spec", "has"), [(ALL_COUNT, "a label at every place"), (ONE, "labels below 2 that do not count")])
def test_there_is_no_training_on_likelihoods_of_such_labels(spec: ModelSpec, has: str) -> None:
    with pytest.raises(UnknownModel, match=f"has {has}.*label privacy is for one label"):
        FlatModel(spec, on_likelihoods=True)
