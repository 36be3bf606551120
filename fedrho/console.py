"""How fedrho talks to people: progress, tables and errors on standard error; results on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedrho.privacy.statement import PrivacyStatement

out = Console()
err = Console(stderr=True)


def keep_stderr() -> None:
    """Gives `err` a descriptor of its own, because TensorFlow's import silences the usual one for a while."""
    err.file = os.fdopen(os.dup(2), "w", buffering=1)


def print_json(values: Mapping[str, object]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(values, indent=2, allow_nan=False) + "\n")


def print_statement(statement: PrivacyStatement, delta: float) -> None:
    """The claim, and under it everything that it assumes."""
    out.print("\n[bold]Privacy statement[/bold], computed from the ledger")
    for name, value in statement.rows(delta):
        out.print(f"  {name:<11} {value}", highlight=False, soft_wrap=True)
    out.print("  assumptions")
    for assumption in statement.assumptions:
        out.print(f"    - {assumption}", highlight=False, soft_wrap=True)


class StepProgress:
    """Steps, with rate, time left and a few figures: a bar on a terminal, one line a step in a pipe."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._shown = -1
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=6),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal)
        self._task = self._bar.add_task("starting", total=steps)

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, step: int, figures: str) -> None:
        self._bar.update(self._task, completed=step, description=figures)
        if not err.is_terminal and step != self._shown:
            err.print(f"step {step}/{self._steps} {figures}", highlight=False, soft_wrap=True)
        self._shown = step

    def note(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True)
