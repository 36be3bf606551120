"""Every example of the documentation runs, Python and shell, page by page and in the order of the page."""

from __future__ import annotations

import ast
import re
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.docs import shell
from tests.docs.pages import NEEDED, PAGES, SHELL, TOP, Block, all_blocks, blocks_of
from tests.docs.preludes import MEANWHILE, PRELUDES
from tests.docs.running import Runner, on_one_core

SLOW: Final = (
    "README.md",
    "accounting.md",
    "auditing.md",
    "choose-parameters.md",
    "cli.md",
    "connect-devices.md",
    "data-sets.md",
    "deploy.md",
    "fleet.md",
    "idea.md",
    "label-privacy.md",
    "models.md",
    "operating.md",
    "own-model.md",
    "reproductions.md",
    "simulate.md",
    "start.md",
    "tasks.md",
)
"""Those that need TensorFlow, servers, or seconds."""
NOT_COMPARED: Final = {"cli.md": 1, "dashboard.md": 1, "device.md": 1}
"""How many outputs no test compares; the reason stands above each of them."""
NO_OUTPUT: Final = {
    "architecture.md": 3,
    "deploy.md": 1,
    "device.md": 1,
    "label-privacy.md": 1,
    "own-data.md": 1,
    "own-mechanism.md": 2,
    "own-model.md": 1,
    "privacy.md": 7,
    "protocol.md": 3,
    "task-file.md": 1,
}
"""How many blocks of text are no output of a program, but formulas, drawings and pieces of files; whatever else has a mark."""
PRIVACY: Final = ("rho", "epsilon", "delta", "=", "multiplier", "noise_multiplier")
"""Words before a figure about privacy."""
ESTIMATES: Final = [("auditing.md", "6.52.")]
"""What one attack suggests, of drawn noise: no claim."""


def marks(page: str) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.slow,) if page in SLOW else ()


def runs(page: str) -> bool:
    return any(block.here for block in blocks_of(page, "python", *SHELL))


@pytest.mark.parametrize("page", [pytest.param(page, marks=marks(page)) for page in filter(runs, PAGES)])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_one_core(monkeypatch)
    runner = Runner(page, tmp_path, monkeypatch)
    runner.prepare()
    runner.meanwhile = MEANWHILE
    with runner.stack:
        if page in PRELUDES:
            PRELUDES[page](runner)
        runner.run()
    if runner.missed:
        pytest.skip(f"all but what is not on this machine: {'; '.join(runner.missed)}")


def test_what_is_shown_and_not_compared_is_counted() -> None:
    texts = all_blocks("text")
    assert Counter(block.page for block in texts if block.said("not compared")) == NOT_COMPARED
    assert Counter(block.page for block in texts if not block.shows and not block.said("not compared")) == NO_OUTPUT


def test_no_figure_about_privacy_varies() -> None:
    for block in all_blocks():
        assert block.shows or not block.said("varies"), block
        for (before, _), (word, varies) in pairwise(block.varying()):
            of_privacy = before.strip(",:").lower() in PRIVACY
            assert not (varies and of_privacy) or (block.page, word) in ESTIMATES, f"{block}: {before} {word}"


def test_a_console_shows_no_output() -> None:
    """What is printed stands in a block of text of its own, and is compared."""
    assert [str(block) for block in all_blocks("console") if not re.fullmatch(r"(\$ .*\n|.*\\\n)+", block.text)] == []


@pytest.mark.parametrize(
    ("shown", "marks", "printed", "same"),
    [
        ("rho 1 at 0.91", ("output",), "rho  1 at\n0.91 ", True),
        ("rho 1 at 0.91", ("output",), "rho 1 at 0.92", False),
        ("rho 1 at 0.91", ("output", "varies: 0.91"), "rho 1 at 0.92", True),
        ("rho 1 at 0.91", ("output", "varies: 0.91"), "rho 10 at 0.92", False),
        ("rho 1 at 1", ("output", 'varies: "at 1"'), "rho 1 at 2", True),
        ("rho 1 at 1", ("output", 'varies: "at 1"'), "rho 2 at 1", False),
        ("rho 1 …", ("output",), "rho 1 and more", True),
        ("rho 1", ("output",), "rho 1 and more", False),
        ("rho 1", ("output, in part",), "of rho 1 and more", True),
        ("rho 1", ("output, in part",), "rho 10", False),
    ],
)
def test_an_output_is_compared_word_by_word(shown: str, marks: tuple[str, ...], printed: str, same: bool) -> None:
    assert Block("a.md", 1, "text", shown, marks).shown_in(printed) == same


