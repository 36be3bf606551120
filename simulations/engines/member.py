"""What a worker of `processes` and an actor of `ray` have in common: a worker and its running sum."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedrho.privacy.vectors import ClippedSum, FloatVector, merge, pack
from fedrho.simulations.data.base import DataSource, FederatedDataset
from fedrho.simulations.engines.base import Tested, Told, Workload

if TYPE_CHECKING:
    from fedrho.simulations.worker import Worker

OpenData = Callable[[DataSource], FederatedDataset]
"""Pickled to every member: a function of a module that can be imported there."""


@dataclass(frozen=True)
class Start:
    work: Workload
    open_data: OpenData


@dataclass(frozen=True)
class Failed:
    """Why, in one line; the same would happen in any other member."""

    why: str


class Member:
    """Raises whatever opening the data set or building the model raises."""

    def __init__(self, start: Start) -> None:
        self._worker = _worker(start)
        self._sum: ClippedSum | None = None

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Told | Failed:
        """Adds what these devices send to the running sum."""
        try:
            part = self._worker.train(step, weights, devices)
        except Exception as error:
            return Failed(one_line(error))
        self._sum = part.total if self._sum is None else merge([self._sum, part.total])
        return part.told

    def hand_over(self) -> bytes:
        """The running sum, packed; there is none afterwards."""
        assert self._sum is not None
        packed, self._sum = pack(self._sum), None
        return packed

    def test(self, weights: FloatVector, places: range) -> Tested | Failed:
        try:
            return self._worker.test(weights, places)
        except Exception as error:
            return Failed(one_line(error))


def _worker(start: Start) -> Worker:
    """The data first: where they are missing, TensorFlow need not be waited for."""
    dataset = start.open_data(start.work.data)
    from fedrho.simulations.worker import Worker

    return Worker(start.work, dataset)


def one_line(error: Exception) -> str:
    """What was raised, and where."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, ValueError) and text:
        return text
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" ({os.path.basename(last.tb_frame.f_code.co_filename)}:{last.tb_lineno})" if last is not None else ""
    return f"{type(error).__name__}{place}: {text}" if text else f"{type(error).__name__}{place}"


def pickled(start: Start) -> bytes:
    """Raises ValueError, in one line, for what cannot be sent."""
    try:
        return pickle.dumps(start)
    except Exception as error:
        raise ValueError(f"the work cannot be sent to another process: {one_line(error)}") from error
