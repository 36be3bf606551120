"""Every line of shell in the documentation is one that its program takes."""

from __future__ import annotations

import configparser
import json
import re

import pytest

from tests.docs import shell
from tests.docs.pages import PAGES, SHELL, TOP, all_blocks, blocks_of

PAGES_WITH_SHELL = [page for page in PAGES if blocks_of(page, *SHELL)]
PLACEHOLDER = re.compile(r"…|\.\.\.")


@pytest.mark.parametrize("page", PAGES_WITH_SHELL)
def test_every_line_of_shell_is_one_that_its_program_takes(page: str) -> None:
    refused = []
    for block in blocks_of(page, *SHELL):
        for line in shell.lines(block):
            try:
                shell.check_line(line)
            except shell.Unknown as error:
                refused.append(f"{block}: {line}\n  {error}")
    assert refused == []


@pytest.mark.parametrize(
    "line",
    [
        "fedrho account spent --rounds 3",
        "fedrho account spend --round 3",
        "fedrho account spend --rounds three",
        "fedrho simulate compare digits-1 --from steps",
        "fedrho join --data digits",
        "fedrho serve a.toml --port 70000",
        "fedrho status one two",
        "./dev fly",
        "./dev account spend --round 3",
        "uv run --extra tff fedrho account spent",
        "python benchmarks/none.py",
        "python benchmarks/tasks.py handwriting --seed 3",
        "FEDRHO_DATA=/tmp fedrho data fetsh mnist > words.txt",
        "fedrho data list | rm",
    ],
)
def test_a_line_that_its_program_refuses_is_found(line: str) -> None:
    with pytest.raises(shell.Unknown):
        shell.check_line(line)


@pytest.mark.parametrize(
    ("line", "options", "expected"),
    [
        ("fedrho demo --steps 30 --json", "--steps 2", "fedrho demo --json --steps 2"),
        ("fedrho simulate a.toml  # slow", "--set a=1", "fedrho simulate a.toml --set a=1"),
        ("fedrho simulate a.toml --set a=2 --set b=3", "--set a=1", "fedrho simulate a.toml --set b=3 --set a=1"),
        ("fedrho labels train --epsilon 1 --epsilon 2 --out d", "--epsilon 1", "fedrho labels train --out d --epsilon 1"),
        ("fedrho serve a.toml", "--devices 4", "fedrho serve a.toml"),
        ("fedrho fleet HOST:1 --devices 2000", "--devices 4 --spread 1", "fedrho fleet HOST:1 --devices 4 --spread 1"),
        ("python benchmarks/scaling.py a", "--set a=1", "python benchmarks/scaling.py a"),
        ("kubectl create namespace a", "--dry-run=client", "kubectl create namespace a --dry-run=client"),
        ("pip install x", "--steps 2", "pip install x"),
    ],
)
def test_a_test_may_give_other_values_to_a_command_that_knows_them(line: str, options: str, expected: str) -> None:
    assert shell.with_options(line, options) == expected


def test_every_command_in_running_text_is_one_that_there_is() -> None:
    """`fedrho …` between backticks: the command, and the options with it. Values and arguments may be left out there."""
    unknown = []
    for page, text in PAGES.items():
        for code in re.findall(
            r"(?<!`)`(fedrho [^`\n]+)`(?!`)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        ):
            try:
                shell.check_mentioned(PLACEHOLDER.sub("", code).split()[1:])
            except shell.Unknown as error:
                unknown.append(f"{page}: {code}: {error}")
    assert unknown == []


def test_outside_programs_are_all_used() -> None:
    used = {word for block in all_blocks(*SHELL) for line in shell.lines(block) for word in shell.words(line)}
    assert set(shell.OUTSIDE) - used == set()


# -- other languages ----------------------------------------------------------------------------------------------------------


def test_json_in_the_docs_is_json() -> None:
    for block in all_blocks("json"):
        json.loads(block.text)


def test_the_services_of_systemd_in_the_docs_start_a_command_that_there_is() -> None:
    services = [block for block in all_blocks("ini") if "[Service]" in block.text]
    assert services
    for block in services:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(block.text, str(block))
        program, *rest = unit["Service"]["ExecStart"].split()
        assert program.endswith("/fedrho")
        shell.check_fedrho(rest)


def test_every_block_says_its_language() -> None:
    assert [str(block) for block in all_blocks("")] == []


def test_the_scripts_and_tests_that_pages_name_are_there() -> None:
    named = {path for text in PAGES.values() for path in re.findall(r"\b(?:benchmarks|tests|examples)/[\w./-]*\w", text)}
    assert {path for path in named if not (TOP / path).exists()} == set()
