"""Runs as their store tells them, without a server: what was released, and nothing of open attempts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrho.console import BadInput
from fedrho.operator_client import Exported
from fedrho.privacy.statement import PrivacyStatement, combined
from fedrho.privacy.zcdp import Rho
from fedrho.server.ledger import Charge, statement
from fedrho.server.operations.exported import statement_fields
from fedrho.server.population import RunView
from fedrho.server.storage.databases import shown
from fedrho.server.storage.store import RunStatus, locate, read_blob, read_history, read_status
from fedrho.server.tasks import build_task


@dataclass(frozen=True)
class StoredRuns:
    where: str | Path
    runs: tuple[RunView, ...]
    weights: dict[bytes, bytes]
    """By run, the SHA-256 of its latest weights."""
    running: bool
    address: str | None
    pid: int | None

    @property
    def combined(self) -> PrivacyStatement | None:
        return combined({view.name: view.statement for view in self.runs}) if self.runs else None


def read_store(store: str | Path) -> StoredRuns:
    """Of a folder, a demo's folder, or a database by its URL. Changes nothing, and works beside a server.

    Raises StoreConflict where there is no store, BadInput for one without a run.
    """
    from fedrho.server.app import read_address

    where = locate(store)
    found = _statuses(where)
    if not found:
        raise BadInput(f"{shown(where)}: no run here; `fedrho serve TASK.toml --store STORE` makes one")
    running = any(one.running for one in found)
    address, pid = (read_address(where) if running and isinstance(where, Path) else None) or (None, None)
    views = tuple(_view(one) for one in found)
    return StoredRuns(where, views, {one.run: one.weights_sha256 for one in found}, running, address, pid)


def stored_model(found: StoredRuns, view: RunView) -> Exported:
    """Raises BadInput where nothing was released."""
    if view.step == 0:
        raise BadInput(f"{shown(found.where)}: no step of {view.name!r} has been released yet")
    digest = found.weights[view.run]
    weights = np.frombuffer(read_blob(found.where, digest), dtype="<f4").astype(np.float32)
    return Exported(weights, statement_fields(view, view.step, view.statement, digest, link_of(found.where, view.run, view.step)))


def link_of(where: str | Path, run: bytes, step: int) -> bytes:
    """The link of the run's chain at a step."""
    history = read_history(where, run)
    steps = [entry.step for entry in history.entries]
    return history.links[steps.index(step)]


def _statuses(where: str | Path) -> tuple[RunStatus, ...]:
    """The only place that knows how a store is read."""
    return read_status(where)


def _view(found: RunStatus) -> RunView:
    file, task = found.file, build_task(found.file)
    return RunView(
        run=found.run,
        name=file.name,
        algorithm=file.algorithm,
        model=file.model,
        state=found.state,
        step=found.step,
        steps=file.steps,
        attempt=0,
        goal=file.round.goal,
        seats=0,
        filled=0.0,
        drop_out=0.0,
        statement=statement(task, Charge(found.step, Rho(found.rho))),
        rho_budget=task.budget,
        delta=file.privacy.delta,
        opened_at=found.committed_at,
        committed_at=found.committed_at,
        labels=task.label_statement(),
    )
