"""The zoo by name, without TensorFlow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedrho.models import zoo
from fedrho.models.base import ModelSpec, UnknownModel, lookup, register
from fedrho.models.normalized import OF_ONE_PLACE
from fedrho.models.zoo import names

SHIPPED = [
    ("adult-logistic", 2),
    ("adult-mlp", 2),
    ("adult-raw-mlp", 2),
    ("characters", 126),
    ("characters-lstm", 126),
    ("characters-small-lstm", 126),
    ("characters-transformer", 126),
    ("cifar-cnn", 10),
    ("cifar-resnet18", 10),
    ("digits-logistic", 10),
    ("digits-mlp", 10),
    ("digits-wide-mlp", 10),
    ("emnist-cnn", 62),
    ("mnist-cnn", 10),
    ("mnist-logistic", 10),
    ("mnist-small-cnn", 10),
    ("movielens-ratings", 5),
    ("movies", 3954),
    ("spanish-cifg", 10_000),
    ("words", 2048),
    ("words-cifg", 2048),
    ("words-transformer", 2048),
]
LIST_NAMES = """
import sys
from fedrho.models.zoo import lookup, names
print(*names(), *(lookup(name).classes for name in names()))
print(*sorted(sys.modules.keys() & {"tensorflow", "keras", "sklearn"}))
"""


def test_names_are_listed_without_importing_tensorflow() -> None:
    ran = subprocess.run([sys.executable, "-c", LIST_NAMES], capture_output=True, text=True, check=True)
    listed, imported = ran.stdout.splitlines()
    assert listed.split() == [*(name for name, _ in SHIPPED), *(str(classes) for _, classes in SHIPPED)]
    assert imported == ""


@pytest.mark.parametrize("name", ["digits-logistic", "digits-mlp"])
def test_name_leads_to_the_model_of_that_name(name: str) -> None:
    assert (lookup(name).name, lookup(name).input_shape, lookup(name).classes) == (name, (64,), 10)


@pytest.mark.parametrize("name", ["", "digits", "DIGITS-MLP", "../digits-mlp"])
def test_unknown_name_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(UnknownModel) as refused:
        lookup(name)
    assert repr(name) in str(refused.value)
    assert all(known in str(refused.value) for known in names())
    assert "\n" not in str(refused.value)


def test_name_that_is_taken_cannot_be_registered_again() -> None:
    before = lookup("digits-mlp")
    with pytest.raises(ValueError, match="'digits-mlp' is registered already"):
        register(ModelSpec("digits-mlp", "another", (1,), 2, before.build))
    assert lookup("digits-mlp") is before


def test_a_model_of_one_place_is_found_there_alone() -> None:
    for name, spec in OF_ONE_PLACE.items():
        with pytest.raises(UnknownModel, match="`fedrho labels train` alone"):
            zoo.lookup(name)
        assert name not in names()
        assert zoo.lookup_whole(name) is spec
    assert zoo.lookup_whole("digits-mlp") is zoo.lookup("digits-mlp")
