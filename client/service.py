"""Devices as a service: they wait for their instant and for their conditions, visit, say in a line how it ended, and wait again.

    wait for the instant -> wait for the conditions -> note the beginning -> visit -> note when to come back

Nothing ends it but its owner: not the end of a run, for there may be another, nor a server that is away, changed or mistaken.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fedrho.client.app import Owner, Server, joined, recorded, together, training
from fedrho.client.conditions import Conditions, Interrupted
from fedrho.client.examples import ExampleStore
from fedrho.client.history import HistoryError, since_boot
from fedrho.client.labels import answering
from fedrho.client.participant import BadPlan, CannotTrain, Outcome, Participant, Prove, Result, TlsFailed, WireLost
from fedrho.client.scheduler import Schedule, a_day, within
from fedrho.client.spec import BadSpec, Known, SpecReader
from fedrho.client.transport import ServerRefused
from fedrho.protos.messages import LaterReason, PopulationSpec

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

SLICE_SECONDS: Final = 30.0
"""A wait is looked at anew after that long: a machine that slept meanwhile is not late for more."""
EXPECTED: Final = (BadPlan, BadSpec, CannotTrain, HistoryError, ServerRefused)
"""What a server can do wrong, or a history; waiting a little will not mend it."""

WHY: Final = {
    LaterReason.NOT_ALLOWED: "by the server's own count it has given enough for now",
    LaterReason.PAUSED: "the operator has paused the run",
    LaterReason.NOT_PROVED: "the server wants a token of its set, one that is still valid; --tokens shows it",
}
"""Why a server turns a device away, where it is not that others came first."""

Say = Callable[[str, str], None]
"""Told the name of a device, and one line about it, in which there is nothing of its examples."""


@dataclass(frozen=True)
class Held:
    """The devices of this machine: their names, the models that their examples fit, and a device's examples for a model."""

    names: tuple[str, ...]
    fits: Callable[[str], bool]
    examples: Callable[[str, str], ExampleStore]

    def __contains__(self, model: object) -> bool:
        return isinstance(model, str) and self.fits(model)


async def first_contact(server: Server, histories: Path, conditions: Conditions, say: Say) -> PopulationSpec:
    """What is served, as soon as somebody serves and conditions hold; until then this waits, longer each time.

    A server that is refused leaves a record in every history that there is.
    """
    wire, name = server.wire(), "server"
    reader = SpecReader(wire.population, server.check, since_boot)
    histories.mkdir(parents=True, exist_ok=True)
    service = Service(Schedule(histories / "server.next.json"), server.address, conditions, lambda line: say(name, line))

    async def ask() -> Known:
        with recorded(histories):
            return await reader.read()

    try:
        while (known := await service.one(ask())) is None:
            pass
    finally:
        await wire.close()
    service.schedule.end(server.address, 0.0)
    return known.spec


async def run_service(
    server: Server, held: Held, histories: Path, owner: Owner, say: Say, prove: Mapping[str, Prove] | None = None
) -> None:
    """Until it is cancelled; every device then gives its seat back. Raises HistoryError where a history cannot be used.

    Beside its history `histories/NAME.sqlite` each device has `histories/NAME.next.json`, for when it comes back.
    """
    async with training(owner.training) as on:

        async def run(name: str) -> None:
            history = histories / f"{name}.sqlite"
            train = on(lambda plan: held.examples(name, plan.model), answering(history, owner.limits))
            async with joined(server, history, held, train, (prove or {}).get(name), owner.limits) as participant:
                schedule = Schedule(histories / f"{name}.next.json")
                await Service(schedule, server.address, owner.conditions, lambda line: say(name, line)).forever(participant)

        await together(run(name) for name in held.names)


@dataclass(frozen=True)
class Service:
    """The visits of one device to one population."""

    schedule: Schedule
    population: str
    conditions: Conditions
    say: Callable[[str], None]

    async def forever(self, participant: Participant) -> None:
        """Visits that come to nothing are told once, until something else comes of one."""
        before = ""
        while True:
            outcome = await self.one(participant.take_part())
            line = ""
            if outcome is not None:
                line, seconds = told(outcome), within(outcome.retry)
                self.schedule.end(self.population, seconds)
                if line != before or outcome.result in (Result.COUNTED, Result.NOT_COUNTED):
                    self.say(f"{line}; next visit in {span(seconds)}")
            before = line

    async def one(self, visit: Coroutine[Any, Any, T]) -> T | None:
        """What the visit comes to, when its time has come; None where it came to nothing, and the schedule says when to go on."""
        try:
            await self._ready()
            self.schedule.begin(self.population)
        except BaseException:
            visit.close()
            raise
        try:
            return await self.conditions.during(visit)
        except Interrupted as why:
            self._again(f"interrupted, {why}")
        except TlsFailed as error:
            self._again(f"the server is not believed: {error}")
        except WireLost:
            self._again("the server is away")
        except EXPECTED as error:
            self._tomorrow(_printable(str(error)))
        except Exception as error:  # its text may be about examples
            self._tomorrow(f"stopped by an error of the program ({type(error).__name__})")
        return None

    async def _ready(self) -> None:
        while (left := self.schedule.left(self.population)) > 0:
            await asyncio.sleep(min(left, SLICE_SECONDS))
        await self.conditions.hold(lambda why: self.say(f"waits, {why}"))

    def _again(self, line: str) -> None:
        self.schedule.failed(self.population)
        self.say(f"{line}; next try in {span(self.schedule.left(self.population))}")

    def _tomorrow(self, line: str) -> None:
        self.schedule.end(self.population, a_day())
        self.say(f"{line}; next try in a day")


async def until_told(work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to; SIGINT or SIGTERM cancel it, and raise KeyboardInterrupt once it has ended."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    if task.cancelled():
        raise KeyboardInterrupt
    return task.result()


@contextmanager
def told_at_once() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt at once, wherever the block is: for work with which nobody waits."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told(outcome: Outcome) -> str:
    if outcome.result is Result.FINISHED:
        return "nothing more to give to the runs that there are; `fedrho device ledger` says why"
    zeros = f" with zeros, because {outcome.failure}" if outcome.failure else ""
    why = f", because {WHY[outcome.reason]}" if outcome.reason in WHY else ""
    return f"{outcome.result.value}{zeros}{why}, {outcome.released} of {outcome.steps} steps released"


def span(seconds: float) -> str:
    """A duration as people say it."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _printable(text: str, most: int = 300) -> str:
    """One line, whatever a server sent."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])
