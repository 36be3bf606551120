"""That no server answers yet, and for how long it is asked on: a line that counts down on a terminal, one line elsewhere."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from fedrho import console

if TYPE_CHECKING:
    from fedrho.client.app import Server
    from fedrho.protos.messages import PopulationSpec

WAIT_SECONDS: Final = 60.0
"""By default: who starts server and devices together need not start the server first, on a slow machine either."""
GRACE_SECONDS: Final = 1.0
"""Before anything is said."""


async def population_of(server: Server, seconds: float) -> PopulationSpec:
    """What is served there; raises ServerUnreachable where nothing answers in time, and BadSpec."""
    from fedrho.client.app import read_population

    ends = time.monotonic() + seconds
    reading = asyncio.create_task(read_population(server, seconds))
    answered, _ = await asyncio.wait({reading}, timeout=GRACE_SECONDS)
    if answered or seconds <= GRACE_SECONDS:
        return await reading
    with _told(_Left(server.address, ends)):
        return await reading


class _Left:
    """In seconds that grow fewer."""

    def __init__(self, address: str, ends: float) -> None:
        self._address = address
        self._ends = ends

    def __str__(self) -> str:
        seconds = max(0, math.ceil(self._ends - time.monotonic()))
        return f"no server at {self._address} yet; trying for another {seconds} s"

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(str(self), no_wrap=True, end="")
        line.truncate(options.max_width, overflow="crop")
        yield line


@contextmanager
def _told(left: _Left) -> Iterator[None]:
    if not console.said():
        yield
    elif console.lively():
        with Live(left, console=console.err, refresh_per_second=2, transient=True):
            yield
    else:
        console.err.print(str(left), highlight=False, markup=False, soft_wrap=True)
        yield
