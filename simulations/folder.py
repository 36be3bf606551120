"""The folder of a study's results, which equal studies fill with equal bytes, broken off or not.

| file | what it is |
|---|---|
| `study.toml`, `task.toml` | the study with every value in force; its task, as `fedrho serve` takes it |
| `metrics.jsonl`, `metrics.parquet` | a row a step |
| `tensorboard/` | the same as events |
| `checkpoints/` | the last few states; `--resume` goes on from the latest that is whole |
| `statement.json`, `statement.txt` | what may be claimed |
| `weights.npz` | the model, with the statement in it |
| `start/` | the weights that the run started from, where the task names a file |
| `plots/` | pictures |
| `summary.json` | how it ended; written last, so a folder that has it is finished |
| `machine/` | versions, host and time on the wall: all that differs between equal runs |
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedrho.server.tasks import why_unreadable
from fedrho.simulations import checkpoints, events, files, records
from fedrho.simulations.checkpoints import Checkpoint
from fedrho.simulations.records import Row
from fedrho.simulations.state import State
from fedrho.simulations.study import MODEL, STARTS, Study

ROOM = 4 << 20
"""Bytes for everything but checkpoints."""


MEND = "mend that, or choose another --output"


class FolderError(ValueError):
    """A folder that cannot be used: its name, the reason and what to do, in one line."""


class DiskFull(RuntimeError):
    """Writing failed in the middle of a study; the last whole checkpoint is as it was."""


class StudyFolder:
    """One study's folder, held against every other process. Use as a context manager."""

    def __init__(self, path: Path, study: Study) -> None:
        """Raises FolderError where the folder cannot be written, is held, or holds another study."""
        self.path = path
        self.study = study
        self.digest = hashlib.sha256(study.text().encode()).hexdigest()
        self._metrics: io.BufferedIOBase | None = None
        self._events: io.BufferedIOBase | None = None
        try:
            for name in ("machine", "checkpoints", "tensorboard", "plots"):
                (path / name).mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path / "machine" / "lock", path)
            self._claim()
        except OSError as error:
            raise FolderError(f"{path}: cannot be written ({error.strerror or error}); {MEND}") from error

    def __enter__(self) -> StudyFolder:
        return self

    def __exit__(self, *details: object) -> None:
        for file in (self._metrics, self._events):
            if file is not None:
                _closed(file)
        os.close(self._lock)

    def _claim(self) -> None:
        """Writes what the study is, or compares it with what is written."""
        for name, text in (("study.toml", self.study.text()), ("task.toml", self.study.task_text())):
            if text is not None and not (self.path / name).exists():
                files.write_whole(self.path / name, text.encode())
        if self.study.model_file is not None and not (self.path / MODEL).exists():
            files.write_whole(self.path / MODEL, self.study.model_file.read_bytes())
        if (start := self.study.start_file) is not None and not (kept := self.path / STARTS / start.name).exists():
            kept.parent.mkdir(exist_ok=True)
            files.write_whole(kept, start.read_bytes())

    # -- going on --------------------------------------------------------------------------------------------------------

    def latest(self) -> Checkpoint | None:
        """The latest checkpoint that is whole and whose metrics are there; the leftovers of a process that was killed go."""
        for path in self.path.rglob(f".*{files.SCRATCH}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        written = self._written()
        for checkpoint in checkpoints.whole(self.path / "checkpoints"):
            if checkpoint.study != self.digest:
                raise FolderError(f"{self.path}: its checkpoints are of another study than its study.toml, which was changed")
            before = written[: checkpoint.metrics_bytes]
            if hashlib.sha256(before).hexdigest() == checkpoint.metrics_sha256:
                return checkpoint
        return None

    def begin(self, checkpoint: Checkpoint | None) -> list[Row]:
        """Takes back what was written after the checkpoint, and opens the files for what comes next; the rows up to there."""
        kept = self._written()[: checkpoint.metrics_bytes] if checkpoint else b""
        rows = records.rows(kept)
        checkpoints.forget(self.path / "checkpoints", checkpoint.step if checkpoint else -1)
        (self.path / "summary.json").unlink(missing_ok=True)
        files.write_whole(self.path / "metrics.jsonl", kept)
        files.write_whole(self._events_path, events.beginning() + b"".join(map(events.of_row, rows)))
        self._metrics = (self.path / "metrics.jsonl").open("ab")
        self._events = self._events_path.open("ab")
        self._hash, self._length = hashlib.sha256(kept), len(kept)
        return rows

    def append(self, row: Row) -> None:
        """Raises OSError."""
        assert self._metrics is not None
        assert self._events is not None
        text = records.line(row)
        self._metrics.write(text)
        self._metrics.flush()
        self._events.write(events.of_row(row))
        self._events.flush()
        self._hash.update(text)
        self._length += len(text)

    def keep(self, state: State) -> None:
        """A checkpoint of everything so far, and fewer of the older ones; raises OSError."""
        assert self._metrics is not None
        os.fsync(self._metrics.fileno())
        folder = self.path / "checkpoints"
        checkpoints.write(folder, self._checkpoint(state))
        checkpoints.prune(folder, self.study.checkpoint_every, self.study.steps, self.study.file.record.keep)

    def _checkpoint(self, state: State) -> Checkpoint:
        return Checkpoint(state, self.digest, self._length, self._hash.hexdigest())

    def check_room(self, state: State) -> None:
        """Raises FolderError where the checkpoints that are kept would not fit."""
        needed = (self.study.file.record.keep + 2) * checkpoints.size_of(self._checkpoint(state)) + ROOM
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise FolderError(
                f"{self.path}: {free / 1e6:.1f} MB are free there, the study needs {needed / 1e6:.1f} MB; "
                "make room, choose another --output, or keep fewer checkpoints (record.keep)"
            )

    def kept_steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in checkpoints.whole(self.path / "checkpoints")]

    @property
    def _events_path(self) -> Path:
        return self.path / "tensorboard" / events.FILE

    def _written(self) -> bytes:
        try:
            return (self.path / "metrics.jsonl").read_bytes()
        except FileNotFoundError:
            return b""

    def check_writable(self) -> None:
        """Raises FolderError where not even a small file can be written."""
        try:
            files.write_whole(self.path / "machine" / "room", bytes(1 << 16))
            (self.path / "machine" / "room").unlink()
        except OSError as error:
            raise FolderError(f"{self.path}: cannot be written ({error.strerror or error}); {MEND}") from error

    # -- the end ---------------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Raises OSError."""
        files.write_whole(self.path / name, content)

    def note(self, **facts: object) -> None:
        """A line about this machine and this process, which belongs to no result; nothing where the disk is full."""
        with contextlib.suppress(OSError), (self.path / "machine" / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            why = why_unreadable(error)
            raise FolderError(f"{self.path / name}: cannot be read ({why}); remove it to have it written anew") from error
        return content

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """A folder that no other process uses meanwhile; raises FolderError."""
    try:
        (path / "machine").mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path / "machine" / "lock", path)
    except OSError as error:
        raise FolderError(f"{path}: cannot be written ({error.strerror or error}); {MEND}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def fresh(name: str, within: Path, option: str = "--output") -> Path:
    """`NAME-1`, or the first number of which there is nothing yet; made, so that nobody else takes it. `option` names another."""
    try:
        within.mkdir(parents=True, exist_ok=True)
        taken = [int(found[1]) for path in within.iterdir() if (found := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name))]
        number = max(taken, default=0) + 1
        while True:
            try:
                (within / f"{name}-{number}").mkdir()
                return within / f"{name}-{number}"
            except FileExistsError:
                number += 1
    except OSError as error:
        where = within.absolute()  # `.` is no name that anybody gave
        raise FolderError(f"{where}: cannot be written ({error.strerror or error}); choose another {option}") from error


