"""docs/reproductions.md: every command of the page gives what the page says, to the digits it shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedrho import cli

PAGE = (Path(__file__).parents[1] / "docs" / "reproductions.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CASES = [case for block in BLOCKS for case in re.findall(r"^fedrho (.*)\n# (.*)$", block, re.MULTILINE)]


def at(values: Any, path: str) -> float:
    for name in path.split("."):
        values = values[name]
    return float(values)


def as_shown(value: float, shown: str) -> str:
    """`value` with as many decimals as the page shows."""
    return f"{value:.{len(shown.partition('.')[2])}f}"


def test_every_line_of_every_command_is_read() -> None:
    assert len(CASES) >= 17
    assert 2 * len(CASES) == sum(len(block.splitlines()) for block in BLOCKS)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(*case, id=case[0][:60], marks=pytest.mark.slow if case[0].startswith("account compare") else ())
        for case in CASES
    ],
)
def test_the_published_figures_come_out(command: str, expected: str) -> None:
    done = CliRunner().invoke(cli.app, [*shlex.split(command), "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    for part in expected.split(", "):
        name, shown = part.split(" ")
        assert as_shown(at(values, name), shown) == shown, name
