"""Outputs that pages show and no block above them prints as it stands: made here as the program makes them, and compared."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from fedrho import console
from fedrho.client.stores.checked import DataFileError
from fedrho.demo import Demo, DemoOptions, DemoResult, demo_task, print_result
from fedrho.privacy.labels.statement import LabelStatement
from fedrho.server.ledger import Charge, statement
from fedrho.server.tasks import Task, parse_task
from tests.commanding import Run, runner
from tests.docs.making import store
from tests.docs.pages import TOP, Block, all_blocks
from tests.docs.running import read_data

Made = Callable[[Run], str]
OPTIONS: Final = DemoOptions("dp-ftrl", 30, 40, 3, 1.0, 0, None, None)
"""Of `fedrho demo` that is given none."""


# -- the demo ------------------------------------------------------------------------------------------------------------------


def demo() -> Task:
    return parse_task(demo_task(OPTIONS), "demo")


def figures(task: Task, step: int, ready: bool = True) -> str:
    """What the demo says of a step, with an accuracy of its own."""
    status = SimpleNamespace(step=step, rho=task.mechanism.cost(step, task.participation))
    half = SimpleNamespace(task=task, _evaluator=SimpleNamespace(ready=ready), accuracy=lambda _: 0.9)
    return Demo._figures(half, status)  # type: ignore[arg-type]


def last_steps(_: Run) -> str:
    task = demo()
    return "\n".join(f"step {step}/30 {figures(task, step)}" for step in (29, 30))


def on_its_way(_: Run) -> str:
    return f"step 12/30 {'━' * 16} 2.1 steps/s ETA 0:08 {figures(demo(), 12, ready=False)}"


def result(_: Run) -> str:
    """Of a demo with the accuracy and the time of the page's."""
    task = demo()
    for number in range(OPTIONS.processes):
        Path(f"client-{number}.log").touch()
    spent = statement(task, Charge(30, task.mechanism.cost(30, task.participation)))
    ended: Any = SimpleNamespace(step=30)
    with console.out.capture() as printed:
        print_result(DemoResult(task, ended, spent, 0.906, Path(), 29.0))
    return printed.get()


# -- statements ----------------------------------------------------------------------------------------------------------------


def spanish(_: Run) -> str:
    """Of a server's ledger, at the noise and the participation of Spanish for Spain: z = 7, so rho = 79 / 98."""
    told = {
        "steps = 30": "steps = 2000",
        "population = 40": "population = 100000",
        "rho = 10.0": f"rho = {79 / 98!r}",
        "delta = 1e-5": "delta = 1e-10",
        "max_times = 10": "max_times = 6",
        "min_separation = 2": "min_separation = 314",
    }
    text = (TOP / "examples" / "digits.toml").read_text(encoding="utf-8")
    for old, new in told.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    task = parse_task(text, "spanish.toml")
    with console.out.capture() as printed:
        console.print_statement(statement(task, Charge(2000, task.mechanism.cost(2000, task.participation))), 1e-10)
    return printed.get()


def of_labels(_: Run) -> str:
    return "\n".join(f"  {name} {value}" for name, value in LabelStatement(2.0).rows())


# -- refusals ------------------------------------------------------------------------------------------------------------------


def refused(run: Run, *arguments: str) -> str:
    code, printed, said = run(*arguments)
    assert code != 0
    return printed + said


def goal(run: Run) -> str:
    text = (TOP / "examples" / "digits.toml").read_text(encoding="utf-8")
    assert "\ngoal = 10 " in text
    Path("digits.toml").write_text(text.replace("\ngoal = 10 ", "\ngoal = 100 "), encoding="utf-8")
    return refused(run, "serve", "digits.toml")


def bands(run: Run) -> str:
    numbers = "--mechanism banded --bands 20 --noise-multiplier 7 --rounds 100 --max-participations 6 --min-separation 10"
    return refused(run, "account", "spend", *numbers.split())


def changed(run: Run) -> str:
    Path("examples").symlink_to(TOP / "examples")
    store("second-run", steps=4)
    with sqlite3.connect("second-run/fedrho.sqlite") as database:
        database.execute("UPDATE releases SET rho = rho / 2 WHERE step = 3")
    return refused(run, "account", "ledger", "second-run")


def label(_: Run) -> str:
    numbers = "," + ",".join(["0.5"] * 64)
    names = "," + ",".join(f"x{place}" for place in range(64))
    Path("mine.csv").write_text(f"label{names}\n1{numbers}\nsevere{numbers}\n", encoding="utf-8")
    with pytest.raises(DataFileError) as error:
        read_data("fedrho join 127.0.0.1:7070 --data mine.csv", "digits-logistic")
    return f"fedrho: {error.value}"


MADE: Final[dict[tuple[str, str], Made]] = {
    ("README.md", "step 29/30"): last_steps,
    ("README.md", "fedrho demo"): result,
    ("README.md", "fedrho: digits.toml"): goal,
    ("accounting.md", "fedrho: second-run"): changed,
    ("cli.md", "step 12/30"): on_its_way,
    ("cli.md", "fedrho: --bands"): bands,
    ("own-data.md", "fedrho: mine.csv"): label,
    ("read-a-statement.md", "Privacy statement"): spanish,
    ("read-a-statement.md", "  unit"): of_labels,
}
"""By page and beginning."""
BLOCKS: Final = [block for block in all_blocks("text") if block.shows == "output, made"]


def made(block: Block) -> Made:
    (found,) = [MADE[page, begins] for page, begins in MADE if page == block.page and block.text.startswith(begins)]
    return found


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_what_a_page_shows_is_what_the_program_says(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = made(block)(runner(monkeypatch, capfd))
    assert block.shown_in(printed), f"{block} shows\n{block.text}\nand the program says\n{printed}"


def test_nothing_else_is_made() -> None:
    assert len(BLOCKS) == len(MADE)
