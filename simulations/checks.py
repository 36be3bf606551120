"""What must fit together before a study trains anything: the task, the data, the model, the engine."""

from __future__ import annotations

import importlib.util

from fedrho.models.base import ModelSpec, UnknownModel
from fedrho.models.optimizers import PLAIN
from fedrho.models.saved import add_saved
from fedrho.models.zoo import lookup
from fedrho.privacy.labels.local import FORWARD, check_classes, rows_of
from fedrho.privacy.labels.local import PLAIN as PLAIN_LABELS
from fedrho.simulations.data.base import DataError, Examples, FederatedDataset
from fedrho.simulations.study import ENGINES, Study
from fedrho.simulations.virtual import Plan

NEEDS = {"ray": ("ray", "ray"), "tff": ("tensorflow_federated", "tff")}
"""Engines that need a package: which, and the extra that has it."""
LOOKED_AT = 3
"""Devices whose examples are compared with the model."""


def check_study(study: Study, dataset: FederatedDataset) -> None:
    """Raises DataError."""
    task = study.task.file
    if task.population != dataset.size:
        raise DataError(
            f"task.population: {task.population} is not the number of devices of data {study.data.name!r}, {dataset.size}; "
            "leave the key out, or change the data"
        )
    Plan(study.planned, study.seed, study.file.availability, dataset).check()
    check_engine(study.file.engine.kind, study.file.engine.workers, "engine.kind")
    if study.file.engine.vectorised is True and task.local.optimizer != PLAIN:
        raise DataError(f"engine.vectorised: many clients at once are trained with {PLAIN} alone, not {task.local.optimizer}")
    model = add_saved(study.model_file) if study.model_file else lookup(task.model)
    if study.file.engine.vectorised is True:
        check_vectorised(model)
    check_labels(study, model)
    check_model(model, dataset.held_out, f"the held-out examples of data {study.data.name!r}")
    for device in range(0, dataset.size, max(1, dataset.size // LOOKED_AT)):
        check_model(model, dataset.examples(device), f"device {device} of data {study.data.name!r}")


def check_labels(study: Study, model: ModelSpec) -> None:
    """Raises DataError for label terms that the model or the engine cannot keep."""
    terms = study.task.labels
    if terms is None:
        return
    try:
        rows_of(terms.prior, 0, model.classes)
        check_classes(model.name, model.classes, terms.correction)
    except ValueError as error:
        raise DataError(f"task.labels.{error}") from error
    if study.file.engine.kind == "tff" and terms.correction == FORWARD:
        raise DataError(f"engine.kind: tff trains on labels alone; take task.labels.correction = {PLAIN_LABELS!r}, or processes")


ALONE = {"tff": " in an environment of its own, of Python 3.11"}
"""What an engine's installation cannot be together with."""


def check_engine(kind: str, workers: int, where: str) -> None:
    """Raises DataError where there is no such engine, or not here."""
    if kind not in ENGINES:
        raise DataError(f"{where}: unknown engine {kind!r}; allowed: {', '.join(ENGINES)}")
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind][0]) is None:
        extra = NEEDS[kind][1]
        raise DataError(
            f"{where}: {kind} is not installed; `pip install 'fedrho[{extra}]'`{ALONE.get(kind, '')}, or take serial or processes"
        )
    if kind in ("serial", "tff") and workers > 1:
        raise DataError(f"{where}: {kind} has one worker, not {workers}; take processes, or leave the workers out")


def check_vectorised(model: ModelSpec) -> None:
    """Raises DataError for a model that is trained for one device at a time. Builds it."""
    from fedrho.models.vectorised import has_own_loss

    try:
        own = has_own_loss(model)
    except UnknownModel as error:
        raise DataError(f"task.model: {error}") from error
    if own:
        raise DataError(f"engine.vectorised: {model.name} has layers with a loss of their own, as regularizers are; leave it out")


def check_model(model: ModelSpec, examples: Examples, whose: str) -> None:
    """Raises DataError where a model does not take such examples."""
    shape = tuple(examples.features.shape[1:])
    if shape != model.input_shape:
        raise DataError(f"task.model: {model.name} takes inputs of shape {model.input_shape}; {whose} are of shape {shape}")
    if examples.features.dtype.name != model.input_dtype:
        raise DataError(f"task.model: {model.name} takes {model.input_dtype}; {whose} are {examples.features.dtype.name}")
    low, high = int(examples.labels.min()), int(examples.labels.max())
    if high >= model.classes or low < 0:
        raise DataError(
            f"task.model: {model.name} has {model.classes} classes, from 0 on; {whose} have labels from {low} to {high}"
        )
    token = int(examples.features.max()) if model.vocabulary else 0
    if model.vocabulary and token >= model.vocabulary:
        raise DataError(f"task.model: {model.name} knows tokens below {model.vocabulary}; {whose} have {token}")
