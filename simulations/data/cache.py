"""The data folder: files as their authors publish them, and beside them the arrays that they were decoded into.

    $FEDRHO_DATA, or fedrho/ in the user's cache folder
      mnist/train-images-idx3-ubyte.gz      a file, fetched or put there by hand
      .decoded/mnist-3f…/images.npy         memory-mapped: processes of one machine share its pages

Decoded arrays are written under another name, and renamed when they are whole; their manifest has their checksums, and says which
files they came from. A folder that nobody may write to serves, too: its arrays then lie in the user's cache folder, or in memory
alone where nobody may write to that either.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.simulations.data.base import DataError
from fedrho.simulations.data.download import Progress, RemoteFile, check, fetch, locked, sha256_of

FOLDER = "FEDRHO_DATA"
MANIFEST = "manifest.json"
DECODED = ".decoded"

Arrays = Mapping[str, NDArray[Any]]
Decode = Callable[[Mapping[str, Path]], Arrays]
"""The files by the last part of their names, to arrays by name; raises ValueError where a file is not what its name says."""


def user_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedrho"


def data_folder() -> Path:
    named = os.environ.get(FOLDER)
    return Path(named).absolute() if named else user_folder()


@dataclass(frozen=True)
class Cache:
    """Where files are, and who is told how far a download is."""

    folder: Path = field(default_factory=data_folder)
    progress: Progress | None = None

    def path(self, file: RemoteFile) -> Path:
        """The file, fetched if it is not there, and checked. Raises DataError."""
        target = self.folder / file.name
        if not target.exists():
            if not writable(self.folder):
                raise DataError(f"{target}: no such file, and {self.folder} cannot be written to")
            return fetch(file, self.folder, self.progress)
        if not target.is_file():
            raise DataError(f"{target}: not a file")
        try:
            check(file, target)
        except OSError as error:
            raise DataError(f"{target}: cannot be read: {error.strerror}") from error
        return target

    def arrays(self, name: str, version: int, files: Sequence[RemoteFile], decode: Decode) -> Arrays:
        """What `decode` makes of the files, memory-mapped; decoded once for all processes. Raises DataError."""
        kept = next((one for one in (self.folder, user_folder()) if writable(one)), None)
        if kept is None:
            return self._read(files, decode)[0]
        place = kept / DECODED / f"{name}-{_key(version, files)}"
        found = self._opened(place, files)
        if found is not None:
            return found
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(place.with_name(f"{place.name}.lock")):
                found = self._opened(place, files)
                return found if found is not None else self._decoded(place, files, decode)
        except OSError as error:
            raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error

    def _read(self, files: Sequence[RemoteFile], decode: Decode) -> tuple[Arrays, dict[str, list[int]]]:
        """The arrays, and what the files that they were decoded from look like."""
        paths = {Path(file.name).name: self.path(file) for file in files}
        looks = {str(path): _looks(path) for path in paths.values()}
        try:
            arrays = decode(paths)
        except (ValueError, KeyError, EOFError, OverflowError) as error:
            first, *_ = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{', '.join(looks)}: {first}") from error
        if any(_looks(path) != looks[str(path)] for path in paths.values()):
            raise DataError(f"{', '.join(looks)}: changed while it was read; try again")
        return arrays, looks

    def _decoded(self, place: Path, files: Sequence[RemoteFile], decode: Decode) -> Arrays:
        arrays, looks = self._read(files, decode)
        for left in place.parent.glob(f"{place.name}.*/"):  # of a process that was killed; no other decodes these files now
            shutil.rmtree(left, ignore_errors=True)
        scratch = place.with_name(f"{place.name}.{os.getpid()}")
        scratch.mkdir()
        try:
            _write(scratch, arrays, looks)
            shutil.rmtree(place, ignore_errors=True)
            scratch.rename(place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        found = _mapped(place)
        if found is None:
            raise DataError(f"{place}: does not hold what was written to it; is the disk in order?")
        return found

    def _opened(self, place: Path, files: Sequence[RemoteFile]) -> Arrays | None:
        """None where nothing is decoded, or what is has changed since. A file that has changed is checked again, or raises."""
        try:
            sources = json.loads((place / MANIFEST).read_bytes())["sources"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        for file in files:
            path = self.folder / file.name
            if path.exists() and _looks(path) != sources.get(str(path)):
                self.path(file)
        return _mapped(place)


def writable(folder: Path) -> bool:
    """Whether somebody may write here, or where the folder would be made. What is marked read-only is so for root, too."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def _key(version: int, files: Sequence[RemoteFile]) -> str:
    said = [version, [[file.name, file.sha256, file.content_sha256] for file in files]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _looks(path: Path) -> list[int]:
    """What changes when a file does, short of reading it."""
    there = path.stat()
    return [there.st_size, there.st_mtime_ns]


def _write(folder: Path, arrays: Arrays, sources: Mapping[str, list[int]]) -> None:
    sums = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with path.open("wb") as file:  # not synced: what a crash leaves of it has another checksum, and is decoded anew
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        sums[name] = sha256_of(path)
    (folder / MANIFEST).write_text(json.dumps({"arrays": sums, "sources": sources}), encoding="utf-8")


def _mapped(place: Path) -> Arrays | None:
    """None where an array is missing or is not, byte for byte, what was written."""
    try:
        sums = json.loads((place / MANIFEST).read_bytes())["arrays"]
        if any(sha256_of(place / f"{name}.npy") != expected for name, expected in sums.items()):
            return None
        return {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in sums}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
