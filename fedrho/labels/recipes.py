"""Which stages and settings a method has on a data set: what `fedrho labels train --dataset D --method M` runs.

Settings were chosen by published articles and on these public benchmarks; choosing by private labels would be a release of its
own. A recipe is data: `Recipe` holds sections of an experiment's file, as a user writes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fedrho.console import BadInput
from fedrho.labels.settings import ExperimentFile, made
from fedrho.simulations.data import catalogue
from fedrho.usage import near

Section = dict[str, Any]

METHODS: Final = {
    "lp-1st": "randomized response, then plain cross-entropy (LP-1ST)",
    "lp-2st": "two stages, the first model's predictions as prior of the second's answers (LP-2ST)",
    "cluster-prior": "clusters of features, a private histogram each, RRWithPrior",
    "forward": "randomized response, forward-corrected loss",
    "consensus": "the same, then once more on the records whose prediction is their answer",
    "alibi": "discrete Laplace noise on the one-hot label, posterior targets (ALIBI)",
    "per-bit": "randomized response on each bit of the one-hot label",
    "dp-sgd": "DP-SGD, which protects whole examples",
    "non-private": "the true labels",
}
NAMES: Final = {
    "lp-1st": "LP-1ST",
    "lp-2st": "LP-2ST",
    "cluster-prior": "cluster prior",
    "forward": "forward",
    "consensus": "consensus",
    "alibi": "ALIBI",
    "per-bit": "per-bit",
    "dp-sgd": "DP-SGD",
    "non-private": "non-private",
}


@dataclass(frozen=True)
class Recipe:
    """Of one data set. What a method's stages say may depend on epsilon."""

    model: str
    training: Section
    mixup: Callable[[float], float] = lambda epsilon: 0.0
    """Of one stage that takes answers at their word."""
    share: Callable[[float], float] = lambda epsilon: 0.65
    two: Callable[[float], tuple[Section, Section]] = lambda epsilon: ({}, {"prior": "denoised"})
    """LP-2ST's stages, but for their shares; their training says what differs from `training`, and `longer` how many times
    as long it is."""
    clusters: Callable[[float], Section] = lambda epsilon: {}
    """Of the cluster prior's one stage; likewise, its retraining too."""
    corrected: Section = field(default_factory=dict)
    """What runs with a corrected loss train otherwise."""
    consensus: Callable[[float], Section] = lambda epsilon: {"correction": True}
    """Of the one stage that is retrained; likewise."""
    dp_sgd: Callable[[float], Section] = lambda epsilon: {}


WARM: Final = {"prior": "model", "start": "warm", "filter": "truncated"}


def _mixed(first: float, second: float, temperature: float = 0.5) -> tuple[Section, Section]:
    """As the article trains: labels at their word and mixup, a sharpened prior, on from the first stage's weights."""
    return {"training": {"mixup": first}}, {"temperature": temperature, **WARM, "training": {"mixup": second}}


def _digits(epsilon: float) -> tuple[Section, Section]:
    """Where answers tell more, the corrected loss finds the better prior, and mixup keeps it from being repeated."""
    if epsilon < 1.5:
        return _mixed(4.0, 4.0)
    return {"correction": True}, {"temperature": 1.0, **WARM, "training": {"mixup": 2.0}, "longer": 2}


def _digits_clusters(epsilon: float) -> Section:
    """Few large clusters, which a small budget describes well; with more of it purer ones, and mixup no more at the end."""
    if epsilon < 1.5:
        return {"clusters": 20, "histogram_share": 0.4, "retrain": "consensus", "training": {"mixup": 4.0}}
    share = min(0.25, 0.5 / epsilon)
    last = {"retrain": "consensus", "retraining": {"mixup": 0.0}}
    return {"clusters": 40, "histogram_share": share, "training": {"mixup": 4.0}, **last}


def _digits_consensus(epsilon: float) -> Section:
    """Mixup finds classes in much noise; where there is little, the corrected loss does better without."""
    return {"training": {"mixup": 4.0}} if epsilon < 2.5 else {"correction": True}


SHORT: Final = {"learning_rate": 2.0, "batch": 512, "steps": 100}
LONG: Final = {"learning_rate": 1.0, "batch": 256, "steps": 600}

