"""Task: all that defines a run, and the TOML file it is read from; `dp_ftrl` and `dp_fedavg` are two ways to fill one in."""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from fedrho.models.base import no_label_privacy, registered
from fedrho.models.optimizers import LocalOptimizer, UnknownOptimizer
from fedrho.models.saved import SUFFIX, SavedModelError, add_saved, is_saved
from fedrho.models.zoo import UnknownModel, lookup
from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.calibration import least_noise_multiplier
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.labels.local import FORWARD, WITH_PRIOR, check_classes, check_terms, local_statement, rows_of
from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.mechanism import LARGEST_NODE_STDDEV, Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.statement import round_up
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import MAX_GRID_BITS, Grid
from fedrho.privacy.zcdp import Rho, gaussian_rho
from fedrho.protos.messages import LabelTerms
from fedrho.server.optimizers import ServerSgd
from fedrho.server.starting import StartError, brings_weights, found_start, start_of, starting_assumption


class TaskFileError(ValueError):
    """A task file that cannot be used: file, key and what is allowed, in one line."""


class TaskError(ValueError):
    """A value of a task that contradicts another: the key and what is allowed."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")


UNIFORM = "uniform"
"""The prior of whoever knows nothing of the classes."""
LONGEST_FILE = 100_000
"""Characters of a task file; real ones have a thousand."""

LONGEST_PATH = 4096

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RoundSection(Section):
    goal: Count
    min_reports: Count | None = None
    overselect: Annotated[float, Field(ge=1, le=10)] | None = None
    deadline_seconds: Positive = 600.0
    training_seconds: Positive | None = None
    lease_seconds: Positive = 60.0
    retry_seconds: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None


class PrivacySection(Section):
    clip_norm: Positive
    rho: Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    noise_multiplier: Annotated[float, Field(ge=1e-15, allow_inf_nan=False)] | None = None
    grid_bits: Annotated[int, Field(ge=8, le=MAX_GRID_BITS)] = 20
    mechanism: str | None = None
    restarts: list[Count] = []
    completed: bool = False
    coefficients: list[float] = []
    decay: list[float] = []
    scale: list[float] = []


class ParticipationSection(Section):
    max_times: Count
    min_separation: Count = 1
    min_period_seconds: NotNegative = 0.0
    server_window: bool = False


class LocalSection(Section):
    optimizer: str = "sgd"
    momentum: Momentum = 0.0
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_size: Count = 16
    learning_rate: Positive = 0.1
    max_examples: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0


class ServerSection(Section):
    learning_rate: Positive = 1.0
    momentum: Momentum = 0.0


class LabelsSection(Section):
    """Devices answer for their labels once, with local differential privacy, and train on the answers."""

    epsilon: Positive
    prior: str | list[float] = "uniform"
    correction: str = FORWARD

    @field_validator("prior", mode="before")
    @classmethod
    def _one_or_the_other(cls, value: object) -> object:
        numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
        if value != UNIFORM and not (numbers and value):
            raise ValueError('allowed: "uniform", or a list with the probability of each class')
        return value


LATER = ("start", "labels")
"""Keys that came after the first stores; None where a task does without."""


class TaskFile(Section):
    """The task file, key by key; `docs/task-file.md` says what each means."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    algorithm: str
    model: str
    start: Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000)]
    population: Count
    round: RoundSection
    privacy: PrivacySection
    participation: ParticipationSection
    local: LocalSection = LocalSection()
    server: ServerSection = ServerSection()
    labels: LabelsSection | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A task without a later key is written as it always was: stores and studies know tasks by what is written."""
        values: dict[str, Any] = write(self)
        return {key: value for key, value in values.items() if key not in LATER or value is not None}


@dataclass(frozen=True)
class Task:
    """A checked task: the file's values, and the objects made of them that price and keep its promises."""

    file: TaskFile
    mechanism: Mechanism[Any]
    participation: Participation
    optimizer: ServerSgd
    start: Path | None = None
    """Where the weights are that the run begins with, if those are not the fresh model's; a task out of a store has no place."""

    @property
    def budget(self) -> Rho:
        return Rho(self.file.privacy.rho)

    @property
    def labels(self) -> LabelTerms | None:
        """What devices are told about their labels; None where they train on them as they are."""
        return label_terms(self.file.labels)

    def label_statement(self) -> LabelStatement | None:
        """What may be claimed about labels, whatever was released; never added to the statement about devices."""
        terms = self.labels
        if terms is None:
            return None
        said = local_statement(terms.mechanism, terms.epsilon, terms.prior)
        return (
            said
            if not brings_weights(self.file)
            else replace(said, assumptions=(*said.assumptions, starting_assumption(self.file)))
        )


