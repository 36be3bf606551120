"""The process: one or more devices that visit a server until its run has ended."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedrho.client.examples import ExampleStore
from fedrho.client.history import DeviceHistory
from fedrho.client.participant import Outcome, Participant, Result, WireLost
from fedrho.client.transport import ClientTls, GrpcWire
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import ID_BYTES, PopulationSpec, RoundPlan

SHORTEST_PAUSE = 0.05
WITH_TLS = (
    "is `fedrho serve --tls` running there, with a certificate of the same authority for the host in the address, "
    "and does it ask devices for one that you do not have?"
)

Watch = Callable[[str, Outcome], None]


class ServerUnreachable(ConnectionError):
    """No server answered in the time allowed."""


async def read_population(address: str, seconds: float, tls: ClientTls | None = None) -> PopulationSpec:
    """What runs at `address`; raises ServerUnreachable."""
    wire = GrpcWire(address, tls)
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await wire.population()
                except WireLost:
                    await asyncio.sleep(0.2)
    except TimeoutError as error:
        hint = WITH_TLS if tls else "is `fedrho serve` running there, and without --tls?"
        raise ServerUnreachable(f"no server answered at {address} within {seconds:g} s; {hint}") from error
    finally:
        await wire.close()


async def run_devices(
    address: str,
    devices: Mapping[str, ExampleStore],
    histories: Path,
    patience: float,
    watch: Watch,
    tls: ClientTls | None = None,
) -> Counter[Result]:
    """Lets every device take part until the run has ended or it has given all it may; counts how the visits ended.

    Each device has its own connection and its own history file `histories/NAME.sqlite`; training takes turns on one thread.
    Raises ServerUnreachable when the server stays away for `patience` seconds.
    """
    from fedrho.client.trainer import LocalTrainer  # TensorFlow, which nobody needs to hear that no server is there

    trainer, results = LocalTrainer(), Counter[Result]()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="train") as pool:

        def seen(name: str, outcome: Outcome) -> None:
            results[outcome.result] += 1
            watch(name, outcome)

        async def run(name: str, examples: ExampleStore) -> None:
            async def train(plan: RoundPlan, weights: FloatVector) -> Update:
                return await asyncio.get_running_loop().run_in_executor(pool, trainer.train, plan, weights, examples)

            history = DeviceHistory(histories / f"{name}.sqlite")
            wire = GrpcWire(address, tls)
            participant = Participant(wire, history, train, asyncio.sleep, lambda: os.urandom(ID_BYTES))
            try:
                await _visits(participant, address, patience, lambda outcome: seen(name, outcome))
            finally:
                await wire.close()
                history.close()

        try:
            async with asyncio.TaskGroup() as group:
                for name, examples in devices.items():
                    group.create_task(run(name, examples))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return results


async def _visits(participant: Participant, address: str, patience: float, watch: Callable[[Outcome], None]) -> None:
    loop = asyncio.get_running_loop()
    last_seen = loop.time()
    while True:
        try:
            outcome = await participant.take_part()
        except WireLost as error:
            if loop.time() - last_seen > patience:
                raise ServerUnreachable(f"the server at {address} has been away for {patience:g} s") from error
            await asyncio.sleep(_draw(0.2, 1.0))
            continue
        last_seen = loop.time()
        watch(outcome)
        if outcome.result is Result.FINISHED:
            return
        await asyncio.sleep(_pause(outcome))


def _pause(outcome: Outcome) -> float:
    return _draw(outcome.retry.min_seconds, outcome.retry.max_seconds)


def _draw(least: float, most: float) -> float:
    """Uniform in the window, and never so soon that a mistaken server would be flooded."""
    return max(SHORTEST_PAUSE, secrets.SystemRandom().uniform(least, most))
