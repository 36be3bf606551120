"""The process: one or more devices that visit a server until its run has ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedrho.client.examples import ExampleStore
from fedrho.client.history import DeviceHistory
from fedrho.client.participant import Outcome, Participant, Prove, Result, WireLost
from fedrho.client.spec import BadSpec, Known, SpecReader, Trust
from fedrho.client.transport import ClientTls, GrpcWire
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos import signing
from fedrho.protos.messages import ID_BYTES, CheckIn, DeviceProof, PopulationSpec, RoundPlan
from fedrho.protos.signing import SigningKey

SHORTEST_PAUSE = 0.05
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WITH_TLS = (
    "is `fedrho serve --tls` running there, with a certificate of the same authority for the host in the address, "
    "and does it ask devices for one that you do not have?"
)

Watch = Callable[[str, Outcome], None]


class ServerUnreachable(ConnectionError):
    """No server answered in the time allowed."""


@dataclass(frozen=True)
class Server:
    """Where a population is, and what a device must know to believe it.

    With `population_key`, 32 bytes, no other population is believed; without, each device believes the first that it meets there.
    """

    address: str
    tls: ClientTls | None = None
    population_key: bytes | None = None

    def wire(self) -> GrpcWire:
        return GrpcWire(self.address, self.tls)

    def name_for(self, key: bytes) -> str:
        """Under which a device remembers it: on this machine, where ports change hands and nobody is in between, by its key."""
        host = self.address.rpartition(":")[0].strip("[]")
        return f"{host} {key.hex()}" if host in LOOPBACK else self.address

    def check(self, key: bytes, epoch: int) -> None:
        """Raises BadSpec for a key that was not expected."""
        if self.population_key not in (None, key):
            raise BadSpec(f"{self.address} serves another population than the one expected: its key is {key.hex()}")


async def read_population(server: Server, seconds: float) -> PopulationSpec:
    """What is served; raises ServerUnreachable, and BadSpec where it is not the population expected."""
    wire = server.wire()
    reader = SpecReader(wire.population, server.check, time.monotonic)
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return (await reader.read()).spec
                except WireLost:
                    await asyncio.sleep(0.2)
    except TimeoutError as error:
        hint = WITH_TLS if server.tls else "is `fedrho serve` running there, and without --tls?"
        raise ServerUnreachable(f"no server answered at {server.address} within {seconds:g} s; {hint}") from error
    finally:
        await wire.close()


async def run_devices(
    server: Server,
    devices: Mapping[str, ExampleStore],
    models: Container[str],
    histories: Path,
    patience: float,
    watch: Watch,
    prove: Mapping[str, Prove] | None = None,
) -> Counter[Result]:
    """Lets every device take part until the runs have ended or it has given all it may; counts how the visits ended.

    Each device has its own connection and its own history file `histories/NAME.sqlite`; training takes turns on one thread.
    `models` are those that the examples fit; `prove` holds what each device shows a population that wants to know who vouches for
    it. Raises ServerUnreachable when the server stays away for `patience` seconds.
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

            history, wire = DeviceHistory(histories / f"{name}.sqlite"), server.wire()
            participant = Participant(
                wire,
                SpecReader(wire.population, _trusting(server, history), time.monotonic),
                history,
                models,
                train,
                asyncio.sleep,
                lambda: os.urandom(ID_BYTES),
                (prove or {}).get(name),
            )
            try:
                await _visits(participant, server.address, patience, lambda outcome: seen(name, outcome))
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


def prover(key: SigningKey, credential: bytes) -> Prove:
    """Shows who vouches for a device, in a way that is good for one check-in."""

    def prove(known: Known, message: CheckIn) -> DeviceProof:
        runs = [willing.run for willing in message.willing]
        signature = signing.prove(key, known.public_key, known.etag, message.request_id, runs)
        return DeviceProof(credential, known.etag, signature)

    return prove


def _trusting(server: Server, history: DeviceHistory) -> Trust:
    """What this device has pinned, by its owner's word or by what it met here first."""
    if server.population_key is not None:
        history.pin(server.name_for(server.population_key), server.population_key)

    def trust(key: bytes, epoch: int) -> None:
        server.check(key, epoch)
        history.trust(server.name_for(key), key, epoch)

    return trust


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
