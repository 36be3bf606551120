"""One training of an experiment, from its section to weights and figures: learners, stages, baselines, accuracy.

A *cell* is a run at one epsilon with one seed. Figures are measured on examples whose labels are public, or estimated from
answers of held-out records; true private labels have no part in any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.labels import baseline
from fedrho.labels.answered import Answered, with_deltas
from fedrho.labels.baseline import DpSgd
from fedrho.labels.data import LabelData
from fedrho.labels.grouping import Told, groups
from fedrho.labels.runs import DP_SGD, MODEL
from fedrho.labels.settings import ExperimentFile, RunSection, StageSection, TrainingSection, slug
from fedrho.privacy.labels.chance import Chance, SystemChance
from fedrho.privacy.labels.learner import Learner
from fedrho.privacy.labels.memory import BadMemory, LostAnswers, Memory, fitting
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.privacy.labels.stages import FromClusters, FromModel, Retraining, Stage, Uniform, fit_seed, split, train_stages
from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.vectors import FloatVector

if TYPE_CHECKING:
    from fedrho.privacy.labels.randomizers import Randomizer

Figures = dict[str, Any]
Groups = MutableMapping[str, NDArray[np.int64]]
MakeLearner = Callable[[TrainingSection], Learner]
HELD_OUT: Final = "held-out"


@dataclass(frozen=True)
class Cell:
    """One training: `name` is its folder."""

    run: RunSection
    epsilon: float | None
    seed: int
    name: str
    title: str


def cells(experiment: ExperimentFile) -> Iterator[Cell]:
    for run in experiment.runs:
        for epsilon in priced(run):
            for seed in range(experiment.seeds):
                at = "" if epsilon is None else f" epsilon {epsilon!r}"
                name = slug(run.name) + ("" if epsilon is None else f"-epsilon-{epsilon!r}") + f"-seed-{seed}"
                yield Cell(run, epsilon, seed, name, f"{run.name}{at} seed {seed}")


def priced(run: RunSection) -> Sequence[float | None]:
    """Its epsilons; a single None where it has no price."""
    return run.epsilons or (None,)


class Trainer:
    """Trains cells of one experiment on one data set. `learner` makes a learner of settings; `guardian` holds the labels.

    An encoder of images tells `told` how far it is, as models tell it.
    """

    def __init__(
        self,
        experiment: ExperimentFile,
        data: LabelData,
        learner: MakeLearner,
        chance: Chance | None = None,
        guardian: Callable[..., PrivateLabels] = PrivateLabels,
        dp_sgd: DpSgd | None = None,
        again: bool = False,
        told: Told | None = None,
    ) -> None:
        self._told = told
        self._dp_sgd_trainer = dp_sgd
        self.earlier: Sequence[Answered] = ()
        """What the labels paid before this experiment: it is a part of every statement."""
        self._experiment, self._data = experiment, data
        self._make, self._guardian = learner, guardian
        self._chance = SystemChance() if chance is None else chance
        self._again = again
        self.groups: Groups = {}
        """Clusters by their name; what an earlier process made of them may stand here, since they are public."""
        self._learners: dict[str, Learner] = {}
        places: NDArray[np.int64] = np.arange(len(data.features))
        self._held: NDArray[np.int64] = places[:0]
        self._used = places
        if data.test_features is None:
            kept = 1 - experiment.held_out
            self._used, self._held = split(len(places), [kept, experiment.held_out], experiment.split_seed + 1)

    def train(self, cell: Cell, memory: Memory, say: Callable[[str], None]) -> tuple[Figures, LabelStatement]:
        """Raises BadInput where answers were lost and nobody said to ask again; what the trainer of stages raises."""
        kinds = {"stages": self._stages, "dp-sgd": self._dp_sgd, "non-private": self._non_private}
        try:
            return kinds[cell.run.kind](cell, memory, say)
        except LostAnswers as error:
            raise BadInput(
                f"{cell.title}: {error}; --again asks the labels once more and charges what was lost as well"
            ) from error
        except BadMemory as error:
            raise BadInput(f"{cell.title}: {error}; mend its folder {cell.name} from a copy") from error

    def planned(self, cell: Cell) -> list[int]:
        """Steps of each of its models, one after another; a stage that filters records takes fewer."""
        shared, records = self._experiment.training, len(self._used)
        if cell.run.dp_sgd is not None:
            return [cell.run.dp_sgd.steps]
        if not cell.run.stages:
            return [(cell.run.training or shared).fit_settings().steps_for(records)]
        encoders = {_name_of_groups(stage): stage.simclr for stage in cell.run.stages if stage.prior == "clusters"}
        found, share = [steps for name, steps in encoders.items() if steps and name not in self.groups], 0.0
        for stage in cell.run.stages:
            share += stage.share
            settings = [stage.training or shared]
            if stage.retrain != "no":
                settings += [stage.retraining or settings[0]] * stage.retrain_rounds
            found += [one.fit_settings().steps_for(round(share * records)) for one in settings]
        return found

    def learner(self, training: TrainingSection) -> Learner:
        """One for equal settings: what is compiled for one cell serves the next."""
        key = training.model_dump_json()
        if key not in self._learners:
            self._learners[key] = self._make(training)
        return self._learners[key]

    # -- kinds of runs ---------------------------------------------------------------------------------------------------

    def _stages(self, cell: Cell, memory: Memory, say: Callable[[str], None]) -> tuple[Figures, LabelStatement]:
        assert cell.epsilon is not None
        budget = math.inf if self._again else cell.epsilon + sum(one.epsilon for one in self.earlier)
        private = self._guardian(self._data.labels, self._data.classes, budget, self._data.users)
        for one in self.earlier:
            private.ledger.charge(np.arange(len(private)), one.epsilon, f"earlier: {one.mechanism}")
        stages = [self._stage(section, cell.epsilon) for section in cell.run.stages]
        outcome = train_stages(
            self._data.features,
            private,
            stages,
            memory,
            self._chance,
            cell.seed,
            among=self._used,
            split_seed=self._experiment.split_seed,
            say=say,
        )
        figures: Figures = {"stages": [asdict(stage) for stage in outcome.stages]}
        figures |= self._measured(stages[-1].learner, outcome.weights)
        figures |= self._estimated(stages[-1].learner, outcome.weights, private, cell.epsilon, memory)
        memory.keep_weights(MODEL, outcome.weights)
        statement = private.ledger.statement([self._data.note, *self._about_seeds()])
        return figures, with_deltas(statement, self.earlier)

    def _stage(self, section: StageSection, epsilon: float) -> Stage:
        training = section.training or self._experiment.training
        learner = self.learner(training)
        again = None
        if section.retrain != "no":
            settings = section.retraining or training
            again = Retraining(self.learner(settings), every=section.retrain == "all", rounds=section.retrain_rounds)
        prior = self._prior(section, epsilon)
        return Stage(
            share=section.share,
            epsilon=epsilon - prior.epsilon if isinstance(prior, FromClusters) else epsilon,
            learner=learner,
            prior=prior,
            mechanism=mechanism(section.mechanism),
            correction=section.correction,
            warm=section.start == "warm",
            filter=section.filter,
            retraining=again,
        )

    def _prior(self, section: StageSection, epsilon: float) -> Uniform | FromModel | FromClusters:
        if section.prior == "uniform":
            return Uniform()
        if section.prior == "clusters":
            return FromClusters(self._grouped(section), section.clusters, epsilon * section.histogram_share)
        return FromModel(section.temperature, denoised=section.prior == "denoised")

    def _grouped(self, section: StageSection) -> NDArray[np.int64]:
        """Of all records, by their features alone; the seed is public, as groups are."""
        name = _name_of_groups(section)
        if name not in self.groups:
            self.groups[name] = groups(self._data.features, section, self._experiment.split_seed, self._told)
        return self.groups[name]

    def _non_private(self, cell: Cell, memory: Memory, say: Callable[[str], None]) -> tuple[Figures, LabelStatement]:
        """For labels that are public: no answer is asked, and no epsilon claimed."""
        learner = self.learner(cell.run.training or self._experiment.training)
        weights = memory.recall_weights(MODEL)
        if weights is None:
            say("training")
            told = np.eye(self._data.classes)[self._data.labels[self._used]]
            weights = learner.fit(self._data.features[self._used], told, None, fit_seed(cell.seed, MODEL))
            memory.keep_weights(MODEL, weights)
        assumed = ("nothing is claimed: the model was trained on the true labels, which are public", self._data.note)
        return self._measured(learner, weights), LabelStatement(math.inf, 0.0, ("training on true labels",), assumed)

    def _dp_sgd(self, cell: Cell, memory: Memory, say: Callable[[str], None]) -> tuple[Figures, LabelStatement]:
        assert self._dp_sgd_trainer is not None
        assert cell.epsilon is not None
        assert cell.run.dp_sgd is not None
        lost = memory.lost(DP_SGD) if memory.recall_weights(MODEL) is None else memory.lost(DP_SGD) - 1
        if lost and not self._again and self._experiment.private:
            raise LostAnswers("DP-SGD read the labels, and its weights were lost; to train again doubles epsilon")
        learner = self.learner(cell.run.training or self._experiment.training)
        everybody = np.arange(len(self._data.features))  # nobody is held out: DP-SGD gives no answers that could be counted
        weights = memory.recall_weights(MODEL)
        if weights is None:
            memory.begin(DP_SGD)
            say("training")
            weights = self._dp_sgd_trainer.trained(
                self._data, everybody, cell.run.dp_sgd, cell.epsilon, fit_seed(cell.seed, MODEL)
            )
            memory.keep_weights(MODEL, weights)
        times = 1 + (lost if self._experiment.private else 0)
        note = self._data.note if self._data.test_features is not None else "no accuracy is measured: the labels are private"
        statement = baseline.statement(cell.run.dp_sgd, cell.epsilon, len(everybody), times, [note, *self._about_seeds()])
        return self._measured(learner, weights), with_earlier(statement, self.earlier)

    def _about_seeds(self) -> tuple[str, ...]:
        seeds = self._experiment.seeds
        if seeds == 1 and sum(max(1, len(run.epsilons)) for run in self._experiment.runs) == 1:
            return ()
        return (
            "the claim is about one run alone: every run of the experiment asked each label anew, which only a benchmark may",
        )

    # -- figures ---------------------------------------------------------------------------------------------------------

    def _measured(self, learner: Learner, weights: FloatVector) -> Figures:
        """On examples whose labels are public; nothing where there are none."""
        features, labels = self._data.test_features, self._data.test_labels
        if features is None or labels is None:
            return {}
        predicted = learner.probabilities(weights, features)
        figures: Figures = {"accuracy": float((predicted.argmax(axis=1) == labels).mean())}
        if self._experiment.values:
            values = np.array(self._experiment.values)
            figures["rmse"] = float(np.sqrt(np.mean((predicted @ values - values[labels]) ** 2)))
        return figures

    def _estimated(
        self, learner: Learner, weights: FloatVector, private: PrivateLabels, epsilon: float, memory: Memory
    ) -> Figures:
        """Accuracy without a true label, from answers of held-out records: (m - q) / (keep - q), m the agreement."""
        if not len(self._held):
            return {}
        from fedrho.privacy.labels.randomizers import RandomizedResponse

        randomizer = RandomizedResponse(epsilon)
        answers = fitting(memory.recall(HELD_OUT), len(self._held), private.classes, HELD_OUT)
        for _ in range(memory.lost(HELD_OUT)):
            private.ledger.charge(self._held, epsilon, "answers that were lost")
        if answers is None:
            if memory.lost(HELD_OUT) and not self._again:
                raise LostAnswers("held-out labels were read and the answers lost")
            memory.begin(HELD_OUT)
            uniform = np.full((len(self._held), private.classes), 1 / private.classes)
            answers = private.answer(self._held, randomizer, uniform, self._chance)
            memory.keep(HELD_OUT, answers)
        else:
            private.recall(self._held, randomizer)
        agreement = float(
            (learner.probabilities(weights, self._data.features[self._held]).argmax(axis=1) == answers.labels).mean()
        )
        return estimate(agreement, len(self._held), private.classes, epsilon)


def _name_of_groups(section: StageSection) -> str:
    return f"clusters-{section.clusters}-coordinates-{section.coordinates}-simclr-{section.simclr}-{section.simclr_images}"


def with_earlier(statement: LabelStatement, earlier: Sequence[Answered]) -> LabelStatement:
    """The sum with what labels were answered before."""
    told = tuple(f"earlier: {one.mechanism}, epsilon {one.epsilon:g}" for one in earlier)
    total = statement.epsilon + sum(one.epsilon for one in earlier)
    return with_deltas(replace(statement, epsilon=total, mechanisms=(*told, *statement.mechanisms)), earlier)


def estimate(agreement: float, count: int, classes: int, epsilon: float) -> Figures:
    """What agreement with randomized response's answers says about accuracy, and the standard error of that."""
    if epsilon == 0:
        return {"accuracy": None, "accuracy_standard_error": None}
    keep = 1 / (1 + (classes - 1) * math.exp(-epsilon))
    gap = keep * -math.expm1(-epsilon)
    error = math.sqrt(agreement * (1 - agreement) / count) / gap
    return {"accuracy": (agreement - math.exp(-epsilon) * keep) / gap, "accuracy_standard_error": error}


