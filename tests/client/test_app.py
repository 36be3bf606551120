"""The client's process: many devices, one server, and no server at all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from fedrho.client.app import Server, ServerUnreachable, read_population, run_devices
from fedrho.client.examples import ArrayExamples, ExampleStore
from fedrho.client.history import HistoryError
from fedrho.client.participant import Outcome, Result
from fedrho.client.spec import BadSpec
from fedrho.protos.messages import PopulationSpec
from tests.client.fleet import MODELS, contributions, open_small_run, small_task
from tests.client.serving import dead_port, serving
from tests.models.reference import made_up
from tests.server.one_run import SIGNER


def examples(count: int) -> dict[str, ExampleStore]:
    return {f"device-{number}": ArrayExamples(*made_up(6, seed=number)) for number in range(count)}


def unwatched(name: str, outcome: Outcome) -> None:
    pass


@pytest.mark.parametrize("pinned", [False, True])
def test_population_is_read_from_a_server(pinned: bool) -> None:
    engine = open_small_run(small_task(), now=time.monotonic())

    async def read() -> PopulationSpec:
        async with serving(engine) as address:
            return await read_population(Server(address, population_key=SIGNER.public if pinned else None), 10.0)

    assert asyncio.run(read()).tasks == (engine.coordinator.spec(),)


def test_population_with_another_key_than_the_one_expected_is_not_believed() -> None:
    engine = open_small_run(small_task(), now=time.monotonic())

    async def read() -> PopulationSpec:
        async with serving(engine) as address:
            return await read_population(Server(address, population_key=bytes(32)), 10.0)

    with pytest.raises(BadSpec, match=f"its key is {SIGNER.public.hex()}"):
        asyncio.run(read())


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_server_that_does_not_answer_is_given_up_in_the_time_given(silent: bool, seconds: float) -> None:
    before = time.monotonic()
    unreachable = f"within {seconds:g} s"
    with dead_port(listen=silent) as address, pytest.raises(ServerUnreachable, match=f"at {address} {unreachable}"):
        asyncio.run(read_population(Server(address), seconds))
    assert seconds - 0.05 <= time.monotonic() - before < seconds + 1.0


def test_devices_take_part_until_the_run_has_ended(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=2, goal=2), now=time.monotonic())
    seen: list[tuple[str, Result]] = []

    async def run() -> Counter[Result]:
        async with serving(engine) as address:
            return await run_devices(
                Server(address), examples(3), MODELS, tmp_path, 10.0, lambda name, outcome: seen.append((name, outcome.result))
            )

    results = asyncio.run(run())
    assert engine.finished
    assert results == Counter(result for _, result in seen)
    assert (results[Result.COUNTED], results[Result.FINISHED]) == (4, 3)
    given = [contributions(tmp_path / f"device-{number}.sqlite") for number in range(3)]
    assert sorted(step for steps in given for _, step in steps) == [1, 1, 2, 2]


def test_devices_give_up_on_a_server_that_stays_away(tmp_path: Path) -> None:
    with dead_port() as address, pytest.raises(ServerUnreachable, match=r"away for 0\.2 s"):
        asyncio.run(run_devices(Server(address), examples(2), MODELS, tmp_path, 0.2, unwatched))


def test_device_with_a_damaged_history_takes_part_in_nothing(tmp_path: Path) -> None:
    engine = open_small_run(small_task(), now=time.monotonic())
    (tmp_path / "device-0.sqlite").write_bytes(b"not a database at all" * 100)

    async def run() -> None:
        async with serving(engine) as address:
            await run_devices(Server(address), examples(1), MODELS, tmp_path, 1.0, unwatched)

    with pytest.raises(HistoryError):
        asyncio.run(run())
    assert engine.round.sessions == {}
