"""MovieLens-1M as labels: who (public) rated which film (public) with how many stars (private); 5 classes, 80 % to train on."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from fedrho.labels.data import LabelData
from fedrho.models.ratings import USERS
from fedrho.privacy.labels.stages import split
from fedrho.progress import Fetching
from fedrho.simulations.data.archives import MOVIELENS_FILE, RATINGS
from fedrho.simulations.data.cache import Arrays, Cache

NAME: Final = "movielens-ratings"
STARS: Final = 5
VERSION: Final = 1


def load(quiet: bool = False) -> LabelData:
    """Fetched where it is missing, with its checksum; GroupLens lets nobody hand it on. Raises DataError."""
    with Fetching("opening the ratings", quiet) as fetching:
        table = Cache(progress=fetching.show).arrays(NAME, VERSION, (MOVIELENS_FILE,), decoded)["ratings"]
    return of_table(np.asarray(table))


def of_table(table: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> LabelData:
    """From rows of user, film and stars; the split is by place and a public seed, as in the article at random."""
    features = np.stack([table[:, 0], USERS + table[:, 1]], axis=1).astype(np.int32)
    labels = table[:, 2] - 1
    train, test = split(len(table), [0.8, 0.2], 0)
    return LabelData(
        name=NAME,
        features=features[train],
        labels=labels[train],
        classes=STARS,
        test_features=features[test],
        test_labels=labels[test],
        models=("movielens-ratings",),
        public=True,
        note=f"accuracy is measured on {len(test)} held-out ratings of MovieLens-1M, which are public",
        users=table[train, 0],
    )


def decoded(paths: Mapping[str, Path]) -> Arrays:
    """Raises ValueError for what is no such archive."""
    try:
        with zipfile.ZipFile(paths["ml-1m.zip"]) as archive:
            raw = archive.read(RATINGS)
    except zipfile.BadZipFile as error:
        raise ValueError("not a zip archive") from error
    table = np.array(raw.replace(b"::", b" ").split(), dtype=np.int64).reshape(-1, 4)[:, :3]
    if table[:, 2].min() < 1 or table[:, 2].max() > STARS:
        raise ValueError(f"ratings have 1 to {STARS} stars")
    return {"ratings": table[np.lexsort((table[:, 1], table[:, 0]))]}