def mechanism(name: str) -> Callable[[float], Randomizer]:
    if name == "per-bit":
        from fedrho.privacy.labels.per_bit import PerBit

        return PerBit
    if name == "one-hot-laplace":
        from fedrho.privacy.labels.one_hot import OneHotLaplace

        return OneHotLaplace
    from fedrho.privacy.labels.randomizers import WithPrior

    return WithPrior


def constant_accuracy(data: LabelData) -> float | None:
    """The best that a constant predictor can do on the public test labels."""
    if data.test_labels is None:
        return None
    return float(np.bincount(data.test_labels, minlength=data.classes).max() / len(data.test_labels))


def constant_rmse(data: LabelData, values: Sequence[float]) -> float | None:
    """Of the mean of the public test labels, which no constant beats."""
    return None if data.test_labels is None else float(np.std(np.array(values)[data.test_labels]))


def keras_learner(experiment: ExperimentFile, data: LabelData, told: Told | None) -> MakeLearner:
    """Learners of the experiment's model; raises BadInput where it does not fit the data, UnknownModel."""
    from fedrho.models.base import no_label_privacy
    from fedrho.models.learner import KerasLearner

    spec = model_spec(experiment.model)
    if reason := no_label_privacy(spec):
        raise BadInput(reason)
    if spec.classes != data.classes:
        raise BadInput(f"model {experiment.model}: has {spec.classes} classes, the labels {data.classes}")
    if tuple(spec.input_shape) != data.features.shape[1:]:
        raise BadInput(f"model {experiment.model}: takes the shape {spec.input_shape}; examples have {data.features.shape[1:]}")
    if experiment.precision == "bfloat16":
        from fedrho.models.precision import in_bfloat16

        spec = in_bfloat16(spec)
    return lambda training: KerasLearner(spec, training.fit_settings(), told)


def model_spec(model: str) -> Any:
    from pathlib import Path

    from fedrho.models.saved import SUFFIX, SavedModelError, add_saved
    from fedrho.models.zoo import lookup_whole

    try:
        return add_saved(Path(model)) if model.endswith(SUFFIX) else lookup_whole(model)
    except SavedModelError as error:
        raise BadInput(f"--model {model}: {error}") from error
