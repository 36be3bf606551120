"""One device's conversation, without the wire.

    read the spec -> decide -> check in -> download -> train, clip -> begin upload -> record -> upload

Nothing counts before GO; after GO the contribution is in the device's own history before its first byte leaves, and stays there
whatever happens. The wire, the history, the training and the pauses are handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from fedrho.client.limits import NO_LIMITS, Limits
from fedrho.client.spec import BadSpec, Known, SpecReader
from fedrho.models.optimizers import LocalOptimizer
from fedrho.privacy.clipping import clip
from fedrho.privacy.labels.local import CORRECTIONS
from fedrho.privacy.labels.local import MECHANISMS as LABEL_MECHANISMS
from fedrho.privacy.labels.local import check_terms as check_label_terms
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import Clipped, FloatVector, Grid, InvalidVector, Update
from fedrho.protos.codec import MalformedMessage
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


class TlsFailed(WireLost):
    """A server answers, and its certificate is not one that this device believes; the message is why."""


class Overtaken(RuntimeError):
    """What the plan needs is gone: the step was released, or its attempt abandoned, meanwhile."""


class BadPlan(ValueError):
    """The server asks for something that its own population does not announce."""


class CannotTrain(RuntimeError):
    """Nothing can be trained on this machine now, whatever the examples: the seat goes back. One line that says why."""


class TrainingFailed(RuntimeError):
    """Training gave no update. Why, in one line, is for the owner of the device; nobody else may learn that it did."""


SHORTEST_WAIT = 0.05
BEFORE_REPEATING = 0.5
REPEATABLE = (Refusal.NO_RESERVATION, Refusal.ALREADY_OPEN)
UNSETTLED = (SessionStatus.ASSIGNED, SessionStatus.RESERVED)
MECHANISMS = frozenset(("independent-gaussian", "binary-tree", "banded-toeplitz", "buffered-toeplitz", "adaptive-gaussian"))
"""The mechanisms that this version knows; a task with another is not joined."""


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

    async def abort(self, message: Abort) -> None:
        """Best effort: over within half a second, and raises nothing."""
        ...


class History(Protocol):
    """What the device remembers, durably."""

    def hear(self, known: Known) -> None:
        """Remembers what a population announces; raises where it takes back what it has said before."""
        ...

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

    def note(self, kind: str, detail: str, run: bytes = b"") -> None:
        """Leaves a dated record for the owner."""
        ...


Train = Callable[[RoundPlan, FloatVector], Awaitable[Update]]
"""Raises BadPlan for a plan that nobody could train, and CannotTrain where nothing can be trained, whatever the examples; all
else that it raises may depend on them."""
Pause = Callable[[float], Awaitable[None]]
NewId = Callable[[], bytes]
Prove = Callable[[Known, CheckIn], DeviceProof]
Objects = Callable[[TaskSpec], str]
"""Why a device would not answer for its labels under a task's terms; empty where it would, or where it need not."""


def no_memo(task: TaskSpec) -> str:
    """Of a device that cannot remember what it has answered."""
    return "it asks for answers for labels, and this device keeps none" if task.terms.labels is not None else ""


class Result(Enum):
    COUNTED = "counted"
    NOT_COUNTED = "not counted"
    LATER = "later"
    FINISHED = "finished"


@dataclass(frozen=True)
class Outcome:
    """How one visit ended, how far the runs that concern this device were by then, and when to come back.

    `failure` is why training gave nothing, and zeros were uploaded; empty when it gave an update. It stays on the device.
    `reason` is the server's own, where it turned the device away.
    """

    result: Result
    released: int
    steps: int
    retry: RetryWindow
    failure: str = ""
    reason: LaterReason | None = None


