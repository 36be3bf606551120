"""DP-FedAvg with enforced Poisson sampling: in a simulation alone, because no server can make a device come or stay away.

At every step each device takes part by a coin of its own, with probability goal / population. Whoever is drawn is counted:
there are no seats, no drop-out and no first come. The divisor is the goal, whatever number came, and where nobody came the step
releases noise alone. The price is that of the sampled Gaussian (`privacy/sampling.py`), add-or-remove.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrho.privacy.calibration import least_sampled_noise_multiplier
from fedrho.privacy.mechanism import NoiseState
from fedrho.privacy.noise import ReplayedNoise
from fedrho.privacy.sampling import PoissonSampling, SampledGaussian
from fedrho.privacy.statement import round_up
from fedrho.privacy.vectors import ClippedSum, FloatVector
from fedrho.server.starting import starting_assumption
from fedrho.server.tasks import Section, Task, TaskError, TaskFile, build_task
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.claim import SampledStatement
from fedrho.simulations.engines.base import Engine
from fedrho.simulations.seeded import SeededNoise, generator
from fedrho.simulations.state import BadState, SimulationOnly, State, StepRecord, fingerprint
from fedrho.simulations.virtual_shard import TOLD_NOTHING

UNPRICED = 1e15
"""The rho of a task that is priced otherwise: the largest that a task file takes."""
ENFORCER = "the simulation, by coins that grow from the study's seed"


class SamplingSection(Section):
    """`[sampling]` of a study. Without `epsilon` the task's `privacy.noise_multiplier` is taken."""

    kind: Literal["poisson"]
    epsilon: Annotated[float, Field(gt=0, le=1e4)] | None = None


@dataclass(frozen=True)
class SampledTask:
    """A task whose rounds are Poisson samples, and the mechanism that prices all of its steps."""

    task: Task
    rate: float
    epsilon: float

    def priced(self, steps: int) -> SampledGaussian:
        return SampledGaussian(self.task.mechanism.noise_multiplier, PoissonSampling(self.rate, ENFORCER), steps)


def sampled_task(values: Mapping[str, Any], sampling: SamplingSection, availability: AvailabilitySection) -> SampledTask:
    """From the `[task]` of a study, which has no `privacy.rho` and no `[participation]` here.

    Raises TaskError for whatever the price does not cover, pydantic's ValidationError for what is no task at all.
    """
    check_combination(values, availability)
    section = values.get("privacy")
    privacy = dict(section) if isinstance(section, Mapping) else {}
    steps = values.get("steps")
    whole = {
        **values,
        "privacy": {**privacy, "rho": UNPRICED},
        "participation": {"max_times": steps if isinstance(steps, int) else 1},
    }
    file = TaskFile.model_validate(whole)
    rate = file.round.goal / file.population
    if rate > 1:
        build_task(file)  # says so
    multiplier = file.privacy.noise_multiplier
    if (multiplier is None) == (sampling.epsilon is None):
        raise TaskError("sampling.epsilon", "give either this or privacy.noise_multiplier")
    if multiplier is None and sampling.epsilon is not None:
        multiplier = _least(file, rate, sampling.epsilon)
        file = TaskFile.model_validate({**whole, "privacy": {**privacy, "rho": UNPRICED, "noise_multiplier": multiplier}})
    task = build_task(file)
    priced = SampledGaussian(task.mechanism.noise_multiplier, PoissonSampling(rate, ENFORCER), file.steps)
    epsilon = priced.epsilon(file.privacy.delta)
    if not math.isfinite(epsilon):
        raise TaskError(
            "privacy.noise_multiplier",
            f"{task.mechanism.noise_multiplier:g} is too little noise to be priced, or privacy.delta too small",
        )
    return SampledTask(task, rate, epsilon)


def _least(file: TaskFile, rate: float, epsilon: float) -> float:
    try:
        return least_sampled_noise_multiplier(rate, file.steps, epsilon, file.privacy.delta)
    except ValueError as error:
        raise TaskError("sampling.epsilon", str(error)) from error


def check_combination(values: Mapping[str, Any], availability: AvailabilitySection) -> None:
    """Raises TaskError for what would make the coins of the devices other than the price takes them for."""
    algorithm = values.get("algorithm")
    if algorithm != "dp-fedavg":
        raise TaskError("algorithm", f"Poisson sampling is priced for dp-fedavg alone, not for {algorithm!r}")
    if "participation" in values:
        raise TaskError("participation", "the coins of Poisson sampling know no limits; leave the section out")
    privacy, round_ = values.get("privacy"), values.get("round")
    if isinstance(privacy, Mapping) and "rho" in privacy:
        raise TaskError("privacy.rho", "Poisson sampling has no rho; leave it out, and give sampling.epsilon")
    if isinstance(round_, Mapping):
        for name in sorted(set(round_) - {"goal"}):
            raise TaskError(f"round.{name}", "everybody who is drawn by Poisson sampling is counted; leave it out")
    for name, value in AvailabilitySection():
        if getattr(availability, name) != value:
            raise TaskError(f"availability.{name}", "devices of a Poisson sample neither choose nor drop out; leave it out")


