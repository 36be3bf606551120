"""Defaults, bounds and choices in docs/cli.md are those of the program, and so is the help that the site shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

from docs.hooks import help_texts
from tests.docs.pages import PAGES, TOP
from tests.docs.shell import PROGRAM

AN_END_OF_INTEGERS = 2**31 - 1
"""A bound from here on is no bound to a reader: `0 or more`."""
INSIDE = {"FEDRHO_END_WITH_PARENT"}
"""Settings of the environment that a process of fedrho makes for another; nobody else sets them."""
TESTS = {"FEDRHO_SCREENSHOTS"}
"""Settings that only tests know."""


def flattened(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in group.commands:
        command = group.commands[name]
        if hasattr(command, "commands"):
            yield from flattened(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(flattened(PROGRAM))


def rows(text: str) -> dict[str, tuple[str, str]]:
    """What the tables say of each option: its value and its default."""
    return {
        name: (value, default)
        for name, value, default in re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|", text, re.MULTILINE)
    }


def shown_name(parameter: Any) -> str:
    name: str = parameter.opts[-1] if parameter.opts[-1].startswith("-") else parameter.metavar or parameter.name.upper()
    return name


def section_of(command: str, page: str) -> str:
    return page.partition(f"\n## `fedrho {command}`\n")[2].partition("\n## ")[0]


def wrong(command: str, page: str) -> list[str]:
    """What the page says otherwise than the program."""
    told = {**rows(page.partition("<!-- shared-options -->")[2].partition("<!-- /shared-options -->")[0])}
    told |= rows(re.split(r"<!-- [a-z]+(?:-[a-z]+)+ -->", section_of(command, page))[0])
    return [
        f"fedrho {command} {shown_name(parameter)}: {complaint}"
        for parameter in COMMANDS[command].params
        if shown_name(parameter) in told
        for complaint in complaints(parameter, *told[shown_name(parameter)])
    ]


def complaints(parameter: Any, value: str, default: str) -> Iterator[str]:
    if parameter.required != (default.strip() == "required"):
        yield f"{'required' if parameter.required else 'not required'}, told as {default!r}"
    if parameter.show_default is True and not same_default(parameter.default, default):
        yield f"the default is {parameter.default!r}, told as {default!r}"
    for bound in (parameter.min, parameter.max):
        if bound is not None and abs(bound) < AN_END_OF_INTEGERS and float(bound) not in numbers(value):
            yield f"the bound {bound} is missing in {value!r}"
    kind = parameter.type_descriptor.annotation
    choices = [str(item.value) for item in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []
    if choices and re.findall("`([^`]+)`", value) != choices:
        yield f"the choices are {choices}, told as {value!r}"


def same_default(default: Any, told: str) -> bool:
    """Of flags, lists, files and what is empty nothing is told, or another word than the value."""
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, bool) or not isinstance(default, int | float | str) or default == "":
        return True
    if isinstance(default, str):
        return told.strip() == f"`{default}`"
    return numbers(told)[:1] == [float(default)]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_defaults_bounds_and_choices_are_those_of_the_program() -> None:
    assert [complaint for command in COMMANDS for complaint in wrong(command, PAGES["cli.md"])] == []


@pytest.mark.parametrize(
    ("command", "said", "instead"),
    [
        ("serve", "0 to 65535 | 7070", "0 to 65535 | 7071"),
        ("serve", "0 to 65535 | 7070", "1 to 65535 | 7070"),
        ("demo", "`dp-ftrl` or `dp-fedavg`", "`dp-ftrl`"),
        ("join", "| address | required |", "| address | none |"),
        ("account spend", "| `--mechanism` | `tree`, ", "| `--mechanism` | "),
    ],
)
def test_a_page_that_says_otherwise_is_found(command: str, said: str, instead: str) -> None:
    assert said in PAGES["cli.md"]
    assert wrong(command, PAGES["cli.md"].replace(said, instead)) != []


def test_every_setting_of_the_environment_is_documented() -> None:
    product = [
        path
        for folder in ("fedrho", "server", "client", "privacy", "protos", "models", "simulations")
        for path in (TOP / folder).rglob("*.py")
    ]
    named = {name for path in product for name in re.findall(r"\"(FEDRHO_[A-Z_]+)\"", path.read_text(encoding="utf-8"))}
    told = set(re.findall(r"\bFEDRHO_[A-Z_]+\b", " ".join(PAGES.values())))
    assert named - INSIDE == told - TESTS
    assert [parameter.name for command in COMMANDS.values() for parameter in command.params if parameter.envvar] == []


def test_the_site_shows_the_help_of_every_command() -> None:
    page = PAGES["cli.md"]
    assert {found[1].removeprefix("fedrho ") for found in help_texts.SECTION.finditer(page)} == set(COMMANDS)
    for command in ("pause", "device leave"):
        shown = help_texts.with_help(f"\n## `fedrho {command}`\n{section_of(command, page)}\n")
        assert f"Usage: fedrho {command} " in shown
        assert shown.index("option | value") < shown.index(f'??? quote "`fedrho {command} --help`"')
