"""Every mechanism that a task file can name runs on the engine, goes on after a restart, and can be checked afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedrho import cli
from fedrho.privacy.noise import KeptVector
from fedrho.privacy.vectors import ClippedSum
from fedrho.server.chain import History, HistoryBroken, check
from fedrho.server.release import Attempt
from fedrho.server.storage.store import open_store, read_history
from fedrho.server.tasks import TaskFileError, parse_task
from tests.server.conftest import TASK
from tests.server.one_run import OneRun

MakeEngine = Callable[..., OneRun]
CASES = {
    "tree": "mechanism = 'tree'",
    "restarts": "restarts = [30, 40]",
    "completed": "restarts = [30, 40]\ncompleted = true",
    "banded": "mechanism = 'banded'\ncoefficients = [1.0, 0.5]",
    "blt": "mechanism = 'blt'\ndecay = [0.9, 0.3]\nscale = [0.2, 0.1]",
}
LONG = {"steps = 4": "steps = 100", "max_times = 2": "max_times = 40"}


def with_privacy(lines: str) -> dict[str, Any]:
    return {**LONG, "[privacy]": f"[privacy]\n{lines}"}


def advance(engine: OneRun, steps: int) -> None:
    for _ in range(steps):
        total = ClippedSum(np.zeros(12, np.int64), engine.task.mechanism.grid)
        engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)


def content(kept: Sequence[KeptVector]) -> list[tuple[str, bytes]]:
    return [(one.name, one.vector.tobytes()) for one in kept]


@pytest.mark.slow
@pytest.mark.parametrize("lines", CASES.values(), ids=CASES.keys())
def test_a_run_goes_on_where_it_was(lines: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    """Stopped and opened again at four steps, the noise so far is the same to the bit: the next step's prefix builds on it."""
    for stop in (1, 34, 70, 99):
        with open_store(tmp_path) as store:
            engine = make_engine(store=store, **with_privacy(lines))
            advance(engine, stop - engine.progress.step)
            before = engine.progress.mechanism
        with open_store(tmp_path) as store:
            after = make_engine(store=store, **with_privacy(lines)).progress.mechanism
        assert (after.step, after.live) == (before.step, before.live)
        assert [(one.name, one.vector.tobytes()) for one in after.kept] == [
            (one.name, one.vector.tobytes()) for one in before.kept
        ]


@pytest.mark.slow
@pytest.mark.parametrize("lines", CASES.values(), ids=CASES.keys())
def test_a_run_of_any_mechanism_can_be_checked(lines: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    with open_store(tmp_path) as store:
        engine = make_engine(store=store, **with_privacy(lines))
        advance(engine, 100)
    history = read_history(tmp_path)
    kept = [name for entry in history.entries for name, *_ in entry.kept]
    assert len(kept) == len(set(kept))
    assert bool(kept) == ("restarts" not in lines)  # whose trees have fewer than 64 leaves
    for broken in _with_other_vectors(history):
        with pytest.raises(HistoryBroken, match=r"step \d+: its link does not follow"):
            check(broken, engine.task)
    statement = check(history, engine.task)
    assert statement == engine.statement()
    assert 0 < statement.rho <= engine.task.budget


def _with_other_vectors(history: History) -> Iterator[History]:
    """The same with one kept vector's digest, or all of a step's vectors, gone."""
    for number, entry in enumerate(history.entries):
        if entry.kept:
            (name, dtype, digest), *others = entry.kept
            for kept in (((name, dtype, b"x" * 32), *others), ((name, "<u8", digest), *others), ()):
                entries = [*history.entries[:number], replace(entry, kept=kept), *history.entries[number + 1 :]]
                yield replace(history, entries=tuple(entries))
            return


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("mechanism = 'forest'", r"privacy\.mechanism: unknown mechanism 'forest'; allowed: tree, banded, blt"),
        ("mechanism = 'blt'", r"privacy\.decay: missing; `fedrho account calibrate --mechanism blt"),
        ("mechanism = 'blt'\ndecay = [0.9]", r"privacy\.scale: missing"),
        ("mechanism = 'blt'\ndecay = [1.1]\nscale = [0.2]", "decays must lie strictly between 0 and 1"),
        ("mechanism = 'banded'", r"privacy\.coefficients: missing"),
        ("mechanism = 'banded'\ncoefficients = [1.0, 0.5, 0.3]", "bands must be at most the separation, 2"),
        ("mechanism = 'banded'\ncoefficients = [0.5]", "coefficients must be finite, and the first of them 1"),
        ("mechanism = 'banded'\ncoefficients = [1.0, nan]", "coefficients must be finite"),
        ("decay = [0.9]", r"privacy\.decay: does not belong to tree"),
        ("mechanism = 'blt'\nrestarts = [4]", r"privacy\.restarts: does not belong to blt"),
        ("restarts = [0]", r"privacy\.restarts"),
        ("restarts = [1000000]", "restarts must be whole numbers of steps from 1 to"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(lines: str, message: str) -> None:
    text = TASK.format(algorithm="dp-ftrl", window="false").replace("[privacy]", f"[privacy]\n{lines}")
    with pytest.raises(TaskFileError, match=message):
        parse_task(text, "small.toml")


def test_independent_noise_has_no_strategy() -> None:
    text = TASK.format(algorithm="dp-fedavg", window="false")
    for line, message in (("mechanism = 'tree'", "dp-fedavg has independent noise"), ("restarts = [2]", "does not belong")):
        with pytest.raises(TaskFileError, match=message):
            parse_task(text.replace("[privacy]", f"[privacy]\n{line}"), "small.toml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["--mechanism tree", "--mechanism tree --restarts 40,60", "--mechanism blt", "--mechanism banded"]
)
def test_what_calibrate_prints_makes_a_task_of_the_same_price(options: str) -> None:
    run = "--rounds 100 --max-participations 40 --min-separation 2 --rho 2 --delta 1e-3"
    done = CliRunner().invoke(cli.app, f"account calibrate {options} {run} --toml".split())
    assert done.exit_code == 0, done.output
    text = TASK.format(algorithm="dp-ftrl", window="false")
    for before, after in LONG.items():
        text = text.replace(before, after)
    start, end = text.index("[privacy]"), text.index("[participation]")
    task = parse_task(text[:start] + done.stdout + text[end:], "small.toml")
    assert task.mechanism.cost(100, task.participation) == pytest.approx(2.0, rel=1e-9)
