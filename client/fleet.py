"""Many devices in one process, for tests and load: each speaks the whole protocol, trains, and keeps a ledger of its own.

A device is a `Participant` with a `DeviceHistory`, as on a machine of its own, and every contribution goes through that file. Two
things are shared that devices elsewhere do not share: connections, in a small pool, and the thread that trains. A history is open
during a visit only, so there are as many open files as visits, not as devices.
"""

from __future__ import annotations

import asyncio
import math
import resource
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from fedrho.client.app import Server, ServerUnreachable, new_id, together, trusting
from fedrho.client.history import DeviceHistory, since_boot
from fedrho.client.labels import objecting
from fedrho.client.participant import Outcome, Participant, Prove, Result, Train, WireLost
from fedrho.client.scheduler import draw, within
from fedrho.client.spec import Known, SpecReader
from fedrho.client.transport import GrpcWire
from fedrho.protos.messages import (
    Abort,
    Assignment,
    BeginUpload,
    CheckIn,
    PopulationAnswer,
    PopulationRequest,
    PrivacyTerms,
    Receipt,
    Reservation,
    RoundPlan,
    StatusAnswer,
    StatusRequest,
    TryLater,
    Upload,
)

CALLS: Final = 4
"""At once on a connection: half of what a server allows, because it may still be closing calls that are over for us."""
FILES: Final = 6
"""That a visit may hold open."""
SPARE_FILES: Final = 200

INTERRUPTED: Final = "interrupted"
VANISHED: Final = "vanished"
AWAY: Final = "server away"


class Vanished(Exception):
    """The device is gone before its upload, without a word."""


@dataclass(frozen=True)
class Habits:
    """When devices are there, and how well. Durations in seconds, shares from 0 to 1, links in bytes a second.

    First visits are spread over `spread`. With a `day`, a device is there for half of each, its night, and is interrupted at its
    end; nights begin within half a day of each other. At every visit a `drop_out` of the devices vanishes after training, and
    `slow` of all devices have a link of `link`.
    """

    spread: float = 0.0
    day: float = 0.0
    drop_out: float = 0.0
    slow: float = 0.0
    link: float = 4096.0

    def night(self, begins: float, now: float) -> tuple[float, float]:
        """Seconds until the device is there, and until it is gone again; `begins` is a share of the day."""
        if self.day <= 0:
            return 0.0, math.inf
        hour = (now / self.day - begins) % 1.0
        return (0.0, (0.5 - hour) * self.day) if hour < 0.5 else ((1.0 - hour) * self.day, (1.5 - hour) * self.day)


@dataclass
class Counts:
    """What came of the visits so far, how far the runs are, when the server was last heard, and whether it was gone at last."""

    visits: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    released: int = 0
    steps: int = 0
    heard: float = 0.0
    gone: bool = False
    open: int = 0

    def saw(self, outcome: Outcome, now: float) -> None:
        self.heard, self.gone = now, False
        self.visits[outcome.result.value] += 1
        self.finished += outcome.result is Result.FINISHED
        self.released, self.steps = max(self.released, outcome.released), outcome.steps


@dataclass(frozen=True)
class Ledgers:
    """At the end: contributions that the devices' histories hold, and those that were counted and that none holds."""

    held: int
    lost: int


class Fleet:
    """Devices `0` to `count - 1`, their histories in one folder.

    `train` makes the training of a device; `seed` decides about habits, never about privacy. `prove` is as for `run_devices`.
    """

    def __init__(
        self,
        server: Server,
        count: int,
        models: Container[str],
        train: Callable[[int], Train],
        histories: Path,
        habits: Habits = Habits(),
        connections: int = 32,
        seed: int = 0,
        prove: Mapping[str, Prove] | None = None,
    ) -> None:
        self.counts = Counts()
        self._over = asyncio.Event()
        self._server = server
        self._models = models
        self._habits = habits
        self._connections = connections
        self._proves = prove or {}
        random = Random(seed)
        self._devices = [
            Device(name(number), histories / f"{name(number)}.sqlite", train(number), Random(random.random()))
            for number in range(count)
        ]

    async def run(self, patience: float) -> None:
        """Until every device has given all it may, or the runs have ended, which those who are not there need not hear.

        Raises ServerUnreachable as `run_devices` does.
        """
        wires = [self._server.wire() for _ in range(min(self._connections, len(self._devices)))]
        turns = [asyncio.Semaphore(CALLS) for _ in wires]
        self.counts.heard = time.monotonic()
        try:
            with more_files() as visits:
                room = asyncio.Semaphore(visits)
                await together(
                    self._live(device, Shared(wires[number % len(wires)], turns[number % len(wires)]), room, patience)
                    for number, device in enumerate(self._devices)
                )
        finally:
            for wire in wires:
                await wire.close()

    def ledgers(self) -> Ledgers:
        """Reads every history anew, from its file."""
        held = [(device, recorded(device.path)) for device in self._devices]
        lost = sum(len(device.counted - set(steps)) for device, steps in held)
        return Ledgers(sum(len(steps) for _, steps in held), lost)

    async def _live(self, device: Device, shared: Shared, room: asyncio.Semaphore, patience: float) -> None:
        begins, slow = device.random.random() / 2.0, device.random.random() < self._habits.slow
        wire = FleetWire(shared, self._habits.link if slow else math.inf)
        device.reader = SpecReader(wire.population, device.trust(self._server), since_boot)
        await asyncio.sleep(device.random.uniform(0.0, self._habits.spread))
        while True:
            absent, _ = self._habits.night(begins, time.monotonic())
            if absent and await self._over_within(absent):
                return
            async with room:
                pause = await self._visit(device, wire, begins)
            if pause is None or (self._over.is_set() and self.counts.gone):
                return
            if time.monotonic() - self.counts.heard > patience:
                raise ServerUnreachable(f"the server at {self._server.address} has been away for {patience:g} s")
            await asyncio.sleep(pause)

    async def _over_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()

    async def _visit(self, device: Device, wire: FleetWire, begins: float) -> float | None:
        """Seconds until the next, None when there is none."""
        _, there = self._habits.night(begins, time.monotonic())
        vanishes = device.random.random() < self._habits.drop_out
        wire = replace(wire, vanishes=vanishes)
        self.counts.open += 1
        try:
            with device.opened() as history:
                participant = device.participant(wire, history, self._models, self._proves.get(device.name))
                async with asyncio.timeout(None if math.isinf(there) else there):
                    outcome = await participant.take_part()
            if outcome.result is Result.COUNTED:
                device.counted.add(device.latest[0])
        except WireLost:
            self.counts.visits[AWAY] += 1
            self.counts.gone = True
            return draw(0.2, 1.0)
        except TimeoutError:
            self.counts.visits[INTERRUPTED] += 1
            return draw(0.2, 1.0)
        except Vanished:
            self.counts.visits[VANISHED] += 1
            return draw(0.2, 1.0)
        finally:
            self.counts.open -= 1
        self.counts.saw(outcome, time.monotonic())
        if self.counts.released == self.counts.steps:
            self._over.set()
        return None if outcome.result is Result.FINISHED else within(outcome.retry)