@dataclass(frozen=True)
class Participant:
    """One device. `take_part` is one visit, from reading the spec to the receipt.

    `models` are those it has examples for; tasks with another are none of its business. `prove` shows a population that wants to
    see it who vouches for this device. `limits` are the owner's: what is weaker is not joined; `labels` objects where a label
    would be asked more often than it may.
    """

    wire: Wire
    specs: SpecReader
    history: History
    models: Container[str]
    train: Train
    pause: Pause
    new_id: NewId
    prove: Prove | None = None
    limits: Limits = NO_LIMITS
    labels: Objects = no_memo

    async def take_part(self) -> Outcome:
        """Raises WireLost when the server is gone, BadPlan or BadSpec when it asks for something else than it announced.

        May be cancelled at any time: the server is told, so that the seat is free again. A contribution that the history has by
        then stays in it, even where its upload is cut. What a server may not say leaves a record for the owner.
        """
        try:
            return await self._visit()
        except (BadPlan, BadSpec) as refused:
            self.history.note("refused", str(refused))
            raise
        except MalformedMessage as error:
            self.history.note("refused", f"the server's answer cannot be read: {error}")
            raise BadPlan(f"the server's answer cannot be read: {error}") from error

    async def _visit(self) -> Outcome:
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
        return await self._seated(answer, willing, known)

    async def _decide(self) -> tuple[Known, list[TaskSpec]]:
        """The tasks that this device may join now. What it holds is enough to say yes; before it says no it asks again."""
        known = await self._read()
        willing = self._willing(known)
        if not willing:
            known = await self._read(fresh=True)
            willing = self._willing(known)
        return known, willing

    async def _read(self, fresh: bool = False) -> Known:
        known = await self.specs.read(fresh)
        self.history.hear(known)
        return known

    def _willing(self, known: Known) -> list[TaskSpec]:
        return [task for task in self._concerned(known) if not self._done(task) and self._allowed(task)]

    def _concerned(self, known: Known) -> list[TaskSpec]:
        tasks = [task for task in known.spec.tasks if task.model in self.models]
        for task in tasks:
            check_terms(task.terms)
        return [task for task in tasks if self._acceptable(known, task)]

    def _acceptable(self, known: Known, task: TaskSpec) -> bool:
        """Whether device and owner can accept the terms at all; if not, the reason is on record."""
        reason = unknown_terms(known, task) or self.limits.objection(known.public_key, task) or self.labels(task)
        if reason:
            self.history.note("not joined", f"{task.task}: {reason}", task.run)
        return not reason

    def _done(self, task: TaskSpec) -> bool:
        return task.ended or self.history.exhausted(task.run, task.terms)

    def _allowed(self, task: TaskSpec) -> bool:
        return self.history.allows(task.run, task.released + 1, task.terms)

    def _tag(self, task: TaskSpec) -> bytes:
        return self.history.tag(task.run) if task.wants_device_tag else b""

    async def _turned_away(self, answer: TryLater, known: Known) -> Outcome:
        """What the spec says no longer holds, where the reason is not just that others came first."""
        if answer.reason not in (LaterReason.NO_SEATS, LaterReason.RELEASING):
            known = await self._read(fresh=True)
        return replace(self._ended(Result.LATER, known), retry=answer.retry, reason=answer.reason)

    async def _seated(self, assignment: Assignment, willing: Sequence[TaskSpec], known: Known) -> Outcome:
        """Gives the seat back where the visit is cancelled, whatever it was at; what was counted by then stays counted."""
        try:
            return await self._work(assignment, willing, known)
        except (Exception, GeneratorExit):
            raise
        except BaseException:  # cancelled
            shard = self.wire.to(assignment.upload_address)
            await shard.abort(Abort(assignment.session, AbortReason.CONDITIONS, assignment.ticket))
            raise

    async def _work(self, assignment: Assignment, willing: Sequence[TaskSpec], known: Known) -> Outcome:
        plan, shard = assignment.plan, self.wire.to(assignment.upload_address)
        abort = Abort(assignment.session, AbortReason.NOT_ALLOWED, assignment.ticket)
        try:
            task = asked_for(plan, willing)
            check_plan(plan, task)
            clipped, failure = await self._train(plan)
        except Overtaken:
            return self._ended(Result.LATER, await self._read(fresh=True))
        except ValueError:
            await shard.abort(abort)
            raise
        except CannotTrain:
            await shard.abort(replace(abort, reason=AbortReason.CONDITIONS))
            raise
        begin = BeginUpload(assignment.session, assignment.ticket)
        if await self._reserve(shard, begin) is not Go.GO:
            return self._ended(Result.NOT_COUNTED, known)
        if not self.history.record(plan.run, plan.step, task.terms):
            await shard.abort(abort)
            return self._ended(Result.LATER, known)
        counted = await self._deliver(shard, begin, Upload(assignment.session, clipped.vector), plan)
        if failure:  # only now: whether the upload succeeds must not depend on a disk that is asked for one more record
            with suppress(Exception):  # nor may anything that the server sees later
                self.history.note(
                    "nothing learnt", f"{plan.model}, step {plan.step}: zeros were sent, because {failure}", plan.run
                )
        return replace(self._ended(Result.COUNTED if counted else Result.NOT_COUNTED, known), failure=failure)

    def _ended(self, result: Result, known: Known) -> Outcome:
        tasks = self._concerned(known)
        return Outcome(result, sum(task.released for task in tasks), sum(task.steps for task in tasks), known.retry)

    async def _train(self, plan: RoundPlan) -> tuple[Clipped, str]:
        """The clipped update; zeros, and why, where training failed, so that data never decide who is counted."""
        data = await self.wire.artifact(plan.checkpoint_sha256, 4 * plan.size)
        if hashlib.sha256(data).digest() != plan.checkpoint_sha256 or len(data) != 4 * plan.size:
            raise BadPlan("the downloaded weights are not those of the plan")
        weights = np.frombuffer(data, dtype="<f4").astype(np.float32)
        grid = Grid(plan.clip_norm, plan.grid_bits)
        try:
            return clip(await self.train(plan, weights), grid), ""
        except (BadPlan, CannotTrain):
            raise
        except Exception as error:
            failure = (
                str(error) if isinstance(error, InvalidVector | TrainingFailed) else f"training raised {type(error).__name__}"
            )
            return Clipped(np.zeros(plan.size, dtype=np.int32), grid), failure

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


