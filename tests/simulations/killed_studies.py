"""Studies that are really killed, at chosen points, and taken up again: run as a program, it prints what each left behind.

One process that forks for every study, because to start Python anew each time would take longer than all else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrho.simulations import checkpoints, files
from fedrho.simulations.folder import StudyFolder
from tests.simulations.toy_study import digests, run_toy, toy_study


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(function: Callable[..., Any], number: int, instead: Callable[..., None]) -> Callable[..., Any]:
    """`function`, whose call of this number is replaced."""
    calls = [0]

    def called(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return instead(*arguments, **named) if calls[0] == number else function(*arguments, **named)

    return called


def half_a_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    die()


def half_a_row(folder: StudyFolder, row: Any) -> None:
    metrics: Any = folder._metrics
    metrics.write(json.dumps(row).encode()[:40])
    metrics.flush()
    die()


def half_a_folder(path: Path, **options: Any) -> None:
    next(path.iterdir()).unlink()
    die()


def in_a_checkpoint(number: int) -> None:
    checkpoints.write_through = at_call(checkpoints.write_through, number, half_a_file)  # type: ignore[attr-defined]


def before_a_name(number: int) -> None:
    Path.rename = at_call(Path.rename, number, lambda *_: die())  # type: ignore[method-assign]


def in_a_row(number: int) -> None:
    StudyFolder.append = at_call(StudyFolder.append, number, half_a_row)  # type: ignore[method-assign]


def after_a_row(number: int) -> None:
    append = StudyFolder.append
    StudyFolder.append = at_call(append, number, lambda folder, row: (append(folder, row), die()))  # type: ignore


def in_a_result(number: int) -> None:
    files.write_through = at_call(files.write_through, number, half_a_file)


def in_a_removal(number: int) -> None:
    there = checkpoints.shutil.rmtree  # type: ignore[attr-defined]
    full = at_call(lambda path, **_: there(path), number, half_a_folder)
    removal = lambda path, **named: None if not Path(path).exists() else full(path, **named)  # noqa: E731
    checkpoints.shutil = type("Shutil", (), {"rmtree": staticmethod(removal)})  # type: ignore


POINTS: dict[str, Callable[[], None]] = {
    "in the first checkpoint": lambda: in_a_checkpoint(1),
    "in the values of a checkpoint": lambda: in_a_checkpoint(5),
    "in the digests of the last checkpoint": lambda: in_a_checkpoint(12),
    "before a checkpoint has its name": lambda: before_a_name(2),
    "in the first row": lambda: in_a_row(1),
    "in a row right after a checkpoint": lambda: in_a_row(4),
    "between a row and its checkpoint": lambda: after_a_row(6),
    "after the last row": lambda: after_a_row(8),
    "while an old checkpoint goes": lambda: in_a_removal(1),
    "in the table": lambda: in_a_result(5),
    "in the statement": lambda: in_a_result(6),
    "in the summary": lambda: in_a_result(8),
}


def in_a_fork(work: Callable[[], object]) -> int:
    """The child's wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    study, dataset = toy_study()
    folder = Path(tempfile.mkdtemp())
    found: dict[str, Any] = {}

    def killed(arm: Callable[[], None], path: Path) -> None:
        arm()
        run_toy(path, study, dataset)

    run_toy(folder / "unbroken", study, dataset)  # which also imports all that the forks need
    for number, (name, arm) in enumerate(POINTS.items()):
        path = folder / str(number)
        ended = in_a_fork(lambda arm=arm, path=path: killed(arm, path))  # type: ignore[misc]
        before = digests(path)
        again = in_a_fork(lambda path=path: run_toy(path, study, dataset))  # type: ignore[misc]
        found[name] = {"killed": os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL, "again": again}
        found[name] |= {"before": before, "after": digests(path)}
    print(json.dumps({"unbroken": digests(folder / "unbroken"), "killed": found}))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
