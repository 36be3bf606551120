"""Every mistake in `[data]` is refused in one line that says what is allowed, before a file is looked at."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fedrho.simulations.data.base import DataError, DataSource
from fedrho.simulations.data.catalogue import ENTRIES, check_data, entry, names, open_data


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "mnits"}, "unknown data set 'mnits'; known: digits, .*; did you mean 'mnist'"),
        ({"name": ""}, "unknown data set ''; known: "),
        ({"name": "digits", "device": 3}, "data.device: digits has no such option here; .*did you mean 'devices'"),
        ({"name": "mnist", "devices": 100}, "data.devices: mnist has no such option here; it has split"),
        ({"name": "digits", "split": "shards", "alpha": 1.0}, "data.alpha: digits has no such option here"),
        ({"name": "digits", "split": "dirichle"}, "data.split: 'dirichle' is not allowed for digits; .*did you mean 'dirichlet'"),
        ({"name": "digits", "devices": 0}, "data.devices: '0' is not allowed for digits; allowed: whole numbers from 1"),
        ({"name": "digits", "devices": True}, "data.devices: 'True' is not allowed"),
        ({"name": "digits", "devices": 3.0}, "data.devices: '3.0' is not allowed"),
        ({"name": "digits", "devices": "many"}, "data.devices: 'many' is not allowed"),
        ({"name": "digits", "alpha": 0}, "data.alpha: '0' is not allowed for digits; allowed: numbers from 0.001 to 1e\\+06"),
        ({"name": "digits", "alpha": float("nan")}, "data.alpha: 'nan' is not allowed"),
        ({"name": "digits", "alpha": float("inf")}, "data.alpha: 'inf' is not allowed"),
        ({"name": "digits", "seed": -1}, "data.seed: '-1' is not allowed"),
        ({"name": "digits-drawn", "examples": 10, "examples_most": 9}, "data.examples_most: '9' is not allowed .* from 10"),
        ({"name": "made-up", "shape": []}, r"data.shape: '\[\]' is not allowed"),
        ({"name": "made-up", "shape": [2**20, 2**20]}, "data.shape: .* at most"),
        ({"name": "made-up", "shape": [2**20], "classes": 1000}, "data.classes: 1000 classes of shape"),
        ({"name": "made-up", "classes": 1}, "data.classes: '1' is not allowed"),
        ({"name": "made-up", "vocabulary": 10, "noise": 2.0}, "data.noise: '2.0' is not allowed"),
        ({"name": "shakespeare", "units": "letters"}, "data.units: 'letters' is not allowed"),
        (
            {"name": "shakespeare", "units": "characters", "vocabulary": "hashed"},
            "data.vocabulary: shakespeare has no such option",
        ),
        ({"name": "caldracor", "stride": 0}, "data.stride: '0' is not allowed"),
        ({"name": "adult", "split": "income"}, "data.split: 'income' is not allowed"),
        ({"name": "folder"}, "data.path: missing; folder needs it"),
        ({"name": "folder", "path": "x"}, "data.model: missing; folder needs it"),
        ({"name": "folder", "path": "x", "model": "gpt"}, "data.model: unknown model 'gpt'"),
        ({"name": "folder", "path": "x", "shape": [3]}, "data.classes: missing"),
    ],
)
def test_a_mistake_is_one_line(section: dict[str, Any], expected: str) -> None:
    for use in (check_data, open_data):
        with pytest.raises(DataError, match=expected) as refused:
            use(DataSource.of(section))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"name": "digits", "devices": 1438},
            "data.devices: 1437 examples cannot be shared among 1438 devices; allowed: 1 to 1437",
        ),
        (
            {"name": "digits", "split": "shards", "devices": 1000},
            "data.devices: 1437 examples cannot be cut into 1000 times 2 shards",
        ),
        ({"name": "folder", "path": "nothing-here", "model": "digits-mlp"}, "data.path: nothing-here: No such file"),
    ],
)
def test_more_devices_than_the_data_have_is_one_line(section: dict[str, Any], expected: str) -> None:
    check_data(DataSource.of(section))
    with pytest.raises(DataError, match=expected):
        open_data(DataSource.of(section))


def test_a_section_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.name: missing"):
        DataSource.of({"devices": 3})


def test_every_data_set_has_a_licence_a_source_and_files_with_checksums() -> None:
    for name in names():
        found = entry(name)
        assert all((found.licence.name, found.licence.attribution, found.licence.source, found.summary, found.device))
        for file in found.files:
            assert file.urls
            assert file.sha256 is None or len(file.sha256) == 64
    assert [file.name for one in ENTRIES.values() for file in one.files if file.sha256 is None] == [
        "tff/stackoverflow.sqlite.lzma"
    ]


DECIDING = ("split", "units", "form", "vocabulary")
"""Options that decide which others there are; the vocabulary of folder and made-up is a file or a number."""


@pytest.mark.parametrize("name", names())
def test_the_options_that_are_told_are_those_there_are(name: str) -> None:
    """Every documented option is known to some split, and every option that a split knows is documented."""
    found = entry(name)
    documented = {option.name for option in found.options}
    needed: dict[str, Any] = {"path": "x", "model": "digits-mlp"} if name == "folder" else {}
    deciding = {
        option.name: option.allowed.split(", ")
        for option in found.options
        if option.name in DECIDING and name not in ("folder", "made-up")
    }
    shapes: list[dict[str, Any]] = [{}, {"shape": [3], "classes": 2}] if name == "folder" else [{}]
    known: set[str] = set()
    for decided, shape in itertools.product(itertools.product(*deciding.values()), shapes):
        chosen: dict[str, Any] = {**needed, **shape, **dict(zip(deciding, decided, strict=True))}
        if chosen.get("units") == "characters":
            chosen.pop("vocabulary", None)
        if chosen.get("vocabulary") == "private":
            chosen["vocabulary_rho"] = 1.0
        with pytest.raises(DataError, match="no such option") as refused:
            check_data(DataSource.of({"name": name, "strange": 1, **chosen}))
        known |= set(str(refused.value).partition(" it has ")[2].split(";")[0].split(", ")) - {"none"}
    assert known | ({"class_names", "vocabulary", "model"} if name == "folder" else set()) == documented
