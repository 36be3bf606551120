"""A simulation of one run: virtual devices and virtual time around the server's own code, one release at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedrho.privacy.statement import PrivacyStatement, combined
from fedrho.privacy.vectors import FloatVector
from fedrho.server.starting import SETTINGS
from fedrho.server.tasks import Task
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.claim import SimulatedStatement
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import Engine
from fedrho.simulations.nonprivate import Averages, NonPrivateTask
from fedrho.simulations.poisson import SampledTask, Samples
from fedrho.simulations.state import BadState, State, StepRecord
from fedrho.simulations.virtual_rounds import Rounds, Rules

ALWAYS_WILLING = AvailabilitySection()
CORRELATED = (
    "in this study who comes depends on what a device holds, which the claim below assumes it does not: "
    "who came, and when, would tell something about the data that no noise hides"
)


@dataclass(frozen=True)
class Plan:
    """What is simulated. With a `SampledTask`, enforced Poisson samples; with a `NonPrivateTask`, plain averages; with a `Task`,
    devices that come by `availability`.

    `dataset` is needed where availability depends on the data; it is not asked for anything else but its size. `before` is what
    was released about the same devices before the training, as a vocabulary may be; with a `Task` alone.
    """

    task: Task | SampledTask | NonPrivateTask
    seed: int
    availability: AvailabilitySection = ALWAYS_WILLING
    dataset: FederatedDataset | None = None
    before: PrivacyStatement | None = None

    @property
    def model(self) -> str:
        return (self.task if isinstance(self.task, Task) else self.task.task).file.model

    def check(self) -> None:
        """Raises TaskError for what cannot be simulated, before anything is trained."""
        if isinstance(self.task, Task):
            self._rules(self.task).check()

    def _rules(self, task: Task) -> Rules:
        return Rules(task, self.seed, self.availability, self.dataset)

    def begin(self, engine: Engine, initial_weights: FloatVector, state: State | None) -> Rounds | Samples | Averages:
        if isinstance(self.task, NonPrivateTask):
            return Averages(self.task, self.seed, engine, initial_weights, state)
        if isinstance(self.task, SampledTask):
            return Samples(self.task, self.seed, engine, initial_weights, state)
        return Rounds(self._rules(self.task), engine, initial_weights, state)


class Simulation:
    """Same plan, engine's results and starting weights: the same records, weights and states, broken off and taken up or not."""

    def __init__(self, plan: Plan, engine: Engine, initial_weights: FloatVector, state: State | None = None) -> None:
        """Begins anew, or goes on from `state`. Raises TaskError, BadState, StoreConflict, NoiseMismatch."""
        if state is not None and (held := state.arrays.get("weights")) is not None and held.shape != initial_weights.shape:
            raise BadState(
                f"the checkpoint holds {held.size} weights, and the model {plan.model!r} has {initial_weights.size} here: it was "
                "begun with another version of the model or of fedrho; go on with that one, or begin anew, in another folder"
            )
        self.plan = plan
        self._run = plan.begin(engine, initial_weights, state)

    @property
    def task(self) -> Task:
        return self.plan.task if isinstance(self.plan.task, Task) else self.plan.task.task

    @property
    def finished(self) -> bool:
        return self._run.finished

    @property
    def released(self) -> int:
        """Steps so far."""
        return self._run.released

    @property
    def weights(self) -> FloatVector:
        """Of the latest release."""
        return self._run.weights

    @property
    def counted(self) -> tuple[int, ...]:
        """Simulation only: the devices that were counted at the latest step."""
        return self._run.shard.devices if isinstance(self._run, Rounds) else self._run.devices

    def step(self) -> StepRecord:
        """One release. Raises NeverFinished, EngineError, BudgetExhausted."""
        record, before = self._run.step(), self.plan.before
        return record if before is None or record.rho is None else replace(record, rho=before.rho + record.rho)

    def state(self) -> State:
        """Everything that is needed to go on after the latest step."""
        return self._run.state()

    def statement(self) -> SimulatedStatement:
        """What a deployed run with these settings would claim after the latest step; the simulation itself protects nobody."""
        if isinstance(self._run, Averages):
            return SimulatedStatement(self._run.claim())
        if isinstance(self._run, Samples):
            return SimulatedStatement(self._run.claim(), labels=self._run.task.label_statement())
        broken = (CORRELATED,) if self.plan.availability.model == "correlated" else ()
        labels = self._run.coordinator.task.label_statement()
        if labels is not None:  # who comes by labels tells of labels
            labels = replace(labels, assumptions=(*broken, *labels.assumptions))
        claim = self._run.coordinator.statement()
        if self.plan.before is not None:
            claim = combined({"vocabulary": self.plan.before, "training": _but_for_words(claim)})
        return SimulatedStatement(claim, broken, labels)


def _but_for_words(training: PrivacyStatement) -> PrivacyStatement:
    """The claim of a run one of whose settings, its vocabulary, was chosen with the devices' data after all."""
    said = (text.replace(SETTINGS, f"{SETTINGS}, but for the vocabulary,") for text in training.assumptions)
    return replace(training, assumptions=tuple(said))
