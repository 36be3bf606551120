"""Text as sequences: `length` ids, and the `length` ids that follow each of them. For models that guess at every place.

The ids of a device, with nothing before them, are cut into pieces without overlap, so that each is guessed once:

    ids        a b c d e f g        of one device, 0 or the end of a line between two texts
    features   0 a b c              labels   a b c d
               d e f 0                       e f g 0        filled up with 0

Labels below `streams.FIRST_TARGET` are nothing and unknown: models read them as features, and guess none of them
(`ModelSpec.ignored`). A piece without any other label is no example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.models.tokens import Tokens
from fedrho.simulations.data.base import Examples
from fedrho.simulations.data.cache import Arrays
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.splits import Indices
from fedrho.simulations.data.streams import Chosen, Streams

MOST_LENGTH = 1024
WORDS, CHARACTERS = 20, 80
"""Lengths that the models of words and of characters take (Hard et al. 2018, McMahan et al. 2017)."""
LENGTH = Option("length", f"{WORDS} words, {CHARACTERS} characters", f"2 to {MOST_LENGTH}", "of sequences: ids of an example")


class Sequences(Streams):
    """The pieces of each stream that have something to guess."""

    def __init__(self, arrays: Arrays, names: Sequence[str], chosen: SequenceOptions, tokens: Tokens | None = None) -> None:
        """Raises ValueError where no device, or nobody who is held out, is left."""
        self._length = chosen.length
        starts = np.asarray(arrays["starts"], dtype=np.int64)
        self._pieces, first = pieces(starts, arrays["targets"], chosen.length)
        super().__init__(arrays, names, first, chosen.streams, tokens)

    def _made(self, numbers: NDArray[np.int64], streams: Indices) -> Examples:
        first, behind = self._starts[streams][:, np.newaxis], self._starts[streams + 1][:, np.newaxis]
        places = self._pieces[numbers][:, np.newaxis] + np.arange(self._length)
        inside, kept = places < behind, np.minimum(places, behind - 1)
        labels = np.where(inside, self._ids[kept], 0)
        features = np.where(inside & (places > first), self._ids[np.maximum(kept - 1, 0)], 0)
        return Examples(features.astype(np.int32), labels.astype(np.int32))


class SequenceOptions:
    """What a study may say about sequences. Raises DataError."""

    def __init__(self, options: Options, length: int) -> None:
        self.length = options.integer("length", length, 2, MOST_LENGTH)
        self.streams = Chosen.of(options, 1000)


def pieces(starts: NDArray[np.int64], targets: NDArray[Any], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the pieces begin that have something to guess, and which is the first of each stream: shapes (n,), (streams + 1,)."""
    bounds = np.searchsorted(targets, starts)
    found = [
        start + length * np.unique((targets[low:high].astype(np.int64) - start) // length)
        for start, low, high in zip(starts.tolist(), bounds.tolist(), bounds[1:].tolist(), strict=False)
    ]
    return np.concatenate(found), np.cumsum([0, *map(len, found)], dtype=np.int64)
