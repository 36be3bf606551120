"""Which tokens a corpus is read as: a public list, hashes, or a list that the devices' words choose, noisily and for a price.

`made_of` is how the committed lists came about, each counted in another corpus than the one it is used on. What the devices of a
study say chooses its words in one way alone, `PrivateWords`, whose charge goes into the study's statement.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.models import tokens
from fedrho.models.tokens import FIRST, Tokens, words
from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vocabulary import WordHistogram, most_named
from fedrho.privacy.zcdp import Rho
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.seeded import SeededNoise, generator

PRIVATE, OWN, HASHED = "private", "own", "hashed"
HASHED_TOKENS = "hashed-2048"
REFUSED = (
    "the devices' own words are not taken as they are: everybody who uses the model reads the list, and a rare word in it says "
    "that somebody wrote it, which no noise covers"
)
PRIVATE_OPTIONS = (
    Option("vocabulary_rho", "required", "1e-9 to 1000", "`private`: price of the histogram in zCDP, of `task.privacy.rho`"),
    Option("vocabulary_words", "2046", "1 to the candidates", "`private`: how many of the candidates are kept"),
    Option(
        "words_per_device", "200", "1 to the candidates", "`private`: different words that a device names, drawn from its own"
    ),
    Option("vocabulary_seed", "0", "0 or more", "`private`: of the simulated noise, which is public and protects nobody"),
)

Texts = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by name, the same whatever the devices say."""

    name: str

    @property
    def key(self) -> str:
        """Names what was decoded with it."""
        return self.name

    def of(self, texts: Texts) -> Tokens:
        """The tokens for a study whose devices, those not held out, have these texts."""
        return tokens.lookup(self.name)

    def charge(self) -> PrivacyStatement | None:
        """What was released about the devices so that there is a vocabulary; nothing here."""
        return None


@dataclass(frozen=True)
class PrivateWords(Vocabulary):
    """The words of the public list `name` that most devices say, by a noisy histogram."""

    rho: float
    size: int
    words_per_device: int
    seed: int

    @property
    def histogram(self) -> WordHistogram:
        return WordHistogram(len(tokens.listed(self.name)), self.words_per_device, Rho(self.rho))

    @property
    def key(self) -> str:
        said = json.dumps([self.name, self.rho, self.size, self.words_per_device, self.seed])
        return f"{PRIVATE}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def of(self, texts: Texts) -> Tokens:
        histogram, listed = self.histogram, tokens.listed(self.name)
        given = (histogram.contribution(self.named(device, texts[device])) for device in sorted(texts))
        chosen = most_named(histogram.counts(given, SeededNoise(self.seed, "vocabulary")), self.size)
        return self.kept([listed[number] for number in chosen.tolist()])

    def kept(self, chosen: Iterable[str]) -> Tokens:
        """Tokens of the words that `of` has chosen before."""
        return tokens.of_words(self.key, chosen, tokens.LISTS[self.name])

    def named(self, device: str, pieces: Iterable[str]) -> NDArray[np.int64]:
        """The candidates that a device names: all that it says, or as many of them as it may, drawn by its own chance."""
        read = tokens.lookup(self.name)
        said = np.unique(np.concatenate([read.encode(piece) for piece in pieces]))
        found = said[said >= FIRST].astype(np.int64) - FIRST
        if len(found) > self.words_per_device:
            found = generator(self.seed, "vocabulary", device).choice(found, self.words_per_device, replace=False, shuffle=False)
        return found

    def charge(self) -> PrivacyStatement | None:
        return self.histogram.statement(f"the list {self.name!r}")


def is_private(found: Tokens) -> bool:
    """Whether these are tokens that `PrivateWords` chose."""
    return found.name.startswith(f"{PRIVATE}-")


def of_options(options: Options, lists: Mapping[str, str], candidates: str | None) -> Vocabulary:
    """What a study says about words; `lists` are the public ones by the option's values. Raises DataError."""
    known = (*lists, HASHED, *((PRIVATE,) if candidates else ()))
    if options.is_given("vocabulary", OWN):
        raise options.wrong("vocabulary", f"{REFUSED}; allowed: {', '.join(known)}")
    chosen = options.choice("vocabulary", known[0], known)
    if chosen != PRIVATE or candidates is None:
        return Vocabulary(lists.get(chosen, HASHED_TOKENS))
    size = len(tokens.listed(candidates))
    return PrivateWords(
        candidates,
        options.number("vocabulary_rho", None, 1e-9, 1000),
        options.integer("vocabulary_words", 2046, 1, size),
        options.integer("words_per_device", 200, 1, size),
        options.integer("vocabulary_seed", 0, 0, 2**63 - 1),
    )


def made_of(texts: Texts, most: int, progress: Progress = unwatched) -> list[str]:
    """The words that most speakers use, ties in the order of the alphabet. They tell what was said: of public texts."""
    said = watched(texts.values(), "speaker", progress, "counting words")
    speakers = Counter(word for pieces in said for word in {word for piece in pieces for word in words(piece)})
    ranked = sorted(speakers, key=lambda word: (-speakers[word], word))
    return ranked[:most]
