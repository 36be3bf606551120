"""Text as the ids of words, the same on every device, by a vocabulary that is public.

A vocabulary is a file with a word a line, or a number alone. A file must be public, made without these devices' data: whoever
sees which words are in a model's vocabulary would otherwise learn what somebody wrote. A number needs no file: words are hashed.

    id 0       nothing: the end of a text that is shorter than what the model takes
    id 1       a word that is not in the file
    id 2 …     the words of the file, in its order; or, hashed, 1 + CRC-32 of the word's UTF-8 modulo (number - 1)

Words are runs of letters, digits and underscores of the text in NFKC, case-folded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from fedrho.client.stores.checked import DataFileError, lines
from fedrho.models.tokens import FIRST, words

Vocabulary = Path | int
MOST_WORDS = 2**24


def vocabulary_size(vocabulary: Vocabulary) -> int:
    """Ids are below it; raises DataFileError."""
    return vocabulary if isinstance(vocabulary, int) else FIRST + len(_listed(vocabulary))


def encoder(vocabulary: Vocabulary, length: int) -> Callable[[str], Sequence[int]]:
    """Text to exactly `length` ids: its first words, then zeros. Raises DataFileError."""
    number = _hashed(vocabulary) if isinstance(vocabulary, int) else _numbered(vocabulary)

    def encode(text: str) -> Sequence[int]:
        ids = [number(word) for word in words(text)[:length]]
        return ids + [0] * (length - len(ids))

    return encode


def _hashed(size: int) -> Callable[[str], int]:
    if not 2 <= size <= MOST_WORDS:
        raise DataFileError(f"a vocabulary of {size} hashed words; allowed: 2 to {MOST_WORDS}, or a file with a word a line")
    return lambda word: 1 + zlib.crc32(word.encode()) % (size - 1)


def _numbered(path: Path) -> Callable[[str], int]:
    ids = {word: number for number, word in enumerate(_listed(path), FIRST)}
    return lambda word: ids.get(word, 1)


def _listed(path: Path) -> list[str]:
    listed = lines(path)
    if not listed or len(listed) > MOST_WORDS:
        raise DataFileError(f"{path}: a vocabulary of {len(listed)} words; allowed: 1 to {MOST_WORDS}")
    seen: set[str] = set()
    for number, word in enumerate(listed, 1):
        if words(word) != [word] or word in seen:
            raise DataFileError(f"{path}: line {number} must be one word, in lower case, that is not in a line before")
        seen.add(word)
    return listed
