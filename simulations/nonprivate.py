"""Federated averaging without privacy, `algorithm = "fedavg"`: in a simulation alone, to say what privacy costs in accuracy.

Nothing is clipped and nothing is added, so there is no guarantee, no rho and no epsilon, and no task file for a server, which
knows neither this algorithm nor a task without privacy. At every step `goal` devices take part, uniformly among those that the
task's participation still allows; there are no seats, no drop-out and no first come.

Sums travel through the engines as those of private runs do, on a grid. Its radius is so large that an update beyond it is
refused, not clipped, and its unit is 2e-6 of a weight. The exact sum leaves by the one door that there is, a mechanism, whose
noise is zeros; it becomes a mean here and nothing else, never a `Released` that an optimizer of the server would take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.vectors import ClippedSum, FloatVector
from fedrho.server.tasks import Task, TaskError, TaskFile, build_task
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.claim import NoGuarantee
from fedrho.simulations.engines.base import Engine, EngineError, Told
from fedrho.simulations.poisson import UNPRICED
from fedrho.simulations.seeded import NoNoise, generator
from fedrho.simulations.state import BadState, SimulationOnly, State, StepRecord, fingerprint
from fedrho.simulations.virtual_rounds import NeverFinished

ALGORITHM: Final = "fedavg"
NONE: Final = "none"
"""What stands for the section `[task.privacy]`: said once more, so that nobody takes such a run for a private one."""
LARGEST_UPDATE: Final = 32.0
"""L2, in units of the weights: with the finest grid an update's coordinates are then kept to within 2e-6."""
NEVER_ASKED: Final = 1e-12
"""A delta, which the section must have, and which no statement about such a run ever names."""


@dataclass(frozen=True)
class NonPrivateTask:
    """A task whose privacy is `none`. Of `task` everything holds but its mechanism, whose noise nobody draws."""

    task: Task


def is_nonprivate(values: Mapping[str, Any]) -> bool:
    """Whether the `[task]` of a study asks for no privacy, by either of the two keys that have to say it."""
    return values.get("algorithm") == ALGORITHM or values.get("privacy") == NONE


def nonprivate_task(values: Mapping[str, Any], availability: AvailabilitySection) -> NonPrivateTask:
    """From the `[task]` of a study. Raises TaskError for what would be half private, ValidationError for what is no task."""
    _check(values, availability)
    steps = values.get("steps")
    whole = {
        "participation": {"max_times": steps if isinstance(steps, int) else 1},
        **values,
        "algorithm": "dp-fedavg",
        "privacy": {"clip_norm": LARGEST_UPDATE, "grid_bits": 24, "rho": UNPRICED, "delta": NEVER_ASKED},
    }
    return NonPrivateTask(build_task(TaskFile.model_validate(whole)))


def _check(values: Mapping[str, Any], availability: AvailabilitySection) -> None:
    if values.get("algorithm") != ALGORITHM:
        raise TaskError("privacy", f'"{NONE}" belongs to algorithm = "{ALGORITHM}", which a simulation alone can run')
    if values.get("privacy") != NONE:
        raise TaskError("privacy", f'{ALGORITHM} clips nothing and adds nothing; say privacy = "{NONE}" instead of a section')
    if values.get("labels") is not None:
        raise TaskError("labels", f"{ALGORITHM} is a run without privacy; leave the section out")
    round_, participation = values.get("round"), values.get("participation")
    for name in sorted(set(round_) - {"goal"} if isinstance(round_, Mapping) else ()):
        raise TaskError(f"round.{name}", f"everybody who is asked by {ALGORITHM} is counted; leave it out")
    for name in ("min_period_seconds", "server_window"):
        if isinstance(participation, Mapping) and participation.get(name):
            raise TaskError(f"participation.{name}", f"no time passes in a run of {ALGORITHM}; leave it out")
    for name, value in AvailabilitySection():
        if getattr(availability, name) != value:
            raise TaskError(f"availability.{name}", f"devices of {ALGORITHM} neither choose nor drop out; leave it out")


