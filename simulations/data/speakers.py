"""Texts by who speaks: tinyshakespeare, and two of Spanish, the plays of Calderón and the Congreso de los Diputados."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.models.tokens import FIRST, NOTHING, Words, lookup
from fedrho.privacy.statement import PrivacyStatement
from fedrho.simulations.data import sequences, tei
from fedrho.simulations.data.base import DataError, FederatedDataset
from fedrho.simulations.data.cache import Arrays, Cache
from fedrho.simulations.data.download import RemoteFile
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.sequences import LENGTH, SequenceOptions, Sequences
from fedrho.simulations.data.streams import HELD_OUT, LEAST, held_out, streams
from fedrho.simulations.data.vocabularies import (
    HASHED,
    HASHED_TOKENS,
    PRIVATE,
    PRIVATE_OPTIONS,
    PrivateWords,
    Vocabulary,
    of_options,
)
from fedrho.simulations.data.windows import STRIDE, WindowOptions, Windows

VERSION = 1
CHARACTER_WINDOW, WORD_WINDOW = 20, 8
"""What the models `characters` and `words` take."""

END_OF_LINE = FIRST
WORD_MODELS = ("words-cifg", "words-transformer")
CHARACTER_MODELS = ("characters-lstm", "characters-small-lstm", "characters-transformer")
"""What takes sequences."""
TEXT_OPTIONS = (
    LENGTH,
    Option("stride", STRIDE.default, STRIDE.allowed, "of windows: every so manieth place of a text makes an example"),
    HELD_OUT,
    LEAST,
    Option("test_examples", "10000; of sequences 1000", "1 to 1048576", "at most so many held-out examples, spread evenly"),
)
Texts = Mapping[str, list[str]]
Read = Callable[[Path], Texts]


def shakespeare(path: Path) -> Texts:
    """Speeches by speaker: blocks between empty lines, each headed by a name and a colon."""
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    return _by_name(tuple(block.strip().split(":\n", 1)) for block in blocks if ":\n" in block)


def spanish(path: Path) -> Texts:
    """Speeches by (play, speaker), or by speaker."""
    return _by_name((" / ".join(filter(None, (row.get("play"), row["speaker"]))), row["text"]) for row in records(path))


def records(path: Path) -> Iterable[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def spoken_sha256(path: Path) -> str:
    """Of who says what, in order, whatever else stands in the records."""
    digest = hashlib.sha256()
    for row in records(path):
        digest.update(
            json.dumps([row.get("play", row.get("date")), row["speaker"], row["text"]], ensure_ascii=False).encode() + b"\n"
        )
    return digest.hexdigest()


def _by_name(pairs: Iterable[tuple[str, ...]]) -> Texts:
    found: dict[str, list[str]] = {}
    for name, text in pairs:
        if text.strip():
            found.setdefault(name, []).append(text)
    if not found:
        raise ValueError("holds no speech")
    return found


def _decode(read: Read, chosen: Vocabulary, share: float) -> Callable[[Mapping[str, Path]], Arrays]:
    """Between two speeches of one speaker: of characters the end of a line, of words nothing."""

    def decode(paths: Mapping[str, Path]) -> Arrays:
        (path,) = paths.values()
        texts = read(path)
        names = sorted(texts)
        tests = held_out(names, share)
        read_as = chosen.of({name: texts[name] for name, test in zip(names, tests.tolist(), strict=True) if not test})
        small, separator = (np.uint16, NOTHING) if read_as.joined else (np.uint8, END_OF_LINE)
        ids = {name: [read_as.encode(one).astype(small) for one in texts[name]] for name in names}
        listed = {"listed": _packed(read_as.listed)} if isinstance(read_as, Words) and isinstance(chosen, PrivateWords) else {}
        return {"names": _packed(names), **listed, **streams(ids, separator)}

    return decode


def _packed(lines: Iterable[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\0".join(lines).encode(), dtype=np.uint8)


def _lines(packed: NDArray[Any]) -> list[str]:
    return bytes(packed).decode().split("\0")


@dataclass(frozen=True)
class Corpus:
    """Texts by who speaks, and what they may be read as: `units` that are the default, public lists of words, candidates."""

    file: RemoteFile
    read: Read
    units: str
    lists: Mapping[str, str]
    candidates: str | None = None

    def vocabulary(self, options: Options) -> Vocabulary:
        """Raises DataError."""
        if options.choice("units", self.units, ("characters", "words")) == "characters":
            return Vocabulary("characters")
        return of_options(options, self.lists, self.candidates) if self.lists else Vocabulary(HASHED_TOKENS)

    def charge(self, options: Options) -> PrivacyStatement | None:
        return self.vocabulary(options).charge()

    def configure(self, options: Options) -> Load:
        vocabulary = self.vocabulary(options)
        characters = vocabulary.name == "characters"
        chosen: WindowOptions | SequenceOptions
        if options.choice("form", "windows", ("windows", "sequences")) == "sequences":
            chosen = SequenceOptions(options, sequences.CHARACTERS if characters else sequences.WORDS)
        else:
            chosen = WindowOptions(options)
        kept = f"{options.name}-{vocabulary.key}"
        if isinstance(vocabulary, PrivateWords):
            kept += f"-{chosen.streams.share!r}"  # who is held out says nothing about the words

        def load(cache: Cache) -> FederatedDataset:
            arrays = cache.arrays(kept, VERSION, (self.file,), _decode(self.read, vocabulary, chosen.streams.share))
            names = _lines(arrays["names"])
            read_as = (
                vocabulary.kept(_lines(arrays["listed"])) if isinstance(vocabulary, PrivateWords) else lookup(vocabulary.name)
            )
            try:
                if isinstance(chosen, SequenceOptions):
                    return Sequences(arrays, names, chosen, read_as)
                return Windows(arrays, names, CHARACTER_WINDOW if characters else WORD_WINDOW, chosen, read_as)
            except ValueError as error:
                raise options.wrong("least", str(error)) from error

        return load


SHAKESPEARE_FILE = RemoteFile(
    "text-en/tinyshakespeare.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    1_115_394,
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
)
CALDRACOR_FILE = RemoteFile(
    "text-es/caldracor_es.jsonl.gz",
    "7a30bb22ba258f7d66eb77c69d797957880f543b5aaef3578dce049a35725246",
    6_033_557,
    ("https://codeload.github.com/dracor-org/caldracor/tar.gz/103dca7",),
    content=spoken_sha256,
    content_sha256="0454d41ca13451dafb7ef89f80ade1dd9f83e36c4079164a62f6db6a32b31c9a",
    made_from=tei.plays,
)
PARLAMINT_FILE = RemoteFile(
    "text-es/parlamint_es_2022h1.jsonl.gz",
    "1efd2336a409bb7e841f3360ebeab1635fafd35bce6c3d38eb6f5be49b2dbff7",
    2_720_035,
    ("https://codeload.github.com/calzada/PARLAMINT-ES-MC/tar.gz/86d2321",),
    content=spoken_sha256,
    content_sha256="e4fa027bc5dc088633d5d567b35cfbf31ad50f9b1cdaab7cc2722e244dad5907",
    made_from=tei.sittings,
)

FORM = Option(
    "form",
    "windows",
    "windows, sequences",
    "what an example is: ids and the one that comes next, or `length` ids and those that follow each of them",
)
UNITS = Option(
    "units",
    "words",
    "words, characters",
    "windows of 8 words (model `words`) or 20 characters (`characters`); sequences of 20 words or 80 characters",
)


def _vocabulary(lists: Mapping[str, str], private: bool) -> Option:
    allowed = (*lists, HASHED, *((PRIVATE,) if private else ()))
    told = ", ".join(f"`{value}` is `{name}`" for value, name in lists.items())
    more = "; `private` the commonest of 9,998 public words, by a noisy histogram of the devices' own" if private else ""
    return Option("vocabulary", "public", ", ".join(allowed), f"of words: {told}; `hashed` needs no list{more}")


SHAKESPEARE_TEXT = Corpus(SHAKESPEARE_FILE, shakespeare, "characters", {})
CALDRACOR_TEXT = Corpus(
    CALDRACOR_FILE,
    spanish,
    "words",
    {"public": "spanish-parliament", "public-10k": "spanish-parliament-10k"},
    "spanish-parliament-10k",
)
COUNTED_HERE = {"parliament": "spanish-parliament", "parliament-10k": "spanish-parliament-10k"}
"""Of the parliament's own speakers: for runs that claim no privacy, as of a public text whose weights others begin with."""
PARLAMINT_TEXT = Corpus(PARLAMINT_FILE, spanish, "words", {"public": "spanish-theatre", **COUNTED_HERE})

