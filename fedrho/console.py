"""How fedrho talks to people: progress, tables and errors on standard error; results on standard output."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult

if TYPE_CHECKING:
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


class _Manner:
    """How much is said, as the command line asked: `--json` as in a pipe, `--quiet` nothing but errors."""

    plain = False
    silent = False


def as_usual() -> None:
    """Whatever an earlier command line in this process asked for is forgotten."""
    _Manner.plain = _Manner.silent = False


def plain(wanted: bool) -> bool:
    """For typer, of `--json`: a program reads along, so no bar is drawn, wherever that would be."""
    _Manner.plain = _Manner.plain or wanted
    return wanted


def silent(wanted: bool) -> bool:
    """For typer, of `--quiet`."""
    _Manner.silent = _Manner.silent or wanted
    return wanted


def said(quiet: bool = False) -> bool:
    """Whether anything is said beside results and errors."""
    return not (quiet or _Manner.silent)


def lively() -> bool:
    """Whether standard error is a terminal whose cursor can be moved, and a bar is wanted there."""
    return err.is_terminal and not err.is_dumb_terminal and not _Manner.plain and not _Manner.silent


class Since:
    """What is going on, and for how long: for work whose end nobody knows."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        line = Text(f"{self._what}, {minutes}:{seconds:02}", no_wrap=True, end="")
        line.truncate(options.max_width, overflow="ellipsis" if options.encoding.startswith("utf") else "crop")
        yield line


@contextmanager
def working(what: str, quiet: bool = False) -> Iterator[None]:
    """Says what is going on, and for how long, while it takes; on a terminal, and no trace of it stays."""
    if quiet or not lively():
        yield
        return
    from rich.live import Live

    shown = Live(Since(what), console=err, refresh_per_second=2, transient=True)
    try:
        shown.start(refresh=True)
        yield
    finally:  # also of a signal while it starts
        shown.stop()


def keep_stderr() -> None:
    """Gives `err` a descriptor of its own, because TensorFlow's import silences the usual one for a while."""
    encoding = getattr(sys.stderr, "encoding", None)
    err.file = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace")


def spell_what_cannot_be_encoded() -> None:
    """A terminal of few letters gets the others as escapes, instead of an error in the middle of a result."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


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
    from rich.table import Table

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
