"""One device's conversation, without the wire.

    read the spec -> decide -> check in -> download -> train, clip -> begin upload -> record -> upload

Nothing counts before GO; after GO the contribution is in the device's own history before its first byte leaves, and stays there
whatever happens. The wire, the history, the training and the pauses are handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from fedrho.client.spec import Known, SpecReader
from fedrho.privacy.clipping import clip
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import Clipped, FloatVector, Grid, InvalidVector, Update
from fedrho.protos.messages import (
    Abort,
    AbortReason,
    Assignment,
    BeginUpload,
    CheckIn,
    DeviceProof,
    Encoding,
    Go,
    LaterReason,
    PopulationAnswer,
    PopulationRequest,
    PrivacyTerms,
    Receipt,
    Refusal,
    Reservation,
    RetryWindow,
    RoundPlan,
    SessionStatus,
    StatusAnswer,
    StatusRequest,
    TaskSpec,
    TryLater,
    Upload,
    Willing,
)


class WireLost(ConnectionError):
    """The server cannot be reached, or the connection broke; the call may or may not have had its effect."""


class Overtaken(RuntimeError):
    """What the plan needs is gone: the step was released, or its attempt abandoned, meanwhile."""


class BadPlan(ValueError):
    """The server asks for something that its own population does not announce."""


SHORTEST_WAIT = 0.05
BEFORE_REPEATING = 0.5
REPEATABLE = (Refusal.NO_RESERVATION, Refusal.ALREADY_OPEN)
UNSETTLED = (SessionStatus.ASSIGNED, SessionStatus.RESERVED)


class Wire(Protocol):
    """The device service; every method may raise WireLost, and `artifact` Overtaken."""

    def to(self, address: str) -> Wire:
        """The same service elsewhere: where an assignment's uploads go; here, for an empty address."""
        ...

    async def population(self, request: PopulationRequest) -> PopulationAnswer: ...
    async def check_in(self, message: CheckIn) -> Assignment | TryLater: ...
    async def artifact(self, sha256: bytes, size: int) -> bytes: ...
    async def begin_upload(self, message: BeginUpload) -> Reservation: ...
    async def upload(self, message: Upload, plan: RoundPlan) -> Receipt: ...
    async def status(self, message: StatusRequest) -> StatusAnswer: ...
    async def abort(self, message: Abort) -> None: ...


