"""A page of the documentation, run from top to bottom: its Python and its shell, in the folder of a checkout."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from fedrho import cli
from fedrho.sources import Digits, Reading, find_source
from tests.docs import shell
from tests.docs.beside import Beside
from tests.docs.pages import SHELL, TOP, Block, blocks_of
from tests.server import postgres

LANGUAGES: Final = ("python", *SHELL, "text")
CHECKOUT: Final = ("examples", "deploy", "benchmarks")
COPIES: Final = Path(os.environ.get("FEDRHO_TEST_DATA", TOP.parent / "shared" / "data"))
"""Of the real data sets, where there are some."""
SETTINGS: Final = re.compile(r"((?:[A-Z_]+=\S+ +)*)(.*)", re.DOTALL)
HOSTS: Final = {r"(?:[\w-]+\.)*example\.org\b": "localhost", r"\b10\.0\.0\.\d+\b": "127.0.0.1"}
PORTS: Final = re.compile(r"((?:localhost|127\.0\.0\.1):|--(?:[a-z]+-)?port[ =])(\d{4,5})\b")
AS_IT_STARTS: Final = ("device", "--install-completion", "--show-completion")
DEVICES_PORT: Final = "7070"
"""Of `fedrho serve` that names none."""


class Runner:
    """One page in one folder. `stack` is left after the page, `places` are addresses of the page and what they are here."""

    def __init__(self, page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page = page
        self.folder = folder
        self.data = folder / "data"
        self.patch = monkeypatch
        self.stack = ExitStack()
        self.places: dict[str, str] = {}
        self.meanwhile: Mapping[str, Callable[[], None]] = {}
        self.missed: list[str] = []
        self._ports: dict[str, str] = {}
        self._beside: list[Beside] = []
        self._logs = 0

    def prepare(self) -> None:
        """A home and a checkout of nobody's; real data sets where there are copies."""
        for name in ("home", "data", "page"):
            (self.folder / name).mkdir()
        for name in [name for name in os.environ if name.startswith(("FEDRHO_", "XDG_", "MLFLOW_", "OTEL_"))]:
            self.patch.delenv(name)
        self.patch.setenv("HOME", str(self.folder / "home"))
        self.patch.setenv("FEDRHO_DATA", str(self.data))
        self.patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        for file in COPIES.rglob("*") if COPIES.is_dir() else ():
            if file.is_file():
                link = self.data / file.relative_to(COPIES)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
        self.patch.chdir(self.folder / "page")
        for name in CHECKOUT:
            Path(name).symlink_to(TOP / name)

    def run(self) -> None:
        """Every block that is run here; raises AssertionError, or what a block raises."""
        printed, names = "", dict[str, Any]()
        with self._ended():
            for block in blocks_of(self.page, *LANGUAGES):
                if block.language == "python" and block.here:
                    names = names if "continues" in block.marks else {"__name__": "example"}
                    exec(compile(block.text, str(block), "exec", dont_inherit=True), names)
                elif block.shows in ("output", "output, in part"):
                    assert block.shown_in(printed), f"{block} shows\n{block.text}\nand printed was\n{printed}"
                elif block.language in SHELL and block.here:
                    printed = self._shell(block)
            self._stop()

    def _shell(self, block: Block) -> str:
        """What the last command prints."""
        needed = block.said("needs")
        if needed is not None and not there(needed):
            self.missed.append(f"{block} needs {needed}")
            return ""
        if "after Ctrl-C" in block.marks:
            self._stop()
        if meanwhile := block.said("meanwhile"):
            self.meanwhile[meanwhile]()
        lines = [self.here(shell.with_options(line, block.said("run with") or "")) for line in shell.lines(block)]
        model, until, background = block.said("data for"), block.said("until"), block.said("background")
        awaited = background.split("; ") if background else []
        for line, text in zip(lines, awaited, strict=False):
            self._beside.append(self._start(line))
            self._beside[-1].wait_for(text)
        printed = ""
        for line in lines[len(awaited) :]:
            if model is not None:
                read_data(line, model)
            elif line.startswith("pip "):
                installed(shell.words(line))
            elif until is not None:
                self._beside.append(self._start(line))
                self._beside[-1].wait_for(until)
                self._beside.pop().stop()
            else:
                printed = self._line(line)
        return printed

    def _line(self, line: str) -> str:
        """One command to its end: fedrho's in this process, as its entry point would run it, all others in bash."""
        matched = SETTINGS.fullmatch(line)
        assert matched is not None
        with pytest.MonkeyPatch.context() as patch:
            for setting in matched[1].split():
                patch.setenv(*setting.split("=", 1))
            (command, *piped) = shell.commands(matched[2])
            arguments = of_fedrho(command)
            if arguments is not None and not piped:
                printed = run(arguments)
                _, redirected, target = matched[2].partition(" > ")
                if redirected:
                    Path(target.split()[0]).write_text(printed, encoding="utf-8")
                return "" if redirected else printed
            # With a second command bash stays, and is the shell that completion is for.
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{line}\n:"], capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            return done.stdout

    def _start(self, line: str) -> Beside:
        arguments = of_fedrho(shell.words(line))
        command = ["bash", "-c", f"exec {line}"] if arguments is None else [sys.executable, "-m", "fedrho", *arguments]
        self._logs += 1
        return Beside(command, self.folder / f"{self._logs}.log")

    def _stop(self) -> None:
        """The latest first; each is gone before the next is told."""
        while self._beside:
            self._beside[-1].stop()
            self._beside.pop()

    @contextmanager
    def _ended(self) -> Iterator[None]:
        try:
            yield
        finally:
            for one in self._beside:
                one.end()

    def here(self, line: str) -> str:
        """The same on this machine, where hosts of the page are not, and its ports may be taken."""
        for place, found in self.places.items():
            line = line.replace(place, found)
        for host, found in HOSTS.items():
            line = re.sub(host, found, line)
        if re.search(r"\bfedrho serve ", line) and " --port" not in line:
            line += f" --port {DEVICES_PORT}"
        return PORTS.sub(lambda matched: matched[1] + self.port(matched[2]), line)

    def port(self, printed: str) -> str:
        if any(f":{printed}" in found for found in self.places.values()):
            return printed
        if printed not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[printed] = str(probe.getsockname()[1])
        return self._ports[printed]


