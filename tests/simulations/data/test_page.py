"""docs/data-sets.md says what the catalogue says, and the catalogue what the data are."""

from __future__ import annotations

import re

import pytest

from fedrho.models.zoo import lookup
from fedrho.simulations.data.catalogue import ENTRIES, entry
from fedrho.simulations.data.facts import counted
from tests.simulations.data import page
from tests.simulations.data.opening import opened


def test_the_tables_of_the_page_are_those_of_the_catalogue() -> None:
    """`python -m tests.simulations.data.page` writes them anew."""
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.written(text)


def first_number(text: str) -> int:
    found = re.search(r"\d[\d,]*", text)
    assert found is not None
    return int(found[0].replace(",", ""))


def assert_as_told(name: str) -> None:
    told, data = entry(name), opened(name)
    assert data.size == first_number(told.devices)
    assert len(data.held_out) == first_number(told.held_out)
    if "a device" not in told.examples:
        assert sum(data.count(device) for device in range(data.size)) == first_number(told.examples)


@pytest.mark.parametrize("name", ["digits", "digits-drawn", "made-up"])
def test_what_is_told_of_embedded_and_made_up_data_is_true(name: str) -> None:
    assert_as_told(name)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("name", ["mnist", "qmnist", "fashion-mnist", "adult", "shakespeare", "parlamint-es"])
def test_what_is_told_of_real_data_is_true(name: str) -> None:
    assert_as_told(name)


@pytest.mark.slow
@pytest.mark.usefixtures("copies")
def test_what_is_told_of_caldracor_is_true() -> None:
    assert_as_told("caldracor")


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    "name", ["digits", "digits-drawn", "mnist", "qmnist", "fashion-mnist", "adult", "shakespeare", "parlamint-es"]
)
def test_the_first_model_that_is_told_takes_the_examples(name: str) -> None:
    spec, examples = lookup(entry(name).models[0]), opened(name).examples(0)
    assert (examples.features.shape[1:], str(examples.features.dtype)) == (spec.input_shape, spec.input_dtype)
    assert 0 <= examples.labels.min() <= examples.labels.max() < spec.classes
    assert not spec.vocabulary or examples.features.max() < spec.vocabulary


def test_every_model_that_is_told_exists() -> None:
    for one in ENTRIES.values():
        for model in set(one.models) - {"any", "any other"}:
            lookup(model)


def assert_counted(first: str, name: str, **options: object) -> None:
    """The row of the page about texts as sequences, as `fedrho data show --option` counts it."""
    facts = counted(opened(name, form="sequences", **options))
    assert facts.known is not None
    shares = [(facts.known.known, facts.known.ids), (facts.known.held_out_known, facts.known.held_out_ids)]
    told = " | ".join(f"{known / ids:.2%} of {ids:,}" for known, ids in shares)
    row = f"| {facts.devices:,} | {facts.examples:,} | {facts.median:g}, {facts.ninety_percent:g} | {told} |\n"
    assert f"{first} {row}" in page.PAGE.read_text(encoding="utf-8")


@pytest.mark.usefixtures("copies")
def test_what_is_told_of_texts_as_sequences_is_true() -> None:
    assert_counted("| `shakespeare`, `units=characters`", "shakespeare")
    assert_counted("| `parlamint-es`, `vocabulary=public` (2,046 words)", "parlamint-es")


@pytest.mark.slow
@pytest.mark.usefixtures("copies")
def test_what_is_told_of_caldracor_as_sequences_is_true() -> None:
    assert_counted("| `caldracor`, `vocabulary=public` (2,046 words)", "caldracor")
    assert_counted("| `caldracor`, `vocabulary=public-10k` (9,998 words)", "caldracor", vocabulary="public-10k")
    private = {"vocabulary": "private", "vocabulary_rho": 0.05}
    assert_counted("| `caldracor`, `vocabulary=private`, `vocabulary_rho=0.05` (2,046 words)", "caldracor", **private)
