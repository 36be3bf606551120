"""JSON lines: numbers as the model takes them, or text by a public vocabulary."""

from __future__ import annotations

import json
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.client.stores.checked import DataFileError
from fedrho.client.stores.json_lines import json_lines_examples
from fedrho.client.stores.words import encoder, vocabulary_size
from fedrho.models.base import ModelSpec
from fedrho.models.tokens import words
from tests.client.fleet import plan
from tests.client.stores.shelf import SPEC, TEXT, contents, tried

SMALL = ModelSpec("small", "", (2, 2), 3, SPEC.build)
GOOD = {"features": [[1, 2], [3, 4]], "label": 0}


def said(folder: Path, *lines: Any, spec: ModelSpec = SMALL, **options: Any) -> str:
    """What a user sees of a file with these lines; what is no text is written as JSON."""
    path = folder / "mine.jsonl"
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines)
    path.write_bytes(data)
    shown = tried(lambda: json_lines_examples(path, spec, **options))
    assert "secret" not in shown
    return shown.removeprefix(f"{path}: ")


def texts(folder: Path, *pairs: tuple[str, int], **options: Any) -> dict[tuple[int, ...], int]:
    assert said(folder, *({"text": text, "label": label} for text, label in pairs), spec=TEXT, **options) == ""
    found = contents(json_lines_examples(folder / "mine.jsonl", TEXT, **options))
    return {tuple(int(one) for one in ids): label for label, ids in found}


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b"secret", "line 2: not JSON in UTF-8"),
    "cut JSON": (b'{"features": [[1, 2], [3', "line 2: not JSON in UTF-8"),
    "other bytes": (b'{"text": "\xff"}', "line 2: not JSON in UTF-8"),
    "a list": ([1, 2], "line 2: not a JSON object"),
    "deep": (b"[" * 100_000, "line 2: "),
    "no features": ({"label": 0}, "line 2: has no field 'features'"),
    "other shape": ({**GOOD, "features": [1, 2, 3, 4]}, "line 2: features must be numbers of shape ('examples', 2, 2)"),
    "uneven": ({**GOOD, "features": [[1, 2], [3]]}, "line 2: "),
    "text": ({**GOOD, "features": [["secret", "b"], ["c", "d"]]}, "line 2: features must be numbers"),
    "nothing": ({**GOOD, "features": None}, "line 2: features must be numbers"),
    "objects": ({**GOOD, "features": {"secret": 1}}, "line 2: features must be numbers"),
    "truth values": ({**GOOD, "features": [[True, False], [True, False]]}, "line 2: features must be numbers"),
    "huge numbers": ({**GOOD, "features": [[10**400, 1], [1, 1]]}, "line 2: "),
    "NaN": (b'{"features": [[NaN, 1], [1, 1]], "label": 0}', "features hold NaN"),
    "beyond float32": ({**GOOD, "features": [[1e300, 1], [1, 1]]}, "beyond float32"),
    "no label": ({"features": GOOD["features"]}, "line 2: field 'label' is no label; --label says which field is"),
    "label of a fraction": ({**GOOD, "label": 1.5}, "line 2: field 'label' is no label"),
    "label of a truth value": ({**GOOD, "label": True}, "line 2: field 'label' is no label"),
    "label of text": ({**GOOD, "label": "secret"}, "line 2: field 'label' is not a whole number"),
    "label above": ({**GOOD, "label": 3}, "labels must lie between 0 and 2"),
    "label beyond 64 bits": ({**GOOD, "label": 10**30}, "too large"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_line_is_named_and_not_shown(case: str, tmp_path: Path) -> None:
    line, expected = BAD[case]
    assert expected in said(tmp_path, GOOD, line)


def test_empty_file_and_blank_lines(tmp_path: Path) -> None:
    assert "not examples of one device" in said(tmp_path)
    assert "not examples of one device" in said(tmp_path, b"", b"  ")
    assert said(tmp_path, b"", GOOD, b"  ", GOOD) == ""


def test_names_of_classes_stand_for_numbers(tmp_path: Path) -> None:
    line = {**GOOD, "label": "yes"}
    assert said(tmp_path, line, classes=("no", "perhaps", "yes")) == ""
    assert contents(json_lines_examples(tmp_path / "mine.jsonl", SMALL, classes=("no", "perhaps", "yes")))[0][0] == 2
    assert "is none of the names" in said(tmp_path, {**GOOD, "label": "secret"}, classes=("no", "perhaps", "yes"))


# -- text ---------------------------------------------------------------------------------------------------------------------


def test_words_of_a_file_have_its_lines_as_ids_and_all_others_are_one(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("the\ncat\nsat\n")
    found = texts(tmp_path, ("The CAT, the dog!", 2), ("sat", 0), ("", 1), vocabulary=tmp_path / "words.txt")
    assert found == {(2, 3, 2, 1): 2, (4, 0, 0, 0): 0, (0, 0, 0, 0): 1}


def test_hashed_words_are_what_any_language_computes(tmp_path: Path) -> None:
    found = texts(tmp_path, ("Grüße und Küsse an alle", 1), vocabulary=50)
    (ids,) = found
    assert ids == tuple(1 + zlib.crc32(word.encode()) % 49 for word in ("grüsse", "und", "küsse", "an"))


@given(text=st.text(), size=st.integers(2, 1000), length=st.integers(1, 9))
def test_any_text_becomes_so_many_ids_below_the_size(text: str, size: int, length: int) -> None:
    ids = encoder(size, length)(text)
    assert len(ids) == length
    assert all(0 <= one < size for one in ids)
    used = min(len(words(text)), length)
    assert [one > 0 for one in ids] == [True] * used + [False] * (length - used)


@given(text=st.text())
def test_composed_and_decomposed_letters_are_the_same_words(text: str) -> None:
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))


