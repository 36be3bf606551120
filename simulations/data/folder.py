"""A folder of one's own: each file, or each sub-folder of images, is a device, read as a real device would read it.

Held out is an entry called `test`, if there is one; otherwise a share of the devices, chosen by a hash of their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedrho.client.examples import ExampleStore, orders
from fedrho.client.stores.checked import DataFileError, class_names, trial_plan
from fedrho.client.stores.words import MOST_WORDS, Vocabulary
from fedrho.models.base import ModelSpec, UnknownModel
from fedrho.simulations.data.base import DataError, Examples
from fedrho.simulations.data.cache import Cache
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import check_device
from fedrho.simulations.data.streams import held_out

if TYPE_CHECKING:
    import keras

TEST = "test"
FILES = (".npz", ".csv", ".parquet", ".jsonl", ".txt")
KEPT_DEVICES = 64
EVERYTHING = 2**31 - 1

Open = Callable[[Path], ExampleStore]


class FolderDevices:
    """Names of files are held, and the examples of the devices asked for last. Raises DataError for what is not read."""

    def __init__(self, devices: list[Path], tests: list[Path], spec: ModelSpec, open_store: Open) -> None:
        self._devices, self._tests, self._open = devices, tests, open_store
        self._plan = replace(trial_plan(spec), batch_size=EVERYTHING, max_examples=0)
        self._kept = lru_cache(KEPT_DEVICES)(self._read)

    @property
    def size(self) -> int:
        return len(self._devices)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self._devices)

    @cached_property
    def held_out(self) -> Examples:
        parts = [self._read(path) for path in self._tests]
        return Examples(np.concatenate([part.features for part in parts]), np.concatenate([part.labels for part in parts]))

    def count(self, device: int) -> int:
        """Opens the file, and keeps what was in it for `examples`."""
        return len(self.examples(device))

    def examples(self, device: int) -> Examples:
        return self._kept(self._devices[check_device(device, self.size)])

    def _read(self, path: Path) -> Examples:
        """In the order of the file, as a device has them, which shuffles them by itself."""
        try:
            batches = list(self._open(path).batches(self._plan))
        except DataFileError as error:
            raise DataError(str(error)) from error
        if not batches:
            raise DataError(f"{path}: holds no examples")
        (shuffled,) = batches
        back = np.argsort(next(orders(len(shuffled.labels), self._plan)))
        return Examples(shuffled.features[back], shuffled.labels[back])


def _configure(options: Options) -> Load:
    path = Path(options.text("path", None)).expanduser()
    share = options.number("held_out", 0.1, 0.01, 0.9)
    spec, open_store = _spec(options), _reading(options)

    def load(cache: Cache) -> FolderDevices:
        devices, tests = _divided(_entries(options, path), path, share)
        return FolderDevices(devices, tests, spec, lambda one: open_store(one, spec))

    return load


def _entries(options: Options, path: Path) -> list[Path]:
    try:
        found = sorted(one for one in path.iterdir() if not one.name.startswith("."))
        folders = {one for one in found if one.is_dir()}
    except OSError as error:
        raise options.wrong("path", f"{path}: {error.strerror}") from error
    for one in found:
        if one not in folders and one.suffix.lower() not in FILES:
            raise options.wrong("path", f"{one}: is no device; allowed: files {', '.join(FILES)}, and folders of images")
    return found


def _divided(found: list[Path], path: Path, share: float) -> tuple[list[Path], list[Path]]:
    tests = [one for one in found if (one.name if one.is_dir() else one.stem) == TEST]
    if not tests:
        chosen = held_out([one.name for one in found], share)
        tests = [one for one, test in zip(found, chosen.tolist(), strict=True) if test]
    devices = [one for one in found if one not in set(tests)]
    if not devices:
        raise DataError(f"{path}: holds {len(found)} files and folders; needs two at least, one of which is held out")
    return devices, tests


def _spec(options: Options) -> ModelSpec:
    """What the examples must be: as a model takes them, or by shape and classes."""
    if "shape" in options or "classes" in options:
        vocabulary = options.integer("vocabulary_size", 0, 0, MOST_WORDS)
        shape, classes = options.shape("shape", None), options.integer("classes", None, 2, 2**24)
        return ModelSpec("of data.shape", "", shape, classes, _nothing, "int32" if vocabulary else "float32", vocabulary)
    from fedrho.models.zoo import lookup

    try:
        return lookup(options.text("model", None))
    except UnknownModel as error:
        raise options.wrong("model", str(error)) from error


def _nothing() -> keras.Model:
    raise UnknownModel("a shape is no model")


def _reading(options: Options) -> Callable[[Path, ModelSpec], ExampleStore]:
    label, text = options.text("label", "label"), options.text("text", "text")
    names = Path(options.text("class_names", "-")).expanduser() if "class_names" in options else None
    vocabulary = _vocabulary(options)

    def read(path: Path, spec: ModelSpec) -> ExampleStore:
        from fedrho.client.stores.images import image_examples
        from fedrho.client.stores.json_lines import json_lines_examples
        from fedrho.client.stores.npz import npz_examples
        from fedrho.client.stores.tables import csv_examples, parquet_examples
        from fedrho.client.stores.texts import text_examples

        classes = None if names is None else class_names(names, spec)
        if path.is_dir():
            return image_examples(path, spec, classes)
        match path.suffix.lower():
            case ".npz":
                return npz_examples(path, spec)
            case ".csv":
                return csv_examples(path, spec, label, classes)
            case ".parquet":
                return parquet_examples(path, spec, label, classes)
            case ".txt" | ".jsonl" if spec.label_shape or path.suffix.lower() == ".txt":
                return text_examples(path, spec, text)
            case _:
                return json_lines_examples(path, spec, label, text, vocabulary, classes)

    return read


def _vocabulary(options: Options) -> Vocabulary | None:
    if "vocabulary" not in options:
        return None
    value = options.text("vocabulary", None)
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else Path(value).expanduser()


FOLDER = Entry(
    "folder",
    "a folder of your own: .npz, .csv, .parquet, .jsonl, .txt, or folders of images",
    "a file, or a sub-folder of images",
    "as many as there are",
    "yours",
    "an entry called `test`, or a tenth of the devices by a hash of their names",
    Licence("yours", "you", "your disk"),
    ("any",),
    (
        Option("path", "required", "a folder", "where the devices are; a relative path begins where the command runs"),
        Option("model", "required, or `shape` and `classes`", "a model's name", "what the examples must fit"),
        Option("shape", "of the model", "one to four whole numbers", "of an example, instead of `model`"),
        Option("classes", "of the model", "2 to 16777216", "labels, instead of `model`"),
        Option("vocabulary_size", "0", "0 to 16777216", "with `shape`; not 0: examples are ids of tokens below it"),
        Option("held_out", "0.1", "0.01 to 0.9", "share of the devices, where none is called `test`"),
        Option("label", "label", "a name", "the column or field with the label"),
        Option("class_names", "none", "a file", "names of the classes, one a line, where labels are names"),
        Option("text", "text", "a name", "of .jsonl: the field with text"),
        Option("vocabulary", "none", "a file, or a number in quotes", "of .jsonl: words, one a line, or how many are hashed"),
    ),
    _configure,
)