class Averages:
    """One run without privacy, step by step; `state` is what `state()` returned before."""

    def __init__(
        self, planned: NonPrivateTask, seed: int, engine: Engine, initial_weights: FloatVector, state: State | None = None
    ) -> None:
        """Raises BadState."""
        self.task = planned.task
        self._seed = seed
        self._study = fingerprint(ALGORITHM, self.task.file.model_dump(), seed)
        self._engine = engine
        self.devices: tuple[int, ...] = ()
        """Those of the latest step."""
        self.weights: FloatVector = np.ascontiguousarray(initial_weights, dtype=np.float32)
        self._velocity: NDArray[np.float64] = self.task.optimizer.init(self.weights.size)
        self._times = np.zeros(self.task.file.population, dtype=np.int64)
        self._latest = np.full(self.task.file.population, -self.task.participation.min_separation, dtype=np.int64)
        self.released = 0
        if state is not None:
            self._restore(state)

    @property
    def finished(self) -> bool:
        return self.released >= self.task.file.steps

    def step(self) -> StepRecord:
        """The next mean, not noised. Raises EngineError, NeverFinished."""
        if self.finished:
            raise ValueError("all steps were made")
        step, goal = self.released + 1, self.task.file.round.goal
        devices = self._drawn(step)
        trained = self._engine.train(step, self.weights, devices)
        _check_unclipped(trained.told)
        mean = bare_mean(trained.total, goal)
        optimizer = self.task.optimizer
        self._velocity = optimizer.momentum * self._velocity + mean
        self.weights = (self.weights + optimizer.learning_rate * self._velocity).astype(np.float32)
        self.devices, self.released = devices, step
        return StepRecord(
            step=step,
            attempt=1,
            seconds=None,
            counted=len(devices),
            seats=len(devices),
            dropped=0,
            abandoned=0,
            rho=None,
            node_stddev=0.0,
            sum_stddev=0.0,
            mean_norm=float(np.linalg.norm(mean)),
            simulation_only=SimulationOnly.of(trained.told, LARGEST_UPDATE),
        )

    def _drawn(self, step: int) -> tuple[int, ...]:
        """`goal` of those that may take part, each subset equally likely; they are noted at once."""
        goal, limits = self.task.file.round.goal, self.task.participation
        may = np.flatnonzero((self._times < limits.max_times) & (step - self._latest >= limits.min_separation))
        if len(may) < goal:
            raise NeverFinished(
                f"step {step} cannot be made: {len(may)} devices may still take part in it, {goal} are needed; "
                "raise participation.max_times, or lower participation.min_separation or round.goal"
            )
        chosen = np.sort(generator(self._seed, ALGORITHM, step).choice(may, goal, replace=False, shuffle=False))
        self._times[chosen] += 1
        self._latest[chosen] = step
        devices: list[int] = chosen.tolist()
        return tuple(devices)

    def claim(self) -> NoGuarantee:
        return NoGuarantee()

    def state(self) -> State:
        return State(
            {"kind": ALGORITHM, "study": self._study, "step": self.released},
            {"weights": self.weights, "velocity": self._velocity, "times": self._times, "latest": self._latest},
        )

    def _restore(self, state: State) -> None:
        state.check(ALGORITHM, self._study)
        try:
            self.weights = np.ascontiguousarray(state.arrays["weights"], dtype=np.float32)
            self._velocity = np.ascontiguousarray(state.arrays["velocity"], dtype=np.float64)
            self._times, self._latest = (np.array(state.arrays[name], dtype=np.int64) for name in ("times", "latest"))
        except (KeyError, TypeError) as error:
            raise BadState(f"the state of the simulation cannot be read: {error}") from error
        self.released = state.step


def bare_mean(total: ClippedSum, goal: int) -> NDArray[np.float64]:
    """The mean over `goal` devices of a sum that nobody protects, in units of the weights; the sum is empty then."""
    mechanism = IndependentGaussian(total.grid, 1.0)
    released, _ = mechanism.release(total, mechanism.init(total.size), NoNoise())
    return released.mean(goal)


def _check_unclipped(told: Told) -> None:
    """Raises EngineError where an update was too long for the grid, because such a run clips nothing."""
    largest = float(told.norm.max(initial=0.0))
    if largest > LARGEST_UPDATE:
        raise EngineError(
            f"an update has the norm {largest:.3g}, and a run without privacy holds {LARGEST_UPDATE:g} at most, because it "
            "clips nothing; lower task.local.learning_rate, or task.local.epochs"
        )
