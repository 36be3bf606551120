"""Text as windows: some ids, and the one id that comes next. The window before a stream is zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedrho.models.tokens import Tokens
from fedrho.simulations.data.base import Examples
from fedrho.simulations.data.cache import Arrays
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.splits import Indices
from fedrho.simulations.data.streams import HELD_OUT, LEAST, Chosen, Streams

STRIDE = Option("stride", "1", "1 to 1000", "every so manieth place of a text makes an example")
TEST_EXAMPLES = Option("test_examples", "10000", "1 to 1048576", "at most so many held-out examples, spread evenly")
WINDOW_OPTIONS = (HELD_OUT, STRIDE, LEAST, TEST_EXAMPLES)


class Windows(Streams):
    """Every so manieth target of a stream is the label of an example, and `window` ids before it the features."""

    def __init__(
        self, arrays: Arrays, names: Sequence[str], window: int, chosen: WindowOptions, tokens: Tokens | None = None
    ) -> None:
        """Raises ValueError where no device, or nobody who is held out, is left."""
        self._window, self._targets = window, arrays["targets"][:: chosen.stride]
        first = np.searchsorted(self._targets, np.asarray(arrays["starts"], dtype=np.int64)).astype(np.int64)
        super().__init__(arrays, names, first, chosen.streams, tokens)

    def _made(self, numbers: NDArray[np.int64], streams: Indices) -> Examples:
        targets = self._targets[numbers].astype(np.int64)
        places = targets[:, np.newaxis] + np.arange(-self._window, 0)
        inside = places >= self._starts[streams][:, np.newaxis]
        features = np.where(inside, self._ids[np.maximum(places, 0)], 0)
        return Examples(features.astype(np.int32), self._ids[targets].astype(np.int32))


class WindowOptions:
    """What a study may say about windows. Raises DataError."""

    def __init__(self, options: Options) -> None:
        self.stride = options.integer("stride", 1, 1, 1000)
        self.streams = Chosen.of(options, 10_000)
