"""When a device takes part: conditions that are looked at before a visit, and five times a second until it is over.

A condition is an object with a name that can say why not now. `--when NAME=SETTING` makes one: of those that come with fedrho
(`fedrho.client.computer`), or of a class that its user has registered as an entry point of the group `fedrho.conditions`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

GROUP: Final = "fedrho.conditions"
PERIOD_SECONDS: Final = 0.2
WAITING_SECONDS: Final = 1.0
"""Between two looks while nothing is under way."""
ANSWER_SECONDS: Final = 0.3
"""A condition that takes longer to say whether it holds does not hold. With the abort of a session this stays within a second."""


class Condition(Protocol):
    """What must hold for a device to take part, now and until its visit is over."""

    @property
    def name(self) -> str: ...

    def unmet(self) -> str | None:
        """Why it does not hold, in a few words; None while it does. Called on a thread, five times a second: must be quick."""
        ...


Make = Callable[[str], Condition]
"""A condition with the setting that stands after `=`, or with an empty one; raises ValueError for one that makes no sense."""


class BadCondition(ValueError):
    """What was asked for is no condition."""


class Interrupted(Exception):
    """A visit was broken off because a condition no longer holds; the text says which."""


def condition(text: str) -> Condition:
    """The condition of `NAME` or `NAME=SETTING`; raises BadCondition, which says what is allowed."""
    name, _, setting = text.partition("=")
    made = _known()
    if name not in made:
        raise BadCondition(f"{text!r}: no such condition; allowed: {', '.join(sorted(made))}")
    try:
        return made[name](setting)
    except ValueError as error:
        raise BadCondition(f"{text!r}: {error}") from error


def _known() -> Mapping[str, Make]:
    """Those of fedrho, and the user's own, which may not take their names."""
    from fedrho.client.computer import BUILT_IN

    return {entry.name: _loader(entry) for entry in entry_points(group=GROUP)} | dict(BUILT_IN)


def _loader(entry: Any) -> Make:
    def make(setting: str) -> Condition:
        try:
            made: Make = entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"entry point {entry.value} cannot be loaded ({error})") from error
        return made(setting)

    return make


def first_unmet(conditions: Sequence[Condition]) -> str | None:
    """The first condition that does not hold, with its reason; one that fails does not hold."""
    for one in conditions:
        try:
            reason = one.unmet()
        except Exception as error:  # a user's own may raise anything, and its text may say anything
            reason = f"it cannot be found out ({type(error).__name__})"
        if reason is not None:
            return f"{one.name}: {reason}"
    return None


class Conditions:
    """All conditions of this machine, looked at together, once for all devices that ask at about the same time."""

    def __init__(self, conditions: Sequence[Condition], period: float = PERIOD_SECONDS) -> None:
        self._conditions = tuple(conditions)
        self._period = period
        self._asked: asyncio.Future[str | None] | None = None
        self._next = 0.0

    async def unmet(self) -> str | None:
        """The first condition that does not hold, as it was at most a period ago; None while all do."""
        if not self._conditions:
            return None
        loop = asyncio.get_running_loop()
        asked = self._asked
        if asked is None or (asked.done() and loop.time() >= self._next):
            asked = self._asked = self._ask(loop)
            self._next = loop.time() + self._period
        done, _ = await asyncio.wait({asked}, timeout=ANSWER_SECONDS)
        return asked.result() if done else "conditions: one of them gives no answer"

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which begins only if every condition holds and is cancelled when one no longer does.

        Raises Interrupted, once `work` has ended. When this itself is cancelled, so is `work`, first.
        """
        why = await self._unmet_or_close(work)
        if why is not None:
            raise Interrupted(why)
        task = asyncio.create_task(work)
        try:
            while why is None and not (await asyncio.wait({task}, timeout=self._period if self._conditions else None))[0]:
                why = await self.unmet()
        except BaseException:
            await _cancelled(task)
            raise
        if why is not None and await _cancelled(task):
            raise Interrupted(why)
        return task.result()

    async def hold(self, waiting: Callable[[str], None] = lambda _: None) -> None:
        """Returns when every condition holds; tells `waiting` why not yet, whenever another one stands in the way."""
        told = ""
        while (why := await self.unmet()) is not None:
            if why.partition(":")[0] != told:
                waiting(why)
            told = why.partition(":")[0]
            await asyncio.sleep(WAITING_SECONDS)

    async def _unmet_or_close(self, work: Coroutine[Any, Any, T]) -> str | None:
        try:
            why = await self.unmet()
        except BaseException:
            work.close()
            raise
        if why is not None:
            work.close()
        return why

    def _ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[str | None]:
        """On a thread that nobody waits for at the end: a condition may hang."""
        answer: asyncio.Future[str | None] = loop.create_future()

        def tell(reason: str | None) -> None:
            if not answer.done():
                answer.set_result(reason)

        def look() -> None:
            reason = first_unmet(self._conditions)
            with suppress(RuntimeError):  # the loop is over
                loop.call_soon_threadsafe(tell, reason)

        threading.Thread(target=look, name="conditions", daemon=True).start()
        return answer


async def _cancelled(task: asyncio.Task[Any]) -> bool:
    """Cancels and waits for the end; whether that left no result."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # seen, whatever it is
    return task.cancelled()
