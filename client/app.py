"""The process: one or more devices that visit a server until its run has ended."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedrho.client.conditions import Conditions, Interrupted
from fedrho.client.examples import ExampleStore
from fedrho.client.history import DeviceHistory, HistoryError, since_boot
from fedrho.client.labels import Answer, answered_by, answering, objecting
from fedrho.client.limits import NO_LIMITS, Limits
from fedrho.client.participant import Outcome, Participant, Prove, Result, TlsFailed, Train, WireLost
from fedrho.client.scheduler import draw, within
from fedrho.client.spec import BadSpec, Known, SpecReader, Trust
from fedrho.client.training import TrainingLimits, TrainingProcess
from fedrho.client.transport import ClientTls, GrpcWire
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos import signing
from fedrho.protos.messages import ID_BYTES, CheckIn, DeviceProof, PopulationSpec, RoundPlan
from fedrho.protos.signing import SigningKey

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WITH_TLS = (
    "is `fedrho serve --tls` running there, with a certificate of the same authority for the host in the address, "
    "and does it ask devices for one that you do not have?"
)

Watch = Callable[[str, Outcome], None]
Examples = Callable[[RoundPlan], ExampleStore]
"""Those of one device, for the model of a plan."""


class MakeTrain(Protocol):
    """The training of one device, from its examples and from how it answers for their labels."""

    def __call__(self, examples: Examples, answer: Answer | None = None) -> Train: ...


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
        return f"{host} {key.hex()}" if host.lower() in LOOPBACK else self.address

    def check(self, key: bytes, epoch: int) -> None:
        """Raises BadSpec for a key that was not expected."""
        if self.population_key not in (None, key):
            raise BadSpec(f"{self.address} serves another population than the one expected: its key is {key.hex()}")


@dataclass(frozen=True)
class Owner:
    """What the owner of a device says: privacy terms that are good enough, when to take part, and what training may use."""

    limits: Limits = NO_LIMITS
    conditions: Conditions = field(default_factory=lambda: Conditions(()))
    training: TrainingLimits = field(default_factory=TrainingLimits)


async def read_population(server: Server, seconds: float) -> PopulationSpec:
    """What is served; raises ServerUnreachable, and BadSpec where it is not the population expected."""
    wire = server.wire()
    reader = SpecReader(wire.population, server.check, since_boot)
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return (await reader.read()).spec
                except TlsFailed as error:
                    raise ServerUnreachable(f"the server at {server.address} is not believed: {error}") from error
                except WireLost:
                    await asyncio.sleep(0.2)
    except TimeoutError as error:
        hint = WITH_TLS if server.tls else "is `fedrho serve` running there, and without --tls?"
        raise ServerUnreachable(f"no server answered at {server.address} within {seconds:g} s; {hint}") from error
    finally:
        await wire.close()


@contextmanager
def recorded(histories: Path) -> Iterator[None]:
    """A server that is refused before any device has visited it leaves a record in every history of the folder.

    Where there is none yet, in one that is called `first-contact` and belongs to no device.
    """
    try:
        yield
    except BadSpec as refused:
        for path in sorted(histories.glob("*.sqlite")) or [histories / "first-contact.sqlite"]:
            with suppress(HistoryError), closing(DeviceHistory(path)) as history:
                history.note("refused", str(refused))
        raise


async def run_devices(
    server: Server,
    devices: Mapping[str, ExampleStore],
    models: Container[str],
    histories: Path,
    patience: float,
    watch: Watch,
    prove: Mapping[str, Prove] | None = None,
    owner: Owner | None = None,
    waiting: Callable[[str, str], None] = lambda name, why: None,
) -> Counter[Result]:
    """Lets every device take part until the runs have ended or it has given all it may; counts how the visits ended.

    Each device has its own connection and its own history file `histories/NAME.sqlite`; training takes turns in one process.
    `models` are those that the examples fit; `prove` holds what each device shows a population that wants to know who vouches for
    it; no visit begins or goes on where the owner's conditions do not hold, and `waiting` is told which. Raises ServerUnreachable
    when the server stays away for `patience` seconds.
    """
    results, owner = Counter[Result](), owner or Owner()
    async with training(owner.training, warm=True) as on:

        def seen(name: str, outcome: Outcome) -> None:
            results[outcome.result] += 1
            watch(name, outcome)

        async def run(name: str, examples: ExampleStore) -> None:
            history = histories / f"{name}.sqlite"
            train = on(lambda _: examples, answering(history, owner.limits))
            async with joined(server, history, models, train, (prove or {}).get(name), owner.limits) as participant:
                visits = Visits(participant, server.address, patience, owner.conditions)
                await visits.run(lambda outcome: seen(name, outcome), lambda why: waiting(name, why))

        await together(run(name, examples) for name, examples in devices.items())
    return results


async def together(devices: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Until all have ended; the first error ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(device)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


@asynccontextmanager
async def training(limits: TrainingLimits, warm: bool = False) -> AsyncIterator[MakeTrain]:
    """Makes the training of each device, given its examples, and how it answers for their labels where a plan asks for that; all
    take turns in one process, which ends with the block. That process sees answers alone where they are asked for.

    It starts with the first training, or at once to be `warm`.
    """
    process = TrainingProcess(limits)

    def on(examples: Examples, answer: Answer | None = None) -> Train:
        async def train(plan: RoundPlan, weights: FloatVector) -> Update:
            held = examples(plan)
            if plan.labels is not None:
                held = await asyncio.to_thread(answered_by(answer), plan, held)
            return await process.train(plan, weights, held)

        return train

    warming = {asyncio.create_task(process.warm())} if warm else set()
    try:
        yield on
    finally:
        for task in warming:
            task.cancel()
            await asyncio.wait({task})
        await process.close()


@asynccontextmanager
async def joined(
    server: Server, history: Path, models: Container[str], train: Train, prove: Prove | None, limits: Limits = NO_LIMITS
) -> AsyncIterator[Participant]:
    """One device, its connection and its history open while the block runs; raises HistoryError."""
    async with AsyncExitStack() as opened:
        remembered, wire = DeviceHistory(history, limits=limits), server.wire()
        opened.callback(remembered.close)
        opened.push_async_callback(wire.close)
        reader = SpecReader(wire.population, trusting(server, remembered), since_boot)
        yield Participant(
            wire, reader, remembered, models, train, asyncio.sleep, new_id, prove, limits, objecting(history, limits)
        )


def new_id() -> bytes:
    return os.urandom(ID_BYTES)


def prover(key: SigningKey, credential: bytes) -> Prove:
    """Shows who vouches for a device, in a way that is good for one check-in."""

    def prove(known: Known, message: CheckIn) -> DeviceProof:
        runs = [willing.run for willing in message.willing]
        signature = signing.prove(key, known.public_key, known.etag, message.request_id, runs)
        return DeviceProof(credential, known.etag, signature)

    return prove


def trusting(server: Server, history: DeviceHistory) -> Trust:
    """What this device has pinned, by its owner's word or by what it met here first."""
    if server.population_key is not None:
        history.pin(server.name_for(server.population_key), server.population_key)

    def trust(key: bytes, epoch: int) -> None:
        server.check(key, epoch)
        history.trust(server.name_for(key), key, epoch)

    return trust


@dataclass(frozen=True)
class Visits:
    """One device's visits to one server, until there is nothing more to do."""

    participant: Participant
    address: str
    patience: float
    conditions: Conditions

    async def run(self, watch: Callable[[Outcome], None], waiting: Callable[[str], None]) -> None:
        clock = asyncio.get_running_loop().time
        last_seen = clock()
        while True:
            try:
                outcome = await self.conditions.during(self.participant.take_part())
            except Interrupted:
                await self.conditions.hold(waiting)
                await asyncio.sleep(draw(0.2, 1.0))
                last_seen = clock()
                continue
            except WireLost as error:
                if clock() - last_seen > self.patience:
                    raise ServerUnreachable(f"the server at {self.address} has been away for {self.patience:g} s") from error
                await asyncio.sleep(draw(0.2, 1.0))
                continue
            last_seen = clock()
            watch(outcome)
            if outcome.result is Result.FINISHED:
                return
            await asyncio.sleep(within(outcome.retry))
