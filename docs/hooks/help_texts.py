"""On the page of the command line, each command with what its `--help` prints, taken from the program as the site is built."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

PAGE: Final = "cli.md"
WIDTH: Final = 100
"""Columns of the console that the help is written for."""
SECTION: Final = re.compile(r"^## `(fedrho [\w -]+)`\n(?:(?!^## ).*\n?)*", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """MkDocs asks for the text of a page."""
    return with_help(markdown) if page.file.src_uri == PAGE else markdown


def with_help(markdown: str) -> str:
    """Behind every section, closed at first: what the console would say."""
    return SECTION.sub(lambda found: found[0].rstrip("\n") + "\n\n" + folded(found[1]) + "\n", markdown)


def folded(command: str) -> str:
    lines = help_text(command.split()[1:]).splitlines()
    return f'??? quote "`{command} --help`"\n\n    ```text\n' + "".join(f"    {line}\n" for line in lines) + "    ```\n"


def help_text(words: list[str]) -> str:
    """Without colours and without spaces at the ends of lines."""
    from typer.testing import CliRunner

    from fedrho import cli

    # Only with a height is the width believed where TERM is "dumb". What runs later in this process keeps its own.
    wide = {"COLUMNS": str(WIDTH), "LINES": "25"}
    done = CliRunner(env=wide).invoke(cli.app, [*words, "--help"], prog_name="fedrho", color=False)
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
