"""Compiled local training against a device's own, against plain numpy, and many clients at once against one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.client.examples import orders
from fedrho.models import base
from fedrho.models.base import ModelSpec, Outputs, register
from fedrho.models.flat import FlatModel
from fedrho.models.zoo import lookup
from fedrho.privacy.clipping import clip
from fedrho.privacy.vectors import Grid, Update
from fedrho.protos.messages import RoundPlan
from fedrho.simulations.data.base import Examples
from fedrho.simulations.training import AllAtOnce, OneByOne, Outcome, Schedules
from tests.models import reference
from tests.simulations.held import DEVICES, GRID, LOGISTIC, MLP, as_a_device, digits_like, some_weights

WIDE = Grid(1e3, 24)
"""Nothing is clipped, and a grid unit is 6e-5 of a weight's last digit."""

PLANS = {
    "plain": MLP,
    "two epochs": replace(MLP, epochs=2, step=5),
    "at most four examples": replace(MLP, max_examples=4),
    "more steps than batches": replace(MLP, local_steps=4),
    "one example a batch": replace(LOGISTIC, batch_size=1),
    "batches beyond the device": replace(LOGISTIC, batch_size=1000, learning_rate=0.5),
    "momentum": replace(LOGISTIC, momentum=0.9, epochs=3),
}
OTHERS = {
    "adam": replace(LOGISTIC, optimizer="adam", epochs=2),
    "adagrad": replace(LOGISTIC, optimizer="adagrad"),
    "rmsprop with momentum": replace(LOGISTIC, optimizer="rmsprop", momentum=0.5),
}


@cache
def built(name: str) -> FlatModel:
    return FlatModel(lookup(name))


def rows(training: Any, plan: RoundPlan, clients: tuple[Examples, ...] = DEVICES) -> Outcome:
    """What all clients come to, in one."""
    parts = training(plan.step, some_weights(plan.size), clients)
    return Outcome(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "loss", "norm", "failed")))


@cache
def one_by_one(plan: RoundPlan, grid: Grid = GRID) -> OneByOne:
    return OneByOne(built(plan.model), plan, grid)


@cache
def at_once(plan: RoundPlan, grid: Grid = GRID) -> AllAtOnce:
    return AllAtOnce(built(plan.model), plan, grid)


def agrees_with_a_device(plan: RoundPlan, clients: tuple[Examples, ...] = DEVICES) -> None:
    weights = some_weights(plan.size)
    found = rows(one_by_one(plan), plan, clients)
    for client, row in zip(clients, found.rows, strict=True):
        assert (row == as_a_device(plan, weights, client)).all()
    assert not found.failed.any()


@pytest.mark.parametrize("plan", [pytest.param(plan, id=name) for name, plan in PLANS.items()])
def test_a_client_alone_has_the_bits_of_a_device(plan: RoundPlan) -> None:
    agrees_with_a_device(plan)


@pytest.mark.parametrize(
    "plan",
    [pytest.param(plan, id=name, marks=[] if name == "adam" else pytest.mark.slow) for name, plan in OTHERS.items()],
)
def test_an_optimizer_begins_anew_for_every_client_and_has_the_bits_of_a_device(plan: RoundPlan) -> None:
    agrees_with_a_device(plan, DEVICES[:3])


def sgd_in_numpy(plan: RoundPlan, client: Examples) -> NDArray[np.float64]:
    """The update, by the reference gradient in float64."""
    weights = some_weights(plan.size).astype(np.float64)
    for chosen in orders(len(client), plan):
        features, labels = client.features[chosen], client.labels[chosen]
        weights -= plan.learning_rate * reference.gradient(plan.model, weights, features, labels)
    return weights - some_weights(plan.size)


@pytest.mark.parametrize("plan", [replace(LOGISTIC, epochs=2), replace(MLP, epochs=2)], ids=["logistic", "mlp"])
@pytest.mark.parametrize("make", [one_by_one, at_once])
def test_update_is_that_of_sgd_in_plain_numpy(plan: RoundPlan, make: Any) -> None:
    found = rows(make(plan, WIDE), plan)
    for client, row in zip(DEVICES, found.rows, strict=True):
        assert np.abs(row * WIDE.unit - sgd_in_numpy(plan, client)).max() < 1e-4


@pytest.mark.parametrize("plan", [pytest.param(plan, id=name) for name, plan in PLANS.items()])
def test_many_at_once_come_to_the_same_as_one_by_one_but_for_rounding(plan: RoundPlan) -> None:
    alone, together = rows(one_by_one(plan), plan), rows(at_once(plan), plan)
    assert np.abs(alone.rows.astype(np.int64) - together.rows).max() <= 2
    assert together.norm == pytest.approx(alone.norm, rel=1e-5)
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)


def test_loss_is_the_mean_over_the_local_steps() -> None:
    plan = replace(MLP, learning_rate=1e-9)
    (client,) = DEVICES[1:2]
    losses = [
        reference.loss("digits-mlp", some_weights(2410), client.features[chosen], client.labels[chosen])
        for chosen in orders(len(client), plan)
    ]
    assert rows(one_by_one(plan), plan, (client,)).loss == pytest.approx([np.mean(losses)], rel=1e-5)


def spoilt(kind: str) -> Examples:
    sound = digits_like(10, 4)
    features, labels = sound.features.copy(), sound.labels.copy()
    if kind == "nan":
        features[3, 3] = np.nan
    elif kind == "overflow":
        features[:] = 3e38
    else:
        labels[9] = 10
    return Examples(features, labels)


