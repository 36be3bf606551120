"""What a data set holds with some options, counted: devices, examples of a device, and of text how much of it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.streams import Streams

MOST_COUNTED = 100_000
"""Devices that are asked how many examples they hold; of more, as many, spread evenly."""


@dataclass(frozen=True)
class Known:
    """Of text: the tokens it is read as, how many of its ids are listed ones, and how many there are."""

    tokens: str
    size: int
    known: int
    ids: int
    held_out_known: int
    held_out_ids: int

    @property
    def rows(self) -> list[tuple[str, str]]:
        return [
            ("tokens", f"{self.tokens}, {self.size:,} ids"),
            ("known", f"{self.known / self.ids:.2%} of {self.ids:,} of the devices"),
            ("known, held out", f"{self.held_out_known / self.held_out_ids:.2%} of {self.held_out_ids:,} of others"),
        ]


@dataclass(frozen=True)
class Facts:
    """Examples of a device are those of `counted` devices: all, or some of very many."""

    devices: int
    counted: int
    examples: int
    median: float
    ninety_percent: float
    most: int
    held_out: int
    known: Known | None

    @property
    def rows(self) -> list[tuple[str, str]]:
        some = "" if self.counted == self.devices else f" of {self.counted:,} devices"
        return [
            ("devices", f"{self.devices:,}"),
            ("examples", f"{self.examples:,}{some}"),
            ("examples of a device", f"median {self.median:g}, 90 % up to {self.ninety_percent:g}, most {self.most:,}"),
            ("held-out examples", f"{self.held_out:,}"),
            *(self.known.rows if self.known else ()),
        ]

    def to_json(self) -> dict[str, Any]:
        known = None if self.known is None else dict(vars(self.known))
        return {**vars(self), "known": known}


def counted(data: FederatedDataset, progress: Progress = unwatched) -> Facts:
    devices = np.linspace(0, data.size - 1, min(data.size, MOST_COUNTED)).astype(np.int64)
    counts = np.array([data.count(int(device)) for device in watched(devices, "device", progress, "counting examples")])
    median, ninety = np.quantile(counts, [0.5, 0.9], method="inverted_cdf").tolist()
    return Facts(data.size, len(devices), int(counts.sum()), median, ninety, int(counts.max()), len(data.held_out), _known(data))


def _known(data: FederatedDataset) -> Known | None:
    if not isinstance(data, Streams) or data.tokens is None:
        return None
    return Known(data.tokens.name, data.tokens.size, *data.known(), *data.known(held_out=True))
