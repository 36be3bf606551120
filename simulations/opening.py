"""From a checked study to all that runs it: the model and its starting weights, the engine, the simulation, the measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedrho.models.backend import SeveralThreads, one_thread
from fedrho.models.base import ModelSpec
from fedrho.models.flat import FlatModel
from fedrho.models.saved import add_saved
from fedrho.models.vectorised import vectorises
from fedrho.models.zoo import lookup
from fedrho.privacy.vectors import FloatVector
from fedrho.protos.messages import ID_BYTES
from fedrho.server.coordinator import round_plan
from fedrho.server.starting import StartError, begun_with, start_of
from fedrho.simulations.data.base import DataError, FederatedDataset
from fedrho.simulations.engines.base import EngineError, Workload, unit_size
from fedrho.simulations.engines.choose import start_engine
from fedrho.simulations.running import Parts
from fedrho.simulations.state import State
from fedrho.simulations.study import Study
from fedrho.simulations.training import Measuring
from fedrho.simulations.virtual import Plan, Simulation


def model_of(study: Study) -> ModelSpec:
    return lookup(study.task.file.model) if study.model_file is None else add_saved(study.model_file)


@contextmanager
def opened(study: Study, dataset: FederatedDataset, kind: str, workers: int) -> Iterator[tuple[Parts, FlatModel]]:
    """Ends the engine's processes with the block. Raises EngineError, UnknownModel."""
    try:
        one_thread()  # what is measured here is measured as workers do
    except SeveralThreads as error:
        raise EngineError(f"{error}; start the simulation in a process of its own") from error
    model = FlatModel(model_of(study), seed=study.seed % 2**32)
    start = beginning(study, model)
    work = workload(study, model.size)
    engine = start_engine(kind, work, workers, dataset=dataset, address=study.file.engine.address if kind == "ray" else "")
    plan = Plan(study.planned, study.seed, study.file.availability, dataset, study.before)
    measuring = Measuring(model)

    def client_test(weights: FloatVector, device: int) -> float:
        right, counted, _ = measuring(weights, dataset.examples(device))
        return right / counted if counted else math.nan

    def begin(state: State | None) -> Simulation:
        return Simulation(plan, engine, np.array(start), state)

    try:
        yield Parts(study, dataset, engine, begin, client_test, work.vectorised), model
    finally:
        engine.close()


def beginning(study: Study, model: FlatModel) -> FloatVector:
    """The weights that the run begins with; raises DataError for a file that does not fit the model."""
    try:
        return begun_with(model, start_of(study.task.file), study.start_file)
    except StartError as error:
        raise DataError(f"task.start: {error}") from error


def vectorised(study: Study) -> bool:
    """Whether many clients are trained at once: as the study says, or by the rule of the models."""
    wanted = study.file.engine.vectorised
    return vectorises(model_of(study), study.task.file.local.optimizer) if wanted == "auto" else wanted


def workload(study: Study, size: int) -> Workload:
    many = vectorised(study)
    return Workload(
        data=study.data,
        plan=round_plan(study.task, size, bytes(ID_BYTES), (1, 1), bytes(32)),  # a template
        grid=study.task.mechanism.grid,
        model_file=study.model_file,
        vectorised=many,
        units_of=unit_size(size, many),
        seed=study.seed,
    )
