"""Images of digits and clothing, 28x28 grey: MNIST and QMNIST by the writers of the digits, Fashion-MNIST by split."""

from __future__ import annotations

import gzip
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
from fedrho.simulations.data.pools import SPLIT_OPTIONS, Divided, Pool, split_of

SHAPE = (28, 28, 1)
VERSION = 1
WRITER = "writer"
POOLED = ("dirichlet", "shards", "drawn")
WRITER_COLUMN, LABEL_COLUMN, QMNIST_COLUMNS = 2, 0, 8


def _file(folder: str, name: str, size: int, sha256: str, *bases: str) -> RemoteFile:
    return RemoteFile(f"{folder}/{name}", sha256, size, tuple(f"{base}/{name}" for base in bases))


MNIST_AT = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "http://yann.lecun.com/exdb/mnist",
)
QMNIST_AT = ("https://raw.githubusercontent.com/facebookresearch/qmnist/master",)
FASHION_AT = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
MNIST_FILES = (
    _file(
        "mnist",
        "train-images-idx3-ubyte.gz",
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        *MNIST_AT,
    ),
    _file(
        "mnist",
        "train-labels-idx1-ubyte.gz",
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        *MNIST_AT,
    ),
    _file(
        "mnist",
        "t10k-images-idx3-ubyte.gz",
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        *MNIST_AT,
    ),
    _file(
        "mnist", "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", *MNIST_AT
    ),
)
QMNIST_FILES = (
    _file(
        "mnist",
        "qmnist-train-labels-idx2-int.gz",
        463_024,
        "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
        *QMNIST_AT,
    ),
    _file(
        "mnist",
        "qmnist-test-labels-idx2-int.gz",
        526_800,
        "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06",
        *QMNIST_AT,
    ),
)
FASHION_FILES = (
    _file(
        "fashion-mnist",
        "train-images-idx3-ubyte.gz",
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        *FASHION_AT,
    ),
    _file(
        "fashion-mnist",
        "train-labels-idx1-ubyte.gz",
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        *FASHION_AT,
    ),
    _file(
        "fashion-mnist",
        "t10k-images-idx3-ubyte.gz",
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        *FASHION_AT,
    ),
    _file(
        "fashion-mnist",
        "t10k-labels-idx1-ubyte.gz",
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        *FASHION_AT,
    ),
)


def read_idx(path: Path) -> NDArray[Any]:
    """Of LeCun's format, bytes or big-endian int32; raises ValueError."""
    with gzip.open(path) as file:
        raw = file.read()
    kinds: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in kinds:
        raise ValueError("not an IDX file of bytes or integers")
    ends = 4 + 4 * raw[3]
    shape = np.frombuffer(raw, ">u4", raw[3], 4).astype(np.int64)
    array: NDArray[Any] = np.frombuffer(raw, kinds[raw[2]], offset=ends)
    if array.size != shape.prod():
        raise ValueError(f"holds {array.size} numbers, not {shape.prod()}")
    return array.reshape(shape.tolist())


def _decoded(paths: Mapping[str, Path]) -> Arrays:
    return {
        "images": read_idx(paths["train-images-idx3-ubyte.gz"]),
        "labels": read_idx(paths["train-labels-idx1-ubyte.gz"]).astype(np.int32),
        "test_images": read_idx(paths["t10k-images-idx3-ubyte.gz"]),
        "test_labels": read_idx(paths["t10k-labels-idx1-ubyte.gz"]).astype(np.int32),
    }


def _decoded_qmnist(paths: Mapping[str, Path]) -> Arrays:
    """Rows belong to MNIST's images one for one; of the test rows, the first 10,000 do."""
    train, test = (read_idx(paths[f"qmnist-{part}-labels-idx2-int.gz"]).astype(np.int32) for part in ("train", "test"))
    if train.shape[1:] != (QMNIST_COLUMNS,) or test.shape[1:] != (QMNIST_COLUMNS,):
        raise ValueError(f"rows of {QMNIST_COLUMNS} numbers were expected")
    return {"train": train, "test": test[:10_000]}


