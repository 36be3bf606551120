"""What typer finds wrong with a command line, said in one line like every other error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import typer

from fedrho.places import ASK


def near(word: str, known: Iterable[str]) -> str:
    """A question that helps with a slip of the pen, or nothing."""
    close = difflib.get_close_matches(word.lower(), tuple(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


CLICK_ERRORS: Any = typer.BadParameter.__mro__[2]
"""ClickException of the click that typer really uses: some versions of typer carry their own."""


def misused(error: Any) -> str:
    """What typer found wrong with the command line, in one line: the option, the reason, and what is allowed."""
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":  # the help is printed already where rich does it
        return str(error.message).strip()
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    path = context.command_path if context else "fedrho"
    known = f"`{path} --help` lists what there is"
    if kind == "MissingParameter":
        return f"{_shown(parameter) if parameter else 'a parameter'}: missing; {known}"
    if kind == "NoSuchOption":
        near = " or ".join(sorted(error.possibilities or ()))
        return f"{error.option_name}: no such option" + (f"; did you mean {near}?" if near else f"; {known}")
    text = " ".join(str(error.message).split()).removeprefix("Value error, ").rstrip(".")
    text = text[:1].lower() + text[1:]
    if parameter is not None:
        text, allowed = _plainly(text)
        return f"{_shown(parameter)}: {text}{_allowed(parameter) or allowed}{_near_choice(text)}"
    if kind == "BadOptionUsage":  # a value is missing, or too many
        return f"{error.option_name}: {text.removeprefix('option ').removeprefix(repr(error.option_name)).strip()}"
    if context is not None and text.startswith("no such command"):
        what, asked, near = text.partition(". Did you mean ")
        if asked:
            return f"{what}; did you mean {near.replace(chr(39), '')} `{path} --help` lists all"
        return f"{what}; allowed: {', '.join(context.command.list_commands(context))}"
    return f"{text}; {known}"


def _shown(parameter: Any) -> str:
    name: str = max(parameter.opts, key=len)
    return name if name.startswith("-") else parameter.metavar or parameter.name.upper()


def _plainly(text: str) -> tuple[str, str]:
    """Without what the parser says of itself, and what is allowed where no range is told."""
    said, of_a_number, _ = text.partition(", unable to parse string as ")
    whole = said.startswith("input should be a valid integer")
    if of_a_number or whole:
        return said, "; allowed: a whole number, such as 10" if whole else "; allowed: a number, such as 0.5"
    return text, f"; {ASK}" if re.fullmatch(r"path '.*' is not (readable|writable)", text) else ""


def _near_choice(text: str) -> str:
    """For "'tre' is not one of 'tree', 'blt'"."""
    asked, found, choices = text.partition(" is not one of ")
    return near(asked.strip("'"), re.findall(r"'([^']+)'", choices)) if found else ""


def _allowed(parameter: Any) -> str:
    """The range of a number, of typer's own description or of click's type."""
    described = getattr(getattr(parameter, "type_descriptor", None), "parameter_info", None) or getattr(parameter, "type", None)
    low, high = getattr(described, "min", None), getattr(described, "max", None)
    if low is None and high is None:
        return ""
    return f"; allowed: {low} or more" if high is None else f"; allowed: {low} to {high}"
