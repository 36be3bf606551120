"""One device's conversation, without the wire.

    read the population -> decide -> check in -> download -> train, clip -> begin upload -> record -> upload

Nothing counts before GO; after GO the contribution is in the device's own history before its first byte leaves, and stays there
whatever happens. The wire, the history, the training and the pauses are handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from fedrho.privacy.clipping import clip
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import Clipped, FloatVector, Grid, InvalidVector, Update
from fedrho.protos.messages import (
    Abort,
    AbortReason,
    Assignment,
    BeginUpload,
    CheckIn,
    Encoding,
    Go,
    LaterReason,
    PopulationSpec,
    PrivacyTerms,
    Receipt,
    Refusal,
    Reservation,
    RetryWindow,
    RoundPlan,
    SessionStatus,
    StatusAnswer,
    StatusRequest,
    TryLater,
    Upload,
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

    async def population(self) -> PopulationSpec: ...
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


class Result(Enum):
    COUNTED = "counted"
    NOT_COUNTED = "not counted"
    LATER = "later"
    FINISHED = "finished"


@dataclass(frozen=True)
class Outcome:
    """How one visit ended, how many steps the server had released by then, and when to come back."""

    result: Result
    released: int
    retry: RetryWindow


@dataclass(frozen=True)
class Participant:
    """One device. `take_part` is one visit, from reading the population to the receipt."""

    wire: Wire
    history: History
    train: Train
    pause: Pause
    new_id: NewId

    async def take_part(self) -> Outcome:
        """Raises WireLost when the server is gone, BadPlan when it asks for something else than it announced."""
        spec = await self.wire.population()
        check_terms(spec.terms)
        if spec.finished or self.history.exhausted(spec.run, spec.terms):
            return _ended(Result.FINISHED, spec)
        if not self.history.allows(spec.run, spec.released + 1, spec.terms):
            return _ended(Result.LATER, spec)
        tag = self.history.tag(spec.run) if spec.wants_device_tag else b""
        answer = await self.wire.check_in(CheckIn(self.new_id(), spec.run, tag))
        if isinstance(answer, TryLater):
            result = Result.FINISHED if answer.reason is LaterReason.FINISHED else Result.LATER
            return Outcome(result, spec.released, answer.retry)
        return await self._work(answer, spec)

    async def _work(self, assignment: Assignment, spec: PopulationSpec) -> Outcome:
        plan = assignment.plan
        try:
            check_plan(plan, spec)
            clipped = await self._train(plan)
        except Overtaken:
            return _ended(Result.LATER, spec)
        except ValueError:
            await self.wire.abort(Abort(assignment.session, AbortReason.NOT_ALLOWED))
            raise
        if await self._reserve(assignment.session) is not Go.GO:
            return _ended(Result.NOT_COUNTED, spec)
        if not self.history.record(plan.run, plan.step, spec.terms):
            await self.wire.abort(Abort(assignment.session, AbortReason.NOT_ALLOWED))
            return _ended(Result.LATER, spec)
        counted = await self._deliver(Upload(assignment.session, clipped.vector), plan)
        return _ended(Result.COUNTED if counted else Result.NOT_COUNTED, spec)

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

    async def _reserve(self, session: bytes) -> Go:
        while True:
            reservation = await self.wire.begin_upload(BeginUpload(session))
            if reservation.answer is not Go.WAIT:
                return reservation.answer
            await self.pause(max(SHORTEST_WAIT, reservation.seconds))

    async def _deliver(self, upload: Upload, plan: RoundPlan) -> bool:
        """Uploads until the server's answer is final; the session, not the connection, is what counts once."""
        go = Go.GO
        while go is Go.GO:
            try:
                receipt = await self.wire.upload(upload, plan)
            except WireLost:
                receipt = Receipt((await self.wire.status(StatusRequest(upload.session))).status, Refusal.NO_RESERVATION)
            if receipt.refusal not in REPEATABLE or receipt.status not in UNSETTLED:
                return receipt.status is SessionStatus.COUNTED
            await self.pause(BEFORE_REPEATING)
            go = await self._reserve(upload.session)
        return go is Go.ALREADY_COUNTED


def _ended(result: Result, spec: PopulationSpec) -> Outcome:
    return Outcome(result, spec.released, spec.retry)


def check_terms(terms: PrivacyTerms) -> None:
    """Terms that promise nothing are no terms; raises BadPlan."""
    try:
        promised(terms)
    except ValueError as error:
        raise BadPlan(f"the announced terms make no sense: {error}") from error


def check_plan(plan: RoundPlan, spec: PopulationSpec) -> None:
    """The plan must be of the announced run, model and clip norm, and of a step that is still to come; raises BadPlan."""
    announced = (spec.run, spec.model, spec.size, spec.terms.clip_norm)
    if (plan.run, plan.model, plan.size, plan.clip_norm) != announced:
        raise BadPlan("the plan differs from the announced population")
    if plan.encoding is not Encoding.for_grid(plan.grid_bits) or plan.chunk_bytes < 1:
        raise BadPlan("the plan's update cannot be encoded as it asks")
    if not spec.released < plan.step <= spec.steps:
        raise BadPlan(f"the plan is for step {plan.step}, but the population announces step {spec.released + 1}")


def promised(terms: PrivacyTerms) -> Participation:
    """The promise that the accountant prices, as the object that decides."""
    return Participation(terms.max_participations, terms.min_separation)
