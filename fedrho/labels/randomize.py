"""`fedrho labels randomize`: a CSV file with noisy labels in place of the true ones, and the statement that goes with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fedrho import console
from fedrho.console import BadInput
from fedrho.labels import options
from fedrho.labels.options import Epsilon, Mechanism, TopSize
from fedrho.output_options import Json
from fedrho.work import Work

UNIFORM = "uniform"


def randomize(
    data: Annotated[Path, typer.Argument(metavar="DATA.csv", help="The file with true labels; it stays as it is.")],
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The column of labels.")],
    classes: Annotated[
        str, typer.Option(metavar="A,B,...|FILE", help="All classes there may be: names, or a file with one a line.")
    ],
    epsilon: Epsilon,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where noisy labels go; FILE.statement.json goes beside it.")],
    prior: Annotated[
        str, typer.Option(metavar="P,P,...", help="Probability of each class, known without these labels.")
    ] = UNIFORM,
    prior_columns: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="Columns with a prior for each row, one column for each class.")
    ] = None,
    mechanism: Annotated[
        Mechanism | None, typer.Option(help="How labels are answered.", show_default="rr; with-prior where a prior is given")
    ] = None,
    k: TopSize = None,
    user: Annotated[str | None, typer.Option(metavar="COLUMN", help="Whose each row is, for the epsilon of a person.")] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Write the rows in a random order; they must fit into memory.")
    ] = False,
    public_order: Annotated[
        bool, typer.Option("--public-order", help="The order was decided without the labels: do not look whether it is by class.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="The labels were answered before: pay again, and add it up.")] = False,
    delimiter: Annotated[str, typer.Option(metavar="CHARACTER", help="What is between fields.")] = ",",
    json: Json = False,
) -> None:
    """Write a copy of a CSV file with noisy labels, each private by epsilon, and the privacy statement beside it.

    Example: fedrho labels randomize data.csv --label disease --classes none,mild,severe --epsilon 1 --out noisy.csv
    """
    names = options.class_names(classes, data)
    chosen = mechanism or (Mechanism.rr if prior == UNIFORM and prior_columns is None else Mechanism.with_prior)
    _check(chosen, epsilon, prior, prior_columns)
    from fedrho.labels.answering import Question, answer

    question = Question(
        data=data,
        out=out,
        label=label,
        classes=names,
        randomizer=options.randomizer(chosen, epsilon, k, len(names)),
        mechanism=chosen.value,
        prior=None if prior == UNIFORM else options.probabilities(prior, len(names)),
        prior_columns=None if prior_columns is None else [name.strip() for name in prior_columns.split(",")],
        user=user,
        delimiter=delimiter,
        shuffle=shuffle,
        public_order=public_order or shuffle,
        again=again,
    )
    with Work("reading labels", f"epsilon {epsilon:g} for each label") as work:
        summary = answer(question, work.progress)
    console.print_json(summary) if json else _show(summary, out)


def _check(mechanism: Mechanism, epsilon: float, prior: str, prior_columns: str | None) -> None:
    given = prior != UNIFORM or prior_columns is not None
    if given and mechanism in (Mechanism.rr, Mechanism.per_bit):
        raise BadInput(f"--mechanism {mechanism.value}: uses no prior; leave the prior out, or take with-prior")
    if prior != UNIFORM and prior_columns is not None:
        raise BadInput("--prior-columns: takes the place of --prior; give one of them")
    options.check_epsilon(epsilon)
    if math.isinf(epsilon):
        raise BadInput("--epsilon inf: would write the true labels; allowed: finite")


def _show(summary: dict[str, Any], out: Path) -> None:
    from fedrho.privacy.labels.statement import LabelStatement

    told = summary["statement"]
    console.out.print(
        f"{out}: {summary['records']} noisy labels; an answer is one of {summary['mean_k']:.4g} labels on average",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    statement = LabelStatement(
        told["epsilon"], told["delta"], tuple(told["mechanisms"]), tuple(told["assumptions"]), told["user_epsilon"]
    )
    console.print_claim(statement.rows(), statement.assumptions, f"in {out.name}.statement.json as well")
