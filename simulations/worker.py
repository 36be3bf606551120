"""What every engine runs: a cohort's units of work on one thread, a compiled call a device, or one for all devices of a unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedrho.models.backend import SeveralThreads, one_thread
from fedrho.models.base import ModelSpec, UnknownModel
from fedrho.models.flat import FlatModel
from fedrho.models.saved import SavedModelError, add_saved
from fedrho.models.vectorised import NotVectorised
from fedrho.models.zoo import lookup
from fedrho.privacy.labels.local import FORWARD
from fedrho.privacy.vectors import Clipped, FloatVector
from fedrho.server.aggregation import RunningSum
from fedrho.server.allocator import keep_freed_memory
from fedrho.simulations.data.base import Answered, DataError, Examples, FederatedDataset
from fedrho.simulations.engines.base import EngineError, Tested, Told, Trained, Workload, cut
from fedrho.simulations.training import AllAtOnce, Measuring, OneByOne, Outcome, Training


class Worker:
    """One built model and one opened data set, used for all units that come to it.

    Raises EngineError where TensorFlow cannot be put on one thread or the model is not the plan's, and DataError where the
    examples are not what the model takes.
    """

    def __init__(self, work: Workload, dataset: FederatedDataset) -> None:
        try:
            one_thread()
        except SeveralThreads as error:
            raise EngineError(f"{error}; start the simulation in a process of its own") from error
        keep_freed_memory()
        self._work = work
        self._dataset = dataset
        model = _built(work)
        check_examples(model.spec, dataset.held_out)
        self._classes = model.spec.classes
        kind = AllAtOnce if work.vectorised else OneByOne
        try:
            self._training: Training = kind(model, work.plan, work.grid)
        except NotVectorised as error:
            raise EngineError(f"{error}: it is trained one device at a time; set engine.vectorised to false") from error
        self._measuring = Measuring(model)

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        """The part of one unit, or of several whole ones, one after another."""
        total = RunningSum(self._work.plan.size, self._work.grid)
        outcomes: list[Outcome] = []
        counts: list[int] = []
        for places in cut(len(devices), self._work.units_of):
            clients = [self._held(devices[place]) for place in places]
            counts += [len(client) for client in clients]
            found = self._training(step, weights, clients)
            for outcome in found:
                self._add(outcome, total)
            outcomes += found
        return Trained(total.close(), _told(outcomes, counts))

    def test(self, weights: FloatVector, places: Sequence[int]) -> Tested:
        """On the held-out examples at `places`, one after another: a unit."""
        held = self._dataset.held_out
        chosen = slice(places[0], places[-1] + 1)
        right, counted, loss = self._measuring(weights, Examples(held.features[chosen], held.labels[chosen]))
        return Tested(right, len(places), loss, counted)

    def _held(self, device: int) -> Examples | Answered:
        return self._work.told(device, self._dataset.examples(device), self._classes)

    def _add(self, outcome: Outcome, total: RunningSum) -> None:
        for row in outcome.rows:
            total.add(Clipped(row, self._work.grid))


def check_examples(spec: ModelSpec, examples: Examples) -> None:
    """Raises DataError for examples that are not what the model takes: their shape, their type, labels or ids beyond it."""
    features, labels, name = examples.features, examples.labels, f"model {spec.name!r}"
    shape, dtype = features.shape[1:], features.dtype
    if shape != spec.input_shape or dtype != np.dtype(spec.input_dtype):
        raise DataError(
            f"data: an example is {dtype} of shape {shape}; {name} takes {spec.input_dtype} of shape {spec.input_shape}"
        )
    if labels.shape[1:] != spec.label_shape:
        raise DataError(
            f"data: labels of an example are of shape {labels.shape[1:]}; those of {name} of shape {spec.label_shape}"
        )
    if not 0 <= labels.min(initial=0) <= labels.max(initial=0) < spec.classes:
        raise DataError(f"data: labels from {labels.min()} to {labels.max()}; {name} has the classes 0 to {spec.classes - 1}")
    if spec.vocabulary and not 0 <= features.min(initial=0) <= features.max(initial=0) < spec.vocabulary:
        raise DataError(f"data: ids from {features.min()} to {features.max()}; {name} takes 0 to {spec.vocabulary - 1}")


def _built(work: Workload) -> FlatModel:
    try:
        spec = lookup(work.plan.model) if work.model_file is None else add_saved(work.model_file)
        labels = work.plan.labels
        model = FlatModel(spec, on_likelihoods=labels is not None and labels.correction == FORWARD)
    except (UnknownModel, SavedModelError) as error:
        raise EngineError(str(error)) from error
    if (spec.name, model.size) != (work.plan.model, work.plan.size):
        raise EngineError(
            f"model {spec.name!r} of {model.size} weights is not the plan's, {work.plan.model!r} of {work.plan.size} weights"
        )
    return model


def _told(outcomes: Sequence[Outcome], counts: Sequence[int]) -> Told:
    if not outcomes:
        return Told(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    loss, norm, failed = (np.concatenate([getattr(outcome, name) for outcome in outcomes]) for name in ("loss", "norm", "failed"))
    return Told(loss, norm, np.array(counts, dtype=np.int64), failed)
