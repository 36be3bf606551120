"""Texts by who speaks: tinyshakespeare, and two of Spanish, the plays of Calderón and the Congreso de los Diputados."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from fedrho.simulations.data import alphabet, tei, vocabularies
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.cache import Arrays, Cache
from fedrho.simulations.data.download import RemoteFile
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.windows import WINDOW_OPTIONS, WindowOptions, Windows, streams

VERSION = 1
CHARACTER_WINDOW, WORD_WINDOW = 20, 8
"""What the models `characters` and `words` take."""

NOTHING = 0
END_OF_LINE = alphabet.FIRST
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


def _decode(read: Read, units: str, words: str | None) -> Callable[[Mapping[str, Path]], Arrays]:
    """`words` is the list of words, None where they are hashed."""

    def decode(paths: Mapping[str, Path]) -> Arrays:
        (path,) = paths.values()
        texts = read(path)
        names = np.frombuffer("\0".join(sorted(texts)).encode(), dtype=np.uint8)
        if units == "characters":
            return {
                "names": names,
                **streams({name: [alphabet.encoded(one) for one in texts[name]] for name in texts}, END_OF_LINE),
            }
        encode = vocabularies.by_list(words) if words else vocabularies.hashed()
        return {"names": names, **streams({name: [encode(one) for one in texts[name]] for name in texts}, NOTHING)}

    return decode


def _configure(options: Options, file: RemoteFile, read: Read, default: str, words: str | None) -> Load:
    units = options.choice("units", default, ("characters", "words"))
    if units == "words" and words and options.choice("vocabulary", "public", ("public", "hashed")) == "public":
        vocabulary, listed = words, words
    else:
        vocabulary, listed = "hashed", None
    chosen = WindowOptions(options)
    window = CHARACTER_WINDOW if units == "characters" else WORD_WINDOW
    name = f"{options.name}-{units if units == 'characters' else vocabulary}"

    def load(cache: Cache) -> FederatedDataset:
        arrays = cache.arrays(name, VERSION, (file,), _decode(read, units, listed))
        try:
            return Windows(arrays, bytes(arrays["names"]).decode().split("\0"), window, chosen)
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

UNITS = Option(
    "units", "words", "words, characters", "windows of 8 words (model `words`), or of 20 characters (model `characters`)"
)
VOCABULARY = Option(
    "vocabulary", "public", "public, hashed", "of `words`: a committed list of 2,046 words of another corpus, or hashes"
)

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
    ("characters", "words"),
    (
        Option(
            "units",
            "characters",
            "characters, words",
            "windows of 20 characters (model `characters`), or of 8 hashed words (model `words`)",
        ),
        *WINDOW_OPTIONS,
    ),
    lambda options: _configure(options, SHAKESPEARE_FILE, shakespeare, "characters", None),
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
    ("words", "characters"),
    (UNITS, VOCABULARY, *WINDOW_OPTIONS),
    lambda options: _configure(options, CALDRACOR_FILE, spanish, "words", "parliament"),
    (CALDRACOR_FILE,),
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
    ("words", "characters"),
    (UNITS, VOCABULARY, *WINDOW_OPTIONS),
    lambda options: _configure(options, PARLAMINT_FILE, spanish, "words", "theatre"),
    (PARLAMINT_FILE,),
)
