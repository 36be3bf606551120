"""What lies beside a history: a lock, so that one process uses it at a time, and a marker that no copy carries whole.

A marker names the history, counts its contributions, and holds the instant at which it was written. The file system keeps that
instant too, and sets it anew whenever the file is copied, restored or moved to another disk; a copy also has another inode. So a
history that was deleted, restored from a backup or copied is told from the one that has always been here.

    NAME.sqlite          the history
    NAME.sqlite.lock     held by the process that uses it; the lock dies with the process
    NAME.sqlite.marker   one line of JSON, written after each contribution
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARKER_BYTES = 512
WRITTEN_TOLERANCE_NS = 2 * 10**9
"""Between the instant in a marker and the one that the file system keeps of its writing."""
TRIES = 5
MACHINE_ID = Path("/etc/machine-id")


class InUse(RuntimeError):
    """Another process uses this history."""


# -- the lock ----------------------------------------------------------------------------------------------------------


@dataclass
class Held:
    """A lock that this process holds, once for all who use the history in it."""

    file: int
    users: int = 1
    mutex: threading.RLock = field(default_factory=threading.RLock)


_HELD: dict[str, Held] = {}
_GUARD = threading.Lock()


def acquire(path: Path) -> Held:
    """The lock of the history at `path`; raises InUse where another process has it, and OSError."""
    name = os.path.realpath(path)
    with _GUARD:
        held = _HELD.get(name)
        if held is not None:
            held.users += 1
            return held
        file = os.open(beside(path, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise InUse from error
            raise
        _HELD[name] = Held(file)
        return _HELD[name]


def release(path: Path) -> None:
    name = os.path.realpath(path)
    with _GUARD:
        held = _HELD[name]
        held.users -= 1
        if held.users == 0:
            del _HELD[name]
            os.close(held.file)


def is_there(path: Path, held: Held) -> bool:
    """Whether the lock that is held is still the one that others would meet. Raises OSError."""
    try:
        return os.path.samestat(os.stat(beside(path, "lock")), os.fstat(held.file))
    except FileNotFoundError:
        return False


# -- the marker --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marker:
    """What a marker says, and whether it lies where it was written."""

    instance: str
    counter: int
    written_ns: int
    machine: str
    inode: str = ""
    untouched: bool = False


def beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def read(path: Path) -> Marker | None:
    """The marker of the history at `path`, without an instance where it says nothing; None for none. Raises OSError."""
    try:
        with open(beside(path, "marker"), "rb") as file:
            data, stat = file.read(MARKER_BYTES + 1), os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    try:
        values = json.loads(data)
        check = values.pop("check")
        said = Marker(**values, inode=str(stat.st_ino), untouched=_close(stat.st_ctime_ns, values["written_ns"]))
        whole = check == _check(said) and all(isinstance(value, int) for value in (said.counter, said.written_ns))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        whole = False
    return said if whole else Marker("", 0, 0, "")


def create(path: Path, instance: str, counter: int) -> str:
    """A new marker in place of any; returns its inode. Raises OSError."""
    scratch = beside(path, "marker.new")
    scratch.unlink(missing_ok=True)
    _write(scratch, instance, counter, os.O_CREAT | os.O_EXCL)
    os.replace(scratch, beside(path, "marker"))
    write(path, instance, counter)  # renaming it may have touched it
    return str(os.stat(beside(path, "marker")).st_ino)


def write(path: Path, instance: str, counter: int) -> None:
    """Into the marker that is there, durably. Raises OSError."""
    _write(beside(path, "marker"), instance, counter, 0)
    _sync_folder(path.parent)


def machine() -> str:
    """A name of this machine that says nothing about it; empty where it has none."""
    try:
        known = MACHINE_ID.read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"fedrho device history\0" + known).hexdigest()[:32] if known else ""


def _write(target: Path, instance: str, counter: int, flags: int) -> None:
    file = os.open(target, os.O_RDWR | flags, 0o600)
    try:
        for _ in range(TRIES):  # again where the process was held up in the middle
            said = Marker(instance, counter, time.time_ns(), machine())
            os.pwrite(file, _text(said), 0)
            os.fsync(file)
            if _close(os.fstat(file).st_ctime_ns, said.written_ns):
                return
    finally:
        os.close(file)


def _text(said: Marker) -> bytes:
    values = {**_values(said), "check": _check(said)}
    return json.dumps(values).encode().ljust(MARKER_BYTES - 1) + b"\n"


def _values(said: Marker) -> dict[str, object]:
    values = asdict(said)
    return {name: values[name] for name in ("instance", "counter", "written_ns", "machine")}


def _check(said: Marker) -> str:
    return hashlib.sha256(json.dumps(_values(said)).encode()).hexdigest()[:32]


def _close(one: int, other: int) -> bool:
    return abs(one - other) <= WRITTEN_TOLERANCE_NS


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