CORPORA = {"shakespeare": SHAKESPEARE_TEXT, "caldracor": CALDRACOR_TEXT, "parlamint-es": PARLAMINT_TEXT}


def corpus(name: str) -> Corpus:
    """Raises DataError for what is no published text."""
    if name not in CORPORA:
        raise DataError(
            f"{name[:60]!r} is no published text, and words of private text are not listed; known: {', '.join(CORPORA)}"
        )
    return CORPORA[name]


SHAKESPEARE = Entry(
    "shakespeare",
    "plays by Shakespeare (tinyshakespeare): the next character after 20, over a fixed alphabet",
    "a speaker",
    "269 speakers",
    "975,850",
    "10,000 of 30 other speakers",
    Licence(
        "public domain", "William Shakespeare; this selection by Andrej Karpathy (MIT)", "https://github.com/karpathy/char-rnn"
    ),
    ("characters", "words", *CHARACTER_MODELS),
    (
        FORM,
        Option(
            "units",
            "characters",
            "characters, words",
            "windows of 20 characters (model `characters`) or 8 hashed words (`words`); sequences of 80 characters or 20 words",
        ),
        *TEXT_OPTIONS,
    ),
    SHAKESPEARE_TEXT.configure,
    (SHAKESPEARE_FILE,),
)
CALDRACOR = Entry(
    "caldracor",
    "plays by Calderón, in Spanish of the 17th century: the next word after 8",
    "a speaker of a play",
    "2,935 speakers",
    "1,418,097",
    "10,000 of 329 other speakers",
    Licence("CC0 1.0", "CalDraCor, DraCor: plays by Pedro Calderón de la Barca", "https://github.com/dracor-org/caldracor"),
    ("words", "characters", "spanish-cifg", *WORD_MODELS, *CHARACTER_MODELS),
    (FORM, UNITS, _vocabulary(CALDRACOR_TEXT.lists, True), *TEXT_OPTIONS, *PRIVATE_OPTIONS),
    CALDRACOR_TEXT.configure,
    (CALDRACOR_FILE,),
    CALDRACOR_TEXT.charge,
)
PARLAMINT = Entry(
    "parlamint-es",
    "the Spanish parliament from January to July 2022: the next word after 8",
    "a speaker",
    "256 speakers",
    "813,184",
    "10,000 of 28 other speakers",
    Licence(
        "CC BY 4.0", "María Calzada Pérez et al.: ParlaMint-ES, ParlaMint / CLARIN", "https://github.com/calzada/PARLAMINT-ES-MC"
    ),
    ("words", "characters", *CHARACTER_MODELS),
    (FORM, UNITS, _vocabulary(PARLAMINT_TEXT.lists, False), *TEXT_OPTIONS),
    PARLAMINT_TEXT.configure,
    (PARLAMINT_FILE,),
)
