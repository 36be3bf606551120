"""What the dashboard looks at: the runs of a server, or those of a store whose server has ended. Nothing that was not released.

A `RunView` holds what the gate released, and what `server/coarse.py` shows of who came. `Tallies` are the answers that devices
got, in whole groups; pages show them in coarser steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedrho.privacy.statement import PrivacyStatement
from fedrho.server.operations.metrics import Metrics
from fedrho.server.population import Population, RunView
from fedrho.server.tasks import Task


@dataclass(frozen=True)
class Tallies:
    """Since the process started, of all runs together, by answer."""

    check_ins: Mapping[str, int]
    uploads: Mapping[str, int]
    calls_refused: Mapping[str, int]
    moved_at: float = math.inf
    """When the number of check-ins rose last, in whole groups; before the first group, when the process started."""


@dataclass(frozen=True)
class Elsewhere:
    """A run of the same store that this server does not serve; it counts all the same."""

    name: str
    state: str
    step: int
    steps: int
    rho: float
    rho_budget: float


@dataclass(frozen=True)
class Snapshot:
    """The runs at one moment. `rho_budget` is what all of them may spend together."""

    at: float
    views: tuple[RunView, ...]
    elsewhere: tuple[Elsewhere, ...]
    combined: PrivacyStatement | None
    rho_budget: float
    tallies: Tallies | None = None
    """None where no server runs."""
    drop_out_measured: frozenset[bytes] = frozenset()
    """The runs whose drop-out is a share of seats by now; that of all others is what their tasks expect."""

    def named(self, name: str) -> RunView | None:
        return next((view for view in self.views if view.name == name), None)


class Source(Protocol):
    @property
    def store(self) -> Path | str:
        """Where the history is read."""
        ...

    def look(self) -> Snapshot:
        """Quick: it is called on the server's event loop."""
        ...

    def task(self, run: bytes) -> Task: ...


class ServedRuns:
    """The runs of a server in this process."""

    def __init__(self, population: Population, metrics: Metrics, store: Path | str) -> None:
        self._population, self._metrics, self.store = population, metrics, store

    def look(self) -> Snapshot:
        known = [
            Elsewhere(one.file.name, one.state.value, one.step, one.file.steps, one.rho, most)
            for one, most in self._population.others()
        ]
        members = self._population.members.items()
        return Snapshot(
            at=time.time(),
            views=self._population.views(),
            elsewhere=tuple(known),
            combined=self._population.combined(),
            rho_budget=self._population.rho_budget,
            tallies=Tallies(*self._metrics.tallies(), self._metrics.check_ins_moved_at),
            drop_out_measured=frozenset(run for run, member in members if member.coordinator.shown_drop_out.measured),
        )

    def task(self, run: bytes) -> Task:
        return self._population.members[run].coordinator.task
