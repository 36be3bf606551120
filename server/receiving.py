"""The bytes of one upload on their way into a sum: checked and narrowed while they are still in the cache.

    header -> Receiver -> take(chunk) ... -> finish(checksum) -> Gathered, or the reason why not -> close: nothing is held

Nothing is added to a sum here. An upload that ends anywhere on this way leaves nothing. Of what gRPC received nothing is held:
each chunk goes back to the allocator as soon as it was taken, so that the next one is written where the cache still is.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from zlib_ng import zlib_ng

from fedrho.privacy.vectors import Gathered, Gathering, Grid, InvalidVector
from fedrho.protos.messages import Encoding, Refusal


class Receiver:
    """One open upload. A context manager, so that its bytes are let go however it ends.

    Guarantees: what `finish` returns has the announced length and checksum, and a norm within the radius, exactly.
    """

    def __init__(self, chunk_bytes: int, encoding: Encoding, size: int, grid: Grid) -> None:
        self._chunk_bytes = chunk_bytes
        self._encoding = encoding
        self._gathering = Gathering(size, grid)
        self._left = size * encoding.width
        self._crc32 = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def bytes_left(self) -> int:
        """Of the encoded vector; zero when the trailer is due."""
        return self._left

    def take(self, chunk: memoryview) -> Refusal | None:
        """Chunks have the announced size, but for the last; a norm that is much too large already is refused before they end.

        A norm that is a little too large waits for the checksum: the vector may have been damaged, and may then be sent again.
        """
        if not chunk or len(chunk) != min(self._chunk_bytes, self._left) or len(chunk) % self._encoding.width:
            return Refusal.WRONG_FRAMING
        self._left -= len(chunk)
        self._crc32 = zlib_ng.crc32(chunk, self._crc32)
        piece = np.frombuffer(chunk, dtype=self._encoding.dtype)
        return None if self._gathering.add(piece) else Refusal.NORM_TOO_LARGE

    def finish(self, announced: int) -> Gathered | Refusal:
        """`announced` is the trailer's CRC-32."""
        if self._left:
            return Refusal.WRONG_FRAMING
        if announced != self._crc32:
            return Refusal.WRONG_CHECKSUM
        try:
            return self._gathering.clipped()
        except InvalidVector:
            return Refusal.NORM_TOO_LARGE

    def close(self) -> None:
        """Lets go of what has arrived; nothing more is taken."""
        self._gathering = Gathering(0, self._gathering.grid)
        self._left = 0
