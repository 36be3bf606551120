"""A population and a shard in one process: all that devices can ask, without a wire, told the time; for simulations and tests.

`fedrho serve` puts the same two objects behind gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedrho.protos.messages import (
    Abort,
    Assignment,
    BeginUpload,
    CheckIn,
    PopulationAnswer,
    PopulationRequest,
    Receipt,
    Reservation,
    StatusAnswer,
    StatusRequest,
    TryLater,
    Upload,
)
from fedrho.server.coordinator import Coordinator
from fedrho.server.population import Population
from fedrho.server.shard import Shard


@dataclass(frozen=True)
class Engine:
    """Every call lets time pass up to `now` first, so that leases and deadlines are exact."""

    population: Population
    shard: Shard

    def spec(self, request: PopulationRequest, now: float) -> PopulationAnswer:
        return self.population.population(request, now)

    def check_in(self, message: CheckIn, now: float) -> Assignment | TryLater:
        return self.population.check_in(message, now)

    def artifact(self, sha256: bytes) -> bytes | None:
        return self.population.artifact(sha256)

    def begin_upload(self, message: BeginUpload, now: float) -> Reservation:
        self.population.tick(now)
        return self.shard.begin_upload(message, now)

    def upload(self, message: Upload, now: float) -> Receipt:
        self.population.tick(now)
        receipt = self.shard.upload(message, now)
        self.population.tick(now)
        return receipt

    def upload_status(self, message: StatusRequest, now: float) -> StatusAnswer:
        self.population.tick(now)
        return self.shard.upload_status(message, now)

    def abort(self, message: Abort, now: float) -> None:
        self.population.tick(now)
        self.shard.abort(message, now)

    def release_all(self, now: float) -> Sequence[Coordinator]:
        """Makes every release that is due, in one go; the runs that made one."""
        self.population.tick(now)
        due = self.population.due()
        for coordinator in due:
            coordinator.release(now)
            self.population.released(coordinator, now)
        return due
