"""The client's process: many devices, one server, and no server at all."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedrho.client.app import Owner, Server, ServerUnreachable, read_population, recorded, run_devices
from fedrho.client.conditions import Conditions
from fedrho.client.examples import ArrayExamples, ExampleStore
from fedrho.client.history import DeviceHistory, HistoryError
from fedrho.client.history_view import read_ledger
from fedrho.client.participant import Outcome, Result
from fedrho.client.spec import BadSpec
from fedrho.protos.messages import PopulationSpec
from tests.client import hostile
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

    began = engine.population.members[engine.run].began
    assert asyncio.run(read()).tasks == (replace(engine.coordinator.spec(), began=began),)


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


@pytest.mark.slow
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


WITHOUT_TENSORFLOW = """
import asyncio, sys
from pathlib import Path
from fedrho.client.app import Server, run_devices
from fedrho.client.examples import ArrayExamples
import numpy as np
examples = ArrayExamples(np.ones((4, 64), np.float32), np.zeros(4, np.int32))
results = asyncio.run(run_devices(Server(sys.argv[1]), {"a": examples}, {"digits-logistic"}, Path(sys.argv[2]), 10.0, print))
print(results)
print(sorted(sys.modules.keys() & {"tensorflow", "keras"}))
"""


@pytest.mark.slow
def test_client_that_trains_does_not_load_tensorflow_itself(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=1), now=time.monotonic())

    async def run() -> str:
        async with serving(engine) as address:
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", WITHOUT_TENSORFLOW, address, str(tmp_path), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await client.communicate()
            return output.decode()

    lines = asyncio.run(run()).splitlines()
    assert engine.finished
    assert "failure=''" in lines[0]
    assert lines[-1] == "[]"


@pytest.mark.slow
def test_examples_that_kill_their_process_do_not_hurt_the_client(tmp_path: Path) -> None:
    """Two devices, one of them deadly: both are counted, and the run goes to its end."""
    engine = open_small_run(small_task(steps=2, goal=2), now=time.monotonic())
    devices: dict[str, ExampleStore] = {"good": examples(1)["device-0"], "deadly": hostile.Does(hostile.is_killed)}
    seen: list[tuple[str, Outcome]] = []

    async def run() -> Counter[Result]:
        async with serving(engine) as address:
            return await run_devices(
                Server(address), devices, MODELS, tmp_path, 60.0, lambda name, outcome: seen.append((name, outcome))
            )

    assert asyncio.run(run())[Result.COUNTED] == 4
    assert engine.finished
    failures = {(name, outcome.failure) for name, outcome in seen if outcome.result is Result.COUNTED}
    assert failures == {("good", ""), ("deadly", "the training process was ended by SIGKILL")}


@dataclass
class Switch:
    name: str = "switch"
    on: bool = False

    def unmet(self) -> str | None:
        return None if self.on else "it is off"


@pytest.mark.slow
def test_devices_wait_for_conditions_and_then_take_part_to_the_end(tmp_path: Path) -> None:
    engine, switch = open_small_run(small_task(steps=1), now=time.monotonic()), Switch()
    waited: list[str] = []

    async def run() -> Counter[Result]:
        async with serving(engine) as address:
            conditions = Conditions([switch])
            devices = asyncio.create_task(
                run_devices(
                    Server(address),
                    examples(1),
                    MODELS,
                    tmp_path,
                    10.0,
                    unwatched,
                    owner=Owner(conditions=conditions),
                    waiting=lambda name, why: waited.append(f"{name}: {why}"),
                )
            )
            while not waited:
                await asyncio.sleep(0.02)
            assert engine.round.sessions == {}
            switch.on = True
            return await devices

    assert asyncio.run(run()) == {Result.COUNTED: 1, Result.FINISHED: 1}
    assert waited == ["device-0: switch: it is off"]


@pytest.mark.parametrize("names", [["a", "b"], []])
def test_server_that_is_refused_before_any_visit_leaves_a_record_in_every_history(names: list[str], tmp_path: Path) -> None:
    engine = open_small_run(small_task(), now=time.monotonic())
    for name in names:
        DeviceHistory(tmp_path / f"{name}.sqlite").close()

    async def run() -> None:
        async with serving(engine) as address:
            await read_population(Server(address, population_key=bytes(31) + b"\x02"), 5.0)

    with pytest.raises(BadSpec, match="another population"), recorded(tmp_path):
        asyncio.run(run())
    for name in names or ["first-contact"]:
        assert [incident.kind for incident in read_ledger(tmp_path / f"{name}.sqlite").incidents] == ["refused"]