def test_batches_of_text_are_int32(tmp_path: Path) -> None:
    texts(tmp_path, ("a b c d e f", 1), vocabulary=50)
    (batch,) = json_lines_examples(tmp_path / "mine.jsonl", TEXT, vocabulary=50).batches(plan())
    assert (batch.features.dtype, batch.features.shape) == (np.dtype(np.int32), (1, 4))


@pytest.mark.parametrize("text", ["", "\n", "the\nthe\n", "the\n\ncat\n", "The\n", "two words\n", "the,\n", "\xa0\n"])
def test_vocabulary_of_other_than_words_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(DataFileError, match=r"words\.txt: "):
        vocabulary_size(tmp_path / "words.txt")
    assert "words.txt: " in said(tmp_path, {"text": "the", "label": 0}, spec=TEXT, vocabulary=tmp_path / "words.txt")


def test_vocabulary_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "gone.txt: no such file" in said(tmp_path, {"text": "the", "label": 0}, spec=TEXT, vocabulary=tmp_path / "gone.txt")


@pytest.mark.parametrize("size", [0, 1, 2**40])
def test_number_of_hashed_words_has_limits(size: int, tmp_path: Path) -> None:
    spec = replace(TEXT, vocabulary=0)
    assert f"a vocabulary of {size} hashed words; allowed: 2 to" in said(
        tmp_path, {"text": "a", "label": 0}, spec=spec, vocabulary=size
    )


def test_vocabulary_is_no_larger_than_the_models(tmp_path: Path) -> None:
    line = {"text": "a", "label": 0}
    assert "ids below 51, model 'reader' only 50" in said(tmp_path, line, spec=TEXT, vocabulary=51)
    (tmp_path / "words.txt").write_text("\n".join(f"word{number}" for number in range(49)))
    assert "ids below 51, model 'reader' only 50" in said(tmp_path, line, spec=TEXT, vocabulary=tmp_path / "words.txt")


def test_text_for_a_model_of_numbers_is_refused(tmp_path: Path) -> None:
    assert "model 'small' takes no text" in said(tmp_path, {"text": "a", "label": 0}, vocabulary=50)


@pytest.mark.parametrize(
    "line", [{"label": 0}, {"text": 3, "label": 0}, {"text": None, "label": 0}, {"body": "secret", "label": 0}]
)
def test_line_without_text_says_how_to_name_the_field(line: dict[str, Any], tmp_path: Path) -> None:
    assert "line 1: has no text in the field 'text'; --text says" in said(tmp_path, line, spec=TEXT, vocabulary=50)


def test_ids_may_be_given_instead_of_text(tmp_path: Path) -> None:
    assert said(tmp_path, {"features": [1, 2, 3, 49], "label": 0}, spec=TEXT) == ""
    assert "features must lie between 0 and 49" in said(tmp_path, {"features": [1, 2, 3, 50], "label": 0}, spec=TEXT)
    assert "text needs a vocabulary (--vocabulary)" in said(tmp_path, {"text": "a", "label": 0}, spec=TEXT)
