"""Text of one's own for a language model: a file is cut into sequences, each with the id that follows at every place.

    .txt     texts in UTF-8, an empty line between two of them
    .jsonl   a JSON object a line, with a text in its field `text`

Ids are those of the model's tokens (`ModelSpec.tokens`). All texts stand behind one another, with one id between two of them:
the end of a line where the model has such a character, nothing (0) where it has words. They are cut without overlap, so that each
id is guessed once, by what stands before it in its sequence:

    ids        a b c d e f g
    features   0 a b c              labels   a b c d
               d e f 0                       e f g 0        filled up with 0

A sequence without a label that counts (`ModelSpec.ignored`) is none. The study data sets of text are cut in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrho.client.stores.checked import Array, FileExamples, Inputs, bounded, reason
from fedrho.models.base import ModelSpec
from fedrho.models.tokens import Tokens, UnknownTokens, lookup

TEXT = "text"
Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class TextExamples(FileExamples):
    """`text` is the field of a line of `.jsonl` that has the text; of a `.txt` file it has no meaning."""

    text: str = TEXT
    sequences: ClassVar[bool] = True

    def read(self) -> tuple[Array, Array]:
        tokens, length = self._tokens(), self.inputs.size
        between = tokens.encode("\n") if not tokens.joined else np.zeros(1, np.uint16)
        parts: list[Ids] = []
        ids = 0
        for text in self._texts():
            found = tokens.encode(text)
            if len(found):
                parts += [between, found] if parts else [found]
                ids += len(found) + 1
                self.inputs.check_bytes(-(-ids // length))
        return sequences(np.concatenate([np.zeros(0, np.uint16), *parts]), length, self.inputs.ignored)

    def _tokens(self) -> Tokens:
        """Raises ValueError for a model that takes no text, or not at every place."""
        inputs = self.inputs
        if not inputs.text_tokens or inputs.label_shape != inputs.shape or len(inputs.shape) != 1:
            raise ValueError(
                f"model {inputs.model!r} is no language model: it does not guess the next token at every place of a text"
            )
        try:
            tokens = lookup(inputs.text_tokens)
        except UnknownTokens as error:
            raise ValueError(f"model {inputs.model!r}: {error}") from error
        if tokens.size > inputs.vocabulary:
            raise ValueError(f"model {inputs.model!r} knows ids below {inputs.vocabulary}, and {tokens.name} has {tokens.size}")
        return tokens

    def _texts(self) -> Iterator[str]:
        return self._of_lines() if self.path.suffix.lower() == ".jsonl" else self._of_paragraphs()

    def _of_paragraphs(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8-sig") as file:
            lines: list[str] = []
            try:
                for line in bounded(file):
                    if line.strip():
                        lines.append(line)
                    else:
                        yield "".join(lines).strip()
                        lines = []
            except UnicodeDecodeError as error:
                raise ValueError("not text in UTF-8") from error
            yield "".join(lines).strip()

    def _of_lines(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for number, line in enumerate(bounded(file), 1):
                if line.strip():
                    try:
                        yield text_of(line, self.text)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(f"line {number}: {reason(error)}") from error


def text_of(line: bytes, field: str) -> str:
    """The text in one line of `.jsonl`; raises ValueError."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError("not JSON in UTF-8") from error
    found = value.get(field) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise ValueError(f"has no text in the field {field!r}; --text says which field has it")
    return found


def sequences(ids: Ids, length: int, ignored: int) -> tuple[Array, Array]:
    """Features and labels int32 of shape (n, length), of the pieces that have a label from `ignored` on; raises ValueError."""
    shape = (-(-len(ids) // length), length)
    features, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels.reshape(-1)[: len(ids)] = ids
    features.reshape(-1)[1 : len(ids)] = ids[:-1]
    chosen = (labels >= ignored).any(axis=1)
    if not chosen.any():
        raise ValueError("has no text with anything in it that the model could learn to guess")
    return features[chosen], labels[chosen]


def text_examples(path: Path, spec: ModelSpec, text: str = TEXT) -> TextExamples:
    """The examples of one device; raises DataFileError."""
    return TextExamples(path, Inputs.of(spec), text)
