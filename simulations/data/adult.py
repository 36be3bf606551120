"""Adult (Census Income, 1994): does somebody earn more than 50,000 dollars a year? By country, occupation or another attribute.

Features are 104 numbers in [0, 1]: five numbers by public scalings, then eight attributes one-hot over the categories that
`adult.names` lists. An attribute that is missing is zeros. The survey's weight of a row (fnlwgt) is no feature. With
`columns = "raw"` they are the 13 columns themselves, for a model that encodes them: five numbers as they stand in the file, then
of each attribute its category's place in that list, and the number of categories where it is missing.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import Labels
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.cache import Arrays, Cache
from fedrho.simulations.data.download import RemoteFile, packed, unpacked_sha256
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import SPLIT_OPTIONS, Divided, Pool, split_of

VERSION = 2
COLUMNS = 15
SCALES = {0: 100.0, 4: 16.0, 12: 100.0}
"""Divisors by column: age, years of education, hours a week; at most 1 is kept."""
LOG_SCALES = {10: 100_000.0, 11: 10_000.0}
"""Capital gain and loss in dollars: log(1 + x) / log(1 + scale)."""
CATEGORIES = {
    "workclass": (1, "Private, Self-emp-not-inc, Self-emp-inc, Federal-gov, Local-gov, State-gov, Without-pay, Never-worked"),
    "education": (
        3,
        "Bachelors, Some-college, 11th, HS-grad, Prof-school, Assoc-acdm, Assoc-voc, 9th, 7th-8th, 12th, Masters, 1st-4th, 10th, "
        "Doctorate, 5th-6th, Preschool",
    ),
    "marital-status": (
        5,
        "Married-civ-spouse, Divorced, Never-married, Separated, Widowed, Married-spouse-absent, Married-AF-spouse",
    ),
    "occupation": (
        6,
        "Tech-support, Craft-repair, Other-service, Sales, Exec-managerial, Prof-specialty, Handlers-cleaners, "
        "Machine-op-inspct, Adm-clerical, Farming-fishing, Transport-moving, Priv-house-serv, Protective-serv, Armed-Forces",
    ),
    "relationship": (7, "Wife, Own-child, Husband, Not-in-family, Other-relative, Unmarried"),
    "race": (8, "White, Asian-Pac-Islander, Amer-Indian-Eskimo, Other, Black"),
    "sex": (9, "Female, Male"),
    "native-country": (
        13,
        "United-States, Cambodia, England, Puerto-Rico, Canada, Germany, Outlying-US(Guam-USVI-etc), India, Japan, Greece, "
        "South, China, Cuba, Iran, Honduras, Philippines, Italy, Poland, Jamaica, Vietnam, Mexico, Portugal, Ireland, France, "
        "Dominican-Republic, Laos, Ecuador, Taiwan, Haiti, Columbia, Hungary, Guatemala, Nicaragua, Scotland, Thailand, "
        "Yugoslavia, El-Salvador, Trinadad&Tobago, Peru, Hong, Holand-Netherlands",
    ),
}
"""Of each attribute its column, and its categories as `adult.names` lists them."""
UNKNOWN = "?"
LABELS = {"<=50K": 0, ">50K": 1}
SIZE = len(SCALES) + len(LOG_SCALES) + sum(len(listed.split(", ")) for _, listed in CATEGORIES.values())

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult"


def _file(part: str, size: int, sha256: str, content: str) -> RemoteFile:
    """Kept as .gz; whatever packed it, what is in it must be the canonical file."""
    return RemoteFile(f"adult/adult.{part}.gz", sha256, size, (f"{URL}/adult.{part}",), unpacked_sha256, content, packed)


FILES = (
    _file(
        "data",
        409_337,
        "fb9b6b419c38dd70d75d31f014b7f0905bf76e9625473c593455e31679a93184",
        "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    ),
    _file(
        "test",
        205_510,
        "5dd8e51005f6a86e42f058d66a957721196362cf8e8dde3efc8508532af4a083",
        "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    ),
)


def rows(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="ascii") as file:
        for line in file:
            values = line.rstrip(".\n").split(", ")
            if len(values) == COLUMNS:
                yield values


def _places(table: list[list[str]], name: str) -> NDArray[np.int64]:
    """Of every row the place of its category; what is missing comes last. Raises KeyError for what is not listed."""
    column, listed = CATEGORIES[name]
    places = {category: place for place, category in enumerate([*listed.split(", "), UNKNOWN])}
    return np.array([places[row[column]] for row in table], dtype=np.int64)


def _features(table: list[list[str]]) -> NDArray[np.float32]:
    def numbers(column: int) -> NDArray[np.float64]:
        return np.array([float(row[column]) for row in table])

    scaled = [numbers(column) / scale for column, scale in SCALES.items()]
    logs = [np.log1p(numbers(column)) / np.log1p(scale) for column, scale in LOG_SCALES.items()]
    columns = [np.minimum(values, 1.0)[:, np.newaxis] for values in (*scaled, *logs)]
    for name, (_, listed) in CATEGORIES.items():
        known = len(listed.split(", "))
        columns.append(np.eye(known + 1)[_places(table, name)][:, :known])
    return np.concatenate(columns, axis=1).astype(np.float32)


def _raw(table: list[list[str]]) -> NDArray[np.float32]:
    """Float32 (rows, 13), in the order of `models/tables.py`."""
    numbers = [[float(row[column]) for row in table] for column in (*SCALES, *LOG_SCALES)]
    return np.stack([*map(np.asarray, numbers), *(_places(table, name) for name in CATEGORIES)], axis=1).astype(np.float32)


def _labels(table: list[list[str]]) -> Labels:
    return np.array([LABELS[row[-1]] for row in table], dtype=np.int32)


def _decoded(paths: Mapping[str, Path]) -> Arrays:
    train, test = list(rows(paths["adult.data.gz"])), list(rows(paths["adult.test.gz"]))
    return {
        "features": _features(train),
        "raw": _raw(train),
        "labels": _labels(train),
        "test_features": _features(test),
        "test_raw": _raw(test),
        "test_labels": _labels(test),
        **{name: _places(train, name) for name in CATEGORIES},
    }


def _configure(options: Options) -> Load:
    features = {"encoded": "features", "raw": "raw"}[options.choice("columns", "encoded", ("encoded", "raw"))]
    kind = options.text("split", "native-country")
    attributes = kind.split("+")
    if not all(name in CATEGORIES for name in attributes) or len(set(attributes)) < len(attributes):
        options.choice("split", "native-country", (*CATEGORIES, "dirichlet", "shards", "drawn"))
        split: Callable[[Pool, Pool], FederatedDataset] | None = split_of(options, kind)
    else:
        split = None

    def load(cache: Cache) -> FederatedDataset:
        arrays = cache.arrays("adult", VERSION, FILES, _decoded)
        train = Pool(arrays[features], np.asarray(arrays["labels"]))
        test = Pool(arrays[f"test_{features}"], np.asarray(arrays["test_labels"]))
        if split is not None:
            return split(train, test)
        groups, owner = np.unique([arrays[name] for name in attributes], axis=1, return_inverse=True)
        return Divided(train, owner.reshape(-1).astype(np.int64), groups.shape[1], test)

    return load


ADULT = Entry(
    "adult",
    "1994 US census: who earns more than 50,000 dollars; 104 numbers, 2 classes",
    "a country of birth",
    "42 countries, one of them unknown",
    "32,561; 1 to 29,170 a country",
    "16,281",
    Licence("CC BY 4.0", "Barry Becker, Ronny Kohavi: Adult, UCI Machine Learning Repository", "https://doi.org/10.24432/C5XW20"),
    ("adult-logistic", "adult-mlp", "adult-raw-mlp"),
    (
        Option(
            "split",
            "native-country",
            f"{', '.join(CATEGORIES)}, dirichlet, shards, drawn",
            "an attribute makes a device of each of its values; several, joined by +, of each of their combinations",
        ),
        Option(
            "columns",
            "encoded",
            "encoded, raw",
            "104 numbers in [0, 1], or the 13 columns themselves, which `adult-raw-mlp` takes",
        ),
        *SPLIT_OPTIONS,
    ),
    _configure,
    FILES,
)
