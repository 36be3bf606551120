"""Local optimizers: what may be asked for, and steps against their formulas in plain numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from fedrho.models.flat import FlatModel, FloatVector
from fedrho.models.optimizers import LOCOPROP, WITH_MOMENTUM, LocalOptimizer, UnknownOptimizer
from fedrho.models.zoo import lookup
from tests.models import reference

FEATURES, LABELS = reference.made_up(12, seed=3)
START = np.random.default_rng(1).normal(0.0, 0.3, 650).astype(np.float32)
RATE = 0.05

Floats = reference.Floats


@cache
def model() -> FlatModel:
    return FlatModel(lookup("digits-logistic"))


def heavy_ball(gradient: Floats, state: Floats, number: int) -> tuple[Floats, Floats]:
    state = 0.9 * state - RATE * gradient
    return state, state


def adagrad(gradient: Floats, state: Floats, number: int) -> tuple[Floats, Floats]:
    state = (state if number > 1 else state + 0.1) + gradient**2
    return -RATE * gradient / np.sqrt(state + 1e-7), state


def adam(gradient: Floats, state: Floats, number: int) -> tuple[Floats, Floats]:
    mean, square = 0.9 * state.real + 0.1 * gradient, 0.999 * state.imag + 0.001 * gradient**2
    rate = RATE * math.sqrt(1 - 0.999**number) / (1 - 0.9**number)
    return -rate * mean / (np.sqrt(square) + 1e-7), mean + 1j * square


def rmsprop(gradient: Floats, state: Floats, number: int) -> tuple[Floats, Floats]:
    state = 0.9 * state + 0.1 * gradient**2
    return -RATE * gradient / np.sqrt(state + 1e-7), state


FORMULAS: dict[str, tuple[LocalOptimizer, Callable[[Floats, Floats, int], tuple[Floats, Floats]]]] = {
    "sgd": (LocalOptimizer("sgd", RATE), lambda gradient, state, number: (-RATE * gradient, state)),
    "empty is sgd": (LocalOptimizer("", RATE), lambda gradient, state, number: (-RATE * gradient, state)),
    "momentum": (LocalOptimizer("sgd", RATE, 0.9), heavy_ball),
    "adagrad": (LocalOptimizer("adagrad", RATE), adagrad),
    "adam": (LocalOptimizer("adam", RATE), adam),
    "rmsprop": (LocalOptimizer("rmsprop", RATE), rmsprop),
}


def trained(wanted: LocalOptimizer) -> FloatVector:
    model().assign(START)
    step = model().local_steps(wanted)
    for _ in range(4):
        step(FEATURES, LABELS)
    return model().weights().astype(np.float64)


def test_every_optimizer_has_a_formula_here() -> None:
    assert {wanted.name for wanted, _ in FORMULAS.values()} == set(WITH_MOMENTUM) - set(LOCOPROP)  # see test_locoprop.py


@pytest.mark.parametrize("name", FORMULAS)
def test_steps_are_those_of_the_formula(name: str) -> None:
    wanted, formula = FORMULAS[name]
    weights, state = START.astype(np.float64), np.zeros(650)
    for number in range(1, 5):
        change, state = formula(reference.gradient("digits-logistic", weights, FEATURES, LABELS), state, number)
        weights = weights + change
    assert np.abs(trained(wanted) - weights).max() < 2e-5


@pytest.mark.parametrize("name", FORMULAS)
def test_optimizer_begins_anew_for_every_training(name: str) -> None:
    wanted, _ = FORMULAS[name]
    first = trained(wanted).tobytes()
    trained(LocalOptimizer(wanted.name, 3.0, wanted.momentum))
    assert trained(wanted).tobytes() == first


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("lion", 0.1), "unknown optimizer 'lion'; allowed: adagrad, adam, locoprop-m, locoprop-s, rmsprop, sgd"),
        (("SGD", 0.1), "unknown optimizer 'SGD'"),
        (("sgd", 0.0), "learning rate"),
        (("sgd", math.nan), "learning rate"),
        (("sgd", math.inf), "learning rate"),
        (("sgd", 0.1, 1.0), "momentum must lie"),
        (("sgd", 0.1, -0.1), "momentum must lie"),
        (("sgd", 0.1, math.nan), "momentum must lie"),
        (("adam", 0.1, 0.9), "adam takes no momentum; allowed with one: rmsprop, sgd"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: tuple[str, float], reason: str) -> None:
    with pytest.raises(UnknownOptimizer, match=reason):
        LocalOptimizer(*arguments)
