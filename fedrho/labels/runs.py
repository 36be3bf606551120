"""The folder of an experiment: what was run, the answers that labels were given, weights, results. No byte depends on a label but
through answers.

| | |
|---|---|
| `experiment.toml` | every value in force |
| `data.json` | which records: a hash of the features, counts; nothing of labels |
| `cells/NAME/` | one training: a run at one epsilon with one seed |
| `cells/NAME/noted` | which entry of the note beside a private file is this training's |
| `cells/NAME/begun/` | a byte for each time that labels were about to be read; written before they are |
| `cells/NAME/*.answers.npz` | what they were answered; written before it is used |
| `cells/NAME/*.weights.npy` | of each stage |
| `cells/NAME/result.json` | written last, so a training that has it is finished |
| `groups/` | clusters of records, by features alone |
| `results.json`, `statement.json`, `plots/` | written when all are |
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.labels.settings import ExperimentFile, made
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.vectors import FloatVector
from fedrho.server.tasks import why_unreadable
from fedrho.simulations import files
from fedrho.simulations.folder import FolderError

DAMAGED = (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What numpy raises of a file that is not what was written."""
EXPERIMENT, DATA, RESULT, RESULTS = "experiment.toml", "data.json", "result.json", "results.json"
MODEL, DP_SGD = "model", "dp-sgd"
"""Names of what is kept: the last weights, and the reads of DP-SGD, of which nothing but those weights is kept."""


class DiskMemory:
    """What one training remembers, in its folder; everything is on the disk when a call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "begun").mkdir(parents=True, exist_ok=True)

    def begin(self, name: str) -> None:
        with (self.path / "begun" / name).open("ab") as file:
            file.write(b".")
            file.flush()
            os.fsync(file.fileno())
        files.sync_folder(self.path / "begun")

    def lost(self, name: str) -> int:
        mark = self.path / "begun" / name
        begun = mark.stat().st_size if mark.exists() else 0
        return begun - any(self._of(name, kind).exists() for kind in ("answers", "counts"))

    def recall(self, name: str) -> Answers | None:
        path = self._of(name, "answers")
        kept = self._read(path, "labels", "likelihoods", "sizes")
        with _mended_from_a_copy(path):
            return None if kept is None else Answers(*kept)

    def keep(self, name: str, answers: Answers) -> None:
        arrays = {"labels": answers.labels, "likelihoods": answers.likelihoods, "sizes": answers.sizes}
        self._write(name, "answers", arrays)

    def recall_counts(self, name: str) -> NDArray[np.int64] | None:
        kept = self._read(self._of(name, "counts"), "counts")
        return None if kept is None else kept[0]

    def keep_counts(self, name: str, counts: NDArray[np.int64]) -> None:
        self._write(name, "counts", {"counts": counts})

    def recall_weights(self, name: str) -> FloatVector | None:
        path = self.path / f"{name}.weights.npy"
        with _mended_from_a_copy(path):
            weights: FloatVector | None = np.load(path, allow_pickle=False) if path.exists() else None
            return weights

    def keep_weights(self, name: str, weights: FloatVector) -> None:
        buffer = io.BytesIO()
        np.save(buffer, weights, allow_pickle=False)
        files.write_whole(self.path / f"{name}.weights.npy", buffer.getvalue())

    def _of(self, name: str, kind: str) -> Path:
        return self.path / f"{name}.{kind}.npz"

    def _write(self, name: str, kind: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        files.write_whole(self._of(name, kind), buffer.getvalue())

    def _read(self, path: Path, *names: str) -> list[NDArray[Any]] | None:
        with _mended_from_a_copy(path):
            if not path.exists():
                return None
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return [kept[name] for name in names]


@contextmanager
def _mended_from_a_copy(path: Path) -> Iterator[None]:
    """Raises FolderError for what is damaged: its labels were read, so nothing here is asked for anew by itself."""
    try:
        yield
    except DAMAGED as error:
        raise damaged(path, "it is damaged or cut short") from error


def lost_reads(cell: Path) -> int:
    """How often labels were read for a training, as far as marks tell, and nothing was kept of it."""
    begun, memory = cell / "begun", DiskMemory(cell)
    lost = sum(memory.lost(mark.name) for mark in begun.iterdir())
    kept = (begun / DP_SGD).exists() and memory.recall_weights(MODEL) is not None
    return lost - kept


class NotedIn:
    """A training's place in the note beside a private file: written after the entry, and before a label is read."""

    def __init__(self, cell: Path) -> None:
        self._path = cell / "noted"

    def place(self) -> int | None:
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, place: int) -> None:
        if self.place() != place:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(self._path, f"{place}\n".encode())

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class DiskGroups(MutableMapping[str, NDArray[np.int64]]):
    """Clusters by name, public as they are: a process that goes on need not make them again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        path = self._path / f"{name}.npy"
        if not path.exists():
            raise KeyError(name)
        with _mended_from_a_copy(path):
            groups: NDArray[np.int64] = np.load(path, allow_pickle=False)
            return groups

    def __setitem__(self, name: str, groups: NDArray[np.int64]) -> None:
        self._path.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, groups, allow_pickle=False)
        files.write_whole(self._path / f"{name}.npy", buffer.getvalue())

    def __delitem__(self, name: str) -> None:
        (self._path / f"{name}.npy").unlink()

    def __iter__(self) -> Iterator[str]:
        return (file.stem for file in sorted(self._path.glob("*.npy")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class ExperimentFolder:
    """Held against every other process. Use as a context manager; raises FolderError."""

    def __init__(self, path: Path, experiment: ExperimentFile, data: Mapping[str, object]) -> None:
        self.path = path
        try:
            (path / "cells").mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
        except OSError as error:
            raise FolderError(
                f"{path}: cannot be written ({error.strerror or error}); mend that, or choose another --out"
            ) from error
        try:
            self._claim(experiment, data)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> ExperimentFolder:
        return self

    def __exit__(self, *details: object) -> None:
        os.close(self._lock)

    def _claim(self, experiment: ExperimentFile, data: Mapping[str, object]) -> None:
        """Writes what is run, or compares it with what is written."""
        for scratch in self.path.rglob(f".*{files.SCRATCH}"):
            scratch.unlink()
        text = experiment.text()
        for name, content in ((EXPERIMENT, text), (DATA, as_json(data))):
            there = self.path / name
            if not there.exists():
                self.write(name, content.encode())
        differing = _differing(in_force(self.path), tomllib.loads(text)) + _differing(self.read(DATA), dict(data))
        differing = list(dict.fromkeys(differing))
        if differing:
            raise FolderError(
                f"--out {self.path}: holds another experiment; what differs: {', '.join(differing[:6])}"
                f"{' and more' if len(differing) > 6 else ''}. Choose another folder"
            )

    def cell(self, name: str) -> Path:
        return self.path / "cells" / name

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all; raises FolderError."""
        try:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(self.path / name, content)
        except OSError as error:
            raise FolderError(
                f"{self.path / name}: cannot be written ({error.strerror or error}); run it again to go on"
            ) from error

    def read(self, name: str) -> dict[str, Any]:
        return read_json(self.path / name)


