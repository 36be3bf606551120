"""An experiment as a TOML file has it: which data, which model, and runs made of stages; everything in it is public.

    dataset = "digits"                 # or: data = "file.npz", classes = [...]
    model = "digits-mlp"
    seeds = 10
    [training]                         # of every stage that says nothing else
    steps = 500
    [[runs]]
    name = "LP-2ST"
    epsilons = [1.0, 2.0]
    [[runs.stages]]
    share = 0.65
    [[runs.stages]]
    share = 0.35
    prior = "model"

What `fedrho labels train --method ...` makes of its options is the same, so a folder says in `experiment.toml` what was run.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from fedrho.console import BadInput
from fedrho.server.tasks import LONGEST_FILE, Section, explain, shortened, why_unreadable
from fedrho.simulations.toml_text import toml_text

if TYPE_CHECKING:
    from fedrho.models.fit_settings import FitSettings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Part = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .,+()-]{0,62}$")]


class ReweightingSection(Section):
    """Constrained instance and class reweighting (CIW, CICW); `fedrho.models.fit_settings.Reweighting`."""

    temperature: Positive = 1.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.0
    burn_in: Annotated[float, Field(ge=0, lt=1)] = 0.2


class TrainingSection(Section):
    """How one model is trained; `fedrho.models.fit_settings.FitSettings` says what each means."""

    learning_rate: Positive = 0.1
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    epochs: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["linear", "steps", "steps-as-run", "constant"] = "linear"
    ramp: Annotated[float, Field(ge=0, lt=1)] = 0.15
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    mixup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    crop: Annotated[int, Field(ge=0, le=1000)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0, le=1000)] = 0
    reweighting: ReweightingSection | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSection:
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError("give steps or epochs, one of the two, above 0")
        return self

    def fit_settings(self) -> FitSettings:
        from fedrho.models.fit_settings import FitSettings, Reweighting, Schedule

        values: dict[str, Any] = self.model_dump(exclude={"schedule", "reweighting"})
        reweighting = None if self.reweighting is None else Reweighting(**self.reweighting.model_dump())
        return FitSettings(**values, schedule=Schedule(self.schedule), reweighting=reweighting)


class StageSection(Section):
    """One stage; `fedrho.privacy.labels.stages.Stage` says what happens in it.

    The epsilon of a run is what a label of any stage pays in all: `histogram_share` of it goes to the histograms of clusters.
    """

    share: Part = 1.0
    prior: Literal["uniform", "model", "denoised", "clusters"] = "uniform"
    temperature: Positive = 1.0
    clusters: Annotated[int, Field(ge=2, le=100_000)] = 20
    coordinates: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Principal coordinates that clusters are made of; 0 takes the features as they are."""
    simclr: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps of a SimCLR encoder, trained on all images without labels, whose vectors clusters are made of; 0 for none."""
    simclr_images: Literal["any", "digits", "clothes", "photographs"] = "any"
    """How far two copies of an image may be from one another; `any` goes by the number of channels."""
    histogram_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    mechanism: Literal["with-prior", "per-bit", "one-hot-laplace"] = "with-prior"
    correction: bool = False
    start: Literal["fresh", "warm"] = "fresh"
    filter: Literal["truncated", "rounded", "none"] = "truncated"
    retrain: Literal["no", "consensus", "all"] = "no"
    retrain_rounds: Annotated[int, Field(ge=1, le=20)] = 1
    training: TrainingSection | None = None
    retraining: TrainingSection | None = None
    """As `training` where nothing is said."""


class DpSgdSection(Section):
    """DP-SGD on the true labels. Its epsilon is of the substitution of one whole example; `batch` is the mean of its samples."""

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    learning_rate: Positive = 0.5
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 300
    clip_norm: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["linear", "steps", "steps-as-run", "constant"] = "linear"
    ramp: Annotated[float, Field(ge=0, lt=1)] = 0.0


class RunSection(Section):
    """One line of a picture: a method at one or several epsilons. `stages` of the kind "stages", `dp_sgd` of "dp-sgd"."""

    name: Name
    kind: Literal["stages", "dp-sgd", "non-private"] = "stages"
    epsilons: Annotated[list[float], Field(max_length=100, default_factory=list)]
    stages: Annotated[list[StageSection], Field(max_length=100, default_factory=list)]
    dp_sgd: DpSgdSection | None = None
    training: TrainingSection | None = None
    """Of the non-private model; the experiment's where nothing is said."""

    @model_validator(mode="after")
    def _whole(self) -> RunSection:
        if (self.kind == "stages") != bool(self.stages) or (self.kind == "dp-sgd") != (self.dp_sgd is not None):
            raise ValueError(f"{self.name}: a run of the kind {self.kind!r} has {KINDS[self.kind]}")
        if (self.kind == "non-private") != (not self.epsilons):
            raise ValueError(f"{self.name}: private runs have epsilons, others have none")
        if any(not (value >= 0 and math.isfinite(value)) for value in self.epsilons):
            raise ValueError(f"{self.name}: an epsilon is finite and not negative")
        if self.kind == "dp-sgd" and min(self.epsilons) == 0:
            raise ValueError(f"{self.name}: DP-SGD needs an epsilon above 0")
        if len(set(self.epsilons)) < len(self.epsilons):
            raise ValueError(f"{self.name}: each epsilon once")
        if self.stages and abs(sum(stage.share for stage in self.stages) - 1) > 1e-9:
            raise ValueError(f"{self.name}: the shares of its stages add up to 1")
        if self.stages and (self.stages[0].prior in ("model", "denoised") or self.stages[0].start == "warm"):
            raise ValueError(f"{self.name}: the first stage has no model before it, neither for its prior nor to start from")
        for before, stage in itertools.pairwise(self.stages):
            plain = before.prior == "uniform" and before.mechanism == "with-prior" and before.retrain == "no"
            if stage.prior == "denoised" and (before.correction or not plain):
                raise ValueError(f"{self.name}: only a model of plain randomized response's labels can be denoised")
        return self


