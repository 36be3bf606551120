"""A store that lives as long as its object: for tests and simulations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from threading import Lock

from fedrho.privacy.zcdp import Rho
from fedrho.server.release import Commit, RunRecord, RunState, StoreConflict, Stored
from fedrho.server.storage import store_rules
from fedrho.server.tasks import Task, TaskFile

HERE = "memory"


@dataclass
class _Run:
    file: TaskFile
    state: RunState
    stored: Stored
    created_at: float
    committed_at: float


class MemoryStore:
    def __init__(self) -> None:
        self._runs: dict[bytes, _Run] = {}
        self._budget: Rho | None = None
        self._changing = Lock()

    @staticmethod
    def holding(task: Task, stored: Stored) -> MemoryStore:
        """A store with one run, as another store had it; for a simulation that goes on."""
        store = MemoryStore()
        state = RunState.FINISHED if stored.charge.step == task.file.steps else RunState.ACTIVE
        store._runs[stored.run] = _Run(task.file, state, stored, 0.0, 0.0)
        return store

    def runs(self) -> tuple[RunRecord, ...]:
        with self._changing:
            return tuple(_record(run) for run in self._runs.values())

    def find(self, task: Task) -> bytes | None:
        for name, run in tuple(self._runs.items()):
            if run.file.name == task.file.name:
                store_rules.check_same_task(HERE, run.file, task.file)
                store_rules.check_not_cancelled(HERE, run.file.name, run.state)
                return name
        return None

    def create(self, task: Task, run: bytes, tag_key: bytes, start: Commit) -> None:
        with self._changing:
            if run in self._runs or any(other.file.name == task.file.name for other in self._runs.values()):
                raise StoreConflict(f"{HERE}: holds run {task.file.name!r} already")
            stored = Stored(run, tag_key, start.charge, start.weights, start.velocity, (), ())
            self._runs[run] = _Run(task.file, RunState.ACTIVE, stored, start.committed_at, start.committed_at)

    def load(self, task: Task, run: bytes) -> Stored:
        found = self._find(run)
        store_rules.check_same_task(HERE, found.file, task.file)
        store_rules.check_not_cancelled(HERE, found.file.name, found.state)
        return found.stored

    def commit(self, run: bytes, commit: Commit) -> None:
        with self._changing:
            found = self._find(run)
            before, name = found.stored, found.file.name
            store_rules.check_next(HERE, name, found.state, before.charge, commit.charge)
            others = [other.stored.charge.rho for key, other in self._runs.items() if key != run]
            store_rules.check_spending(self._budget, name, commit.charge.rho, others)
            found.committed_at = commit.committed_at
            nodes = tuple(node for node in (*before.nodes, *commit.drawn) if node.name in commit.live)
            tags = (*before.participations, *((tag, commit.charge.step) for tag in commit.tags))
            found.stored = Stored(run, before.tag_key, commit.charge, commit.weights, commit.velocity, nodes, tags, commit.kept)
            if commit.last:
                found.stored, found.state = _without_secrets(found.stored), RunState.FINISHED

    def set_state(self, run: bytes, state: RunState) -> None:
        with self._changing:
            found = self._find(run)
            if not store_rules.check_transition(HERE, found.file.name, found.state, state):
                return
            found.state = state
            if state is RunState.CANCELLED:
                found.stored = _without_secrets(found.stored)

    def budget(self) -> Rho | None:
        return self._budget

    def set_budget(self, rho: Rho | None) -> None:
        with self._changing:
            store_rules.check_budget(rho, [run.stored.charge.rho for run in self._runs.values()])
            self._budget = rho

    def _find(self, run: bytes) -> _Run:
        if run not in self._runs:
            raise StoreConflict(f"{HERE}: holds no such run")
        return self._runs[run]


def _without_secrets(stored: Stored) -> Stored:
    return replace(stored, tag_key=b"", nodes=(), participations=(), kept=())


def _record(run: _Run) -> RunRecord:
    stored = run.stored
    digest = hashlib.sha256(stored.weights.astype("<f4").tobytes()).digest()
    charge = stored.charge
    return RunRecord(stored.run, run.file, run.state, charge.step, charge.rho, run.created_at, run.committed_at, digest)
