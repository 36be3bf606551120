"""Text as ids, and back: the tokens of a language model, by name. What is public about a text stands here, and nothing else does.

    id 0       nothing: where there is no text, before its beginning or behind its end
    id 1       unknown: a character or word that is not listed
    id 2 …     the characters or words that are

Characters are a fixed alphabet, made without looking at any text. Words are runs of letters, digits and underscores of the text
in NFKC, case-folded. Lists of words were counted in one corpus and are meant for others:

    spanish-parliament, -10k   the commonest words, 2,046 and 9,998, of ParlaMint-ES (the Spanish parliament from January to July
                               2022, CC BY 4.0, María Calzada Pérez et al., ParlaMint / CLARIN)
    spanish-theatre            the 2,046 commonest words of CalDraCor (plays by Calderón, CC0 1.0)

Commonest means in the mouths of the most speakers: `fedrho data words` made them. A hashed word is 2 + CRC-32 of its UTF-8 modulo
(size - 2), and cannot be told from its id.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

NOTHING, UNKNOWN, FIRST = 0, 1, 2
CHARACTERS = "\n" + "".join(map(chr, range(0x20, 0x7F))) + "áéíóúüñÁÉÍÓÚÜÑ¿¡ªº«»“”…·" + "\u2018\u2019\u2013\u2014"
SHOWN_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
LARGEST = 2**16
"""Ids are kept as uint16."""


class UnknownTokens(ValueError):
    """No tokens of that name."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Tokens(ABC):
    """How a text becomes ids below `size`. `joined` stands between two tokens of a text: nothing, or a space."""

    name: str
    size: int
    joined: str
    licence: str
    """Of the list, with whom to name."""

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.uint16]:
        """All ids of a text, none of which is 0."""

    @abstractmethod
    def shown(self, number: int) -> str:
        """One listed id for people: a character, a word, or `#` and the id where that is all there is to know."""

    def decode(self, ids: Iterable[int]) -> str:
        """For people: nothing is left out, what is unknown is a replacement character. Raises ValueError for no ids of these."""
        return self.joined.join(self._shown(int(number)) for number in ids if number != NOTHING)

    def _shown(self, number: int) -> str:
        if not 0 < number < self.size:
            raise ValueError(f"{number} is no id of {self.name}; allowed: 0 to {self.size - 1}")
        return SHOWN_UNKNOWN if number == UNKNOWN else self.shown(number)


class Alphabet(Tokens):
    """One id for each character of a text."""

    def encode(self, text: str) -> NDArray[np.uint16]:
        ids: NDArray[np.uint16] = _characters()[np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")]
        return ids

    def shown(self, number: int) -> str:
        return CHARACTERS[number - FIRST]


@dataclass(frozen=True)
class Words(Tokens):
    """One id for each word of a text, from a list."""

    listed: tuple[str, ...]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.listed, FIRST)}

    def encode(self, text: str) -> NDArray[np.uint16]:
        return np.array([self._ids.get(word, UNKNOWN) for word in words(text)], dtype=np.uint16)

    def shown(self, number: int) -> str:
        return self.listed[number - FIRST]


class Hashed(Tokens):
    """One id for each word of a text, without a list; which word it was cannot be told. None is unknown."""

    def encode(self, text: str) -> NDArray[np.uint16]:
        return np.array([FIRST + zlib.crc32(word.encode()) % (self.size - FIRST) for word in words(text)], dtype=np.uint16)

    def shown(self, number: int) -> str:
        return f"#{number}"


def of_words(name: str, listed: Iterable[str], licence: str) -> Words:
    """Tokens of a list of one's own; raises ValueError where a word of it is none, stands twice, or is one too many."""
    found = tuple(listed)
    if not found or len(found) > LARGEST - FIRST or len(set(found)) != len(found) or any(words(word) != [word] for word in found):
        raise ValueError(f"{name}: a list has 1 to {LARGEST - FIRST} different words, in lower case, each of them one word")
    return Words(name, FIRST + len(found), " ", licence, found)


PARLAMINT = "CC BY 4.0, María Calzada Pérez et al., ParlaMint / CLARIN"
LISTS = {
    "spanish-parliament": PARLAMINT,
    "spanish-parliament-10k": PARLAMINT,
    "spanish-theatre": "CC0 1.0, CalDraCor, DraCor",
}
"""Lists of words that come with fedrho, and their licences."""
HASHED = re.compile(r"hashed-([1-9]\d{0,4})")
_OTHERS: dict[str, Callable[[], Tokens]] = {
    "characters": lambda: Alphabet("characters", FIRST + len(CHARACTERS), "", "none needed"),
    "hashed-2048": lambda: hashed(2048),
}


def names() -> tuple[str, ...]:
    return tuple(sorted([*LISTS, *_OTHERS]))


def register(found: Tokens) -> Tokens:
    """Adds tokens of one's own, for a model of one's own to name; raises ValueError where the name is taken.

    Everybody who uses the model reads the list: it must be public, and made without the devices' text.
    """
    if found.name in names() or HASHED.fullmatch(found.name):
        raise ValueError(f"tokens named {found.name!r} are registered already")
    _OTHERS[found.name] = lambda: found
    return found


@lru_cache(maxsize=16)
def lookup(name: str) -> Tokens:
    """Raises UnknownTokens, which lists the names there are; `hashed-N` is known for every N from 3 to 65,536."""
    if name in LISTS:
        return of_words(name, listed(name), LISTS[name])
    if name in _OTHERS:
        return _OTHERS[name]()
    if (match := HASHED.fullmatch(name)) and FIRST < int(match[1]) <= LARGEST:
        return hashed(int(match[1]))
    raise UnknownTokens(f"unknown tokens {name!r}; known: {', '.join(names())}, and hashed-N for N from 3 to {LARGEST}")


def listed(name: str) -> tuple[str, ...]:
    """The words of one of `LISTS`, the commonest first."""
    file = resources.files("fedrho.models").joinpath(f"{name.replace('-', '_')}.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())


def hashed(size: int) -> Hashed:
    return Hashed(f"hashed-{size}", size, " ", "none needed")


@lru_cache(maxsize=1)
def _characters() -> NDArray[np.uint16]:
    table = np.full(0x110000, UNKNOWN, dtype=np.uint16)
    table[[ord(character) for character in CHARACTERS]] = np.arange(FIRST, FIRST + len(CHARACTERS), dtype=np.uint16)
    return table
