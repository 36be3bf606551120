"""Several runs on the same devices, behind one service: what devices decide upon, who gets which seat, what it costs together.

Every run has its own coordinator, mechanism and budget. They share the devices, so their rho adds up (`fedrho.privacy.ledger`):
the statement about a person is the combined one, and a budget of the population is checked before a run is served and in the
transaction of every release.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.statement import PrivacyStatement, combined, round_up
from fedrho.privacy.vectors import FloatVector
from fedrho.privacy.zcdp import Rho
from fedrho.protos import codec, signing
from fedrho.protos.messages import (
    Assignment,
    CheckIn,
    DeviceProof,
    LaterReason,
    PopulationAnswer,
    PopulationRequest,
    PopulationSpec,
    RetryWindow,
    TaskSpec,
    TryLater,
)
from fedrho.server.coarse import shown_fill
from fedrho.server.coordinator import Coordinator
from fedrho.server.ledger import Charge, statement
from fedrho.server.release import RunRecord, RunState, Store
from fedrho.server.tasks import Task, build_task

SPEC_SECONDS = 600.0
"""How long a device may go by a spec without asking again."""

ACCEPTED_SPECS = 8
"""Specs, the newest among them, that a proof of a device may refer to."""

ENDED = (RunState.CANCELLED, RunState.FINISHED)


class Signer(Protocol):
    """Who vouches for the spec; a device that has pinned the public key accepts no other population."""

    @property
    def public(self) -> bytes: ...
    def sign_spec(self, spec: bytes) -> bytes: ...


@dataclass(frozen=True)
class RunView:
    """What an operator may see of a run: nothing but what was released, and what `coarse` shows of who came."""

    run: bytes
    name: str
    algorithm: str
    model: str
    state: RunState
    step: int
    steps: int
    attempt: int
    goal: int
    seats: int
    """As many as an attempt has at `drop_out`; the true number follows what was measured, and would tell it."""
    filled: float
    drop_out: float
    statement: PrivacyStatement
    rho_budget: float
    delta: float
    opened_at: float
    committed_at: float
    labels: LabelStatement | None = None
    """What may be claimed about labels, beside `statement` and never added to it; None where devices train on true ones."""


@dataclass
class Member:
    """A run that is served here."""

    coordinator: Coordinator
    state: RunState
    committed_at: float
    began: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Population:
    """The runs that one server serves. Calls must not overlap, but for `Coordinator.through_gate`."""

    def __init__(self, coordinators: Sequence[Coordinator], store: Store, signer: Signer, issuer: bytes | None = None) -> None:
        """`issuer` is the public key of who vouches for devices; None lets every device in.

        Raises BudgetExhausted when the runs together may come to cost more than the population's budget.
        """
        records = {record.run: record for record in store.runs()}
        self.members = {one.run: _member(one, records[one.run]) for one in coordinators}
        for member in self.members.values():
            member.coordinator.paused = member.state is RunState.PAUSED
        self._store = store
        self._signer = signer
        self._issuer = issuer
        self._others = [record for run, record in records.items() if run not in self.members]
        planned, budget = planned_rho(records.values(), ()), store.budget()
        check_planned(planned, budget)
        self._budget = planned if budget is None else budget
        self._signed: PopulationAnswer | None = None
        self._signed_for = (-1, -math.inf)
        self._etags: deque[bytes] = deque(maxlen=ACCEPTED_SPECS)
        self._used: dict[bytes, bytes] = {}

    # -- what devices ask ------------------------------------------------------------------------------------------------

    def population(self, request: PopulationRequest, now: float) -> PopulationAnswer:
        """The signed spec, or nothing new for a device that holds it."""
        answer = self._answer(now)
        held = request.etag == self._etags[-1]
        signature = b"" if held else answer.signature
        return PopulationAnswer(b"" if held else answer.spec, signature, answer.public_key, self._window(now))

    def check_in(self, message: CheckIn, now: float) -> Assignment | TryLater:
        """A seat in one of the runs that the device is willing to join: the one that lacks most; or when to come back.

        A request that has a seat already is answered by that run alone.
        """
        self.tick(now)  # first of all: an attempt that is over answers no request again
        device = self._proved(message, now)
        if device is None:
            return TryLater(LaterReason.NOT_PROVED, self._window(now))
        known = [(self.members[one.run], one) for one in message.willing if one.run in self.members]
        if not known:
            return TryLater(LaterReason.OTHER_RUN, self._window(now))
        later, answered = [], [one for one in known if message.request_id in one[0].coordinator.round.requests]
        for member, willing in sorted(answered or known, key=lambda one: _fullness(one[0].coordinator)):
            answer = self._offer(member, message.request_id, device or willing.device_tag, now)
            if isinstance(answer, Assignment):
                return answer
            later.append(answer)
        return _soonest(later)

    def artifact(self, sha256: bytes) -> bytes | None:
        """The weights of some run's latest release."""
        found = (member.coordinator.artifact(sha256) for member in self.members.values())
        return next((data for data in found if data is not None), None)

    # -- what time does --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        for member in self.members.values():
            if not member.ended:
                member.coordinator.tick(now)

    def due(self) -> list[Coordinator]:
        """The runs that wait for a release."""
        return [one.coordinator for one in self.members.values() if not one.ended and one.coordinator.release_due]

    def released(self, coordinator: Coordinator, now: float) -> None:
        """A release was installed."""
        member = self.members[coordinator.run]
        member.committed_at = now
        if coordinator.finished:
            member.state = RunState.FINISHED

    @property
    def finished(self) -> bool:
        return all(member.ended for member in self.members.values())

    def close(self) -> None:
        for member in self.members.values():
            member.coordinator.close()

    # -- what an operator asks -------------------------------------------------------------------------------------------

    def views(self) -> tuple[RunView, ...]:
        return tuple(_view(member) for member in self.members.values())

    def pause(self, run: bytes) -> None:
        """No more seats until `resume`; who has one may upload. Raises KeyError, or ValueError where the state forbids it."""
        self._move(run, RunState.ACTIVE, RunState.PAUSED)

    def resume(self, run: bytes) -> None:
        self._move(run, RunState.PAUSED, RunState.ACTIVE)

    def cancel(self, run: bytes) -> None:
        """Ends the run for good; what was released stays released, and spent."""
        member = self.members[run]
        if member.ended:
            raise ValueError(f"it is {member.state.value} already")
        if member.coordinator.releasing:
            raise ValueError("a step is being released at this moment; try again")
        self._store.set_state(run, RunState.CANCELLED)
        member.state = RunState.CANCELLED
        member.coordinator.close()

    def model(self, run: bytes) -> tuple[int, FloatVector, PrivacyStatement]:
        """Step, weights and statement of the latest release."""
        coordinator = self.members[run].coordinator
        return coordinator.progress.step, coordinator.progress.weights, coordinator.statement()

    def combined(self) -> PrivacyStatement:
        """What may be said about everything that was ever released to the devices of this population."""
        ours = {one.coordinator.task.file.name: one.coordinator.statement() for one in self.members.values()}
        return combined({**ours, **{record.file.name: _statement_of(record) for record in self._others}})

    @property
    def rho_budget(self) -> float:
        """What all runs of the store may spend together."""
        return self._budget

    def others(self) -> tuple[tuple[RunRecord, Rho], ...]:
        """The runs of the store that are not served here, each with the most that it may come to cost."""
        return tuple((record, _most(record)) for record in self._others)

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _offer(self, member: Member, request_id: bytes, tag: bytes, now: float) -> Assignment | TryLater:
        if member.ended:
            return TryLater(LaterReason.FINISHED, member.coordinator.window(now))
        return member.coordinator.offer(request_id, tag, now)

    def _proved(self, message: CheckIn, now: float) -> bytes | None:
        """The device's public key; empty where nobody asks for it, None where the proof does not hold."""
        if self._issuer is None:
            return b""
        proof = message.proof
        return None if proof is None else self._device_of(proof, self._issuer, message, now)

    def _device_of(self, proof: DeviceProof, issuer: bytes, message: CheckIn, now: float) -> bytes | None:
        runs = [willing.run for willing in message.willing]
        try:
            device = signing.read_credential(issuer, proof.credential, now)
            accepted = [proof.etag] if proof.etag in self._etags else []
            signing.check_proof(device, proof.signature, self._signer.public, accepted, message.request_id, runs)
        except (signing.BadCredential, signing.BadSignature):
            return None
        return None if self._replayed(message, proof.etag) else device

    def _replayed(self, message: CheckIn, etag: bytes) -> bool:
        """A proof is good once, and for the attempt that it gave a seat in, as long as its spec is accepted."""
        known = any(message.request_id in member.coordinator.round.requests for member in self.members.values())
        used = message.request_id in self._used
        self._used[message.request_id] = etag
        return used and not known

    def _answer(self, now: float) -> PopulationAnswer:
        """Signed anew when something has changed, or when half of its time is over."""
        epoch, signed_at = self._signed_for
        if self._signed is None or self._epoch() != epoch or now >= signed_at + SPEC_SECONDS / 2.0:
            spec = codec.encode(self._spec(now))
            self._signed = PopulationAnswer(spec, self._signer.sign_spec(spec), self._signer.public, RetryWindow(0.0, 0.0))
            self._signed_for = (self._epoch(), now)
            self._etags.append(signing.etag(spec))
            self._used = {request: etag for request, etag in self._used.items() if etag in self._etags}
        return self._signed

    def _spec(self, now: float) -> PopulationSpec:
        return PopulationSpec(
            epoch=self._epoch(),
            server_time=now,
            max_age_seconds=self._max_age(),
            rho_budget=self._budget,
            wants_proof=self._issuer is not None,
            tasks=tuple(_task_spec(member) for member in self.members.values()),
        )

    def _max_age(self) -> float:
        """Half of the shortest step, so that what devices hold is seldom more than one release behind."""
        steps = (one.coordinator.pace.step_seconds / 2.0 for one in self.members.values() if not one.ended)
        return min(SPEC_SECONDS, *steps, SPEC_SECONDS)

    def _epoch(self) -> int:
        """Rises with every run, release and cancellation, and follows from the store: an older store is an older epoch."""
        others = sum(1 + record.step + (record.state is RunState.CANCELLED) for record in self._others)
        ours = (1 + one.coordinator.progress.step + (one.state is RunState.CANCELLED) for one in self.members.values())
        return others + sum(ours)

    def _move(self, run: bytes, source: RunState, target: RunState) -> None:
        member = self.members[run]
        if member.state is not source:
            raise ValueError(f"it is {member.state.value}, not {source.value}")
        self._store.set_state(run, target)
        member.state = target
        member.coordinator.paused = target is RunState.PAUSED

    def _window(self, now: float) -> RetryWindow:
        active = [one.coordinator.window(now) for one in self.members.values() if not one.ended]
        return min(active, key=lambda window: window.min_seconds, default=RetryWindow(60.0, 120.0))


