"""What a study says about its data set, checked before anything is read: every mistake is one line with what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from fedrho.simulations.data.base import DataError, DataSource

MOST_DEVICES = 2**40
"""Devices are numbers, so that their number costs nothing; a mistake of many digits is refused all the same."""
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Option:
    """A line of documentation of what a data set takes."""

    name: str
    default: str
    allowed: str
    meaning: str


class Options:
    """The section `[data]`, asked key by key; `done` refuses what nobody asked for."""

    def __init__(self, source: DataSource) -> None:
        self.name = source.name
        self._given = dict(source.options)
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def is_given(self, key: str, value: object) -> bool:
        """Whether a study says this very value; asks for nothing."""
        return self._given.get(key) == value

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"whole numbers from {low} to {high}")
        return value

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        """Between the bounds, both included; a low bound of 0 is not, because nothing here may be 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value, f"numbers from {low:g} to {high:g}")
        if not low <= value <= high or (low == 0 and value == 0):
            raise self._wrong(
                key, value, f"numbers {'above' if low == 0 else 'from'} {low:g} {'up ' if low == 0 else ''}to {high:g}"
            )
        return float(value)

    def text(self, key: str, default: str | None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "text")
        return value

    def choice(self, key: str, default: str, allowed: Iterable[str]) -> str:
        value, known = self._value(key, default), tuple(allowed)
        if value not in known:
            raise self._wrong(key, value, f"{', '.join(known)}{nearest(str(value), known)}")
        return str(value)

    def shape(self, key: str, default: tuple[int, ...] | None) -> tuple[int, ...]:
        value = self._value(key, default)
        sizes = tuple(value) if isinstance(value, (list, tuple)) else ()
        if not 1 <= len(sizes) <= 4 or not all(isinstance(size, int) and 1 <= size <= 2**20 for size in sizes):
            raise self._wrong(key, value, "a list of one to four whole numbers, [28, 28, 1] say")
        if math.prod(sizes) > 2**24:
            raise self._wrong(key, value, f"shapes of at most {2**24} numbers")
        return tuple(int(size) for size in sizes)

    def done(self) -> None:
        """Raises DataError for options that this data set, or the split that was chosen, does not have."""
        for key in self._given.keys() - self._asked:
            known = tuple(sorted(self._asked))
            raise DataError(
                f"data.{key}: {self.name} has no such option here; it has {', '.join(known) or 'none'}{nearest(key, known)}"
            )

    def wrong(self, key: str, reason: str) -> DataError:
        return DataError(f"data.{key}: {reason}")

    def _value(self, key: str, default: object) -> object:
        self._asked.add(key)
        value = self._given.get(key, default)
        if value is None:
            raise DataError(f"data.{key}: missing; {self.name} needs it")
        return value

    def _wrong(self, key: str, value: object, allowed: str) -> DataError:
        return DataError(f"data.{key}: {str(value)[:60]!r} is not allowed for {self.name}; allowed: {allowed}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A question that helps with a slip of the pen, or nothing."""
    close = difflib.get_close_matches(word.lower(), tuple(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