def _pools(arrays: Arrays) -> tuple[Pool, Pool]:
    return (
        Pool(arrays["images"], np.asarray(arrays["labels"]), 255.0, SHAPE),
        Pool(arrays["test_images"], np.asarray(arrays["test_labels"]), 255.0, SHAPE),
    )


def by_writer(cache: Cache, qmnist_labels: bool) -> Divided:
    """A device for each writer of MNIST's training digits, in the order of their numbers in NIST's records."""
    train, test = _pools(cache.arrays("mnist", VERSION, MNIST_FILES, _decoded))
    known = cache.arrays("qmnist", VERSION, QMNIST_FILES, _decoded_qmnist)
    if qmnist_labels:
        train, test = (
            Pool(pool.features, np.ascontiguousarray(known[part][:, LABEL_COLUMN]), 255.0, SHAPE)
            for pool, part in ((train, "train"), (test, "test"))
        )
    writers, owner = np.unique(known["train"][:, WRITER_COLUMN], return_inverse=True)
    return Divided(train, owner.astype(np.int64), len(writers), test)


def _mnist(options: Options, qmnist_labels: bool) -> Load:
    kind = options.choice("split", WRITER, (WRITER, *POOLED))
    if kind == WRITER:
        return lambda cache: by_writer(cache, qmnist_labels)
    split = split_of(options, kind)

    def load(cache: Cache) -> FederatedDataset:
        return split(*_pools(cache.arrays("mnist", VERSION, MNIST_FILES, _decoded)))

    return load


def _fashion(options: Options) -> Load:
    split = split_of(options, options.choice("split", "dirichlet", POOLED))

    def load(cache: Cache) -> FederatedDataset:
        return split(*_pools(cache.arrays("fashion-mnist", VERSION, FASHION_FILES, _decoded)))

    return load


MODELS = ("mnist-cnn", "mnist-logistic")
BY_WRITER = (
    Option("split", "writer", "writer, dirichlet, shards, drawn", "who holds what; `writer` takes no further option"),
    *SPLIT_OPTIONS,
)
MNIST_LICENCE = Licence(
    "CC BY-SA 3.0", "Yann LeCun, Corinna Cortes: MNIST; writers from QMNIST (BSD, Facebook)", "http://yann.lecun.com/exdb/mnist"
)

MNIST = Entry(
    "mnist",
    "handwritten digits, 28x28 grey, 10 classes",
    "a writer",
    "539 writers",
    "60,000; 19 to 131 a writer",
    "10,000 digits of 297 other writers",
    MNIST_LICENCE,
    MODELS,
    BY_WRITER,
    lambda options: _mnist(options, qmnist_labels=False),
    (*MNIST_FILES, *QMNIST_FILES),
)
QMNIST = Entry(
    "qmnist",
    "the images of MNIST with QMNIST's labels from NIST's records",
    "a writer",
    "539 writers",
    "60,000; 19 to 131 a writer",
    "10,000 digits of 297 other writers",
    Licence(
        "BSD 3-Clause (labels), CC BY-SA 3.0 (images)",
        "Facebook, Inc.: QMNIST; Yann LeCun, Corinna Cortes: MNIST",
        "https://github.com/facebookresearch/qmnist",
    ),
    MODELS,
    BY_WRITER,
    lambda options: _mnist(options, qmnist_labels=True),
    (*MNIST_FILES, *QMNIST_FILES),
)
FASHION = Entry(
    "fashion-mnist",
    "articles of clothing, 28x28 grey, 10 classes",
    "a Dirichlet share",
    "100 (1 to 60,000)",
    "60,000",
    "10,000",
    Licence("MIT", "Zalando SE: Fashion-MNIST", "https://github.com/zalandoresearch/fashion-mnist"),
    MODELS,
    (Option("split", "dirichlet", "dirichlet, shards, drawn", "who holds what"), *SPLIT_OPTIONS),
    _fashion,
    FASHION_FILES,
)
