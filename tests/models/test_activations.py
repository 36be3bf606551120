"""An activation is part of a model's name, and SmeLU its formula."""

from __future__ import annotations

import pickle
from pathlib import Path

import keras
import numpy as np
import pytest

from fedrho.models.flat import FlatModel
from fedrho.models.layers import SmeLU
from fedrho.models.saved import add_saved
from fedrho.models.zoo import UnknownModel, lookup, names
from tests.models import golden


def test_smelu_is_its_formula_and_meets_relu_without_a_jump() -> None:
    inputs = np.linspace(-3, 3, 1201).astype(np.float32)
    for beta in (0.1, 1.0, 2.5):
        found = np.asarray(SmeLU(beta)(inputs))
        wanted = np.where(inputs >= beta, inputs, np.where(inputs <= -beta, 0.0, (inputs + beta) ** 2 / (4 * beta)))
        assert np.abs(found - wanted).max() < 1e-6
        slopes = np.diff(found) / np.diff(inputs)
        assert np.abs(np.diff(slopes)).max() < 2 * 0.005 / (2 * beta) + 1e-3  # second derivative is at most 1 / (2 beta)
        assert (slopes > -1e-4).all()


def test_the_name_makes_the_network_and_the_default_is_as_before() -> None:
    chosen, plain = (FlatModel(lookup(name)) for name in ("digits-mlp+smelu", "digits-mlp"))
    assert (chosen.spec.name, chosen.size) == ("digits-mlp+smelu", plain.size)
    assert [one.shape for one in chosen.layout] == [one.shape for one in plain.layout]
    assert isinstance(chosen.keras_model.layers[0].activation, SmeLU)
    assert plain.keras_model.layers[0].activation is keras.activations.relu
    kernel, bias, last, last_bias = (variable.numpy() for variable in chosen.variables)
    features = golden.inputs(chosen)
    hidden = np.asarray(SmeLU(1.0)(features @ kernel + bias))
    assert np.abs(np.asarray(chosen.keras_model(features)) - (hidden @ last + last_bias)).max() < 1e-5
    again = pickle.loads(pickle.dumps(lookup("digits-mlp+smelu-0.5"))).build()
    assert again.layers[0].activation.beta == 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("digits-mlp+swish", "unknown activation 'swish' of model 'digits-mlp'; allowed: relu, gelu, tanh, smelu"),
        ("digits-mlp+smelu-1", "unknown activation 'smelu-1'"),
        ("digits-mlp+smelu-0", "unknown activation 'smelu-0'"),
        ("digits-mlp+smelu-0.50", "unknown activation 'smelu-0.50'"),
        ("digits-mlp+", "unknown activation ''"),
        ("digits-mlp+relu", "has relu by itself; write digits-mlp"),
        ("digits-mlp+smelu+gelu", "unknown activation 'smelu[+]gelu'"),
        ("digits-logistic+smelu", "has no choice of activation; write digits-logistic"),
        ("spanish-cifg+smelu", "has no choice of activation"),
        ("nothing+smelu", "unknown model 'nothing[+]smelu'; known models: "),
    ],
)
def test_a_wrong_choice_is_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(UnknownModel, match=reason) as refused:
        lookup(name)
    assert "\n" not in str(refused.value)


def test_no_name_of_the_zoo_has_the_sign_of_a_choice() -> None:
    assert not [name for name in names() if "+" in name]


def test_a_saved_model_with_smelu_is_loaded_again(tmp_path: Path) -> None:
    model = FlatModel(lookup("digits-mlp+smelu-0.5"))
    model.keras_model.save(tmp_path / "mine.keras")
    again = add_saved(tmp_path / "mine.keras").build()
    features = golden.inputs(model)
    assert np.array_equal(np.asarray(again(features)), np.asarray(model.keras_model(features)))