DIGITS = Recipe(
    model="digits-wide-mlp",
    training={"learning_rate": 0.1, "batch": 128, "steps": 500, "weight_decay": 1e-4},
    two=_digits,
    clusters=_digits_clusters,
    consensus=_digits_consensus,
    dp_sgd=lambda epsilon: {"clip_norm": 1.0, **(SHORT if epsilon < 4 else LONG)},
)


def _images(epsilon: float) -> tuple[Section, Section]:
    """A corrected loss leaves its predictions as they are: no temperature. Where a label tells little, most answers of the second
    stage are the prior's first class, of which the corrected loss learns nothing, and labels at their word with mixup do."""
    if epsilon < 1.5:
        return {"correction": True}, {"temperature": 1.0, **WARM, "training": {"mixup": 4.0}}
    both = {"correction": True, "training": {"learning_rate": 0.1} if epsilon >= 2.5 else {}}
    return both, {**both, "temperature": 1.0, **WARM, "filter": "none"}


def _image_noise(epsilon: float) -> Section:
    """Much noise allows few steps, and those should be short."""
    steps, rate = (300, 1.0) if epsilon < 0.75 else (400, 2.0) if epsilon < 1.5 else (800, 2.0)
    return {"learning_rate": rate, "batch": 512, "steps": steps, "clip_norm": 1.0}


IMAGES = Recipe(
    model="mnist-small-cnn",
    training={"learning_rate": 0.05, "batch": 128, "epochs": 10.0, "weight_decay": 1e-4, "crop": 2},
    mixup=lambda epsilon: 4.0,
    two=_images,
    clusters=lambda epsilon: {"clusters": 100, "coordinates": 50, "histogram_share": 0.05},
    dp_sgd=_image_noise,
)
CLOTHES = replace(
    IMAGES,
    training={**IMAGES.training, "learning_rate": 0.1, "crop": 0, "flip": True},
    mixup=lambda epsilon: 4.0 if epsilon < 1.5 else 0.0,  # with less noise it takes more than it gives
)
TABLE = Recipe(
    model="adult-mlp",
    training={"learning_rate": 0.05, "batch": 256, "epochs": 10.0, "weight_decay": 1e-4},
    clusters=lambda epsilon: {"clusters": 50, "histogram_share": 0.1},
    dp_sgd=lambda epsilon: {"learning_rate": 0.5, "batch": 512, "steps": 400, "clip_norm": 1.0},
)
CIFAR_SHARES: Final = {
    1.0: (0.8, 0.6, (16.0, 8.0)),
    2.0: (0.7, 0.5, (8.0, 8.0)),
    4.0: (0.6, 0.5, (8.0, 4.0)),
    8.0: (0.6, 0.5, (4.0, 4.0)),
}
"""Share of the first stage, temperature and mixup by epsilon, of the public JAX code."""


def _cifar(epsilon: float) -> tuple[float, float, tuple[float, float]]:
    return CIFAR_SHARES[min(CIFAR_SHARES, key=lambda known: abs(known - epsilon))]


CIFAR = Recipe(
    model="cifar-resnet18",
    training={
        "learning_rate": 0.4,
        "batch": 512,
        "epochs": 200.0,
        "schedule": "steps-as-run",
        "weight_decay": 1e-4,
        "crop": 4,
        "flip": True,
        "cutout": 8,
    },
    mixup=lambda epsilon: 8.0,
    share=lambda epsilon: _cifar(epsilon)[0],
    two=lambda epsilon: _mixed(*_cifar(epsilon)[2], _cifar(epsilon)[1]),
    clusters=lambda epsilon: {"clusters": 100, "coordinates": 50, "histogram_share": 0.05},
    dp_sgd=lambda epsilon: {"learning_rate": 1.0, "batch": 4096, "steps": 1000, "clip_norm": 1.0},
)
RATINGS = Recipe(
    model="movielens-ratings",
    training={"learning_rate": 0.4, "batch": 128, "epochs": 5.0, "schedule": "steps", "weight_decay": 1e-4},
    clusters=lambda epsilon: {"clusters": 50, "histogram_share": 0.1},
    dp_sgd=lambda epsilon: {"learning_rate": 0.5, "batch": 4096, "steps": 1000, "clip_norm": 1.0},
)
RECIPES: Final[Mapping[str, Recipe]] = {
    "digits": DIGITS,
    "mnist": IMAGES,
    "qmnist": IMAGES,
    "fashion-mnist": CLOTHES,
    "adult": TABLE,
    "cifar10": CIFAR,
    "movielens-ratings": RATINGS,
}
GENERAL: Final = Recipe(
    model="",
    training={"learning_rate": 0.05, "batch": 128, "epochs": 20.0, "weight_decay": 1e-4},
    clusters=lambda epsilon: {"clusters": 50, "histogram_share": 0.1},
    dp_sgd=lambda epsilon: {"learning_rate": 0.5, "batch": 256, "steps": 300, "clip_norm": 1.0},
)
"""Of data that are not listed: the model is given."""


