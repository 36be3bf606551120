"""Looks at the runs now and then, and tells whoever wants to know what has changed: streams to operators, metrics, logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from fedrho.server.population import RunView

LOOK_SECONDS: Final = 0.25

Views = tuple[RunView, ...]


class RunWatch:
    """Whoever follows sees the newest state, and may miss what lay between."""

    def __init__(self, look: Callable[[], Views], tell: Sequence[Callable[[Views], None]] = ()) -> None:
        """`look` must be cheap; each of `tell` is called with every state that differs from the one before."""
        self._look = look
        self._tell = tell
        self._views: Views = ()
        self._stopped = False
        self._news = asyncio.Condition()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then all who follow are let go."""
        while not stop.is_set():
            await self.look()
            await _either(stop, LOOK_SECONDS)
        await self.look()
        self._stopped = True
        async with self._news:
            self._news.notify_all()

    async def look(self) -> None:
        """Looks now; for after something was done to a run."""
        views = self._look()
        if views == self._views:
            return
        self._views = views
        for tell in self._tell:
            tell(views)
        async with self._news:
            self._news.notify_all()

    async def follow(self) -> AsyncIterator[Views]:
        """The state now, and every newer one, until the watch ends."""
        shown: Views | None = None
        while not self._stopped:
            if self._views != shown:
                shown = self._views
                yield shown
                continue
            async with self._news:
                if self._views == shown and not self._stopped:
                    await self._news.wait()


async def _either(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
