"""How fedrho talks to people: progress, tables and errors on standard error; results on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedrho.privacy.statement import PrivacyStatement

PIPE_WIDTH = 160
"""Columns of what goes into a file or a pipe, where there is no edge to wrap at."""

out = Console()
err = Console(stderr=True)
for console in (out, err):
    if not console.is_terminal:
        console.width = PIPE_WIDTH


class BadInput(ValueError):
    """Something on the command line that cannot be used: one line, exit code 2."""


class Stopped(Exception):
    """Someone stopped the command; exit code 130."""


@contextmanager
def working(what: str) -> Iterator[None]:
    """Says what is going on while it takes long, on a terminal."""
    if not err.is_terminal:
        yield
        return
    with err.status(what):
        yield


def keep_stderr() -> None:
    """Gives `err` a descriptor of its own, because TensorFlow's import silences the usual one for a while."""
    err.file = os.fdopen(os.dup(2), "w", buffering=1)


def stdout_fails() -> bool:
    """Whether standard output cannot be written; if so, what is left for it goes nowhere, or Python would stumble at its end."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")  # nothing is left to flush where output is not buffered
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def print_json(values: Mapping[str, object]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(values, indent=2, allow_nan=False) + "\n")


def print_json_line(values: Mapping[str, object]) -> None:
    """One JSON object on a line of its own, for whoever reads along."""
    sys.stdout.write(json.dumps(values, allow_nan=False) + "\n")


def print_plain(lines: Sequence[str]) -> None:
    """Text for a file, on standard output as it is."""
    sys.stdout.write("\n".join(lines) + "\n")


def print_statement(statement: PrivacyStatement, delta: float, source: str = "computed from the ledger") -> None:
    """The claim, and under it everything that it assumes."""
    print_claim(statement.rows(delta), statement.assumptions, source)


def print_claim(rows: Sequence[tuple[str, str]], assumptions: Sequence[str], source: str) -> None:
    claim, assumed = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 1))
    for name, value in rows:
        claim.add_row(f"  {name}", value)
    for assumption in assumptions:
        assumed.add_row("    -", assumption)
    out.print(f"\n[bold]Privacy statement[/bold], {source}")
    out.print(claim, highlight=False)
    out.print("  it assumes that")
    out.print(assumed, highlight=False)


def print_nothing(guarantee: str, why: str) -> None:
    """Where a statement would stand: that nothing is claimed, and why."""
    out.print(f"\n[bold]Privacy statement[/bold]: {guarantee}")
    out.print(f"  {why}", highlight=False)


class StepProgress:
    """Steps, with rate, time left and a few figures: a bar on a terminal, one line a step in a pipe."""

    def __init__(self, steps: int, starting: str = "starting") -> None:
        self._steps = steps
        self._shown = -1
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=6),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal)
        self._task = self._bar.add_task(starting, total=steps)

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, step: int, figures: str) -> None:
        self._bar.update(self._task, completed=step, description=figures)
        if not err.is_terminal and step != self._shown:
            err.print(f"step {step}/{self._steps} {figures}", highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._shown = step

    def note(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True)
