"""Words as numbers, by vocabularies that are public and were made without the text that they are used on.

`parliament` is the commonest words of ParlaMint-ES (the Spanish parliament in 2022, CC BY 4.0, María Calzada Pérez et al.,
ParlaMint / CLARIN), and is for the theatre of the 17th century; `theatre` is those of CalDraCor (plays by Calderón, CC0 1.0), and
is for the parliament. Commonest means in the mouths of the most speakers. Both were made by `made_of`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fedrho.client.stores.words import FIRST_WORD, words

SIZE = 2048
"""Ids are below it: nothing, unknown, and 2,046 words."""

Encode = Callable[[str], NDArray[np.uint16]]
FILES = {name: Path(__file__).with_name(f"spanish_{name}.txt") for name in ("parliament", "theatre")}


def by_list(name: str) -> Encode:
    return _encode(FILES[name])


def hashed() -> Encode:
    return _encode(SIZE)


def _encode(vocabulary: Path | int) -> Encode:
    """Every word of a text. A hashed word is none of nothing and unknown, like a listed one."""
    if isinstance(vocabulary, int):
        return lambda text: np.array(
            [FIRST_WORD + crc32(word.encode()) % (SIZE - FIRST_WORD) for word in words(text)], dtype=np.uint16
        )
    number = {word: place for place, word in enumerate(listed(vocabulary), FIRST_WORD)}
    return lambda text: np.array([number.get(word, 1) for word in words(text)], dtype=np.uint16)


def listed(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def made_of(texts: Mapping[str, Iterable[str]]) -> list[str]:
    """The words that most speakers use, ties in the order of the alphabet: how the committed lists came about."""
    speakers = Counter(word for pieces in texts.values() for word in {word for piece in pieces for word in words(piece)})
    ranked = sorted(speakers, key=lambda word: (-speakers[word], word))
    return ranked[: SIZE - FIRST_WORD]