def dp_ftrl(file: TaskFile) -> Task:
    """DP-FTRL: correlated noise, of a binary tree if the file names nothing else; momentum SGD on its residuals."""
    name = file.privacy.mechanism or "tree"
    if name not in FAMILIES:
        raise TaskError("privacy.mechanism", f"unknown mechanism {name!r}; allowed: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    _check_keys(file, name, family)
    return _task(file, lambda grid, multiplier: family.build(grid, multiplier, file.privacy))


def dp_fedavg(file: TaskFile) -> Task:
    """DP-FedAvg: independent Gaussian noise at every step, no amplification claimed."""
    if file.privacy.mechanism is not None:
        raise TaskError("privacy.mechanism", "dp-fedavg has independent noise; leave the key out, or take algorithm = 'dp-ftrl'")
    _check_keys(file, "dp-fedavg", Family((), (), lambda grid, multiplier, privacy: IndependentGaussian(grid, multiplier)))
    return _task(file, IndependentGaussian)


ALGORITHMS: dict[str, Callable[[TaskFile], Task]] = {"dp-ftrl": dp_ftrl, "dp-fedavg": dp_fedavg}


@dataclass(frozen=True)
class Family:
    """A mechanism that DP-FTRL can run with: its keys in the file, those of them that it needs, and how it is made."""

    keys: tuple[str, ...]
    needed: tuple[str, ...]
    build: Callable[[Grid, float, PrivacySection], Mechanism[Any]]


FAMILIES = {
    "tree": Family(
        ("restarts", "completed"),
        (),
        lambda grid, multiplier, privacy: BinaryTree(grid, multiplier, tuple(privacy.restarts), privacy.completed),
    ),
    "banded": Family(
        ("coefficients",),
        ("coefficients",),
        lambda grid, multiplier, privacy: BandedToeplitz(grid, multiplier, tuple(privacy.coefficients)),
    ),
    "blt": Family(
        ("decay", "scale"),
        ("decay", "scale"),
        lambda grid, multiplier, privacy: BufferedToeplitz(grid, multiplier, tuple(privacy.decay), tuple(privacy.scale)),
    ),
}
STRATEGY = ("restarts", "completed", "coefficients", "decay", "scale")


def _check_keys(file: TaskFile, name: str, family: Family) -> None:
    """A strategy is written down in the file, never found anew at a start: it has to stay the same to the last digit."""
    for key in STRATEGY:
        if getattr(file.privacy, key) and key not in family.keys:
            raise TaskError(f"privacy.{key}", f"does not belong to {name}; leave it out")
    for key in family.needed:
        if not getattr(file.privacy, key):
            raise TaskError(
                f"privacy.{key}", f"missing; `fedrho account calibrate --mechanism {name} ... --toml` prints the best for a run"
            )


def _task(file: TaskFile, kind: Callable[[Grid, float], Mechanism[Any]]) -> Task:
    participation = Participation(file.participation.max_times, file.participation.min_separation)
    try:
        grid = Grid(file.privacy.clip_norm, file.privacy.grid_bits)
    except ValueError as error:
        raise TaskError("privacy.clip_norm", str(error)) from error
    try:
        sensitivity_squared = kind(grid, 1.0).sensitivity(file.steps, participation).squared
    except ValueError as error:
        raise TaskError("privacy", str(error)) from error
    most = LARGEST_NODE_STDDEV / grid.radius
    if file.privacy.rho < gaussian_rho(sensitivity_squared, most):
        allowed = round_up(gaussian_rho(sensitivity_squared, most))
        raise TaskError("privacy.rho", f"{file.privacy.rho:g} needs more noise than 64-bit sums hold; allowed: {allowed} or more")
    least = least_noise_multiplier(sensitivity_squared, Rho(file.privacy.rho))
    if (file.privacy.noise_multiplier or least) > most:
        raise TaskError("privacy.noise_multiplier", f"{file.privacy.noise_multiplier:g} is too large; allowed: up to {most:g}")
    try:
        mechanism = kind(grid, file.privacy.noise_multiplier or least)
    except ValueError as error:
        raise TaskError("privacy.noise_multiplier", str(error)) from error
    cost = mechanism.cost(file.steps, participation)
    if cost > file.privacy.rho:
        raise TaskError(
            "privacy.noise_multiplier",
            f"{file.steps} steps at {mechanism.noise_multiplier:g} cost rho = {round_up(cost)}, above the budget privacy.rho = "
            f"{file.privacy.rho:g}; allowed: {round_up(least)} or more, or leave the key out",
        )
    return Task(file, mechanism, participation, ServerSgd(file.server.learning_rate, file.server.momentum))


def build_task(file: TaskFile) -> Task:
    """Raises TaskError where values contradict one another, UnknownModel."""
    if file.algorithm not in ALGORITHMS:
        raise TaskError("algorithm", f"unknown algorithm {file.algorithm!r}; allowed: {', '.join(sorted(ALGORITHMS))}")
    _check_model(file.model)
    _check_start(file)
    _check_local(file.local)
    _check_labels(file)
    _check_reachable(file)
    return ALGORITHMS[file.algorithm](file)


def _check_model(name: str) -> None:
    """A saved model's file is needed where the model is built; a store that is only read does well without."""
    try:
        if not is_saved(name):
            lookup(name)
    except UnknownModel as error:
        raise TaskError("model", str(error)) from error


def _check_start(file: TaskFile) -> None:
    try:
        start_of(file)
    except StartError as error:
        raise TaskError("start", str(error)) from error


def _check_local(local: LocalSection) -> None:
    try:
        LocalOptimizer(local.optimizer, local.learning_rate, local.momentum)
    except UnknownOptimizer as error:
        raise TaskError("local.optimizer", str(error)) from error


def label_terms(section: LabelsSection | None) -> LabelTerms | None:
    if section is None:
        return None
    prior = () if isinstance(section.prior, str) else tuple(map(float, section.prior))
    return LabelTerms(WITH_PRIOR, section.epsilon, prior, section.correction)


def _check_labels(file: TaskFile) -> None:
    """A saved model that is not here has any number of classes; who builds it finds out."""
    terms = label_terms(file.labels)
    spec = registered(file.model) if is_saved(file.model) else lookup(file.model)
    if terms is None:
        return
    try:
        check_terms(terms.mechanism, terms.epsilon, terms.prior, terms.correction)
        if spec is not None:
            if reason := no_label_privacy(spec):
                raise ValueError(f"epsilon: {reason}")
            rows_of(terms.prior, 0, spec.classes)
            check_classes(spec.name, spec.classes, terms.correction)
    except ValueError as error:
        key, _, reason = str(error).partition(": ")
        raise TaskError(f"labels.{key}", reason) from error


def _check_reachable(file: TaskFile) -> None:
    """Refuses what a population of this size could never finish, or a delta that protects nobody."""
    goal, population, limits = file.round.goal, file.population, file.participation
    if goal > population:
        raise TaskError("round.goal", f"{goal} is above population = {population}; allowed: 1 to {population}")
    if (file.round.min_reports or 1) > goal:
        raise TaskError("round.min_reports", f"{file.round.min_reports} is above round.goal = {goal}; allowed: 1 to {goal}")
    if goal * min(limits.min_separation, file.steps) > population:
        most = population // goal
        raise TaskError(
            "participation.min_separation",
            f"{limits.min_separation} steps of {goal} different devices each need {goal * limits.min_separation} devices, "
            f"population is {population}; allowed: 1 to {most}",
        )
    if file.steps * goal > population * limits.max_times:
        least = -(-file.steps * goal // population)
        raise TaskError(
            "participation.max_times",
            f"{population} devices at {limits.max_times} times each cannot give {file.steps} steps of {goal} reports; "
            f"allowed: {least} or more",
        )
    if file.privacy.delta * population >= 1:
        raise TaskError("privacy.delta", f"{file.privacy.delta:g} is not below 1/population; allowed: below {1 / population:.3g}")
    low, high = file.round.retry_seconds or (0.0, 0.0)
    if low > high:
        raise TaskError("round.retry_seconds", f"[{low:g}, {high:g}] is not a window; allowed: [least, most] with least <= most")


def parse_task(text: str, source: str, folder: Path | None = None) -> Task:
    """A task from TOML; raises TaskFileError, one line that names `source`, the key and what is allowed.

    A `model` that ends in `.keras` is a file in `folder`; the task has the name of its content instead. So is `start`, a file of
    weights, whose digest the task has, too.
    """
    if len(text) > LONGEST_FILE:
        raise TaskFileError(f"{source}: {len(text)} characters are no task file; allowed: up to {LONGEST_FILE}")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{source}: not valid TOML: {shortened(str(error))}") from error
    try:
        values, start = with_start(with_saved_model(values, folder), folder)
        return replace(build_task(TaskFile.model_validate(values)), start=start)
    except ValidationError as error:
        raise TaskFileError(f"{source}: {explain(error)}") from error
    except TaskError as error:
        raise TaskFileError(f"{source}: {error}") from error


def with_saved_model(values: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """A task's values with a saved model's name instead of its file in `folder`; raises TaskError."""
    model = values.get("model")
    if folder is None or not isinstance(model, str) or not model.endswith(SUFFIX):
        return values
    try:
        return {**values, "model": add_saved(folder / model).name}
    except SavedModelError as error:
        raise TaskError("model", str(error)) from error


def with_start(values: dict[str, Any], folder: Path | None) -> tuple[dict[str, Any], Path | None]:
    """A task's values with name and digest of the file in `folder` that it starts from, and where that is; raises TaskError."""
    start = values.get("start")
    if folder is None or not isinstance(start, str):
        return values, None
    try:
        found, path = found_start(start, folder)
    except (StartError, ValueError) as error:
        raise TaskError("start", str(error)) from error
    return {**values, "start": str(found)}, path


EXAMPLE = "examples/digits.toml"


def load_task(path: Path) -> Task:
    """Raises TaskFileError, also when the file is missing or not text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        where = "a checkout of fedrho has it" if path == Path(EXAMPLE) else f"{EXAMPLE} of a checkout is one to start from"
        raise TaskFileError(f"{path}: no such file; {where}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path}: cannot be read as text ({why_unreadable(error)})") from error
    return parse_task(text, str(path), path.parent)


def why_unreadable(error: Exception) -> str:
    """In words, for the end of a line about a file."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not in UTF-8"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name a file"
    return getattr(error, "strerror", None) or str(error)


def explain(error: ValidationError, file: type[Section] = TaskFile, what: str = "task") -> str:
    """The first of pydantic's findings about a `file` in our words, and how many more there are."""
    first, *more = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = _unknown_key(first["loc"], file)
    elif first["type"] == "missing":
        message = f"missing; every {what} needs it"
    elif first["type"] in ("model_type", "dict_type"):
        message = f"must be a section, [{key}], not {shortened(repr(first['input']))}"
    else:
        message = f"{first['msg'].lower()}, not {shortened(repr(first['input']))}"
    return f"{shortened(key)}: {message}" + (f" (and {len(more)} more)" if more else "")


def shortened(text: str, most: int = 80) -> str:
    """`text` as a terminal can bear it: printable, on one line, not too long."""
    printable = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: most + 1])
    return printable if len(text) <= most else f"{printable[:most]}..."


def _unknown_key(location: tuple[int | str, ...], file: type[Section]) -> str:
    section: Any = file
    for part in location[:-1]:
        section = _section_of(section.model_fields[part].annotation)
    allowed = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key; {hint}allowed: {', '.join(allowed)}"


def _section_of(annotation: Any) -> Any:
    """The section of a key that may be left out, too: `Section | None`."""
    return next(
        (part for part in typing.get_args(annotation) if isinstance(part, type) and issubclass(part, Section)), annotation
    )