@dataclass
class Device:
    """What lasts from one visit to the next. `counted` are the runs and steps that the server said it counted."""

    name: str
    path: Path
    train: Train
    random: Random
    counted: set[tuple[bytes, int]] = field(default_factory=set)
    latest: list[tuple[bytes, int]] = field(default_factory=list)
    reader: SpecReader | None = None
    history: DeviceHistory | None = None

    def trust(self, server: Server) -> Callable[[bytes, int], None]:
        def trust(key: bytes, epoch: int) -> None:
            assert self.history is not None
            trusting(server, self.history)(key, epoch)

        return trust

    @contextmanager
    def opened(self) -> Iterator[DeviceHistory]:
        self.history = DeviceHistory(self.path)
        try:
            yield self.history
        finally:
            self.history.close()
            self.history = None

    def participant(self, wire: FleetWire, history: DeviceHistory, models: Container[str], prove: Prove | None) -> Participant:
        assert self.reader is not None
        seen = Seen(history, self.latest)
        objects = objecting(self.path)
        return Participant(wire, self.reader, seen, models, self.train, asyncio.sleep, new_id, prove, labels=objects)


@dataclass(frozen=True)
class Seen:
    """A history, and what it recorded last."""

    history: DeviceHistory
    latest: list[tuple[bytes, int]]

    def allows(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        return self.history.allows(run, step, terms)

    def exhausted(self, run: bytes, terms: PrivacyTerms) -> bool:
        return self.history.exhausted(run, terms)

    def record(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        self.latest[:] = [(run, step)]
        return self.history.record(run, step, terms)

    def tag(self, run: bytes) -> bytes:
        return self.history.tag(run)

    def hear(self, known: Known) -> None:
        self.history.hear(known)

    def note(self, kind: str, detail: str, run: bytes = b"") -> None:
        self.history.note(kind, detail, run)


@dataclass(frozen=True)
class Shared:
    """A connection of several devices, and the calls that it may still take."""

    wire: GrpcWire
    turns: asyncio.Semaphore


@dataclass(frozen=True)
class FleetWire:
    """One device's calls over a shared connection, its link, and whether it vanishes before it uploads."""

    shared: Shared
    link: float
    vanishes: bool = False

    def to(self, address: str) -> FleetWire:
        return replace(self, shared=replace(self.shared, wire=self.shared.wire.to(address)))

    async def population(self, request: PopulationRequest) -> PopulationAnswer:
        async with self.shared.turns:
            return await self.shared.wire.population(request)

    async def check_in(self, message: CheckIn) -> Assignment | TryLater:
        async with self.shared.turns:
            return await self.shared.wire.check_in(message)

    async def artifact(self, sha256: bytes, size: int) -> bytes:
        async with self.shared.turns:
            data = await self.shared.wire.artifact(sha256, size)
        await asyncio.sleep(size / self.link)
        return data

    async def begin_upload(self, message: BeginUpload) -> Reservation:
        if self.vanishes:
            raise Vanished
        async with self.shared.turns:
            return await self.shared.wire.begin_upload(message)

    async def upload(self, message: Upload, plan: RoundPlan) -> Receipt:
        async with self.shared.turns:
            return await self.shared.wire.upload(message, plan, self._pace)

    async def status(self, message: StatusRequest) -> StatusAnswer:
        async with self.shared.turns:
            return await self.shared.wire.status(message)

    async def abort(self, message: Abort) -> None:
        await self.shared.wire.abort(message)

    async def _pace(self, size: int) -> None:
        await asyncio.sleep(size / self.link)


def name(number: int) -> str:
    return f"device-{number:05d}"


def recorded(path: Path) -> list[tuple[bytes, int]]:
    """The runs and steps in the file of a history, read beside it; none where there is no file."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return [(bytes(run), step) for run, step in database.execute("SELECT run, step FROM contributions")]


@contextmanager
def more_files() -> Iterator[int]:
    """Lets this process open as many files as it may, and says for how many visits at a time that is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, max(soft, 4096))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield max(1, min(512, (wanted - SPARE_FILES) // FILES))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