@pytest.mark.parametrize("kind", ["nan", "overflow", "label that no class has"])
@pytest.mark.parametrize("make", [one_by_one, at_once])
def test_a_client_that_diverges_gives_zeros_and_leaves_the_others_alone(kind: str, make: Any) -> None:
    training = make(MLP)
    clients = (*DEVICES[:4], spoilt(kind), *DEVICES[5:])
    found, sound = rows(training, MLP, clients), rows(training, MLP)
    assert np.flatnonzero(found.failed).tolist() == [4]
    assert not found.rows[4].any()
    assert found.norm[4] == 0.0
    assert np.isnan(found.loss[4])
    others = np.arange(len(clients)) != 4
    most = 2 if kind.startswith("label") and make is at_once else 0  # then they are trained one by one
    assert np.abs(found.rows[others].astype(np.int64) - sound.rows[others]).max() <= most


def test_a_client_has_the_same_bits_whatever_the_others_of_its_unit_hold() -> None:
    training, other = at_once(MLP), tuple(digits_like(len(one), 50 + place) for place, one in enumerate(DEVICES))
    first, second = rows(training, MLP), rows(training, MLP, (*DEVICES[:2], *other[2:]))
    assert (first.rows[:2] == second.rows[:2]).all()
    assert (first.rows[2:] != second.rows[2:]).any()


@pytest.mark.parametrize("make", [one_by_one, at_once])
def test_a_loss_that_is_not_finite_gives_zeros_though_all_weights_are_finite(make: Any) -> None:
    """Logits of 3e38 and -3e38 are numbers, and so are the gradients of the loss that lies between them; it is infinite."""
    plan = replace(LOGISTIC, learning_rate=1e-30, batch_size=5)
    weights = some_weights(650)
    weights[:2] = (-3e38, 3e38)
    sound = [Examples(one.features.copy(), one.labels) for one in DEVICES[:3]]
    for one in sound:
        one.features[:, 0] = 0.0
    heavy = Examples(sound[1].features.copy(), np.zeros_like(sound[1].labels))
    heavy.features[:, 0] = 1.0
    assert np.isfinite(heavy.features @ weights[:640].reshape(64, 10)).all()
    parts = make(plan)(1, weights, [sound[0], heavy, sound[2]])
    found = Outcome(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "loss", "norm", "failed")))
    assert found.failed.tolist() == [False, True, False]
    assert not found.rows[1].any()
    assert np.isnan(found.loss[1])
    assert found.norm[1] == 0.0


def counted(log: list[int]) -> Any:
    @keras.saving.register_keras_serializable("tests")
    class Counted(keras.layers.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            log.append(1)
            return inputs

    return Counted()


def test_nothing_is_traced_again_for_clients_of_another_size_or_another_step() -> None:
    log: list[int] = []
    layers = keras.layers
    spec = ModelSpec(
        "counted", "", (64,), 10, lambda: keras.Sequential([keras.Input((64,)), counted(log), layers.Dense(10, name="logits")])
    )
    model = FlatModel(spec)
    trainings = [kind(model, LOGISTIC, GRID) for kind in (OneByOne, AllAtOnce)]
    traced = len(log)
    for training in trainings:
        for step in (1, 2):
            training(step, some_weights(650), [digits_like(count, count) for count in (1, 4, 30)])
            training(step, some_weights(650), [digits_like(3, 3)])
    assert len(log) == traced


def test_batches_are_those_of_a_device_made_once_a_count_and_step() -> None:
    schedules = Schedules(replace(MLP, epochs=2, max_examples=7))
    schedules.begin(9)
    schedule = schedules.of(11)
    batches = [schedule.order[start:end].tolist() for start, end in zip(schedule.ends[:-1], schedule.ends[1:], strict=True)]
    assert batches == [batch.tolist() for batch in orders(11, replace(MLP, step=9, epochs=2, max_examples=7))]
    assert schedules.of(11) is schedule
    schedules.begin(10)
    assert schedules.of(11) is not schedule


def test_one_large_device_does_not_make_the_small_ones_of_its_unit_larger() -> None:
    schedules = Schedules(MLP)
    schedules.begin(1)
    stack = schedules.stacked(np.array([3, 50_000, 7]))
    assert stack.order.tolist() == [1, 2, 0]
    assert stack.places.shape == stack.shares.shape == (1 + 10_000 + 2, 5)
    assert stack.starts[:4].tolist() == [0, 3, 5, 6]
    assert np.unique(stack.places).size == 50_010


def build_tokens() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,), dtype="int32"), layers.Embedding(12, 4), layers.GlobalAveragePooling1D(), layers.Dense(5, "softmax")]
    )


def test_token_ids_and_models_that_give_probabilities_are_trained_as_a_device_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # in no other test's list of models
    spec = register(ModelSpec("test-tokens", "", (6,), 5, build_tokens, "int32", 12, Outputs.PROBABILITIES))
    plan = replace(LOGISTIC, model=spec.name, size=12 * 4 + 4 * 5 + 5)
    generator = np.random.default_rng(3)
    clients = tuple(
        Examples(generator.integers(0, 12, (count, 6), dtype=np.int32), generator.integers(0, 5, count, dtype=np.int32))
        for count in (4, 9)
    )
    agrees_with_a_device(plan, clients)
    alone, together = rows(one_by_one(plan), plan, clients), rows(at_once(plan), plan, clients)
    assert np.abs(alone.rows.astype(np.int64) - together.rows).max() <= 2


def test_rows_are_clipped_as_clip_does_it() -> None:
    tight = Grid(0.01, 16)
    whole = rows(one_by_one(MLP, WIDE), MLP)
    small = rows(one_by_one(MLP, tight), MLP)
    assert (whole.norm == small.norm).all()
    assert (small.norm > 0.01).all()
    for row, small_row in zip(whole.rows, small.rows, strict=True):
        near = clip(Update((row * WIDE.unit).astype(np.float32)), tight).vector
        assert np.abs(near - small_row).max() <= 50
