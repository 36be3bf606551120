"""A vocabulary of the devices' own words: chosen by noise and what each of them may name, and by nobody who is held out."""

from __future__ import annotations

import numpy as np
import pytest

from fedrho.models.tokens import Words, listed
from fedrho.simulations.data.base import DataSource
from fedrho.simulations.data.catalogue import charge_of
from fedrho.simulations.data.vocabularies import PrivateWords

LIST = "spanish-parliament-10k"
CANDIDATES = listed(LIST)


def private(rho: float = 1000.0, size: int = 20, words_per_device: int = 30, seed: int = 0) -> PrivateWords:
    return PrivateWords(LIST, rho, size, words_per_device, seed)


def speaking(*words: str, devices: int = 40) -> dict[str, list[str]]:
    return {f"device {number}": [" ".join(words)] for number in range(devices)}


def chosen(vocabulary: PrivateWords, texts: dict[str, list[str]]) -> tuple[str, ...]:
    tokens = vocabulary.of(texts)
    assert isinstance(tokens, Words)
    assert set(tokens.listed) <= set(CANDIDATES)
    return tokens.listed


def test_with_much_privacy_spent_the_words_are_those_that_most_devices_say() -> None:
    said = CANDIDATES[5000:5020]
    texts = speaking(*said) | {"alone": ["xyzzy " + " ".join(CANDIDATES[7000:7010]) * 50]}
    assert set(chosen(private(), texts)) == set(said)
    assert chosen(private(), texts) == chosen(private(), dict(reversed(texts.items())))


def test_with_little_spent_they_are_nobodys() -> None:
    said = CANDIDATES[5000:5020]
    assert len(set(chosen(private(rho=1e-6), speaking(*said))) & set(said)) <= 2
    assert chosen(private(rho=1e-6, seed=1), speaking(*said)) != chosen(private(rho=1e-6, seed=2), speaking(*said))


def test_a_device_names_some_of_its_words_by_its_own_chance_whatever_the_others_say() -> None:
    vocabulary = private(words_per_device=7)
    text = [" ".join(CANDIDATES[100:200]), "xyzzy " + CANDIDATES[100] * 3]
    named = vocabulary.named("one", text)
    assert (len(named), len(set(named.tolist()))) == (7, 7)
    assert set(named.tolist()) <= set(range(100, 200))
    assert np.array_equal(named, vocabulary.named("one", text))
    assert set(named.tolist()) != set(vocabulary.named("another", text).tolist())
    assert vocabulary.named("one", ["xyzzy", ""]).size == 0


def test_the_charge_is_known_without_the_data_and_public_vocabularies_cost_nothing() -> None:
    private_words = {"name": "caldracor", "vocabulary": "private", "vocabulary_rho": 0.05, "words_per_device": 100}
    found = charge_of(DataSource.of(private_words))
    assert found is not None
    assert found.rho == pytest.approx(0.05)
    assert found.rho <= 0.05
    for free in (
        {"name": "caldracor"},
        {"name": "caldracor", "units": "characters"},
        {"name": "parlamint-es"},
        {"name": "digits"},
    ):
        assert charge_of(DataSource.of(free)) is None


def test_what_is_decoded_is_kept_under_all_that_it_depends_on() -> None:
    keys = {one.key for one in (private(), private(rho=1.0), private(size=21), private(words_per_device=31), private(seed=1))}
    assert len(keys) == 5