def _fullness(coordinator: Coordinator) -> float:
    """The share of its seats that are taken."""
    return 1.0 - coordinator.round.seats_left() / coordinator.round.seats


def _soonest(answers: Sequence[TryLater]) -> TryLater:
    """Of several refusals, the one after which there is something to do first."""
    waiting = [answer for answer in answers if answer.reason is not LaterReason.FINISHED]
    return min(waiting or answers, key=lambda answer: answer.retry.min_seconds)


def _member(coordinator: Coordinator, record: RunRecord) -> Member:
    return Member(coordinator, record.state, record.committed_at, record.created_at)


def _task_spec(member: Member) -> TaskSpec:
    spec = member.coordinator.spec()
    return replace(spec, ended=spec.ended or member.ended, began=member.began)


def _view(member: Member) -> RunView:
    coordinator, file = member.coordinator, member.coordinator.task.file
    round_, shown = coordinator.round, coordinator.shown_drop_out.rate
    return RunView(
        run=coordinator.run,
        name=file.name,
        algorithm=file.algorithm,
        model=file.model,
        state=member.state,
        step=coordinator.progress.step,
        steps=file.steps,
        attempt=round_.attempt,
        goal=round_.goal,
        seats=replace(coordinator.drop_out, rate=shown).seats(round_.goal),
        filled=shown_fill(round_.counted(), round_.goal),
        drop_out=shown,
        statement=coordinator.statement(),
        rho_budget=coordinator.task.budget,
        delta=file.privacy.delta,
        opened_at=round_.opened_at,
        committed_at=member.committed_at,
        labels=coordinator.task.label_statement(),
    )


def planned_rho(records: Iterable[RunRecord], tasks: Iterable[Task]) -> float:
    """What runs may come to cost together: those that are stored, and those that `tasks` would begin."""
    stored = {record.file.name: _most(record) for record in records}
    begun = {task.file.name: task.budget for task in tasks}
    return math.fsum({**begun, **stored}.values())


def check_planned(planned: float, budget: Rho | None) -> None:
    """Raises BudgetExhausted where the last steps would have to be refused."""
    if budget is not None and planned > budget:
        raise BudgetExhausted(
            f"the runs of this population may come to cost rho = {round_up(planned)} together, above its budget {budget:g}; "
            "give the new task a smaller privacy.rho, cancel a run, or raise --rho-budget"
        )


def _most(record: RunRecord) -> Rho:
    """What a run has cost if it has ended, and otherwise may come to cost."""
    return record.rho if record.state in ENDED else Rho(record.file.privacy.rho)


def _statement_of(record: RunRecord) -> PrivacyStatement:
    return statement(build_task(record.file), Charge(record.step, record.rho))
