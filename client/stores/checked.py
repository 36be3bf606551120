"""What a model takes, and whether examples are that. Errors name places in a file, never what stands there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import ArrayExamples, Batch, ExampleStore, Features, Labels, finite, integers
from fedrho.models.base import ModelSpec
from fedrho.protos.messages import Encoding, RoundPlan

MOST_BYTES = 2**30
"""What one device's examples may take, as a file and in memory: beyond, a file is a mistake or a trap."""

MOST_LINE = 2**24
"""Bytes or letters in a line of text."""

Array = NDArray[Any]


class DataFileError(ValueError):
    """Data that cannot be used, with the name of the file and the reason."""


@dataclass(frozen=True)
class Inputs:
    """What a model takes, without the model: it travels with a store."""

    model: str
    shape: tuple[int, ...]
    dtype: str
    classes: int
    vocabulary: int
    label_shape: tuple[int, ...] = ()
    ignored: int = 0
    text_tokens: str = ""
    """Name of the tokens that the model's text is made of, in `models/tokens.py`."""

    @classmethod
    def of(cls, spec: ModelSpec) -> Inputs:
        labels = (spec.label_shape, spec.ignored, spec.tokens)
        return cls(spec.name, spec.input_shape, spec.input_dtype, spec.classes, spec.vocabulary, *labels)

    @property
    def size(self) -> int:
        """Numbers in one example."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def tokens(self) -> bool:
        return self.dtype == "int32"

    def check_bytes(self, examples: int) -> None:
        """Raises ValueError where so many would not fit into memory."""
        if 4 * examples * (self.size + int(np.prod(self.label_shape, dtype=np.int64))) > MOST_BYTES:
            raise ValueError(f"{examples} examples for model {self.model!r} take more than {MOST_BYTES >> 20} MiB")

    def features(self, values: Array, name: str = "features") -> Features:
        """Of shape (examples, *shape); raises ValueError."""
        self.check_features(values.dtype, values.shape, name)
        if not self.tokens:
            return finite(values)
        ids = integers(values, name)
        if ids.size and self.vocabulary and not (ids.min() >= 0 and ids.max() < self.vocabulary):
            raise ValueError(f"{name} must lie between 0 and {self.vocabulary - 1}, the vocabulary of model {self.model!r}")
        return ids

    def check_features(self, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> None:
        kinds, wanted = ("iu", "integers") if self.tokens else ("fiu", "numbers")
        if dtype.kind not in kinds or not shape or shape[1:] != self.shape:
            needed = ("examples", *self.shape)
            raise ValueError(f"{name} must be {wanted} of shape {needed} for model {self.model!r}, not {dtype} {shape}")

    def labels(self, values: Array, name: str = "labels") -> Labels:
        """Integers of shape (examples, *label_shape) below the number of classes; raises ValueError."""
        self.check_labels(values.dtype, values.shape, name)
        if values.size and not (values.min() >= 0 and values.max() < self.classes):
            raise ValueError(f"{name} must lie between 0 and {self.classes - 1} for model {self.model!r}")
        return values.astype(np.int32)

    def check_labels(self, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> None:
        if dtype.kind not in "iu" or not shape or shape[1:] != self.label_shape:
            needed = f"({', '.join(['examples', *map(str, self.label_shape)])}{'' if self.label_shape else ','})"
            whose = f" for model {self.model!r}" if self.label_shape else ""
            raise ValueError(f"{name} must be integers of shape {needed}{whose}, not {dtype} {shape}")

    def check_one_label(self) -> None:
        """Raises ValueError for a model with a label at every place, which few files can hold."""
        if self.label_shape:
            raise ValueError(
                f"holds one label an example; model {self.model!r} has one at every place: bring .npz, .txt or .jsonl"
            )


@dataclass(frozen=True)
class FileExamples(ABC):
    """Examples of one file. Raises DataFileError when made, and later if the file has changed for the worse."""

    path: Path
    inputs: Inputs
    names: ClassVar[tuple[str, str]] = ("features", "labels")
    """What the file's own format calls them."""
    sequences: ClassVar[bool] = False
    """Whether such a file can hold a label at every place of an example."""

    def __post_init__(self) -> None:
        self.examples()

    @abstractmethod
    def read(self) -> tuple[Array, Array]:
        """Features and labels as they stand in the file; may raise what reading raises, and ValueError with a reason."""

    def examples(self) -> ArrayExamples:
        check_file(self.path)
        try:
            if not self.sequences:
                self.inputs.check_one_label()
            features, labels = self.read()
            return ArrayExamples(self.inputs.features(features, self.names[0]), self.inputs.labels(labels, self.names[1]))
        except DataFileError:
            raise
        except (OSError, EOFError, ValueError, OverflowError) as error:
            raise DataFileError(f"{self.path}: {reason(error)}") from error

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        yield from self.examples().batches(plan)


