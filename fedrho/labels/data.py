"""What models are trained on: public features, labels of which only a guardian may speak, and examples that measure.

A data set of `fedrho data` is pooled over its devices. Its labels are known to everybody, and its held-out examples measure
accuracy. Of a user's own file the labels are private: only answers about them are used, also where accuracy is estimated.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.labels.runs import DAMAGED
from fedrho.progress import Fetching
from fedrho.simulations.data.base import DataSource

Ints = NDArray[np.int64]
FEATURES, LABELS = "features", "labels"


@dataclass(frozen=True, eq=False)
class LabelData:
    """`labels` are looked at by guardians and by baselines that ask for it, and nowhere else; so its repr does not show them."""

    name: str
    features: NDArray[Any] = field(repr=False)
    labels: Ints = field(repr=False)
    classes: int
    test_features: NDArray[Any] | None = field(repr=False)
    test_labels: Ints | None = field(repr=False)
    models: tuple[str, ...] = ()
    public: bool = False
    """Whether everybody knows the labels: of a benchmark."""
    note: str = ""
    users: NDArray[Any] | None = field(default=None, repr=False)
    """Whose each label is, where it is known: a person with several pays for all of them."""

    def first(self, records: int) -> LabelData:
        """So many of its records, in the order that no label has a part in; all of them with 0. Raises BadInput."""
        if records > len(self.features):
            raise BadInput(f"records: {records}, and {self.name} has {len(self.features)}; 0 takes all")
        kept = slice(records or None)
        users = None if self.users is None else self.users[kept]
        return replace(self, features=self.features[kept], labels=self.labels[kept], users=users)

    def describe(self) -> dict[str, object]:
        """What tells this data set from others, without a label of it."""
        test = None if self.test_features is None else len(self.test_features)
        return {
            "data": self.name,
            "records": len(self.features),
            "shape": list(self.features.shape[1:]),
            "classes": self.classes,
            "features_sha256": hashlib.sha256(np.ascontiguousarray(self.features).tobytes()).hexdigest(),
            "test_records": test,
        }


def benchmark(name: str, quiet: bool = False, records: int = 0) -> LabelData:
    """A data set of the catalogue, pooled, or ratings; so many `records` of it, or all with 0. Raises DataError, BadInput.

    Devices may have been shared out by label, so their order is undone: records are put in the order of their features' hashes,
    which no label has a part in.
    """
    from fedrho.models.zoo import lookup
    from fedrho.simulations.data import catalogue

    if name == "movielens-ratings":
        from fedrho.labels import ratings

        return ratings.load(quiet).first(records)
    entry = catalogue.entry(name)
    models = [lookup(model) for model in entry.models]
    if not models or any(model.vocabulary == model.classes for model in models):  # a label is a feature of the next example
        raise BadInput(f"--dataset {name}: {entry.summary}; allowed: a data set whose examples are classified one by one")
    with Fetching(f"opening the data of {name}", quiet) as fetching:
        dataset = catalogue.open_data(DataSource(name), fetching.show)
    parts = [dataset.examples(device) for device in range(dataset.size)]
    features = np.concatenate([part.features for part in parts])
    labels = np.concatenate([part.labels for part in parts]).astype(np.int64)
    order = hashed_order(features)
    held_out = dataset.held_out
    note = f"accuracy is measured on {len(held_out)} held-out examples of {name}, whose labels are public"
    return LabelData(
        name=name,
        features=features[order],
        labels=labels[order],
        classes=models[0].classes,
        test_features=held_out.features,
        test_labels=held_out.labels.astype(np.int64),
        models=entry.models,
        public=True,
        note=note,
    ).first(records)


def hashed_order(features: NDArray[Any]) -> Ints:
    told = hashes(features)
    return np.array(sorted(range(len(told)), key=told.__getitem__), dtype=np.int64)


def hashes(features: NDArray[Any]) -> list[bytes]:
    """Of each record."""
    rows = np.ascontiguousarray(features).reshape(len(features), -1)
    return [hashlib.sha256(row.tobytes()).digest() for row in rows]


# -- a user's own files --------------------------------------------------------------------------------------------------------


def own(path: Path, label: str, classes: Sequence[str], test: Path | None, public: bool, user: str = "") -> LabelData:
    """A .npz with arrays `features` and `labels`, or a .csv of numbers; raises BadInput, whose text no label has a part in.

    `label` names the column, or the array; so does `user` of whose each label is, where that is known. `classes` are all
    values that a label may take, in order: they are public, and never read off the labels. A `test` file has public labels.
    """
    if len(set(classes)) < 2 or len(set(classes)) != len(classes):
        raise BadInput("--classes: name every value that a label may take, two at least, each once; they are never inferred")
    features, labels, users = _read(path, label, classes, user)
    check_order(labels, classes, path)
    test_features, test_labels, _ = (None, None, None) if test is None else _read(test, label, classes, user)
    note = "accuracy is estimated from randomized answers of held-out records: no true label has a part in it"
    if test_features is not None and test_labels is not None:
        if test_features.shape[1:] != features.shape[1:]:
            raise BadInput(f"--test {test}: examples of shape {test_features.shape[1:]}; those of {path}: {features.shape[1:]}")
        note = f"accuracy is measured on {test}, whose labels are public because whoever runs this says so"
        kept = np.ones(len(test_labels), dtype=bool) if public else unlike(test_features, features)
        if not kept.any():
            raise BadInput(f"--test {test}: has the records of {path}, and labels of a test file are public; name other records")
        if not kept.all():
            left_out = len(kept) - int(kept.sum())
            note += f"; {left_out} of its {len(kept)} records are left out, since private records have the same features"
        test_features, test_labels = test_features[kept], test_labels[kept]
    return LabelData(path.name, features, labels, len(classes), test_features, test_labels, (), public, note, users)


def unlike(some: NDArray[Any], private: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of some records are not private: none of those has the same features. Labels have no part in it."""
    known = set(hashes(private))
    return np.array([one not in known for one in hashes(some)], dtype=bool)