KINDS = {"stages": "stages", "dp-sgd": "a section dp_sgd", "non-private": "neither stages nor dp_sgd"}


class ExperimentFile(Section):
    """`dataset` is a benchmark of `fedrho data`; `data` a file of one's own, whose `label` and `classes` are then needed."""

    dataset: str | None = None
    records: Annotated[int, Field(ge=0)] = 0
    """Of a benchmark: so many of its records, chosen without a look at labels; 0 for all."""
    trial: bool = False
    """Whether it was cut short, to see that it runs: its figures say nothing, and whatever shows them says so."""
    data: str | None = None
    label: str = ""
    user: str = ""
    classes: list[str] = Field(default_factory=list)
    test: str | None = None
    labels_are_public: bool = False
    model: str
    precision: Literal["float32", "bfloat16"] = "float32"
    """What layers compute in; weights and answers are float32 either way."""
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 1
    split_seed: Seed = 0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of a file's records that only estimate accuracy, where there is no `test`."""
    values: list[float] = Field(default_factory=list)
    """Where classes are numbers, such as ratings: the root mean square error of the expected value is told too."""
    training: TrainingSection
    runs: Annotated[list[RunSection], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _sensible(self) -> ExperimentFile:
        if (self.dataset is None) == (self.data is None):
            raise ValueError("give dataset or data, one of the two")
        if self.records and self.dataset is None:
            raise ValueError("records: takes a part of a dataset; of data all records are used")
        if self.data is not None and len(self.classes) < 2:
            raise ValueError("classes: name every value that a label may take; they are public and never inferred")
        if len({run.name for run in self.runs}) < len(self.runs):
            raise ValueError("runs have different names")
        if len({slug(run.name) for run in self.runs}) < len(self.runs):
            raise ValueError("runs: their names make folders, and two of them the same one")
        if self.classes and self.values and len(self.values) != len(self.classes):
            raise ValueError("values: one number for each of classes")
        return self

    @property
    def private(self) -> bool:
        return self.dataset is None and not self.labels_are_public

    def text(self) -> str:
        """Every key with the value in force, as a file that says the same."""
        return _text(self.model_dump(exclude_none=True)) + "\n"


def slug(name: str) -> str:
    """Of a run, as a part of folders' names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _text(values: Mapping[str, Any], path: str = "") -> str:
    """TOML with a table for each section of a list: plain keys first, as TOML wants them."""
    lists = {key: value for key, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)}
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    plain = {key: value for key, value in values.items() if key not in lists and key not in sections}
    texts = [toml_text(plain)]
    texts += [f"\n[{path}{key}]\n{_text(value, f'{path}{key}.')}" for key, value in sections.items()]
    texts += [f"\n[[{path}{key}]]\n{_text(one, f'{path}{key}.')}" for key, several in lists.items() for one in several]
    return "\n".join(texts)


def read_experiment(path: Path, seeds: int | None = None) -> ExperimentFile:
    """With another number of `seeds` where one is given. Raises BadInput, one line that names file and key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; `--dataset digits --method lp-2st` needs none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text ({why_unreadable(error)})") from error
    if len(text) > LONGEST_FILE:
        raise BadInput(f"{path}: {len(text)} characters are no experiment; allowed: up to {LONGEST_FILE}")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid TOML: {shortened(str(error))}") from error
    for key in ("data", "test", "model"):
        value = values.get(key)
        if isinstance(value, str) and (key != "model" or value.endswith(".keras")):
            values[key] = str((path.parent / Path(value).expanduser()).resolve())
    return made({**values, **({} if seeds is None else {"seeds": seeds})}, str(path))


def made(values: dict[str, Any], source: str) -> ExperimentFile:
    """From values as TOML has them; what a stage says about training changes the experiment's. Raises BadInput."""
    try:
        experiment = ExperimentFile.model_validate(_merged(values))
    except ValidationError as error:
        raise BadInput(f"{source}: {_explained(error)}") from error
    check_private(experiment, source)
    return experiment


def trial(experiment: ExperimentFile, source: str) -> ExperimentFile:
    """The same cut short, to see that it runs: one seed, one epsilon of each run, few records and steps. Raises BadInput."""
    if experiment.dataset is None:
        raise BadInput("--trial: is for a --dataset; a file's labels would be asked, and paid for, as by the whole training")
    short = _cut(experiment.model_dump(exclude_none=True))
    return made({**short, "seeds": 1, "trial": True, "records": experiment.records or TRIAL_RECORDS}, source)


def _cut(section: Any) -> Any:
    if isinstance(section, list):
        return [_cut(one) for one in section]
    if not isinstance(section, dict):
        return section
    short = {key: _cut(value) for key, value in section.items()}
    if "learning_rate" in short:
        short = {key: value for key, value in short.items() if key != "epochs"} | {"steps": TRIAL_STEPS}
    if "epsilons" in short:
        short["epsilons"] = short["epsilons"][:1]
    if short.get("simclr"):
        short["simclr"] = TRIAL_STEPS
    return short


TRIAL_RECORDS, TRIAL_STEPS = 1000, 2


def _merged(values: dict[str, Any]) -> dict[str, Any]:
    """Whatever has not the shape of an experiment is left for the check that follows."""
    shared = values.get("training")
    runs = values.get("runs")
    if not isinstance(shared, dict) or not isinstance(runs, list):
        return values
    return {**values, "runs": [_merged_into(run, shared, ("training",)) for run in runs]}


def _merged_into(section: Any, shared: dict[str, Any], keys: tuple[str, ...]) -> Any:
    if not isinstance(section, dict):
        return section
    changed: dict[str, Any] = {
        key: {**_lengthless(shared, section[key]), **section[key]} for key in keys if isinstance(section.get(key), dict)
    }
    if isinstance(section.get("stages"), list):
        changed["stages"] = [_merged_into(stage, shared, ("training", "retraining")) for stage in section["stages"]]
    return {**section, **changed}


def _lengthless(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Without steps and epochs where a section has one of its own."""
    return {key: value for key, value in shared.items() if not (key in LENGTHS and any(one in own for one in LENGTHS))}


LENGTHS = ("steps", "epochs")


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['ctx']['error']}" if where else str(first["ctx"]["error"])
    try:
        return explain(error, ExperimentFile, "experiment")
    except (KeyError, AttributeError, TypeError):  # of an unknown key in a list of sections
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].lower()}"


def check_private(experiment: ExperimentFile, source: str) -> None:
    """Of private labels one run alone: each asks every label anew, and all of them together would cost their sum."""
    if not experiment.private:
        return
    cells = sum(max(1, len(run.epsilons)) for run in experiment.runs) * experiment.seeds
    if cells > 1:
        raise BadInput(
            f"{source}: {cells} runs would ask each label {cells} times, and their epsilons add up; choose one method, one "
            "epsilon and one seed (try others on a benchmark), or say labels_are_public (--labels-are-public) where it is true"
        )
    if experiment.runs[0].kind == "non-private":
        raise BadInput(f"{source}: a non-private model tells labels; it is for labels that are public (--labels-are-public)")