@dataclass(frozen=True)
class CheckedExamples:
    """Somebody's own store, whose batches are held to what the model takes before training sees them."""

    name: str
    store: ExampleStore
    inputs: Inputs

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        for batch in self.store.batches(plan):
            yield self._checked(batch, plan)

    def _checked(self, batch: Batch, plan: RoundPlan) -> Batch:
        try:
            features, labels = self.inputs.features(np.asarray(batch.features)), self.inputs.labels(np.asarray(batch.labels))
            if not 1 <= len(labels) == len(features) <= plan.batch_size:
                count = f"{len(features)} features and {len(labels)} labels"
                raise ValueError(f"a batch has {count}, where the plan asks for at most {plan.batch_size}")
        except (AttributeError, TypeError, ValueError) as error:
            raise DataFileError(f"{self.name}: {reason(error)}") from error
        return Batch(features, labels)


@dataclass(frozen=True)
class ExamplesByModel:
    """One device's examples as each of several models takes them."""

    stores: Mapping[str, ExampleStore]

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        return self.stores[plan.model].batches(plan)


def trial_plan(spec: ModelSpec) -> RoundPlan:
    """Asks for one example, of nobody's run: what a store gives for it can be looked at before a device takes part."""
    return RoundPlan(
        run=bytes(16),
        step=1,
        attempt=1,
        model=spec.name,
        checkpoint_sha256=bytes(32),
        size=1,
        clip_norm=1.0,
        grid_bits=1,
        encoding=Encoding.INT32_LE,
        epochs=1,
        batch_size=1,
        learning_rate=0.0,
        chunk_bytes=1,
        max_examples=1,
    )


def check_file(path: Path) -> None:
    """Raises DataFileError where there is no plain file of a size to be read."""
    try:
        if not path.is_file():
            raise DataFileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
    except OSError as error:
        raise DataFileError(f"{path}: {reason(error)}") from error
    if size > MOST_BYTES:
        raise DataFileError(f"{path}: has {size} bytes; allowed: {MOST_BYTES}, a device's share")


def class_names(path: Path, spec: ModelSpec) -> tuple[str, ...]:
    """The names of a model's classes, one a line, the same file on every device; raises DataFileError."""
    names = tuple(lines(path))
    if len(names) != spec.classes or len(set(names)) != len(names) or not all(names):
        raise DataFileError(f"{path}: needs {spec.classes} different lines, the names of the classes of model {spec.name!r}")
    return names


def lines(path: Path) -> list[str]:
    """Of a small text file in UTF-8, without space around them; raises DataFileError."""
    check_file(path)
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not text in UTF-8") from error
    except OSError as error:
        raise DataFileError(f"{path}: {reason(error)}") from error


def bounded(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of a file; raises ValueError at one that is longer than any example."""
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise ValueError(f"a line is longer than {MOST_LINE} characters")
        yield line


def label_number(text: str, names: tuple[str, ...] | None) -> int:
    """Of a class by its number, or by its name where there are names; raises ValueError that shows neither."""
    text = text.strip()
    if names is not None:
        if text in names:
            return names.index(text)
        raise ValueError("is none of the names of classes")
    if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20:
        return int(text)
    raise ValueError("is not a whole number; classes that have names need a file of them (--classes)")


def reason(error: BaseException) -> str:
    """One line that says why, without the name of the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first, *_ = str(error).splitlines() or [""]
    return first or type(error).__name__
