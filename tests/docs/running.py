"""A page of the documentation, run from top to bottom: its Python and its shell, in a folder that is empty at first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from fedrho import cli
from fedrho.sources import Digits, Reading, find_source
from tests.docs import shell
from tests.docs.pages import SHELL, Block, blocks_of

LANGUAGES: Final = ("python", *SHELL, "text")


def pictures() -> None:
    """The folder of the pictures, as in a checkout."""
    Path("docs/images").mkdir(parents=True)


def trained_model() -> None:
    """`trained.npz`, such as `fedrho export` writes; its weights are those that a run begins with."""
    run(["models", "export", "spanish-cifg", "--out", "trained.npz"])


PRELUDES: Final[dict[str, Callable[[], None]]] = {"accounting.md": pictures, "models.md": trained_model}
"""What a page takes for granted."""


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block that no mark keeps from it; raises AssertionError, or what a block raises."""
    monkeypatch.chdir(folder)
    PRELUDES.get(page, lambda: None)()
    printed, names = "", dict[str, Any]()
    for block in blocks_of(page, *LANGUAGES):
        if block.skipped is not None:
            continue
        if block.language == "python":
            names = names if "continues" in block.marks else {"__name__": "example"}
            exec(compile(block.text, str(block), "exec", dont_inherit=True), names)
        elif block.language == "text" and block.marks:
            whole, shown = " ".join(printed.split()), " ".join(block.text.split())  # lines are broken where the console ends
            assert shown in whole if "output, in part" in block.marks else shown == whole, block
        elif block.language in SHELL:
            printed = run_shell(block)


def run_shell(block: Block) -> str:
    """What the last command prints."""
    printed = ""
    models = [mark.removeprefix("run: data for ") for mark in block.marks if mark.startswith("run: data for ")]
    for line in shell.lines(block):
        (command,) = shell.commands(line)
        if models:
            read_data(command, models[0])
        else:
            printed = run_line(command, line, block)
    return printed


def run_line(command: list[str], line: str, block: Block) -> str:
    """One command of fedrho in this process, as its entry point would run it; `> FILE` goes there."""
    arguments = {"fedrho": command[1:], "./dev": command[1:], "uv": command[3:]}.get(command[0])
    assert arguments is not None, f"{block}: {line}: give the block a mark"
    printed = run(arguments)
    _, redirected, target = line.partition(" > ")
    if redirected:
        Path(target.split()[0]).write_text(printed, encoding="utf-8")
    return "" if redirected else printed


def run(arguments: list[str]) -> str:
    """What one command prints, which must succeed."""
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{arguments}: {done.output}"
    return done.stdout


def read_data(command: list[str], model: str) -> None:
    """As far as `fedrho join` goes by itself: the options make sense, and the examples are such as the model takes."""
    from fedrho.models.zoo import lookup

    assert command[:2] == ["fedrho", "join"]
    context = shell.PROGRAM.commands["join"].make_context("join", command[2:])  # type: ignore[attr-defined]
    given: dict[str, Any] = context.params
    digits = Digits(given["devices"], given["of"], given["alpha"], given["seed"])
    reading = Reading(given["label"], given["classes"], given["text"], given["vocabulary"])
    stores = find_source(given["data"], digits, reading)(lookup(model))
    assert stores


def on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations choose the serial engine, in this process, which changes no number and loads TensorFlow once."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