def stored(path: Path) -> dict[str, Any]:
    """Of the experiment that a folder holds; raises FolderError where it holds none."""
    try:
        return tomllib.loads((path / EXPERIMENT).read_text(encoding="utf-8"))
    except NotADirectoryError as error:
        raise FolderError(f"{path}: is a file; name a folder that `fedrho labels train` wrote") from error
    except FileNotFoundError as error:
        raise FolderError(f"{path}: holds no experiment; allowed: a folder that `fedrho labels train` wrote") from error
    except (OSError, ValueError) as error:
        raise FolderError(f"{path / EXPERIMENT}: cannot be read ({why_unreadable(error)})") from error


def in_force(path: Path) -> dict[str, Any]:
    """The same with every key that has come since it was written; as it stands where it is no experiment any more."""
    values = stored(path)
    try:
        return tomllib.loads(made(values, str(path / EXPERIMENT)).text())
    except BadInput:
        return values


def read_json(path: Path) -> dict[str, Any]:
    """Raises FolderError."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FolderError(f"{path}: is not there; {_going_on(path)} goes on where it was broken off") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{path}: cannot be read ({why_unreadable(error)}); {_anew(path)}") from error
    if not isinstance(content, dict):
        raise damaged(path, "it is no object")
    return content


def damaged(path: Path, why: str) -> FolderError:
    """For a file of a folder that is JSON and not what was written there."""
    return FolderError(f"{path}: cannot be read ({why}); {_anew(path)}")


def _anew(path: Path) -> str:
    """What can be made again without asking a label again may be removed; the rest says what was done, or was asked."""
    if path.name == RESULTS:
        return f"remove it, and {_going_on(path)} writes it anew"
    return "mend it from a copy"


def _going_on(path: Path) -> str:
    folder = path.parents[2] if path.name == RESULT and len(path.parents) > 2 else path.parent
    return f"`fedrho labels train --out {folder}`"


def as_json(values: object) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def check_out(path: Path) -> None:
    """Raises BadInput for what is no folder of ours, before anything else is done."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"--out {path}: is a file; choose another name")
    if path.is_dir() and any(path.iterdir()) and not (path / EXPERIMENT).exists():
        raise BadInput(f"--out {path}: is there already, and no experiment; choose another name")


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differing(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}")
    return found


def _locked(folder: Path) -> int:
    """The descriptor of a file that this process alone has locked; raises FolderError."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FolderError(f"--out {folder}: another process is at it; wait for it, or choose another folder") from error
    return descriptor
