"""Sequences against a plain reference, and what the text data sets make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedrho.models.tokens import FIRST, lookup
from fedrho.simulations.data import speakers
from fedrho.simulations.data.base import DataError, DataSource
from fedrho.simulations.data.facts import counted
from fedrho.simulations.data.options import Options
from fedrho.simulations.data.sequences import SequenceOptions, Sequences
from fedrho.simulations.data.streams import streams
from tests.simulations.data.opening import opened

Ids = list[int]


def plainly(ids: Ids, length: int) -> list[tuple[Ids, Ids]]:
    """Features and labels: what the docstring of the module says, one id after the other."""
    found = []
    for begin in range(0, len(ids), length):
        labels, features = ids[begin : begin + length], [0, *ids][begin : begin + length]
        if any(one >= FIRST for one in labels):
            filling = [0] * (length - len(labels))
            found.append((features[: len(labels)] + filling, labels + filling))
    return found


def made(texts: dict[str, list[Ids]], separator: int = 0, **options: object) -> Sequences:
    arrays = streams({name: [np.array(one, dtype=np.uint16) for one in texts[name]] for name in texts}, separator)
    return Sequences(arrays, sorted(texts), SequenceOptions(Options(DataSource.of({"name": "toy", **options})), 5))


@pytest.mark.parametrize("separator", [0, 2])
@pytest.mark.parametrize("length", [2, 5, 7])
def test_sequences_are_what_cutting_by_hand_makes_of_each_devices_ids(separator: int, length: int) -> None:
    random = np.random.default_rng(length)
    texts = {
        f"device {number}": [random.integers(1, 6, size=size).tolist() for size in random.integers(0, 13, size=pieces)]
        for number, pieces in enumerate(random.integers(1, 5, size=60).tolist())
    }
    texts["all unknown"] = [[1] * 20]
    data = made(texts, separator, length=length, held_out=0.1)
    joined = {}
    for name, parts in texts.items():
        joined[name] = [one for part in parts for one in (*part, separator)][:-1]
    with_any = {name for name, ids in joined.items() if plainly(ids, length)}
    assert set(data.names) | set(data.test_names) == with_any
    for device, name in enumerate(data.names):
        expected, found = plainly(joined[name], length), data.examples(device)
        assert data.count(device) == len(found) == len(expected)
        assert (str(found.features.dtype), str(found.labels.dtype)) == ("int32", "int32")
        assert found.features.tolist() == [features for features, _ in expected]
        assert found.labels.tolist() == [labels for _, labels in expected]
    everyone = [one for name in data.test_names for one in plainly(joined[name], length)]
    assert data.held_out.labels.tolist() == [labels for _, labels in everyone]
    assert data.held_out.features.tolist() == [features for features, _ in everyone]


def test_held_out_examples_are_spread_and_small_devices_left_out() -> None:
    texts = {f"device {number}": [[2 + number % 50] * 5 * (1 + number % 4)] for number in range(200)}
    data = made(texts, held_out=0.5, least=3, test_examples=40)
    assert len(data.held_out) == 40
    assert len(np.unique(data.held_out.labels[:, 0])) > 20
    assert {data.count(device) for device in range(data.size)} == {3, 4}
    with pytest.raises(ValueError, match="no device has 5 examples"):
        made(texts, least=5)


def test_every_character_of_a_speaker_is_guessed_once_in_order(copies: Path) -> None:
    texts = speakers.shakespeare(copies / "text-en" / "tinyshakespeare.txt")
    data, characters = opened("shakespeare", form="sequences", length=50), lookup("characters")
    assert isinstance(data, Sequences)
    assert (data.size, len(data.test_names), data.tokens) == (269, 30, characters)
    for device in (0, 7, 100, data.size - 1):
        examples, text = data.examples(device), "\n".join(texts[data.names[device]])
        assert examples.labels.shape == examples.features.shape == (data.count(device), 50)
        assert characters.decode(examples.labels.ravel()) == text
        assert characters.decode(examples.features.ravel()) == text[:-1]
    assert opened("shakespeare", form="sequences").held_out.labels.shape == (660, 80)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "sequence"}, "data.form: 'sequence' is not allowed for caldracor; allowed: windows, sequences; did you mean"),
        (
            {"form": "sequences", "stride": 2},
            "data.stride: caldracor has no such option here; it has form, held_out, least, length",
        ),
        ({"form": "windows", "length": 20}, "data.length: caldracor has no such option here"),
        (
            {"form": "sequences", "length": 1},
            "data.length: '1' is not allowed for caldracor; allowed: whole numbers from 2 to 1024",
        ),
        ({"units": "characters", "vocabulary": "public"}, "data.vocabulary: caldracor has no such option here"),
        (
            {"vocabulary": "own"},
            "data.vocabulary: the devices' own words are not taken as they are: everybody who uses the model",
        ),
        ({"vocabulary": "private"}, "data.vocabulary_rho: missing; caldracor needs it"),
        ({"vocabulary": "private", "vocabulary_rho": 0}, "data.vocabulary_rho: '0' is not allowed"),
        ({"vocabulary": "public", "vocabulary_rho": 1.0}, "data.vocabulary_rho: caldracor has no such option here"),
        ({"vocabulary": "private", "vocabulary_rho": 0.1, "words_per_device": 9999}, "whole numbers from 1 to 9998"),
    ],
)
def test_wrong_options_of_text_are_one_line_before_a_file_is_read(options: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError) as error:
        opened("caldracor", **options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_counted_is_what_a_plain_count_finds() -> None:
    texts = {f"device {number}": [[1, 2, 3, 0, 4][: 1 + number % 5] * (1 + number % 7)] for number in range(40)}
    data = made(texts, held_out=0.25)
    found = counted(data)
    sizes = sorted(data.count(device) for device in range(data.size))
    assert (found.devices, found.counted, found.examples, found.most) == (data.size, data.size, sum(sizes), sizes[-1])
    assert found.median == sizes[(len(sizes) - 1) // 2]
    assert found.held_out == sum(len(plainly(texts[name][0], 5)) for name in data.test_names)
    for names, (known, ids) in ((data.names, data.known()), (data.test_names, data.known(held_out=True))):
        whole = [one for name in names for one in texts[name][0] if one]
        assert (known, ids) == (sum(one >= FIRST for one in whole), len(whole))
