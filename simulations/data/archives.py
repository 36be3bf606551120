"""Data sets that nobody may hand on, or that state no licence, read from their authors' archives: CIFAR-10 and MovieLens 1M."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.cache import Arrays, Cache
from fedrho.simulations.data.download import RemoteFile
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import SPLIT_OPTIONS, Pool, split_of
from fedrho.simulations.data.streams import FIRST_TARGET, streams
from fedrho.simulations.data.windows import WINDOW_OPTIONS, WindowOptions, Windows

VERSION = 1

# -- CIFAR-10 -------------------------------------------------------------------------------------------------------------------

CIFAR_FILE = RemoteFile(
    "cifar10/cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    170_498_071,
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
)
CIFAR_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


class _PlainPickle(pickle.Unpickler):
    """Arrays of numbers and nothing that could run."""

    ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"holds {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module, name)


def _cifar_batch(members: tarfile.TarFile, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    file = members.extractfile(f"cifar-10-batches-py/{name}")
    if file is None:
        raise ValueError(f"has no {name}")
    try:
        batch = _PlainPickle(io.BytesIO(file.read()), encoding="bytes").load()
    except (pickle.UnpicklingError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{name} cannot be read") from error
    return np.asarray(batch[b"data"], dtype=np.uint8), np.array(batch[b"labels"], dtype=np.int32)


def _cifar(paths: Mapping[str, Path]) -> Arrays:
    """Rows are 1,024 red, then green, then blue; kept as height, width, channels."""
    try:
        with tarfile.open(paths["cifar-10-python.tar.gz"]) as members:
            parts = [_cifar_batch(members, name) for name in (*CIFAR_BATCHES, "test_batch")]
    except tarfile.TarError as error:
        raise ValueError(f"not a tar archive ({error})") from error
    images = [rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for rows, _ in parts]
    return {
        "images": np.concatenate(images[:-1]),
        "labels": np.concatenate([labels for _, labels in parts[:-1]]),
        "test_images": images[-1],
        "test_labels": parts[-1][1],
    }


def _configure_cifar(options: Options) -> Load:
    split = split_of(options, options.choice("split", "dirichlet", ("dirichlet", "shards", "drawn")))

    def load(cache: Cache) -> FederatedDataset:
        arrays = cache.arrays("cifar10", VERSION, (CIFAR_FILE,), _cifar)
        train, test = (Pool(arrays[f"{part}images"], np.asarray(arrays[f"{part}labels"]), 255.0) for part in ("", "test_"))
        return split(train, test)

    return load


CIFAR = Entry(
    "cifar10",
    "photographs, 32x32 in colour, 10 classes",
    "a Dirichlet share",
    "100 (1 to 50,000)",
    "50,000",
    "10,000",
    Licence(
        "none stated; fetched by you",
        "Alex Krizhevsky: Learning Multiple Layers of Features, 2009",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    ("cifar-cnn", "cifar-resnet18"),
    (Option("split", "dirichlet", "dirichlet, shards, drawn", "who holds what"), *SPLIT_OPTIONS),
    _configure_cifar,
    (CIFAR_FILE,),
)

# -- MovieLens ------------------------------------------------------------------------------------------------------------------

MOVIELENS_FILE = RemoteFile(
    "movielens/ml-1m.zip",
    "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    5_917_549,
    ("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
)
RATINGS = "ml-1m/ratings.dat"
MOVIES = 3_952
"""Their numbers begin at 1, as the catalogue of movies says, which is public."""
MOVIE_WINDOW = 8
MOVIE_SIZE = FIRST_TARGET + MOVIES


def _movielens(paths: Mapping[str, Path]) -> Arrays:
    """Of every user the movies in the order in which they were rated."""
    try:
        with zipfile.ZipFile(paths["ml-1m.zip"]) as archive:
            raw = archive.read(RATINGS)
    except zipfile.BadZipFile as error:
        raise ValueError("not a zip archive") from error
    table = np.array(raw.replace(b"::", b" ").split(), dtype=np.int64).reshape(-1, 4)
    users, movies, times = table[:, 0], table[:, 1], table[:, 3]
    if movies.min() < 1 or movies.max() > MOVIES:
        raise ValueError(f"movies are numbered from 1 to {MOVIES}")
    order = np.lexsort((movies, times, users))
    starts = np.flatnonzero(np.diff(users[order], prepend=0))
    seen = np.split((movies[order] + FIRST_TARGET - 1).astype(np.uint16), starts[1:])
    names = [f"{users[order][start]:06d}" for start in starts.tolist()]
    watched = {name: [one] for name, one in zip(names, seen, strict=True)}
    return {"names": np.frombuffer("\0".join(names).encode(), dtype=np.uint8), **streams(watched, 0)}


def _configure_movielens(options: Options) -> Load:
    chosen = WindowOptions(options)

    def load(cache: Cache) -> FederatedDataset:
        arrays = cache.arrays("movielens", VERSION, (MOVIELENS_FILE,), _movielens)
        try:
            return Windows(arrays, bytes(arrays["names"]).decode().split("\0"), MOVIE_WINDOW, chosen)
        except ValueError as error:
            raise options.wrong("least", str(error)) from error

    return load


MOVIELENS = Entry(
    "movielens",
    "MovieLens 1M: the movie that somebody rates next, after 8",
    "a user",
    "5,436 users",
    "about 900,000",
    "10,000 of 604 other users",
    Licence(
        "research only, not to be handed on; fetched by you",
        "F. M. Harper, J. A. Konstan: The MovieLens Datasets, 2015",
        "https://grouplens.org/datasets/movielens/1m/",
    ),
    ("movies",),
    WINDOW_OPTIONS,
    _configure_movielens,
    (MOVIELENS_FILE,),
)
