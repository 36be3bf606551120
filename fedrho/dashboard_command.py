"""`fedrho dashboard`: what a store holds, in a browser; after its server, or beside it."""

from __future__ import annotations

import asyncio
import math
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console
from fedrho.operate_command import Store

if TYPE_CHECKING:
    from fedrho.server.operations.dashboard.sources import Snapshot
    from fedrho.server.population import RunView
    from fedrho.server.tasks import Task

TOKEN_BYTES = 32


def dashboard(
    store: Store = None,
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 0,
) -> None:
    """Show what a store holds in a browser: after its server has ended, or beside it. Changes nothing.

    Example: fedrho dashboard fedrho-run --port 7080
    """
    from fedrho.operate import Where

    place = Where(store, None, None, None).place()
    runs = KeptRuns(place)
    runs.look()  # what cannot be read is said here
    asyncio.run(_serve(runs, port))


class KeptRuns:
    """The runs of a store, whoever writes to it."""

    def __init__(self, store: Path | str) -> None:
        self.store = store

    def look(self) -> Snapshot:
        """Reads the store, which takes milliseconds and holds up nobody: there is no server in this process."""
        from fedrho.server.operations.dashboard.sources import Snapshot
        from fedrho.stored import read_store

        found = read_store(self.store)
        return Snapshot(time.time(), found.runs, (), found.combined, self._budget(found.runs))

    def task(self, run: bytes) -> Task:
        if run not in _tasks(self.store):
            _tasks.cache_clear()  # a server has begun it since
        return _tasks(self.store)[run]

    def _budget(self, views: tuple[RunView, ...]) -> float:
        """As a server takes it: what was set, or else what the runs may come to cost."""
        from fedrho.server.population import ENDED
        from fedrho.server.storage.store import read_budget

        known = read_budget(self.store)
        return (
            math.fsum(view.statement.rho if view.state in ENDED else view.rho_budget for view in views)
            if known is None
            else known
        )


@lru_cache(maxsize=1)
def _tasks(store: Path | str) -> dict[bytes, Task]:
    from fedrho.server.storage.store import read_status
    from fedrho.server.tasks import build_task

    return {one.run: build_task(one.file) for one in read_status(store)}


async def _serve(runs: KeptRuns, port: int) -> None:
    """Until SIGINT or SIGTERM, which is how it is meant to end: exit code 0."""
    from fedrho.server.listen import stop_on_signals
    from fedrho.server.operations.dashboard.port import DashboardPort

    opened, stop, token = DashboardPort("127.0.0.1", port, None), stop_on_signals(), os.urandom(TOKEN_BYTES).hex()
    async with opened.serving(runs, token, live=False):
        console.err.print(f"dashboard: {opened.address}, until Ctrl-C", highlight=False, soft_wrap=True)
        console.err.print(f"token: {token}", highlight=False, soft_wrap=True)
        await stop.wait()