def recipe(dataset: str | None) -> Recipe:
    return RECIPES.get(dataset or "", GENERAL)


def runs(chosen: Recipe, method: str, epsilons: list[float], changes: Section) -> list[Section]:
    """The runs of one method: one section for all epsilons where they have the same stages, else one for each.

    `changes` are of every stage, such as a temperature that a user wants. Raises BadInput for a method that there is not.
    """
    if method not in METHODS:
        raise BadInput(f"--method {method}: allowed: {', '.join(METHODS)}{near(method, METHODS)}")
    if method == "non-private":
        return [{"name": NAMES[method], "kind": "non-private"}]
    made = [_run(chosen, method, epsilon, changes) for epsilon in epsilons]
    if all(one == made[0] for one in made):
        return [{"name": NAMES[method], "epsilons": list(epsilons), **made[0]}]
    return [
        {"name": f"{NAMES[method]} {epsilon:g}", "epsilons": [epsilon], **one}
        for epsilon, one in zip(epsilons, made, strict=True)
    ]


def _run(chosen: Recipe, method: str, epsilon: float, changes: Section) -> Section:
    if method == "dp-sgd":
        return {"kind": "dp-sgd", "dp_sgd": chosen.dp_sgd(epsilon)}
    stages = STAGES[method](chosen, epsilon)
    return {"stages": [_changed(stage, changes, number) for number, stage in enumerate(stages)]}


def _changed(stage: Section, changes: Section, number: int) -> Section:
    """What is said of priors and of starts does not concern the first stage, which has nothing before it."""
    later = ("prior", "temperature", "start", "filter")
    wanted = {key: value for key, value in changes.items() if key != "training" and (number or key not in later)}
    training = {**stage.get("training", {}), **changes.get("training", {})}
    return {**stage, **wanted, **({"training": training} if training else {})}


def _training(chosen: Recipe, **changes: Any) -> Section:
    return {"training": {**chosen.training, **changes}}


def _one(chosen: Recipe, epsilon: float) -> list[Section]:
    return [_training(chosen, mixup=chosen.mixup(epsilon))]


def _two(chosen: Recipe, epsilon: float) -> list[Section]:
    share, (first, second) = chosen.share(epsilon), chosen.two(epsilon)
    return [{"share": share, **_retrained(chosen, first)}, {"share": 1 - share, **_retrained(chosen, second)}]


def _clusters(chosen: Recipe, epsilon: float) -> list[Section]:
    return [{"prior": "clusters", **_retrained(chosen, chosen.clusters(epsilon))}]


def _retrained(chosen: Recipe, section: Section) -> Section:
    """A stage whose training, and whose retraining, change the recipe's; a retraining is like the training before it."""
    times = section.get("longer", 1)
    lengths = {key: times * value for key, value in chosen.training.items() if key in ("steps", "epochs")}
    training = {**chosen.training, **lengths, **section.get("training", {})}
    again = {"retraining": {**training, **section["retraining"]}} if "retraining" in section else {}
    kept = {key: value for key, value in section.items() if key != "longer"}
    return {**kept, "training": training, **again}


def _forward(chosen: Recipe, epsilon: float, **changes: Any) -> list[Section]:
    return [{"correction": True, **changes, **_training(chosen, **chosen.corrected)}]


def _consensus(chosen: Recipe, epsilon: float) -> list[Section]:
    return [{"retrain": "consensus", **_retrained(chosen, chosen.consensus(epsilon))}]


