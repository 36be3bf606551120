"""Kills a process that releases step after step, and lets the next one continue from the same store.

Usage: kill_loop.py every WHERE [BLOBS]            before each of its operations, one after the other, until it gets through
       kill_loop.py random KILLS WHERE [BLOBS]     so many times, at random moments
       kill_loop.py open WHERE                     before each operation of opening alone
       kill_loop.py record WHERE [BLOBS]           not at all; prints its operations, one a line

An operation is an fsync, a rename, a removal, a statement or a COMMIT. Exits 0, printing kills and steps, when every process
continued at or after the last step that was announced, no step was ever announced with two results (weights and rho), every
announced step is in the database with its charge, and the chain of all of them held after every kill.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import sqlalchemy as sa

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import ClippedSum
from fedrho.server.chain import check, read_task
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.release import Attempt, StoreConflict
from fedrho.server.storage.store import SqlStore, open_store, read_history
from fedrho.server.tasks import parse_task

SIZE = 500
LEASE_SECONDS = 0.3
TASK = parse_task(
    """
name = "long"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 20000
population = 1000000
[round]
goal = 10
[privacy]
clip_norm = 1.0
rho = 10.0
delta = 1e-9
[participation]
max_times = 1
""",
    "long",
)
Announce = Callable[[Coordinator], None]
Results = dict[int, tuple[str, str]]
"""By step: the digest of the weights, and rho, as they were announced."""


class Store:
    """Where the processes work, one after the other."""

    def __init__(self, where: str, blobs: str | None = None) -> None:
        self.where, self.blobs = where, blobs
        self.results: Results = {}

    def open(self) -> SqlStore:
        return open_store(self.where, self.blobs, lease_seconds=LEASE_SECONDS)

    def check(self) -> None:
        """What is stored holds, and whatever was announced was charged."""
        try:
            history = read_history(self.where)
        except StoreConflict:
            assert not self.results, "what was announced is gone"
            return
        if len(history.entries) < 200:  # the price of all steps is computed anew for each
            check(history, read_task(history))
        for step, (digest, rho) in self.results.items():
            entry = history.entries[step]
            assert (entry.step, entry.weights_sha256.hex(), repr(entry.rho)) == (step, digest, rho), f"step {step}: not charged"


def releases(store: Store, announce: Announce) -> Generator[None, None, None]:
    """Releases for ever; announces every step that may be seen."""
    with store.open() as opened:
        around = Surroundings(SystemNoise(), opened, lambda: os.urandom(16), [])
        engine = open_run(TASK, around, lambda: np.zeros(SIZE, dtype=np.float32), 0.0)
        announce(engine)
        while True:
            total = ClippedSum(np.full(SIZE, engine.progress.step, dtype=np.int64), TASK.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 0.0), 0.0), 0.0)
            announce(engine)
            yield


def forked(store: Store, work: Callable[[Announce], None], moment: Callable[[], float] | None = None) -> bool:
    """Whether a process that did `work` was killed; it announces through a pipe, which outlives it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        run_child(work, write)
    os.close(write)
    with os.fdopen(read) as announced:
        lines = [announced.readline()] if moment else []
        if moment:
            time.sleep(moment())
            os.kill(child, signal.SIGKILL)
        lines += announced
    _, status = os.waitpid(child, 0)
    time.sleep(LEASE_SECONDS if store.blobs else 0.0)  # what was killed leads that long, and waiting takes statements
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a process could not continue; see above"
    remember(store.results, [line.split() for line in lines])
    store.check()
    return os.WIFSIGNALED(status)


def run_child(work: Callable[[Announce], None], write: int) -> None:
    def announce(engine: Coordinator) -> None:
        progress = engine.progress
        os.write(write, f"{progress.step} {engine.checkpoint_sha256.hex()} {float(progress.charge.rho)!r}\n".encode())

    try:
        work(announce)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


def remember(results: Results, lines: list[list[str]]) -> None:
    if lines:
        assert int(lines[0][0]) >= max(results, default=0), "a process went back behind what was announced"
    for step, digest, rho in lines:
        assert results.setdefault(int(step), (digest, rho)) == (digest, rho), f"two results for step {step}"


def watch(operation: Callable[[str], None]) -> None:
    """`operation` hears of everything that may become durable, before it happens; for a process that ends with it."""

    def heard(what: str) -> None:
        if threading.current_thread() is threading.main_thread():  # not a lease's renewals, which come when they come
            operation(what)

    def told(module: Any, name: str) -> None:
        call = getattr(module, name)

        def telling(*arguments: Any, **named: Any) -> Any:
            heard(f"{name} {_target(arguments[-1])}")
            return call(*arguments, **named)

        setattr(module, name, telling)

    for name in ("fsync", "replace", "unlink"):
        told(os, name)
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", lambda *seen: heard(f"statement {seen[2].split()[0]}"))
    sa.event.listen(sa.engine.Engine, "commit", lambda connection: heard("COMMIT of-it"))


def _target(place: Any) -> str:
    return os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fspath(place)


def every(store: Store) -> tuple[int, int]:
    """From an empty store, and once more where one is already."""
    kills = sum(until_through(store, lambda announce: one_step(store, announce)) for _ in range(2))
    return kills, len(store.results)


def until_through(store: Store, work: Callable[[Announce], None]) -> int:
    for number in itertools.count(1):
        if not forked(store, functools.partial(killed_before, number, work)):
            return number - 1
    raise AssertionError


def one_step(store: Store, announce: Announce) -> None:
    run = releases(store, announce)
    next(run)
    run.close()


def killed_before(number: int, work: Callable[[Announce], None], announce: Announce) -> None:
    """Works, but dies before the operation of that number, if there are as many."""
    count = 0

    def operation(name: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(operation)
    work(announce)


def at_random(store: Store, kills: int) -> tuple[int, int]:
    generator = random.Random(1)
    for _ in range(kills):
        forked(store, lambda announce: for_ever(store, announce), lambda: generator.uniform(0.0, 0.3))
    return kills, len(store.results)


def for_ever(store: Store, announce: Announce) -> None:
    for _ in releases(store, announce):
        pass


def record(store: Store) -> None:
    run = releases(store, lambda engine: None)
    next(run)
    watch(lambda name: print(name, flush=True))
    next(run)


def main() -> None:
    mode, *rest = sys.argv[1:]
    if mode == "record":
        record(Store(*rest))
    elif mode == "open":
        store = Store(*rest)
        print(until_through(store, lambda announce: store.open().close()))
    elif mode == "every":
        print(*every(Store(*rest)))
    else:
        print(*at_random(Store(*rest[1:]), int(rest[0])))


if __name__ == "__main__":
    main()