def check_order(labels: Ints, classes: Sequence[str], path: Path) -> None:
    """The order of records is public: in a file that is sorted by class it tells labels. Raises BadInput."""
    from fedrho.labels.order import tells_labels

    if tells_labels(labels, classes):
        raise BadInput(f"{path}: is sorted by class, and the order of records is public; shuffle it before you begin")


def _read(path: Path, label: str, classes: Sequence[str], user: str) -> tuple[NDArray[Any], Ints, NDArray[Any] | None]:
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix not in readers:
        raise BadInput(f"{path}: allowed: a file that ends in {', '.join(readers)}")
    try:
        features, told, users = readers[path.suffix](path, label, user)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file") from error
    except (OSError, csv.Error, *DAMAGED) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path}: cannot be read as {path.suffix[1:]}; what is neither label nor --user must be a number"
        ) from error
    if len(features) < 2 or len(features) != len(told):
        raise BadInput(f"{path}: needs a label for each record, and two records at least")
    if features.dtype == np.float32 and not np.isfinite(features).all():
        raise BadInput(f"{path}: a feature is not a finite number")
    return features, _numbered(path, told, classes), users


def _numbered(path: Path, told: Sequence[str], classes: Sequence[str]) -> Ints:
    """Which class each label is; does not say which label is none, since that depends on it."""
    number = {name: place for place, name in enumerate(classes)}
    labels = [number.get(one, -1) for one in told]
    if min(labels) < 0:
        raise BadInput(f"{path}: has a label that is none of --classes; they are public, so name all there may be")
    return np.array(labels, dtype=np.int64)


Table = tuple[NDArray[Any], list[str], NDArray[Any] | None]


def _read_npz(path: Path, label: str, user: str) -> Table:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # a damaged archive would stay open
        name = label or LABELS
        if FEATURES not in arrays or name not in arrays:
            raise BadInput(f"{path}: needs the arrays {FEATURES!r} and {name!r}; it has {', '.join(map(repr, arrays.files))}")
        features, told = arrays[FEATURES], arrays[name]
        if user and user not in arrays:
            raise BadInput(f"{path}: --user {user!r} is none of its arrays: {', '.join(map(repr, arrays.files))}")
        if user in (name, FEATURES):
            raise BadInput(f"{path}: --user {user!r} names persons, who are public, and neither labels nor features")
        users = arrays[user] if user else None
    if users is not None and users.shape != told.shape:
        raise BadInput(f"{path}: {user!r} has one value for each record, not the shape {users.shape}")
    if told.ndim != 1:
        raise BadInput(f"{path}: {name!r} has one label for each record, not the shape {told.shape}")
    if features.dtype.kind not in "biuf":
        raise BadInput(f"{path}: {FEATURES!r} are numbers, and not {features.dtype}")
    kept = np.int32 if features.dtype.kind in "iu" and features.dtype.itemsize > 1 else np.float32
    if kept == np.int32 and features.size and not (features.min() >= -(2**31) and features.max() < 2**31):
        raise BadInput(f"{path}: a feature is no whole number of 32 bits; give float32, or ids from 0 on")
    scaled = features / np.float32(255.0) if features.dtype == np.uint8 else features
    return np.ascontiguousarray(scaled, dtype=kept), [str(one) for one in told.tolist()], users


def _read_csv(path: Path, label: str, user: str) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if header.count(label) != 1 or len(set(header)) != len(header):
            raise BadInput(f"{path}: --label {label!r} must be one of its columns, all of different names: {', '.join(header)}")
        if user and (user not in header or user == label):
            raise BadInput(f"{path}: --user {user!r} must be one of its columns, and not that of labels: {', '.join(header)}")
        place = header.index(label)
        whose = header.index(user) if user else place
        told, numbers, users = [], [], []
        for row in rows:
            if len(row) != len(header):
                raise BadInput(f"{path}: line {rows.line_num} has {len(row)} fields, the header {len(header)}")
            told.append(row[place])
            users.append(row[whose])
            numbers.append([field for number, field in enumerate(row) if number not in (place, whose)])
    return np.array(numbers, dtype=np.float32), told, np.array(users) if user else None