def test_what_is_run_on_another_page_is_run_there() -> None:
    for block in all_blocks("python", *SHELL):
        page = block.said("run on")
        if page is not None:
            there = {line for other in blocks_of(page, *SHELL) if other.here for line in map(plain, shell.lines(other))}
            assert set(map(plain, shell.lines(block))) - there == set(), block


def test_what_a_test_runs_that_test_runs() -> None:
    for block in all_blocks("python", *SHELL):
        test = block.said("run by")
        if test is not None:
            assert runs_it(test, block), block


def runs_it(test: str, block: Block) -> bool:
    """Whether `test` is given each of its commands, reads them off the page, or is what the command runs."""
    lines = list(shell.lines(block))
    if test == "dev":
        stages = (TOP / "dev").read_text(encoding="utf-8")
        return all(f"    stage {' '.join(plain(line)[1:])} " in stages for line in lines)
    file, _, name = test.partition("::")
    tree = ast.parse((TOP / file).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(found) != 1 or not name.startswith("test_"):
        return False
    if file in block.text:
        return True
    if {"block", "blocks_of"} & (named := names_in(found[0], tree)):
        return block.page in named
    module = import_module(file.removesuffix(".py").replace("/", "."))
    given = [mark.args[1] for mark in getattr(getattr(module, name), "pytestmark", []) if mark.name == "parametrize"]
    commands = {str(case.values[0]) for cases in given for case in cases if hasattr(case, "values")}
    return all(line.removeprefix("fedrho ") in commands for line in lines)


def names_in(test: ast.FunctionDef, tree: ast.Module) -> set[str]:
    """All that it names, its fixtures and texts too, and what those of its module name that it leads to."""
    known: dict[str, ast.AST] = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            known |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    names, ahead = set[str](), [test.name]
    while ahead:
        walked = list(ast.walk(known[ahead.pop()]))
        now = {node.arg if isinstance(node, ast.arg) else node.id for node in walked if isinstance(node, ast.arg | ast.Name)}
        now |= {node.value for node in walked if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        ahead += [name for name in now - names if name in known]
        names |= now
    return names


@pytest.mark.parametrize(
    ("test", "line"),
    [
        ("dev", "fedrho serve a.toml"),
        ("tests/test_reproductions.py", "fedrho account convert --rho 0.81 --delta 1e-10"),
        ("tests/test_reproductions.py::test_none", "fedrho account convert --rho 0.81 --delta 1e-10"),
        ("tests/test_reproductions.py::test_the_published_figures_come_out", "fedrho account convert --rho 0.82 --delta 1e-10"),
        ("tests/test_sources.py::test_file_is_one_device_of_its_name", "fedrho join 127.0.0.1:7070 --data readings:a.db"),
    ],
)
def test_a_test_that_does_not_run_it_is_found(test: str, line: str) -> None:
    assert not runs_it(test, Block("own-data.md", 1, "sh", f"{line}\n", ()))


def test_what_is_needed_is_one_of_what_there_may_be() -> None:
    assert {needed for block in all_blocks() if (needed := block.said("needs")) is not None} == set(NEEDED)


def plain(line: str) -> tuple[str, ...]:
    return tuple("fedrho" if word == "./dev" else word for word in shell.words(line))


def test_an_output_is_compared_only_with_a_command() -> None:
    for page in PAGES:
        before = ""
        for block in blocks_of(page, "text", *SHELL):
            assert block.shows not in ("output", "output, in part") or before, block
            before = block.text if block.language != "text" and block.here else ""
