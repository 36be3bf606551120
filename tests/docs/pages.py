"""The pages of the documentation as the tests read them: fenced blocks in their order, each with the marks in front of it.

A mark is an HTML comment on a line of its own, right above a block:

    not run: REASON      the block is read, and checked as far as that goes, but not run
    run                  it is run, on a page whose own mark says that its blocks are not
    run: data for MODEL  of `fedrho join`, all but the joining is done: the examples are read for this model, no server is asked
    continues            the block of Python goes on with the names of the one before it
    output               the block of `text` is what the last command before it prints
    output, in part      it is a piece of that

`not run on this page: REASON`, once and anywhere, is a mark for every block of shell on that page that has none of its own. A
block without any mark is run, in the order of the page, in a folder that is empty at first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[2]
PAGES: Final = {path.name: path.read_text(encoding="utf-8") for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))}
SHELL: Final = ("sh", "bash", "console", "shell")
NOT_HERE: Final = re.compile(r"^<!-- not run on this page: (.+?) -->$", re.MULTILINE)
MARK: Final = re.compile(r"not run: .+|run|run: data for [\w-]+|continues|output(?:, in part)?")
FENCE: Final = re.compile(
    r"(?P<marks>(?:^<!-- [^>]*? -->\n\n?)*)^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of its page where it begins."""

    page: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def skipped(self) -> str | None:
        """Why it is not run; None where it is."""
        for mark in self.marks:
            if mark.startswith("not run: "):
                return mark.removeprefix("not run: ")
        here = NOT_HERE.search(PAGES[self.page])
        return here[1] if here and self.language in SHELL and not any(mark.startswith("run") for mark in self.marks) else None


def blocks_of(page: str, *languages: str) -> list[Block]:
    """The blocks of `page`, of these languages or of all."""
    text = PAGES[page]
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("indent")) + 1
        marks = tuple(re.findall(r"<!-- (.*?) -->", match["marks"]))
        found.append(Block(page, line, match["language"].strip(), match["text"], tuple(filter(MARK.fullmatch, marks))))
    return [block for block in found if not languages or block.language in languages]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, *languages)]
