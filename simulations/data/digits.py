"""scikit-learn's handwritten digits, which need no file: shared out, or drawn for any number of devices."""

from __future__ import annotations

import numpy as np

from fedrho.client.examples import Features, Labels
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.cache import Cache
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import DRAWN_OPTIONS, HELD, SEED, SPLIT_OPTIONS, Pool, seed_of, split_of
from fedrho.simulations.data.splits import Indices

HELD_OUT = 360
"""Of the 1,797 digits, these belong to no device and measure accuracy."""

LICENCE = Licence(
    "CC BY 4.0",
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository",
    "https://doi.org/10.24432/C50P49",
)


def load() -> tuple[Features, Labels]:
    """8x8 grey, scaled to [0, 1], in rows of 64; classes 0 to 9."""
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    return (features / 16.0).astype(np.float32), labels.astype(np.int32)


def divided(labels: Labels, seed: int) -> tuple[Indices, Indices]:
    """Indices of those held out, and of the others."""
    order = np.random.default_rng((seed, HELD)).permutation(len(labels))
    return order[:HELD_OUT], order[HELD_OUT:]


def pools(seed: int) -> tuple[Pool, Pool]:
    """For devices, and held out."""
    features, labels = load()
    test, train = divided(labels, seed)
    return Pool(features[train], labels[train]), Pool(features[test], labels[test])


def _configure(options: Options) -> Load:
    return _load(options, options.choice("split", "dirichlet", ("dirichlet", "shards", "drawn")))


def _drawn(options: Options) -> Load:
    return _load(options, "drawn")


def _load(options: Options, kind: str) -> Load:
    split, seed = split_of(options, kind), seed_of(options)

    def load_pools(cache: Cache) -> FederatedDataset:
        return split(*pools(seed))

    return load_pools


DIGITS = Entry(
    "digits",
    "scikit-learn's handwritten digits, 8x8 grey, 10 classes",
    "a Dirichlet share",
    "100 (1 to 1,437)",
    "1,437",
    "360 digits, chosen by the seed",
    LICENCE,
    ("digits-logistic", "digits-mlp"),
    (Option("split", "dirichlet", "dirichlet, shards, drawn", "who holds what"), *SPLIT_OPTIONS),
    _configure,
)
DRAWN = Entry(
    "digits-drawn",
    "the same digits, drawn with replacement for any number of devices",
    "a draw with its own mix of classes",
    "100 (any number)",
    "100 a device",
    "360 digits, chosen by the seed",
    LICENCE,
    ("digits-logistic", "digits-mlp"),
    (*DRAWN_OPTIONS, SEED),
    _drawn,
)