def there(name: str) -> bool:
    """Whether a machine has such a program, Python module or copy of a data set."""
    if name.startswith("data/"):
        return (COPIES / name.removeprefix("data/")).is_dir()
    if name == "postgres":
        return postgres.binaries() is not None
    return shutil.which(name) is not None or importlib.util.find_spec(name) is not None


def of_fedrho(command: list[str]) -> list[str] | None:
    """The arguments; None for another program, and for what asks for its shell or its home as it starts."""
    if command[0] == "uv":
        return of_fedrho(command[2:])
    return command[1:] if command[0] in ("fedrho", "./dev") and command[1] not in AS_IT_STARTS else None


def run(arguments: list[str]) -> str:
    """What one command of fedrho prints, which must succeed."""
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{arguments}: {done.output}"
    return done.stdout


def installed(command: list[str]) -> None:
    """`pip install "fedrho[EXTRA]"`: there is such an extra, and all of it is here."""
    matched = re.fullmatch(r"pip install fedrho\[(\w+)\]", " ".join(command))
    assert matched is not None, command
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package in project["optional-dependencies"][matched[1]]:
        importlib.metadata.version(re.split(r"[\[<>=;]", package)[0])


def read_data(line: str, model: str) -> None:
    """As far as `fedrho join` goes by itself: the options make sense, and the examples are such as the model takes."""
    from fedrho.models.zoo import lookup

    command = shell.words(line)
    assert command[:2] == ["fedrho", "join"]
    context = shell.PROGRAM.commands["join"].make_context("join", command[2:])  # type: ignore[attr-defined]
    given: dict[str, Any] = context.params
    digits = Digits(given["devices"], given["of"], given["alpha"], given["seed"])
    reading = Reading(given["label"], given["classes"], given["text"], given["vocabulary"])
    stores = find_source(given["data"], digits, reading)(lookup(model))
    assert stores


def on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations choose the serial engine, in this process, which changes no number and loads TensorFlow once."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