def sample(population: int, rate: float, random: np.random.Generator) -> tuple[int, ...]:
    """Each device with probability `rate`, by a coin of its own: a binomial number of them, and a uniform subset of that size."""
    count = int(random.binomial(population, rate))
    chosen: list[int] = np.sort(random.choice(population, count, replace=False, shuffle=False)).tolist()
    return tuple(chosen)


class Samples:
    """One run over Poisson samples, step by step; `state` is what `state()` returned before."""

    def __init__(
        self, sampled: SampledTask, seed: int, engine: Engine, initial_weights: FloatVector, state: State | None = None
    ) -> None:
        """Raises BadState."""
        self.sampled = sampled
        self.task = sampled.task
        self._seed = seed
        self._study = fingerprint(self.task.file.model_dump(), seed)
        self._engine = engine
        self._noise = SeededNoise(seed, self.task.file.name)
        self.devices: tuple[int, ...] = ()
        """Those drawn at the latest step."""
        self.weights: FloatVector = np.ascontiguousarray(initial_weights, dtype=np.float32)
        self._velocity: NDArray[np.float64] = self.task.optimizer.init(self.weights.size)
        self._mechanism: NoiseState = self.task.mechanism.init(self.weights.size)
        if state is not None:
            self._restore(state)

    @property
    def finished(self) -> bool:
        return self.released >= self.task.file.steps

    @property
    def released(self) -> int:
        """Steps so far."""
        return self._mechanism.step

    def step(self) -> StepRecord:
        """The next release; raises EngineError."""
        if self.finished:
            raise ValueError("all steps were released")
        step, goal = self.released + 1, self.task.file.round.goal
        devices = sample(self.task.file.population, self.sampled.rate, generator(self._seed, "poisson", step))
        grid = self.task.mechanism.grid
        total, told = ClippedSum(np.zeros(self.weights.size, dtype=np.int64), grid), TOLD_NOTHING
        if devices:
            trained = self._engine.train(step, self.weights, devices)
            total, told = trained.total, trained.told
        released, self._mechanism = self.task.mechanism.release(total, self._mechanism, self._noise)
        self.weights, self._velocity = self.task.optimizer.apply(released, goal, self.weights, self._velocity)
        self.devices = devices
        node = self.task.mechanism.stddev * grid.unit / goal
        return StepRecord(
            step=step,
            attempt=1,
            seconds=None,
            counted=len(devices),
            seats=len(devices),
            dropped=0,
            abandoned=0,
            rho=None,
            node_stddev=node,
            sum_stddev=node * math.sqrt(step),
            mean_norm=float(np.linalg.norm(released.mean(goal))),
            simulation_only=SimulationOnly.of(told, grid.clip_norm),
        )

    def claim(self) -> SampledStatement:
        """What a deployed run could say if somebody enforced its sampling."""
        file, step = self.task.file, self.released
        return SampledStatement(
            mechanism=self.sampled.priced(step) if step else None,
            assumptions=(
                f"at every step each of {file.population} devices takes part by a coin of its own, with probability "
                f"{self.sampled.rate:g}; that is enforced, which no fedrho server does, none drops out or comes by "
                "itself, and nobody learns who came or how many",
                f"{step} of {file.steps} steps were released, with noise {self.task.mechanism.described()}; a run that is "
                f"ended because of what it released costs what all its steps cost, epsilon = {round_up(self.sampled.epsilon)} "
                f"at delta = {file.privacy.delta!r}",
                f"the divisor {file.round.goal} and the number of steps are public constants, whatever number came",
                starting_assumption(file),
                "the server is trusted: it sees clipped updates in memory, adds the noise, and keeps coins and seeds secret",
                "noise grows from seeds of the operating system through AES-128-CTR, as float64 Gaussians rounded to the grid",
                "other runs on the same devices, not counted here, cost more",
            ),
        )

    def state(self) -> State:
        return State(
            {"kind": "poisson", "study": self._study, "step": self.released},
            {"weights": self.weights, "velocity": self._velocity},
        )

    def _restore(self, state: State) -> None:
        state.check("poisson", self._study)
        try:
            self.weights = np.ascontiguousarray(state.arrays["weights"], dtype=np.float32)
            self._velocity = np.ascontiguousarray(state.arrays["velocity"], dtype=np.float64)
            self._mechanism = self.task.mechanism.restore(self.weights.size, state.step, ReplayedNoise(()))
        except (KeyError, TypeError) as error:
            raise BadState(f"the state of the simulation cannot be read: {error}") from error
