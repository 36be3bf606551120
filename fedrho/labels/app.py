"""`fedrho labels` with the commands of all its files."""

from __future__ import annotations

import typer

from fedrho.labels.audit import audit
from fedrho.labels.matrix import matrix
from fedrho.labels.randomize import randomize
from fedrho.labels.train import export, plot, train

app = typer.Typer(
    help="Label differential privacy: randomize labels, train on noisy ones, audit.\n\n"
    "Example: fedrho labels train --dataset digits --epsilon 1",
    no_args_is_help=True,
)

for command in (matrix, randomize, train, plot, export, audit):
    app.command()(command)
