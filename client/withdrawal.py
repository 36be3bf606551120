"""What the owner of a device has left: runs, populations, or everything. A file beside the history, that outlives it.

It is read anew before every decision, so that it reaches a process that is running. A file that cannot be read leaves everything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EVERYTHING = "everything"


@dataclass(frozen=True)
class Left:
    """What was left, with the date of each, in seconds since 1970: `everything`, a population's key or a run, in hexadecimal."""

    dates: dict[str, float]


class Withdrawals:
    """Of the device whose history is at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}.left")

    def read(self) -> Left:
        """Raises OSError, or ValueError where it is not such a file."""
        try:
            values = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return Left({})
        if not isinstance(values, dict) or not all(isinstance(date, int | float) for date in values.values()):
            raise ValueError(f"{self._path}: not a list of what was left")
        return Left(values)

    def has_left(self, run: bytes, populations: Iterable[bytes]) -> bool:
        """Raises OSError."""
        try:
            dates = self.read().dates
        except ValueError:
            return True
        return bool(dates) and any(name in dates for name in (EVERYTHING, run.hex(), *(key.hex() for key in populations)))

    def leave(self, what: str, now: float) -> None:
        """Durably; the date of a first time stays. Raises OSError, or ValueError."""
        dates = self.read().dates
        self._write({what: now} | dates)

    def come_back(self, what: str) -> bool:
        """Undoes `leave`, and says whether there was anything to undo. Raises OSError, or ValueError."""
        dates = self.read().dates
        if what not in dates:
            return False
        self._write({name: date for name, date in dates.items() if name != what})
        return True

    def _write(self, dates: dict[str, float]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_name(f"{self._path.name}.new")
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump(dates, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
