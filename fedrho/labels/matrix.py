"""`fedrho labels matrix`: how a mechanism answers each label under a prior."""

from __future__ import annotations

import math
import warnings
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedrho import console
from fedrho.console import BadInput
from fedrho.labels.options import MOST_CLASSES, Epsilon, TopSize, label_randomizer, probabilities
from fedrho.labels.options import Mechanism as AnyMechanism
from fedrho.output_options import Json

if TYPE_CHECKING:
    from fedrho.privacy.labels.randomizers import RandomizedResponse, TopK, WithPrior

SHOWN: Final = 12
"""Classes of a table on a terminal."""
MOST_ENTRIES: Final = 4_000_000


class Mechanism(Enum):
    """Those whose answers are labels; of bits, an answer is a set of them."""

    rr = "rr"
    top_k = "top-k"
    with_prior = "with-prior"


def matrix(
    epsilon: Epsilon,
    prior: Annotated[
        str | None,
        typer.Option(metavar="P,P,...", help="Probability of each class; scaled to add up to 1.", show_default="uniform"),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, max=MOST_CLASSES, help="Number of classes, instead of --prior: a uniform one.")
    ] = None,
    mechanism: Annotated[Mechanism, typer.Option(help="How labels are answered.")] = Mechanism.with_prior,
    k: TopSize = None,
    json: Json = False,
) -> None:
    """Show the probability of every answer to every label, how many labels are told at all, and how often the true one is.

    Example: fedrho labels matrix --prior 0.5,0.25,0.15,0.1 --epsilon 1
    """
    if (prior is None) == (classes is None):
        raise BadInput("--prior or --classes: give one of them; for example --prior 0.5,0.25,0.15,0.1")
    numbers = probabilities(prior) if prior is not None else [1.0] * (classes or 1)
    if len(numbers) ** 2 > MOST_ENTRIES:
        raise BadInput(f"{len(numbers)} classes: a matrix is shown for up to {math.isqrt(MOST_ENTRIES)}")
    chosen = label_randomizer(AnyMechanism(mechanism.value), epsilon, k, len(numbers))
    values = matrix_values(chosen, mechanism.value, numbers)
    if json:
        console.print_json(values)
    else:
        _show(values)


def matrix_values(chosen: RandomizedResponse | TopK | WithPrior, mechanism: str, prior: list[float]) -> dict[str, Any]:
    """For `--json`. `matrix` has a row for each true label and a column for each answer."""
    from fedrho.privacy.labels.randomizers import admitted, probability_correct

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = admitted([prior])
        conditional, sizes = chosen.matrix(rows), chosen.sizes(rows)
    for text in {str(one.message) for one in told}:
        console.err.print(text, highlight=False, soft_wrap=True)
    return {
        "mechanism": mechanism,
        "epsilon": None if math.isinf(chosen.epsilon) else chosen.epsilon,
        "prior": rows[0].tolist(),
        "k": int(sizes[0]),
        "probability_correct": float(probability_correct(conditional, rows)[0]),
        "matrix": conditional[0].tolist(),
    }


def _show(values: dict[str, Any]) -> None:
    from rich.table import Table

    rows = values["matrix"]
    table = Table(title="probability of each answer", title_justify="left")
    for heading in ("true label", "prior", *(f"told {told}" for told in range(len(rows))[:SHOWN])):
        table.add_column(heading, justify="right")
    for label, row in list(enumerate(rows))[:SHOWN]:
        table.add_row(str(label), f"{values['prior'][label]:.4g}", *(f"{chance:.4g}" for chance in row[:SHOWN]))
    console.out.print(table)
    if len(rows) > SHOWN:
        console.out.print(f"the first {SHOWN} of {len(rows)} classes; --json has all")
    epsilon = "infinite" if values["epsilon"] is None else f"{values['epsilon']:g}"
    console.out.print(
        f"{values['mechanism']} at epsilon {epsilon}: an answer is one of k = {values['k']} labels, "
        f"and the true one with probability {values['probability_correct']:.4f} where the prior is true",
        highlight=False,
        soft_wrap=True,
    )
    if values["k"] == 1 and len(rows) > 1:
        console.out.print(
            "k = 1: every label has the same answer, which says nothing and costs epsilon all the same", highlight=False
        )
