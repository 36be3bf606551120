"""What the catalogue says about a data set, and how it is opened in two moves: options first, files after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedrho.privacy.statement import PrivacyStatement
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.cache import Cache
from fedrho.simulations.data.download import RemoteFile
from fedrho.simulations.data.options import Option, Options

Load = Callable[[Cache], FederatedDataset]
"""Reads the files, fetching what is missing; raises DataError."""


@dataclass(frozen=True)
class Licence:
    """What may be done with the data, whom to name, and where that is said."""

    name: str
    attribution: str
    source: str


@dataclass(frozen=True)
class Entry:
    """A data set. `configure` checks every option before a file is touched, and says how to load."""

    name: str
    summary: str
    device: str
    """Whose examples one device holds, by default."""
    devices: str
    examples: str
    held_out: str
    licence: Licence
    models: tuple[str, ...]
    options: tuple[Option, ...]
    configure: Callable[[Options], Load]
    files: tuple[RemoteFile, ...] = ()
    charge: Callable[[Options], PrivacyStatement | None] = lambda options: None
    """What was released about the devices before any training, so that there are such data: a vocabulary, say."""
