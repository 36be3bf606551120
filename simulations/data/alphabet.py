"""Characters as numbers: one fixed alphabet for all texts, made without looking at any.

id 0       nothing: before the beginning of a text
id 1       any other character
id 2 …     end of line, printable ASCII, the letters and marks of Spanish, in this order
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OTHER = 1
FIRST = 2
CHARACTERS = "\n" + "".join(map(chr, range(0x20, 0x7F))) + "áéíóúüñÁÉÍÓÚÜÑ¿¡ªº«»“”…·" + "\u2018\u2019\u2013\u2014"
SIZE = FIRST + len(CHARACTERS)
"""Ids are below it."""

_TABLE = np.full(0x110000, OTHER, dtype=np.uint8)
_TABLE[[ord(character) for character in CHARACTERS]] = np.arange(FIRST, SIZE, dtype=np.uint8)


def encoded(text: str) -> NDArray[np.uint8]:
    """One id for each character."""
    ids: NDArray[np.uint8] = _TABLE[np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")]
    return ids


def decoded(ids: NDArray[np.integer]) -> str:
    """For people: what was nothing or another character is shown as a dot in the middle."""
    return "".join(CHARACTERS[number - FIRST] if number >= FIRST else "\u00b7" for number in ids.tolist())
