"""A standby waits for the store as long as another server leads it, takes over afterwards, and ends when it is told to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedrho.protos.signing import SigningKey
from fedrho.server.app import Serving, _opened
from fedrho.server.storage.store import StoreBusy, open_store


def serving(folder: Path, standby: bool) -> Serving:
    return Serving((), folder, SigningKey.generate, standby=standby)


def test_without_standby_a_store_that_is_led_is_an_error_at_once(tmp_path: Path) -> None:
    with open_store(tmp_path / "store"), pytest.raises(StoreBusy):
        asyncio.run(_opened(serving(tmp_path / "store", standby=False), asyncio.Event()))


@pytest.mark.slow
def test_a_standby_takes_over_when_the_leader_is_gone(tmp_path: Path) -> None:
    async def stand_by() -> bool:
        leader = open_store(tmp_path / "store")
        waiting = asyncio.create_task(_opened(serving(tmp_path / "store", standby=True), asyncio.Event()))
        await asyncio.sleep(1.5)
        waited = not waiting.done()
        leader.close()
        async with asyncio.timeout(30):
            (await waiting).close()
        return waited

    assert asyncio.run(stand_by())


@pytest.mark.slow
def test_a_standby_ends_when_it_is_told_to(tmp_path: Path) -> None:
    async def stand_by() -> None:
        stop = asyncio.Event()
        waiting = asyncio.create_task(_opened(serving(tmp_path / "store", standby=True), stop))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        stop.set()
        async with asyncio.timeout(30):
            await waiting

    with open_store(tmp_path / "store"), pytest.raises(StoreBusy):
        asyncio.run(stand_by())
