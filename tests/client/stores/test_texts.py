"""Text of one's own for a language model, against the studies' own sequences; and what cannot hold a label at every place."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedrho.client.examples import ArrayExamples
from fedrho.client.stores.cache import TrainingCache, cached_examples
from fedrho.client.stores.checked import CheckedExamples, DataFileError, Inputs
from fedrho.client.stores.images import image_examples
from fedrho.client.stores.npz import npz_examples
from fedrho.client.stores.tables import csv_examples
from fedrho.client.stores.texts import sequences, text_examples
from fedrho.console import BadInput
from fedrho.models.base import ModelSpec
from fedrho.models.tokens import lookup
from fedrho.simulations.data.base import DataSource
from fedrho.simulations.data.cache import Arrays
from fedrho.simulations.data.catalogue import open_data
from fedrho.simulations.data.options import Options
from fedrho.simulations.data.sequences import SequenceOptions, Sequences
from fedrho.simulations.data.streams import held_out
from fedrho.sources import Digits, Reading, find_source
from tests.client.fleet import plan


def nothing() -> None:
    raise AssertionError("no store builds a model")


def language_model(length: int, tokens: str, name: str = "tiny-language") -> ModelSpec:
    size = lookup(tokens).size
    return ModelSpec(
        name, "", (length,), size, nothing, "int32", size, label_shape=(length,), ignored=2, tokens=tokens
    )  # fmt: skip


CHARACTERS = language_model(4, "characters")
WORDS = language_model(3, "spanish-parliament")


def made(path: Path, content: str, spec: ModelSpec, **options: str) -> tuple[list[list[int]], list[list[int]]]:
    """Features and labels in the order of the file."""
    path.write_text(content, encoding="utf-8")
    store = pickle.loads(pickle.dumps(text_examples(path, spec, **options)))
    examples = store.examples()
    return examples._features.tolist(), examples._labels.tolist()


def test_a_speech_is_cut_without_overlap_and_every_place_has_the_next_character(tmp_path: Path) -> None:
    a, b, c, end = (int(one) for one in lookup("characters").encode("abc\n"))
    features, labels = made(tmp_path / "speech.txt", "abc\nab\n\n\n  c\n", CHARACTERS)
    assert labels == [[a, b, c, end], [a, b, end, c]]
    assert features == [[0, a, b, c], [end, a, b, end]]
    assert made(tmp_path / "short.txt", "ab", CHARACTERS) == ([[0, a, 0, 0]], [[a, b, 0, 0]])


def test_words_have_nothing_between_two_texts_and_unknown_ones_are_read_but_not_guessed(tmp_path: Path) -> None:
    de, la = (int(one) for one in lookup("spanish-parliament").encode("de la"))
    lines = [{"text": "De la xyzzy"}, {"text": "... !"}, {"text": "LA", "label": 3}, {"text": "xyzzy xyzzy xyzzy"}]
    features, labels = made(tmp_path / "speech.jsonl", "\n".join(map(json.dumps, lines)), WORDS)
    assert labels == [[de, la, 1], [0, la, 0]]  # of unknown words alone no sequence is left
    assert features == [[0, de, la], [1, 0, la]]
    other = json.dumps({"body": "de"}) + "\n"
    assert made(tmp_path / "other.jsonl", other, WORDS, text="body")[1] == [[de, 0, 0]]


def test_a_device_has_the_sequences_that_a_study_makes_of_the_same_text() -> None:
    generator = np.random.default_rng(1)
    for count in (1, 4, 5, 8, 23):
        ids = generator.choice([0, 1, 2, 3, 9], count).astype(np.uint16)
        ids[0] = 5
        other = np.array([7, 7], np.uint16)
        starts = np.array([0, count, count + 2])
        both = np.concatenate([ids, other])
        arrays: Arrays = {"ids": both, "starts": starts, "targets": np.flatnonzero(both >= 2)}
        study = studied(arrays)
        features, labels = sequences(ids, 4, ignored=2)
        assert (features == study[0]).all()
        assert (labels == study[1]).all()


def studied(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Of the first stream; the second is held out, by its name."""
    names = next(
        [one, other] for one, other in permutations("abcdefgh", 2) if held_out([one, other], 0.5).tolist() == [False, True]
    )
    chosen = SequenceOptions(Options(DataSource("x", (("held_out", 0.5),))), 4)
    found = Sequences(arrays, names, chosen).examples(0)
    return found.features, found.labels


