"""Every example of the documentation runs, Python and shell, page by page and in the order of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, SHELL, blocks_of
from tests.docs.running import on_one_core, run_page

SLOW = (
    "README.md",
    "cli.md",
    "models.md",
    "own-model.md",
    "label-privacy.md",
    "simulate.md",
    "accounting.md",
    "auditing.md",
    "start.md",
    "idea.md",
    "choose-parameters.md",
)
"""Those that need TensorFlow, or seconds."""


def runs(page: str) -> bool:
    return any(block.skipped is None for block in blocks_of(page, "python", *SHELL))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in filter(runs, PAGES)]
)
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_one_core(monkeypatch)
    run_page(page, tmp_path, monkeypatch)


def test_an_output_is_compared_only_with_a_command() -> None:
    for page in PAGES:
        before = ""
        for block in blocks_of(page, "text", *SHELL):
            assert block.language != "text" or not block.marks or before, block
            before = "" if block.language == "text" or block.skipped is not None else block.text
