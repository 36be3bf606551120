"""Every example of the documentation runs, Python and shell, page by page and in the order of the page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.docs import shell
from tests.docs.pages import PAGES, SHELL, TOP, all_blocks, blocks_of
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
NOT_RUN: Final = {
    "auditing.md": 1,
    "dashboard.md": 1,
    "deploy.md": 2,
    "engines.md": 1,
    "operating.md": 1,
    "performance.md": 1,
    "reproductions.md": 4,
    "tasks.md": 1,
}
"""How many blocks of shell no test runs, of each page that has such; the reason stands above each of them."""


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


def test_what_no_test_runs_is_counted() -> None:
    assert Counter(block.page for block in all_blocks("python", *SHELL) if block.skipped is not None) == NOT_RUN


def test_what_is_run_on_another_page_is_run_there() -> None:
    for block in all_blocks("python", *SHELL):
        page = block.said("run on")
        if page is not None:
            there = {line for other in blocks_of(page, *SHELL) if other.here for line in map(plain, shell.lines(other))}
            assert set(map(plain, shell.lines(block))) - there == set(), block


def test_what_a_test_runs_is_named_in_that_test_or_names_it() -> None:
    for block in all_blocks("python", *SHELL):
        test = block.said("run by")
        if test is not None:
            text = (TOP / test).read_text(encoding="utf-8")
            command = " ".join(next(map(plain, shell.lines(block)))[1:])
            assert test in block.text or block.page in text or f"stage {command}" in text, block


def plain(line: str) -> tuple[str, ...]:
    return tuple("fedrho" if word == "./dev" else word for word in shell.words(line))


def test_an_output_is_compared_only_with_a_command() -> None:
    for page in PAGES:
        before = ""
        for block in blocks_of(page, "text", *SHELL):
            assert block.language != "text" or not block.marks or before, block
            before = block.text if block.language != "text" and block.here else ""
