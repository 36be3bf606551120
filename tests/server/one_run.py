"""An engine with a single run, its coordinator's attributes at hand, and devices that do as they are told."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vectors import pack
from fedrho.protos import signing
from fedrho.protos.messages import Assignment, BeginUpload, CheckIn, Go, Receipt, TryLater, Upload, Willing
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.engine import Engine
from fedrho.server.intake import Intake
from fedrho.server.population import Population
from fedrho.server.release import Attempt, Progress, Store
from fedrho.server.rounds import Round
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.store import MemoryStore
from fedrho.server.tasks import Task

NUMBERS = itertools.count(1)
SIGNER = signing.SigningKey.generate()


def new_id() -> bytes:
    """Fresh identifiers, in order."""
    return next(NUMBERS).to_bytes(16, "big")


@dataclass(frozen=True)
class OneRun(Engine):
    """Make one with `open_one_run`."""

    coordinator: Coordinator

    @property
    def run(self) -> bytes:
        return self.coordinator.run

    @property
    def task(self) -> Task:
        return self.coordinator.task

    @property
    def progress(self) -> Progress:
        return self.coordinator.progress

    @property
    def round(self) -> Round:
        return self.coordinator.round

    @property
    def finished(self) -> bool:
        return self.coordinator.finished

    @property
    def release_due(self) -> bool:
        return self.coordinator.release_due

    @property
    def intake(self) -> Intake:
        """What the shard holds of the open attempt."""
        return self.shard._intakes[self.run]

    def statement(self) -> PrivacyStatement:
        return self.coordinator.statement()

    def tick(self, now: float) -> None:
        self.population.tick(now)

    def release(self, now: float) -> None:
        assert self.release_all(now) == [self.coordinator]

    def take_full_round(self) -> Attempt:
        return self.coordinator.take_full_round()

    def through_gate(self, attempt: Attempt, now: float) -> Progress:
        return self.coordinator.through_gate(attempt, now)

    def install(self, progress: Progress, now: float) -> None:
        self.coordinator.install(progress, now)
        self.population.released(self.coordinator, now)

    # -- devices

    def ask(self, now: float = 0.0, tag: bytes = b"", request_id: bytes | None = None) -> Assignment | TryLater:
        return self.check_in(CheckIn(request_id or new_id(), (Willing(self.run, tag),)), now)

    def seat(self, now: float = 0.0, tag: bytes = b"") -> Assignment:
        answer = self.ask(now, tag)
        assert isinstance(answer, Assignment), answer
        return answer

    def reserve(self, seat: Assignment, now: float = 0.0) -> bytes:
        assert self.begin_upload(BeginUpload(seat.session, seat.ticket), now).answer is Go.GO
        return seat.session

    def send(self, session: bytes, place: int | None = None, now: float = 0.0) -> Receipt:
        """The unit vector of a place, as long as it may be; or zeros."""
        vector = np.zeros(self.coordinator.size, dtype=np.int32)
        if place is not None:
            vector[place] = self.task.mechanism.grid.radius
        return self.upload(Upload(session, vector), now)

    def sealed(self) -> NDArray[np.int64]:
        """What the sum of the open attempt would be if it ended here, which it then does."""
        return np.frombuffer(pack(self.intake.seal().total), dtype="<i8")


def open_one_run(task: Task, store: Store | None = None, size: int = 12, now: float = 0.0, **population: Any) -> OneRun:
    store, shard = store or MemoryStore(), Shard()
    around = Surroundings(SystemNoise(), store, new_id, [LocalShard(shard)])
    coordinator = open_run(task, around, lambda: np.zeros(size, dtype=np.float32), now)
    return OneRun(Population([coordinator], store, SIGNER, **population), shard, coordinator)
