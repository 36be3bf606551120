"""What must fit together before a study trains anything: the task, the data, the model, the engine."""

from __future__ import annotations

import importlib.util

from fedrho.models.base import ModelSpec, UnknownModel, no_label_privacy
from fedrho.models.optimizers import LOCOPROP, PLAIN, UnknownOptimizer
from fedrho.models.saved import add_saved
from fedrho.models.zoo import lookup
from fedrho.privacy.labels.local import FORWARD, check_classes, rows_of
from fedrho.privacy.labels.local import PLAIN as PLAIN_LABELS
from fedrho.simulations.data.base import DataError, Examples, FederatedDataset
from fedrho.simulations.data.speakers import COUNTED_HERE
from fedrho.simulations.data.streams import Streams
from fedrho.simulations.data.vocabularies import REFUSED, is_private
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
    if task.local.optimizer in LOCOPROP:
        check_locoprop(model, task.local.optimizer)
    check_labels(study, model)
    check_words(study)
    check_tokens(model, dataset, study.data.name)
    if model.label_shape and (study.file.availability.by or "") == "label":
        raise DataError(f"availability.by: {model.name} has a label at every place of an example; take 'examples'")
    check_model(model, dataset.held_out, f"the held-out examples of data {study.data.name!r}")
    if not (dataset.held_out.labels >= model.ignored).any():
        raise DataError(f"task.model: {model.name} counts labels from {model.ignored} on; the held-out examples have none")
    for device in range(0, dataset.size, max(1, dataset.size // LOOKED_AT)):
        check_model(model, dataset.examples(device), f"device {device} of data {study.data.name!r}")


def check_words(study: Study) -> None:
    """Raises DataError where a private run reads its text by a list of words that was counted on the very same text."""
    chosen = dict(study.data.options).get("vocabulary")
    if study.data.name == "parlamint-es" and chosen in COUNTED_HERE and study.delta is not None:
        raise DataError(f"data.vocabulary: {chosen} was counted on parlamint-es itself; {REFUSED}; allowed: public, hashed")


def check_labels(study: Study, model: ModelSpec) -> None:
    """Raises DataError for label terms that the model or the engine cannot keep."""
    terms = study.task.labels
    if terms is None:
        return
    try:
        if reason := no_label_privacy(model):
            raise ValueError(f"epsilon: {reason}")
        rows_of(terms.prior, 0, model.classes)
        check_classes(model.name, model.classes, terms.correction)
    except ValueError as error:
        raise DataError(f"task.labels.{error}") from error
    if study.file.engine.kind == "tff" and terms.correction == FORWARD:
        raise DataError(f"engine.kind: tff trains on labels alone; take task.labels.correction = {PLAIN_LABELS!r}, or processes")


def check_tokens(model: ModelSpec, dataset: FederatedDataset, name: str) -> None:
    """Raises DataError where a model that says which tokens it reads would be trained on others: whoever used it later would
    take its guesses for other words. A private list is no model's, and is written down with the results.
    """
    found = dataset.tokens if isinstance(dataset, Streams) else None
    if found is None or not model.tokens or found.name == model.tokens or is_private(found):
        return
    raise DataError(
        f"task.model: {model.name} reads {model.tokens}, and data {name!r} are {found.name} with these options; take another "
        "data.vocabulary, or a model of your own"
    )


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


def check_locoprop(model: ModelSpec, optimizer: str) -> None:
    """Raises DataError for a model that LocoProp cannot train. Builds it."""
    from fedrho.models.flat import FlatModel
    from fedrho.models.locoprop import check_trains

    try:
        check_trains(FlatModel(model), optimizer)
    except (UnknownModel, UnknownOptimizer) as error:
        raise DataError(f"task.local.optimizer: {error}") from error


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
    labels = tuple(examples.labels.shape[1:])
    if labels != model.label_shape:
        raise DataError(
            f"task.model: {model.name} has labels of shape {model.label_shape}; {whose} have labels of shape {labels}"
        )
    low, high = int(examples.labels.min()), int(examples.labels.max())
    if high >= model.classes or low < 0:
        raise DataError(
            f"task.model: {model.name} has {model.classes} classes, from 0 on; {whose} have labels from {low} to {high}"
        )
    token = int(examples.features.max()) if model.vocabulary else 0
    if model.vocabulary and token >= model.vocabulary:
        raise DataError(f"task.model: {model.name} knows tokens below {model.vocabulary}; {whose} have {token}")
