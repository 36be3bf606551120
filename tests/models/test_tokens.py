"""Text to ids and back, by every name there is."""

from __future__ import annotations

import hashlib
import string
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.models.tokens import (
    FIRST,
    LISTS,
    SHOWN_UNKNOWN,
    UNKNOWN,
    Tokens,
    UnknownTokens,
    listed,
    lookup,
    names,
    of_words,
    register,
    words,
)

SHA256 = {  # models were trained with these ids: a list that changes needs another name
    "spanish-parliament": "57a18f4a059644dfe4d0ee5d540973ad267a2bd850904b1b0e309402609e4c33",
    "spanish-parliament-10k": "2f594b2882fc8441316029572313221b3c1578f1d8d47a33bcb79dd88a50b8c2",
    "spanish-theatre": "e467a485cd0f18f35aeea14663563c5e5507fa0d21fce3b28c5c89b72e4fb8b6",
}


@pytest.fixture(params=names())
def tokens(request: pytest.FixtureRequest) -> Tokens:
    return lookup(request.param)


def test_lists_have_the_ids_that_models_were_trained_with() -> None:
    assert {name: hashlib.sha256("".join(f"{word}\n" for word in listed(name)).encode()).hexdigest() for name in LISTS} == SHA256
    assert [lookup(name).size for name in ("characters", *LISTS)] == [126, 2048, 10_000, 2048]
    assert lookup("spanish-parliament").encode("De la luna ¿XYZZY?").tolist() == [2, 11, 1, 1]
    assert lookup("characters").encode("\n aé€").tolist() == [2, 3, 68, 99, 1]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60))
def test_ids_of_any_text_are_in_range_and_none_is_nothing(text: str) -> None:
    for name in names():
        ids = lookup(name).encode(text)
        assert (ids.dtype, ids.ndim) == (np.dtype(np.uint16), 1)
        assert len(ids) == (len(text) if name == "characters" else len(words(text)))
        assert not len(ids) or UNKNOWN <= ids.min() <= ids.max() < lookup(name).size
        assert len(lookup(name).decode(ids).split(" ")) >= 1


def test_every_listed_id_is_decoded_to_what_is_encoded_as_it(tokens: Tokens) -> None:
    ids = list(range(FIRST, tokens.size))
    if tokens.name.startswith("hashed"):
        assert tokens.decode(ids[:2]) == "#2 #3"
    else:
        assert tokens.encode(tokens.decode(ids)).tolist() == ids
    assert tokens.decode([0, 2, 0, 1, 0]) == tokens.joined.join([tokens.shown(2), SHOWN_UNKNOWN])
    with pytest.raises(ValueError, match=f"{tokens.size} is no id of {tokens.name}; allowed: 0 to {tokens.size - 1}"):
        tokens.decode([tokens.size])


def test_hashed_words_need_no_list() -> None:
    assert lookup("hashed-100").encode("la LUNA").tolist() == [2 + zlib.crc32(word) % 98 for word in (b"la", b"luna")]


@pytest.mark.parametrize("name", ["spanish", "", "hashed-2", "hashed-65537", "hashed-99999", "hashed-010", "../tokens"])
def test_unknown_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UnknownTokens, match=r"known: characters, .*spanish-theatre, and hashed-N for N from 3 to 65536"):
        lookup(name)


def test_a_list_of_ones_own_has_a_name_once() -> None:
    mine = register(of_words("test-words", ["luna", "sol"], "public domain"))
    assert lookup("test-words") is mine
    assert "test-words" in names()
    for taken in (mine, of_words("spanish-theatre", ["luna"], "none"), of_words("hashed-77", ["luna"], "none")):
        with pytest.raises(ValueError, match="are registered already"):
            register(taken)


@pytest.mark.parametrize("bad", [[], ["two words"], ["Upper"], ["twice", "twice"], ["dot."]])
def test_lists_of_other_than_different_words_are_refused(bad: list[str]) -> None:
    with pytest.raises(ValueError, match="own: a list has 1 to 65534 different words"):
        of_words("own", bad, "none")
    assert of_words("own", string.ascii_lowercase, "none").decode([2, 27]) == "a z"
