"""The narrow gate: charge, noise, step, and one durable commit, in this order and nowhere else.

A crash before the commit means that the attempt never happened and its noise was seen by nobody; a crash after it means
that the stored result is served again. Nothing here is recomputed, and nothing leaves before the store has it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from fedrho.privacy.mechanism import NoiseState
from fedrho.privacy.noise import KeptVector, NoiseNode, NoiseSource, ReplayedNoise
from fedrho.privacy.vectors import ClippedSum, FloatVector
from fedrho.privacy.zcdp import Rho
from fedrho.server.ledger import Charge, charge, same_price
from fedrho.server.optimizers import Velocity
from fedrho.server.tasks import Task, TaskFile


class StoreConflict(RuntimeError):
    """The store holds something else than what the server is about to continue; nothing was changed."""


@dataclass(frozen=True, eq=False)
class Commit:
    """One release, and everything that must become durable with it. Step 0 is the start, with untrained weights.

    `live` names the nodes whose seeds a later step needs, `kept` are vectors that it needs; with the `last` step the store
    forgets all seeds and vectors, the tags and their key.
    """

    charge: Charge
    attempt: int
    weights: FloatVector
    velocity: Velocity
    drawn: tuple[NoiseNode, ...]
    live: frozenset[str]
    tags: tuple[bytes, ...]
    opened_at: float
    committed_at: float
    kept: tuple[KeptVector, ...] = ()
    last: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """What a store holds of a run: the latest commit, what its noise needs, and who took part when (if that is kept)."""

    run: bytes
    tag_key: bytes = field(repr=False)
    charge: Charge
    weights: FloatVector
    velocity: Velocity
    nodes: tuple[NoiseNode, ...]
    participations: tuple[tuple[bytes, int], ...]
    kept: tuple[KeptVector, ...] = ()


class RunState(Enum):
    """ACTIVE and PAUSED take turns; CANCELLED and FINISHED are final."""

    ACTIVE = "active"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunRecord:
    """How far a run is, and what it has spent; times are in seconds since 1970."""

    run: bytes
    file: TaskFile
    state: RunState
    step: int
    rho: Rho
    created_at: float
    committed_at: float
    weights_sha256: bytes


class Store(Protocol):
    """The durable state of a population: its runs, whose prices add up, and what they may spend together.

    Guarantees: whatever raises has changed nothing that counts; two runs may commit from two threads at once.
    """

    def runs(self) -> tuple[RunRecord, ...]:
        """All runs there ever were, in the order of their creation."""
        ...

    def find(self, task: Task) -> bytes | None:
        """The run that this task continues, by its name.

        Raises StoreConflict when the task of that name is another (the message names the differing keys), or was cancelled.
        """
        ...

    def create(self, task: Task, run: bytes, tag_key: bytes, start: Commit) -> None:
        """A new run; raises StoreConflict when the name or the run is taken."""
        ...

    def load(self, task: Task, run: bytes) -> Stored:
        """Raises StoreConflict when `run` is not this task's, was cancelled, is damaged, or older than what was published."""
        ...

    def commit(self, run: bytes, commit: Commit) -> None:
        """All or nothing. Raises StoreConflict unless `commit` is the next step of a run that is active or paused,
        BudgetExhausted when all runs together would cost more than the store's budget.
        """
        ...

    def set_state(self, run: bytes, state: RunState) -> None:
        """Pauses, resumes or cancels. Cancelling erases what the last commit would: seeds, kept vectors, tags and their key.

        Raises StoreConflict where a run cannot go from its state to this one.
        """
        ...

    def budget(self) -> Rho | None:
        """What all runs may cost together; None: no limit beyond the tasks' own."""
        ...

    def set_budget(self, rho: Rho | None) -> None:
        """Raises BudgetExhausted when the runs cost more than that already, ValueError for what is no budget."""
        ...


@dataclass(frozen=True, eq=False)
class Progress:
    """The engine's state between two steps."""

    charge: Charge
    weights: FloatVector
    velocity: Velocity
    mechanism: NoiseState

    @property
    def step(self) -> int:
        """Steps released so far."""
        return self.charge.step


@dataclass(frozen=True, eq=False)
class Attempt:
    """A full round on its way through the gate."""

    number: int
    total: ClippedSum
    tags: tuple[bytes, ...]
    opened_at: float


class Leg(Enum):
    """A release in the order of its going: the sum is taken, and then through the gate."""

    SUM = "sum"
    CHARGE = "charge"
    NOISE = "noise"
    STEP = "step"
    COMMIT = "commit"


Legs = Callable[[Leg], AbstractContextManager[object]]
"""Is entered for as long as each leg takes, by whoever wants to know how long; the gate itself has no clock."""


def unobserved(leg: Leg) -> AbstractContextManager[object]:
    return nullcontext()


def release(
    task: Task,
    run: bytes,
    before: Progress,
    attempt: Attempt,
    source: NoiseSource,
    store: Store,
    now: float,
    legs: Legs = unobserved,
) -> Progress:
    """The next step of `run`. Raises BudgetExhausted or StoreConflict, and then nothing was released."""
    with legs(Leg.CHARGE):
        spent = charge(task, before.step + 1)
    last = spent.step == task.file.steps
    with legs(Leg.NOISE):
        released, mechanism = task.mechanism.release(attempt.total, before.mechanism, source)
    with legs(Leg.STEP):
        weights, velocity = task.optimizer.apply(released, task.file.round.goal, before.weights, before.velocity)
    commit = Commit(
        charge=spent,
        attempt=attempt.number,
        weights=weights,
        velocity=velocity,
        drawn=mechanism.drawn,
        live=frozenset() if last else frozenset(node.name for node in mechanism.live),
        tags=attempt.tags,
        opened_at=attempt.opened_at,
        committed_at=now,
        kept=() if last else mechanism.kept,
        last=last,
    )
    with legs(Leg.COMMIT):
        store.commit(run, commit)
    return Progress(spent, weights, velocity, mechanism)


def restore(task: Task, stored: Stored) -> Progress:
    """The state that led to the latest commit, with its noise replayed from the stored seeds.

    Raises NoiseMismatch when the noise does not reproduce, StoreConflict when the stored charge is not this task's price.
    """
    size, step = stored.weights.size, stored.charge.step
    if step > 0 and not same_price(charge(task, step).rho, stored.charge.rho):
        raise StoreConflict(f"step {step} was charged rho = {stored.charge.rho}, but costs {charge(task, step).rho} now")
    ended = step == task.file.steps
    mechanism, replayed = task.mechanism, ReplayedNoise(stored.nodes)
    state = mechanism.init(size) if ended else mechanism.restore(size, step, replayed, stored.kept)
    return Progress(stored.charge, stored.weights, stored.velocity, state)