class History(Protocol):
    """What the device remembers of a run, durably."""

    def allows(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        """Whether this device may contribute to `step` now."""
        ...

    def exhausted(self, run: bytes, terms: PrivacyTerms) -> bool:
        """Whether this device has given all that it may."""
        ...

    def record(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        """Remembers a contribution for ever, and only then says yes; says no where `allows` would, and changes nothing."""
        ...

    def tag(self, run: bytes) -> bytes:
        """16 random bytes, the same throughout the run."""
        ...


Train = Callable[[RoundPlan, FloatVector], Awaitable[Update]]
Pause = Callable[[float], Awaitable[None]]
NewId = Callable[[], bytes]
Prove = Callable[[Known, CheckIn], DeviceProof]


class Result(Enum):
    COUNTED = "counted"
    NOT_COUNTED = "not counted"
    LATER = "later"
    FINISHED = "finished"


@dataclass(frozen=True)
class Outcome:
    """How one visit ended, how far the runs that concern this device were by then, and when to come back."""

    result: Result
    released: int
    steps: int
    retry: RetryWindow


@dataclass(frozen=True)
class Participant:
    """One device. `take_part` is one visit, from reading the spec to the receipt.

    `models` are those it has examples for; tasks with another are none of its business. `prove` shows a population that wants to
    see it who vouches for this device.
    """

    wire: Wire
    specs: SpecReader
    history: History
    models: Container[str]
    train: Train
    pause: Pause
    new_id: NewId
    prove: Prove | None = None

    async def take_part(self) -> Outcome:
        """Raises WireLost when the server is gone, BadPlan or BadSpec when it asks for something else than it announced."""
        known, willing = await self._decide()
        if not willing:
            left = [task for task in self._concerned(known) if not self._done(task)]
            return self._ended(Result.LATER if left else Result.FINISHED, known)
        message = CheckIn(self.new_id(), tuple(Willing(task.run, self._tag(task)) for task in willing))
        if known.spec.wants_proof and self.prove is not None:
            message = replace(message, proof=self.prove(known, message))
        answer = await self.wire.check_in(message)
        if isinstance(answer, TryLater):
            return await self._turned_away(answer, known)
        return await self._work(answer, willing, known)

    async def _decide(self) -> tuple[Known, list[TaskSpec]]:
        """The tasks that this device may join now. What it holds is enough to say yes; before it says no it asks again."""
        known = await self.specs.read()
        willing = self._willing(known)
        if not willing:
            known = await self.specs.read(fresh=True)
            willing = self._willing(known)
        return known, willing

    def _willing(self, known: Known) -> list[TaskSpec]:
        return [task for task in self._concerned(known) if not self._done(task) and self._allowed(task)]

    def _concerned(self, known: Known) -> list[TaskSpec]:
        tasks = [task for task in known.spec.tasks if task.model in self.models]
        for task in tasks:
            check_terms(task.terms)
        return tasks

    def _done(self, task: TaskSpec) -> bool:
        return task.ended or self.history.exhausted(task.run, task.terms)

    def _allowed(self, task: TaskSpec) -> bool:
        return self.history.allows(task.run, task.released + 1, task.terms)

    def _tag(self, task: TaskSpec) -> bytes:
        return self.history.tag(task.run) if task.wants_device_tag else b""

    async def _turned_away(self, answer: TryLater, known: Known) -> Outcome:
        """What the spec says no longer holds, where the reason is not just that others came first."""
        if answer.reason not in (LaterReason.NO_SEATS, LaterReason.RELEASING):
            known = await self.specs.read(fresh=True)
        return replace(self._ended(Result.LATER, known), retry=answer.retry)

    async def _work(self, assignment: Assignment, willing: Sequence[TaskSpec], known: Known) -> Outcome:
        plan, shard = assignment.plan, self.wire.to(assignment.upload_address)
        abort = Abort(assignment.session, AbortReason.NOT_ALLOWED, assignment.ticket)
        try:
            task = asked_for(plan, willing)
            check_plan(plan, task)
            clipped = await self._train(plan)
        except Overtaken:
            return self._ended(Result.LATER, await self.specs.read(fresh=True))
        except ValueError:
            await shard.abort(abort)
            raise
        begin = BeginUpload(assignment.session, assignment.ticket)
        if await self._reserve(shard, begin) is not Go.GO:
            return self._ended(Result.NOT_COUNTED, known)
        if not self.history.record(plan.run, plan.step, task.terms):
            await shard.abort(abort)
            return self._ended(Result.LATER, known)
        counted = await self._deliver(shard, begin, Upload(assignment.session, clipped.vector), plan)
        return self._ended(Result.COUNTED if counted else Result.NOT_COUNTED, known)

    def _ended(self, result: Result, known: Known) -> Outcome:
        tasks = self._concerned(known)
        return Outcome(result, sum(task.released for task in tasks), sum(task.steps for task in tasks), known.retry)

    async def _train(self, plan: RoundPlan) -> Clipped:
        """The clipped update; zeros where training diverged, so that data never decide who is counted."""
        data = await self.wire.artifact(plan.checkpoint_sha256, 4 * plan.size)
        if hashlib.sha256(data).digest() != plan.checkpoint_sha256 or len(data) != 4 * plan.size:
            raise BadPlan("the downloaded weights are not those of the plan")
        weights = np.frombuffer(data, dtype="<f4").astype(np.float32)
        grid = Grid(plan.clip_norm, plan.grid_bits)
        try:
            return clip(await self.train(plan, weights), grid)
        except InvalidVector:
            return Clipped(np.zeros(plan.size, dtype=np.int32), grid)

    async def _reserve(self, shard: Wire, begin: BeginUpload) -> Go:
        while True:
            reservation = await shard.begin_upload(begin)
            if reservation.answer is not Go.WAIT:
                return reservation.answer
            await self.pause(max(SHORTEST_WAIT, reservation.seconds))

    async def _deliver(self, shard: Wire, begin: BeginUpload, upload: Upload, plan: RoundPlan) -> bool:
        """Uploads until the server's answer is final; the session, not the connection, is what counts once."""
        go = Go.GO
        while go is Go.GO:
            try:
                receipt = await shard.upload(upload, plan)
            except WireLost:
                receipt = Receipt((await shard.status(StatusRequest(upload.session))).status, Refusal.NO_RESERVATION)
            if receipt.refusal not in REPEATABLE or receipt.status not in UNSETTLED:
                return receipt.status is SessionStatus.COUNTED
            await self.pause(BEFORE_REPEATING)
            go = await self._reserve(shard, begin)
        return go is Go.ALREADY_COUNTED


def check_terms(terms: PrivacyTerms) -> None:
    """Terms that promise nothing are no terms; raises BadPlan."""
    try:
        promised(terms)
    except ValueError as error:
        raise BadPlan(f"the announced terms make no sense: {error}") from error


def asked_for(plan: RoundPlan, willing: Sequence[TaskSpec]) -> TaskSpec:
    """The announced task that the plan belongs to; raises BadPlan."""
    task = next((task for task in willing if task.run == plan.run), None)
    if task is None:
        raise BadPlan("the plan is of a run that this device did not ask for")
    return task


def check_plan(plan: RoundPlan, task: TaskSpec) -> None:
    """The plan must be of the announced run, model and clip norm, and of a step that is still to come; raises BadPlan."""
    announced = (task.run, task.model, task.size, task.terms.clip_norm)
    if (plan.run, plan.model, plan.size, plan.clip_norm) != announced:
        raise BadPlan("the plan differs from the announced task")
    if plan.encoding is not Encoding.for_grid(plan.grid_bits) or plan.chunk_bytes < 1:
        raise BadPlan("the plan's update cannot be encoded as it asks")
    if not task.released < plan.step <= task.steps:
        raise BadPlan(f"the plan is for step {plan.step}, but the population announces step {task.released + 1}")


def promised(terms: PrivacyTerms) -> Participation:
    """The promise that the accountant prices, as the object that decides."""
    return Participation(terms.max_participations, terms.min_separation)
