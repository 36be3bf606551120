"""The pages of the documentation as the tests read them: fenced blocks in their order, each with the marks in front of it.

A block of shell or of Python is run, in the order of the page, in a folder with `examples/`, `deploy/` and `benchmarks/` of this
checkout and with what the page takes for granted (tests/docs/preludes.py). What no test could run, on another machine or for an
hour, stands in a sentence of the page and is no block. A mark is an HTML comment on a line of its own, right
above a block:

    run with: OPTIONS    commands that know all of these options get them, instead of the same ones as printed
    background: A; B     the first commands, one for each of A and B, go on in the background, once they have printed that
    until: A             each command goes on until it prints A, and is then stopped with Ctrl-C
    after Ctrl-C         what runs in the background is stopped with Ctrl-C first; at the end of the page it always is
    meanwhile: WHAT      this happens first, beside what the reader does; tests/docs/preludes.py makes it happen
    needs: NAME          it is run where there is this, one of NEEDED: a program, a Python module, or copies of a data set
    run on: PAGE         each of its commands is run on that page
    run by: FILE::TEST   that test runs it, or `dev`, as `./dev check` does
    data for: MODEL      of `fedrho join`, all but the joining is done: the examples are read for this model, no server is asked
    continues            the block of Python goes on with the names of the one before it
    output               the block of `text` is what the last command before it prints; a word … in it is any words
    output, in part      it is a piece of that
    output, made         it is what tests/docs/test_shown.py makes, as a program would print it
    varies: WORDS        these words of an output, or "words in a row", are others in every run; figures about privacy never are
    not compared: REASON it is what a program printed once, and no figure of it is compared

Several stand below one another. In every command hosts of example.org and 10.0.0.x are this machine, and ports are free ones.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[2]
PAGES: Final = {path.name: path.read_text(encoding="utf-8") for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))}
SHELL: Final = ("sh", "bash", "console", "shell")
WITH_VALUE: Final = (
    "run with",
    "background",
    "until",
    "meanwhile",
    "needs",
    "run on",
    "run by",
    "data for",
    "varies",
    "not compared",
)
NEEDED: Final = (
    "data/fashion-mnist",
    "data/mnist",
    "data/text-es",
    "kubectl",
    "mlflow",
    "openssl",
    "opentelemetry",
    "postgres",
    "promtool",
)
MARK: Final = re.compile(rf"(?:{'|'.join(WITH_VALUE)}): .+|after Ctrl-C|continues|output(?:, in part|, made)?")
FENCE: Final = re.compile(
    r"(?P<marks>(?:^<!-- [^\n]*? -->\n\n?)*)^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
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

    def said(self, name: str) -> str | None:
        """What stands behind the colon of such a mark."""
        return next((mark.removeprefix(f"{name}: ") for mark in self.marks if mark.startswith(f"{name}: ")), None)

    @property
    def shows(self) -> str | None:
        """The mark that says of what it is the output; None where it is none."""
        return next((mark for mark in self.marks if mark.startswith("output")), None)

    def varying(self) -> list[tuple[str, bool]]:
        """Every word, and whether it is another one in every run."""
        words = self.text.split()
        varies = [word == "…" for word in words]
        for phrase in map(str.split, shlex.split(self.said("varies") or "")):
            places = [place for place in range(len(words)) if words[place : place + len(phrase)] == phrase]
            assert places, f"{self}: {' '.join(phrase)} is not there"
            for place in places:
                varies[place : place + len(phrase)] = [True] * len(phrase)
        return list(zip(words, varies, strict=True))

    def shown_in(self, printed: str) -> bool:
        """Whether this is what was printed, or a piece of it, word by word: lines end where a console does."""
        words = (re.escape(word) if not varies else ".*?" if word == "…" else r"\S+" for word, varies in self.varying())
        shown, whole = " ".join(words), " ".join(printed.split())
        return bool(re.fullmatch(shown, whole) if self.shows == "output" else re.search(rf"(?<!\S){shown}(?!\S)", whole))

    @property
    def elsewhere(self) -> bool:
        """Whether it is run, and not on its own page."""
        return bool(self.said("run on") or self.said("run by"))

    @property
    def here(self) -> bool:
        return not self.elsewhere


def blocks_of(page: str, *languages: str) -> list[Block]:
    """The blocks of `page`, of these languages or of all."""
    text = PAGES[page]
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("indent")) + 1
        marks = tuple(re.findall(r"^<!-- (.*?) -->$", match["marks"], re.MULTILINE))
        found.append(Block(page, line, match["language"].strip(), match["text"], tuple(filter(MARK.fullmatch, marks))))
    return [block for block in found if not languages or block.language in languages]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, *languages)]


def between(page: str, mark: str) -> str:
    """What stands between `<!-- MARK -->` and `<!-- /MARK -->`."""
    _, found, rest = PAGES[page].partition(f"<!-- {mark} -->")
    assert found, f"{page} has no {mark}"
    return rest.partition(f"<!-- /{mark} -->")[0]


def first_cells(text: str) -> list[str]:
    """The code in the first cell of every row of the tables in `text`."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
