"""Structured logs: one line an event, of fields that are known beforehand. Nothing else gets into a log, whoever asks for it.

A line may hold only the fields of FIELDS, with plain values; everything else is dropped, exceptions among it. So no address,
session, tag, payload or text of an error is written down by accident, not even by a library.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from fedrho.server.population import RunView
from fedrho.server.release import RunState

OF_EVERY_LINE: Final = ("event", "level", "timestamp")
OF_LIBRARIES: Final = ("logger", "kind", "count")
OF_PORTS: Final = ("port", "listening")
OF_RUNS: Final = (
    "task",
    "run",
    "step",
    "steps",
    "attempts",
    "releases",
    "state",
    "rho",
    "rho_budget",
    "unit",
    "neighbours",
    "reasons",
)
FIELDS: Final = frozenset((*OF_EVERY_LINE, *OF_LIBRARIES, *OF_PORTS, *OF_RUNS))
LONGEST: Final = 200
"""Characters of a value."""
COMPLAINT_SECONDS: Final = 60.0
"""Between two lines of what one library says, because strangers can make it say so as often as they like."""

Event = MutableMapping[str, Any]


class LogFormat(Enum):
    JSON = "json"
    TEXT = "text"


def configure(form: LogFormat, path: Path | None = None, level: int = logging.INFO) -> None:
    """`logging_to` for the rest of the process."""
    held = ExitStack()
    held.enter_context(logging_to(form, path, level))
    atexit.register(held.close)


@contextmanager
def logging_to(form: LogFormat, path: Path | None = None, level: int = logging.INFO) -> Iterator[None]:
    """Logs go to standard error, or to the end of a file that only its owner may read. Raises OSError."""
    with ExitStack() as held:
        stream = sys.stderr if path is None else held.enter_context(_appended(path))
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                only_known_fields,
                structlog.processors.JSONRenderer(sort_keys=True) if form is LogFormat.JSON else _text,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=_Loggers(stream),
            cache_logger_on_first_use=False,
        )
        held.callback(structlog.reset_defaults)
        for name in ("grpc", "asyncio", "opentelemetry"):
            held.enter_context(_kinds_only(logging.getLogger(name)))
        yield


def only_known_fields(logger: Any, method: str, event: Event) -> Event:
    """What a line may hold."""
    return {name: _plain(value) for name, value in event.items() if name in FIELDS and _plain(value) is not None}


def _plain(value: Any) -> Any:
    """None for what is not plain."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, Mapping):
        return {str(name): count for name, count in value.items() if isinstance(count, int)}
    return None


def _text(logger: Any, method: str, event: Event) -> str:
    """For people: time, level and event, then the rest."""
    head = " ".join(str(event.pop(name, "-")) for name in ("timestamp", "level", "event"))
    return " ".join([head, *(f"{name}={value}" for name, value in sorted(event.items()))]).replace("\n", " ")


LOCK: Final = threading.Lock()


@dataclass(frozen=True)
class _Loggers:
    """Whole lines at once; a log that cannot be written is no reason to stop a server."""

    stream: TextIO

    def __call__(self, *names: object) -> _Loggers:
        return self

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError), LOCK:
            self.stream.write(message + "\n")
            self.stream.flush()

    debug = info = warning = error = critical = exception = msg


@contextmanager
def _appended(path: Path) -> Iterator[TextIO]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="replace")
    try:
        yield stream
    finally:
        with suppress(OSError):  # what a full disk did not take
            stream.close()


# -- what libraries say ----------------------------------------------------------------------------------------------------------


class _Kinds(logging.Handler):
    """Of what gRPC, asyncio and OpenTelemetry say, keeps who says it and the type of the error: their texts quote what came in.

    The first of a kind is told at once, those that follow once in COMPLAINT_SECONDS and at the end, with their count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._silent_until: dict[tuple[str, str], float] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else record.levelname
        said = record.name, kind
        self._counts[said] += 1
        if self._clock() >= self._silent_until.get(said, -math.inf):
            self._tell(said)

    def tell_rest(self) -> None:
        with self.lock or nullcontext():
            for said in [said for said, count in self._counts.items() if count]:
                self._tell(said)

    def _tell(self, said: tuple[str, str]) -> None:
        self._silent_until[said] = self._clock() + COMPLAINT_SECONDS
        logger, kind = said
        structlog.get_logger().error("a library complains", logger=logger, kind=kind, count=self._counts.pop(said))


@contextmanager
def _kinds_only(logger: logging.Logger) -> Iterator[None]:
    before, propagated, kinds = logger.handlers, logger.propagate, _Kinds()
    logger.handlers, logger.propagate = [kinds], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagated
        kinds.tell_rest()


# -- what becomes of runs --------------------------------------------------------------------------------------------------------


class RunLog:
    """Tells the differences between one look at the runs and the next."""

    def __init__(self, refusals: Callable[[], Mapping[str, int]] = dict) -> None:
        """`refusals` counts, by reason, all that was refused so far."""
        self._log = structlog.get_logger()
        self._refusals = refusals
        self._told: dict[str, int] = {}
        self._before: dict[bytes, RunView] = {}

    def observe(self, views: tuple[RunView, ...]) -> None:
        for view in views:
            before = self._before.get(view.run)
            if before is None:
                self._log.info("serving", **_named(view), step=view.step, steps=view.steps, state=view.state)
            else:
                self._compare(before, view)
            self._before[view.run] = view

    def _compare(self, before: RunView, view: RunView) -> None:
        ended = before.attempt if view.step == before.step else 1
        if view.attempt > ended:
            self._log.warning("abandoned", **_named(view), step=view.step + 1, attempts=view.attempt - ended)
        if view.step > before.step:
            self._log.info(
                "released", **_named(view), step=view.step, steps=view.steps, releases=view.step - before.step, **_spent(view)
            )
            self._tell_refusals()
        if view.state is not before.state:
            event = "resumed" if view.state is RunState.ACTIVE else view.state.value
            self._log.info(event, **_named(view), step=view.step, steps=view.steps)

    def _tell_refusals(self) -> None:
        """Once a step, so that counts stay counts of many."""
        now = dict(self._refusals())
        fresh = {reason: count - self._told.get(reason, 0) for reason, count in now.items()}
        fresh = {reason: count for reason, count in fresh.items() if count}
        if fresh:
            self._log.info("refused", reasons=fresh)
        self._told = now


def _named(view: RunView) -> dict[str, str]:
    return {"task": view.name, "run": view.run.hex()}


def _spent(view: RunView) -> dict[str, Any]:
    """A rho is never told without what it protects."""
    statement = view.statement
    return {"rho": statement.rho, "rho_budget": view.rho_budget, "unit": statement.unit, "neighbours": statement.neighbours}
