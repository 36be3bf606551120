"""A dashboard over real runs behind real ports, and a caller that speaks HTTP to it, byte for byte where it has to."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fedrho.privacy.noise import SystemNoise
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.operations.dashboard.port import DashboardPort
from fedrho.server.operations.dashboard.sources import ServedRuns
from fedrho.server.storage.store import open_store
from fedrho.server.tasks import Task
from tests.server.operating import Site, site


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def cookie(self) -> str:
        return self.headers.get("set-cookie", "").partition(";")[0]


@dataclass(frozen=True)
class Browser:
    """Without a browser's manners: it sends what it is told, and follows nothing."""

    port: int

    async def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        return await asyncio.to_thread(self._ask, path, method, body, headers)

    async def login(self, token: str, **headers: str) -> Answer:
        return await self.ask("/login", "POST", f"token={quote(token)}", **headers)

    def _ask(self, path: str, method: str, body: str, headers: Mapping[str, str]) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body.encode() if body else None, named)
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): text for key, text in answer.getheaders()}, answer.read().decode())


@dataclass(frozen=True)
class Seen(Site):
    """With a browser that is logged in."""

    browser: Browser
    cookie: str

    async def page(self, path: str) -> str:
        answer = await self.browser.ask(path, cookie=self.cookie)
        assert answer.status == 200, (path, answer.status)
        return answer.text


@asynccontextmanager
async def watched(folder: Path, *tasks: Task) -> AsyncIterator[Seen]:
    """Runs in a store in `folder`, their dashboard, and an operator in front of it."""
    with open_store(folder / "store") as store:
        port = DashboardPort("127.0.0.1", 0, None)
        async with site(folder, *tasks, store=store) as place:
            source = ServedRuns(place.population, place.metrics, folder / "store")
            async with port.serving(source, place.access.token):
                browser = Browser(int(port.address.rpartition(":")[2]))
                answer = await browser.login(place.access.token)
                assert answer.status == 303
                yield Seen(**vars(place), browser=browser, cookie=answer.cookie)


def begun(folder: Path, task: Task) -> None:
    """A run more in a store, which no server serves."""
    with open_store(folder) as store:
        around = Surroundings(SystemNoise(), store, lambda: task.file.name.encode().ljust(16), [])
        open_run(task, around, lambda: np.zeros(4, dtype=np.float32), 1_790_000_000.0)


def text_of(html: str) -> str:
    """What a page says, without what is between its brackets."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
