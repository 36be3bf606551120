"""What people say about mechanisms and priors on the command line, made into randomizers; what cannot be is refused."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fedrho.console import BadInput

if TYPE_CHECKING:
    from fedrho.privacy.labels.randomizers import RandomizedResponse, Randomizer, TopK, WithPrior

MOST_CLASSES: Final = 10_000

Epsilon = Annotated[float, typer.Option("--epsilon", metavar="E", help="Privacy of one label, under replacement.")]
TopSize = Annotated[int | None, typer.Option("--k", metavar="N", help="Of top-k: labels that an answer is one of.")]


class Mechanism(Enum):
    """A mechanism's name on the command line."""

    rr = "rr"
    top_k = "top-k"
    with_prior = "with-prior"
    per_bit = "per-bit"


def randomizer(mechanism: Mechanism, epsilon: float, k: int | None, classes: int) -> Randomizer:
    """Raises BadInput for an epsilon or a k that cannot be."""
    from fedrho.privacy.labels.per_bit import PerBit

    if mechanism is not Mechanism.per_bit:
        return label_randomizer(mechanism, epsilon, k, classes)
    label_randomizer(Mechanism.rr, epsilon, k, classes)  # for its refusals
    return PerBit(epsilon)


def label_randomizer(mechanism: Mechanism, epsilon: float, k: int | None, classes: int) -> RandomizedResponse | TopK | WithPrior:
    """Of those whose answers are labels."""
    from fedrho.privacy.labels.randomizers import RandomizedResponse, TopK, WithPrior

    check_epsilon(epsilon)
    if (k is not None) != (mechanism is Mechanism.top_k):
        raise BadInput("--k: belongs to --mechanism top-k, and to no other" if k is not None else "--k: missing; top-k needs it")
    if k is not None:
        if not 1 <= k <= classes:
            raise BadInput(f"--k {k}: allowed: 1 to {classes}, the number of classes")
        return TopK(epsilon, k)
    return RandomizedResponse(epsilon) if mechanism is Mechanism.rr else WithPrior(epsilon)


def check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise BadInput(f"--epsilon {epsilon}: allowed: 0 or more; 1 keeps a label among 10 classes with 0.23, 3 with 0.69")


def probabilities(text: str, classes: int | None = None) -> list[float]:
    """Of `p1,p2,...`, one for each class; raises BadInput where it is no prior. They need not add up to 1."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--prior {text}: allowed: numbers with commas between them, such as 0.5,0.3,0.2") from error
    if not all(0 <= number < math.inf for number in numbers):
        raise BadInput(f"--prior {text}: a probability is not negative, and finite; 0 for all where nothing is known")
    if classes is not None and len(numbers) != classes:
        raise BadInput(
            f"--prior: {len(numbers)} probabilities for {classes} classes; give one for each, in the order of --classes"
        )
    return numbers


def class_names(text: str, data: Path) -> list[str]:
    """Of `a,b,c`, or of a file with one class a line. Raises BadInput: a class list is public, and never made of the data."""
    path = Path(text)
    try:
        given = _lines(path, data) if "," not in text and path.is_file() else [part.strip() for part in text.split(",")]
    except OSError as error:
        raise BadInput(f"--classes {text}: {error.strerror or error}") from error
    if len(given) < 2:
        raise BadInput(
            f"--classes {text}: allowed: two or more names with commas between them, or a file with one name a line; the list is "
            "public knowledge, and never read off the labels"
        )
    if "" in given or len(set(given)) != len(given):
        raise BadInput("--classes: a class is named twice, or has no name")
    if len(given) > MOST_CLASSES:
        raise BadInput(f"--classes: {len(given)} classes; allowed: up to {MOST_CLASSES}")
    return given


def _lines(path: Path, data: Path) -> list[str]:
    if data.exists() and path.samefile(data):
        raise BadInput(f"--classes {path}: is the data itself; which classes there are must be known without the labels")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"--classes {path}: is not UTF-8") from error