def test_the_file_is_a_device_at_the_command_line_and_in_a_folder_of_a_study(tmp_path: Path) -> None:
    for name in ("one", "two", "test"):
        (tmp_path / f"{name}.txt").write_text("el señor presidente de la comisión")
    source = find_source(str(tmp_path / "one.txt"), Digits(None, 40, 1.0, 0), Reading())
    (batch,) = source(WORDS)["one"].batches(plan(model=WORDS.name, batch_size=8))
    assert batch.features.shape == batch.labels.shape == (2, 3)
    assert (batch.features.dtype, batch.labels.dtype) == (np.dtype(np.int32), np.dtype(np.int32))
    dataset = open_data(DataSource.of({"name": "folder", "path": str(tmp_path), "model": "words-cifg"}))
    assert dataset.size == 2
    assert dataset.examples(0).labels.shape == (1, 20) == dataset.held_out.labels.shape


def refused(path: Path, content: bytes, spec: ModelSpec = WORDS) -> str:
    path.write_bytes(content)
    with pytest.raises(DataFileError) as error:
        text_examples(path, spec)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_no_text_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    assert "has no text with anything in it" in refused(tmp_path / "a.txt", b"")
    assert "has no text with anything in it" in refused(tmp_path / "a.txt", b"xyzzy plugh")
    assert "not text in UTF-8" in refused(tmp_path / "a.txt", b"se\xf1or secreto")
    assert "line 2: not JSON in UTF-8" in refused(tmp_path / "a.jsonl", b'{"text": "de"}\nsecreto')
    assert "line 1: has no text in the field 'text'; --text says which" in refused(tmp_path / "a.jsonl", b'{"secreto": 1}')
    assert "is no language model" in refused(tmp_path / "a.txt", b"de", replace(WORDS, label_shape=(), ignored=0))
    assert "is no language model" in refused(tmp_path / "a.txt", b"de", replace(WORDS, tokens=""))
    assert "knows ids below 9, and spanish-parliament has 2048" in refused(
        tmp_path / "a.txt", b"de", replace(WORDS, vocabulary=9)
    )
    assert "unknown tokens 'klingon'" in refused(tmp_path / "a.txt", b"de", replace(WORDS, tokens="klingon"))
    with pytest.raises(BadInput, match="--vocabulary: has no meaning for tiny-language, which makes ids and labels"):
        find_source(str(tmp_path / "a.jsonl"), Digits(None, 40, 1.0, 0), Reading(vocabulary="50"))(WORDS)


def test_arrays_have_a_label_at_every_place_and_whoever_cannot_says_so(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "a.npz", x=ids, y=ids + 1)
    assert npz_examples(tmp_path / "a.npz", WORDS).examples()._labels.tolist() == (ids + 1).tolist()
    own = CheckedExamples("own", ArrayExamples(ids.astype(np.int32), ids.astype(np.int32)), Inputs.of(WORDS))
    assert next(own.batches(plan(batch_size=8))).labels.shape == (4, 3)
    np.savez(tmp_path / "a.npz", x=ids, y=ids[:, 0])
    with pytest.raises(
        DataFileError, match=r"a\.npz: y must be integers of shape \(examples, 3\) for model 'tiny-language', not"
    ):
        npz_examples(tmp_path / "a.npz", WORDS)
    TrainingCache(tmp_path / "a.sqlite", (3,), timedelta(days=1), "int32")
    (tmp_path / "photos" / "0").mkdir(parents=True)
    Image.new("L", (3, 1)).save(tmp_path / "photos" / "0" / "a.png")
    (tmp_path / "a.csv").write_text("a,b,c,label\n1,2,3,4\n")
    for make, name in ((cached_examples, "a.sqlite"), (image_examples, "photos"), (csv_examples, "a.csv")):
        with pytest.raises(DataFileError, match=f"{name}: holds one label an example; model 'tiny-language' has one at every"):
            make(tmp_path / name, WORDS)
