"""The operator's commands on the command line: `status`, `pause`, `resume`, `cancel`, `export`; `operate` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrho import console

Store = Annotated[
    str | None,
    typer.Argument(help="A server's store, or a demo's folder.", show_default="fedrho-run here, else the latest run"),
]
Task = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which task, where there are several.", show_default="the only one")
]
Operator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A server's operator port, instead of STORE.", show_default="none")
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --operator: a file with the server's token.", show_default="none")
]
Tls = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="With what `fedrho keys` made for operators.", show_default="none")
]


def status(
    store: Store = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on telling whenever something changes.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="JSON on standard output; with --watch, one object a line.", callback=console.plain)
    ] = False,
    operator: Operator = None,
    token_file: TokenFile = None,
    tls: Tls = None,
) -> None:
    """Tell how far the runs are and what they have spent; beside a server, or after it.

    Example: fedrho status fedrho-run --json
    """
    from fedrho import operate

    operate.status(store, watch, json, operator, token_file, tls)


def pause(
    store: Store = None, task: Task = None, operator: Operator = None, token_file: TokenFile = None, tls: Tls = None
) -> None:
    """Give out no more seats in a run until `fedrho resume`. Devices that have one may still upload.

    Example: fedrho pause fedrho-run
    """
    from fedrho import operate

    operate.pause(store, task, operator, token_file, tls)


def resume(
    store: Store = None, task: Task = None, operator: Operator = None, token_file: TokenFile = None, tls: Tls = None
) -> None:
    """Go on with a paused run.

    Example: fedrho resume fedrho-run
    """
    from fedrho import operate

    operate.resume(store, task, operator, token_file, tls)


def cancel(
    store: Store = None,
    task: Task = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    operator: Operator = None,
    token_file: TokenFile = None,
    tls: Tls = None,
) -> None:
    """End a run for good. What it released stays released, and what it spent stays spent.

    Example: fedrho cancel fedrho-run --yes
    """
    from fedrho import operate

    operate.cancel(store, task, yes, operator, token_file, tls)


def export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="NAME.keras, NAME.safetensors, NAME.npz or NAME.tflite.")],
    store: Store = None,
    task: Task = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The saved Keras model that the run trains. Repeatable.", show_default="none"),
    ] = None,
    operator: Operator = None,
    token_file: TokenFile = None,
    tls: Tls = None,
) -> None:
    """Write the latest released weights to a file, with the privacy statement inside; from a server, or from its store.

    Example: fedrho export fedrho-run --out digits.keras
    """
    from fedrho import operate

    operate.export(out, store, task, force, model, operator, token_file, tls)