def unknown_terms(known: Known, task: TaskSpec) -> str:
    """What in the terms of a task this version does not know, and so cannot keep; empty where it knows all."""
    if task.terms.mechanism not in MECHANISMS:
        return f"the mechanism {task.terms.mechanism!r} is unknown to this version of fedrho"
    labels = task.terms.labels
    if labels is not None and (labels.mechanism not in LABEL_MECHANISMS or labels.correction not in CORRECTIONS):
        return f"its label terms, {labels.mechanism!r} with {labels.correction!r}, are unknown to this version of fedrho"
    return "its terms have a part that is unknown to this version of fedrho" if task.run in known.strange else ""


def asked_for(plan: RoundPlan, willing: Sequence[TaskSpec]) -> TaskSpec:
    """The announced task that the plan belongs to; raises BadPlan."""
    task = next((task for task in willing if task.run == plan.run), None)
    if task is None:
        raise BadPlan("the plan is of a run that this device did not ask for")
    return task


def check_plan(plan: RoundPlan, task: TaskSpec) -> None:
    """The plan must be of the announced run, model and clip norm, and of a step that is still to come; raises BadPlan."""
    announced = (task.run, task.model, task.size, task.terms.clip_norm, task.terms.labels)
    if (plan.run, plan.model, plan.size, plan.clip_norm, plan.labels) != announced:
        raise BadPlan("the plan differs from the announced task")
    if plan.encoding is not Encoding.for_grid(plan.grid_bits) or plan.chunk_bytes < 1:
        raise BadPlan("the plan's update cannot be encoded as it asks")
    check_local(plan)
    if not task.released < plan.step <= task.steps:
        raise BadPlan(f"the plan is for step {plan.step}, but the population announces step {task.released + 1}")


def check_local(plan: RoundPlan) -> None:
    """The local work must be some that can be done; raises BadPlan."""
    try:
        LocalOptimizer(plan.optimizer, plan.learning_rate, plan.momentum)
    except ValueError as error:
        raise BadPlan(f"the plan's local training makes no sense: {error}") from error
    if plan.batch_size < 1 or not (plan.epochs or plan.local_steps):
        raise BadPlan("the plan's local training makes no sense: it trains on nothing")


def promised(terms: PrivacyTerms) -> Participation:
    """The promise that the accountant prices, as the object that decides; raises ValueError where it makes no sense."""
    for name in ("clip_norm", "noise_multiplier", "rho_budget"):
        if not getattr(terms, name) > 0:
            raise ValueError(f"{name} must be above 0, not {getattr(terms, name):g}")
    labels = terms.labels
    if labels is not None and labels.mechanism in LABEL_MECHANISMS and labels.correction in CORRECTIONS:
        check_label_terms(labels.mechanism, labels.epsilon, labels.prior, labels.correction)
    return Participation(terms.max_participations, terms.min_separation)