STAGES: Final[Mapping[str, Callable[[Recipe, float], list[Section]]]] = {
    "lp-1st": _one,
    "lp-2st": _two,
    "cluster-prior": _clusters,
    "forward": _forward,
    "consensus": _consensus,
    "alibi": lambda chosen, epsilon: _forward(chosen, epsilon, mechanism="one-hot-laplace"),
    "per-bit": lambda chosen, epsilon: _forward(chosen, epsilon, mechanism="per-bit"),
}


# -- an experiment from options ------------------------------------------------------------------------------------------------


def experiment(
    options: Section, methods: list[str], epsilons: list[float], changes: Section, stage_changes: Section
) -> ExperimentFile:
    """What the options of `fedrho labels train` mean; None of them is not said. Raises BadInput."""
    if (options["dataset"] is None) == (options["data"] is None):
        raise BadInput("give --dataset, --data or an EXPERIMENT.toml, one of the three; `fedrho data` lists the data sets")
    known = (*catalogue.names(), "movielens-ratings")
    if options["dataset"] not in (None, *known):
        name = options["dataset"]
        raise BadInput(f"--dataset {name}: unknown; `fedrho data list` says which there are{near(name, known)}")
    for epsilon in epsilons:
        if not 0 <= epsilon < math.inf:
            raise BadInput(f"--epsilon {epsilon:g}: must be finite and not negative")
    chosen = recipe(options["dataset"])
    model = options["model"] or chosen.model
    if not model:
        raise BadInput("--model: missing; a name of the zoo or a .keras file")
    chosen = replace(chosen, training=_with(chosen.training, changes))
    wanted = list(dict.fromkeys(methods))
    if not epsilons and wanted != ["non-private"]:
        raise BadInput("--epsilon: missing; what a label pays in all, for example --epsilon 2")
    shares = stage_changes.pop("stages")
    more = {key: value for key, value in stage_changes.items() if value is not None}
    if changes["mixup"] is not None:
        more["training"] = {"mixup": changes["mixup"]}
    if (shares or set(more) - {"training"}) and "lp-2st" not in wanted:
        raise BadInput("--stages, --prior and --temperature: belong to --method lp-2st")
    made_runs = [
        one
        for name in wanted
        for one in runs(chosen, name, list(dict.fromkeys(epsilons)), more if name == "lp-2st" else _only(more))
    ]
    if shares:
        for one in made_runs:
            if one["name"].startswith(NAMES["lp-2st"]):
                one["stages"] = _restaged(one["stages"], shares)
    for one in made_runs:
        if "dp_sgd" in one and changes["steps"] is not None:
            one["dp_sgd"] = {**one["dp_sgd"], "steps": changes["steps"]}
    values = {key: value for key, value in options.items() if value is not None}
    if options["dataset"] == "movielens-ratings":
        values["values"] = [1.0, 2.0, 3.0, 4.0, 5.0]
    return made({**values, "model": model, "training": chosen.training, "runs": made_runs}, "fedrho labels train")


def _only(more: Section) -> Section:
    return {key: value for key, value in more.items() if key == "training"}


def _with(training: Section, changes: Section) -> Section:
    """Steps take the place of epochs, and the other way round."""
    given = {key: value for key, value in changes.items() if value is not None and key != "mixup"}
    if len({"steps", "epochs"} & set(given)) == 2:
        raise BadInput("--steps, --epochs: give one of the two")
    kept = {key: value for key, value in training.items() if not (given and key in ("steps", "epochs"))}
    return {**kept, **given}


def _restaged(stages: list[Section], text: str) -> list[Section]:
    """The last stage again and again, for as many shares as there are."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--stages {text}: allowed: shares that add up to 1, as 0.65,0.35") from error
    if abs(sum(shares) - 1) > 1e-9 or min(shares) <= 0:
        raise BadInput(f"--stages {text}: shares are above 0 and add up to 1")
    kinds = [stages[min(number, len(stages) - 1)] for number in range(len(shares))]
    later = [
        {**kind, "prior": "model"} if number > 1 and kind.get("prior") == "denoised" else kind
        for number, kind in enumerate(kinds)
    ]
    return [{**kind, "share": share} for kind, share in zip(later, shares, strict=True)]
