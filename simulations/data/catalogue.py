"""Every data set there is, by name; this is the one place that lists the families."""

from __future__ import annotations

from fedrho.privacy.statement import PrivacyStatement
from fedrho.simulations.data import adult, archives, digits, folder, images, made_up, speakers, tff_files
from fedrho.simulations.data.base import DataError, DataSource, FederatedDataset
from fedrho.simulations.data.cache import Cache
from fedrho.simulations.data.download import Progress
from fedrho.simulations.data.entry import Entry, Load
from fedrho.simulations.data.options import Options, nearest

ENTRIES: dict[str, Entry] = {
    one.name: one
    for one in (
        digits.DIGITS,
        digits.DRAWN,
        images.MNIST,
        images.QMNIST,
        images.FASHION,
        tff_files.EMNIST,
        archives.CIFAR,
        speakers.SHAKESPEARE,
        speakers.CALDRACOR,
        speakers.PARLAMINT,
        tff_files.STACK_OVERFLOW,
        adult.ADULT,
        archives.MOVIELENS,
        made_up.MADE_UP,
        folder.FOLDER,
    )
}


def names() -> tuple[str, ...]:
    return tuple(ENTRIES)


def entry(name: str) -> Entry:
    """Raises DataError, which lists the names there are."""
    if name not in ENTRIES:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(names())}{nearest(name, names())}")
    return ENTRIES[name]


def check_data(source: DataSource) -> None:
    """Raises DataError for what `open_data` would refuse without looking at a file."""
    _configured(source)


def charge_of(source: DataSource) -> PrivacyStatement | None:
    """What was released about the devices so that a study has these data, before any training. Raises DataError."""
    return entry(source.name).charge(Options(source))


def open_data(source: DataSource, progress: Progress | None = None) -> FederatedDataset:
    """The data set, its files fetched where they are missing. The same in every process. Raises DataError."""
    return _configured(source)(Cache(progress=progress))


def _configured(source: DataSource) -> Load:
    options = Options(source)
    load = entry(source.name).configure(options)
    options.done()
    return load