def check_new(path: Path) -> None:
    """Raises FolderError where something is there already."""
    if path.is_dir() and any(path.iterdir()):
        hint = f"go on with --resume {path}, or " if (path / "study.toml").exists() else ""
        raise FolderError(f"--output {path}: is there already and not empty; {hint}choose another name")
    if path.exists() and not path.is_dir():
        raise FolderError(f"--output {path}: is a file; choose another name")


def stored_values(path: Path) -> dict[str, Any]:
    """Of the study that a folder holds; raises FolderError where it holds none."""
    try:
        return tomllib.loads((path / "study.toml").read_text(encoding="utf-8"))
    except NotADirectoryError as error:
        raise FolderError(f"{path}: is a file; name a folder that `fedrho simulate` wrote") from error
    except FileNotFoundError as error:
        raise FolderError(f"{path}: holds no study; allowed: a folder that `fedrho simulate` wrote") from error
    except (OSError, ValueError) as error:
        raise FolderError(f"{path / 'study.toml'}: cannot be read ({why_unreadable(error)})") from error


def check_same(path: Path, given: Mapping[str, Any]) -> None:
    """Raises FolderError, with the keys that differ, where the folder holds another study."""
    differing = sorted(_differing(stored_values(path), tomllib.loads(_plain(given)), ""))
    if differing:
        raise FolderError(
            f"{path}: holds another study; {', '.join(differing)} differ"
            f"{'s' if len(differing) == 1 else ''}. Leave the study out to go on with the folder's, or choose another folder"
        )


def _plain(values: Mapping[str, Any]) -> str:
    from fedrho.simulations.toml_text import toml_text

    return toml_text(values)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for key in {*one, *other}:
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differing(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}")
    return found


def _locked(path: Path, folder: Path) -> int:
    """The descriptor of a file that this process alone has locked; raises FolderError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FolderError(f"{folder}: another process is running this study; wait for it, or choose another --output") from error
    return descriptor


def _closed(file: io.BufferedIOBase) -> None:
    with contextlib.suppress(OSError):  # of a full disk, which was told already
        file.close()
