"""Examples from JSON lines: one object a line, with a label, and features as numbers or as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrho.client.examples import finite
from fedrho.client.stores.checked import Array, FileExamples, Inputs, bounded, label_number, reason
from fedrho.client.stores.tables import LABEL
from fedrho.client.stores.words import Vocabulary, encoder, vocabulary_size
from fedrho.models.base import ModelSpec

FEATURES = "features"
TEXT = "text"


@dataclass(frozen=True)
class JsonLines(FileExamples):
    """With a vocabulary, the field `text` is text; without, the field `features` holds the model's inputs as nested lists."""

    label: str = LABEL
    text: str = TEXT
    vocabulary: Vocabulary | None = None
    classes: tuple[str, ...] | None = None

    def read(self) -> tuple[Array, Array]:
        encode = self._encoder()
        features: list[Array] = []
        labels: list[int] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(bounded(file), 1):
                try:
                    if line.strip():
                        example = _object(line)
                        features.append(encode(example))
                        labels.append(self._label(example))
                        self.inputs.check_bytes(len(labels))
                except (ValueError, RecursionError, OverflowError) as error:
                    raise ValueError(f"line {number}: {reason(error)}") from error
        return (np.stack(features) if features else np.empty((0, *self.inputs.shape))), np.array(labels, dtype=np.int64)

    def _encoder(self) -> Callable[[dict[str, Any]], Array]:
        if self.vocabulary is None:
            return self._features
        if not self.inputs.tokens or len(self.inputs.shape) != 1:
            raise ValueError(f"model {self.inputs.model!r} takes no text, but {self.inputs.dtype} of shape {self.inputs.shape}")
        size = vocabulary_size(self.vocabulary)
        if self.inputs.vocabulary and size > self.inputs.vocabulary:
            raise ValueError(f"the vocabulary has ids below {size}, model {self.inputs.model!r} only {self.inputs.vocabulary}")
        encode = encoder(self.vocabulary, self.inputs.size)
        return lambda example: np.array(encode(_text(example, self.text)), dtype=np.int32)

    def _features(self, example: dict[str, Any]) -> Array:
        if FEATURES not in example:
            needed = "; text needs a vocabulary (--vocabulary)" if self.inputs.tokens else ""
            raise ValueError(f"has no field {FEATURES!r}{needed}")
        values = np.array(example[FEATURES])  # ValueError where lists have several lengths
        self.inputs.check_features(values.dtype, (1, *values.shape), FEATURES)
        return values if self.inputs.tokens else finite(values)

    def _label(self, example: dict[str, Any]) -> int:
        value = example.get(self.label)
        if type(value) is int and self.classes is None:
            return value
        if not isinstance(value, str):
            raise ValueError(f"field {self.label!r} is no label; --label says which field is")
        try:
            return label_number(value, self.classes)
        except ValueError as error:
            raise ValueError(f"field {self.label!r} {reason(error)}") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError("not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _text(example: dict[str, Any], field: str) -> str:
    value = example.get(field)
    if not isinstance(value, str):
        raise ValueError(f"has no text in the field {field!r}; --text says which field has it")
    return value


def json_lines_examples(
    path: Path,
    spec: ModelSpec,
    label: str = LABEL,
    text: str = TEXT,
    vocabulary: Vocabulary | None = None,
    classes: tuple[str, ...] | None = None,
) -> JsonLines:
    """The examples of one device; raises DataFileError."""
    return JsonLines(path, Inputs.of(spec), label, text, vocabulary, classes)
