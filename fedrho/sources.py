"""Where a device's examples come from: what `--data` says, made into stores once it is known which models are trained.

digits          the demo's data, for many devices
FILE, FOLDER    a ready store, chosen by how the name ends
NAME:ARGUMENT   somebody's own store: NAME is an entry point of the group `fedrho.example_stores`, a class or function that
                makes a store of ARGUMENT, any text
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from fedrho import console
from fedrho.console import BadInput

if TYPE_CHECKING:
    from fedrho.client.examples import ExampleStore
    from fedrho.client.stores.words import Vocabulary
    from fedrho.models.base import ModelSpec

Source = Callable[["ModelSpec"], "dict[str, ExampleStore]"]
"""A model to the examples of every device by its name; raises BadInput or DataFileError where it does not take them."""

GROUP = "fedrho.example_stores"
NAME = r"[A-Za-z0-9][\w.-]*"
"""Of a store: the device and its history are called so, too."""
TAKES = {
    ".npz": (),
    ".csv": ("--label", "--classes"),
    ".parquet": ("--label", "--classes"),
    ".jsonl": ("--label", "--classes", "--text", "--vocabulary"),
    ".txt": (),
    ".sqlite": (),
    "folder": ("--classes",),
}
"""The options of each kind of file."""
ALLOWED = (
    "digits, a file .npz, .csv, .parquet, .jsonl, .txt or .sqlite, a folder of images, "
    "or NAME:ARGUMENT for a store of your own (entry point fedrho.example_stores)"
)


@dataclass(frozen=True)
class Reading:
    """What the command line says about reading a file; None is what was not said."""

    label: str | None = None
    classes: Path | None = None
    text: str | None = None
    vocabulary: str | None = None

    def check_text(self, spec: ModelSpec) -> None:
        """Raises BadInput for an option of `.jsonl` that would go unheard with this model, which may bring its own tokens."""
        if not spec.label_shape and self.text is not None and self.vocabulary is None:
            raise BadInput("--text: needs --vocabulary, a file with a word a line, or a number of hashed words")
        given = {"--label": self.label, "--classes": self.classes, "--vocabulary": self.vocabulary}
        for option, value in given.items() if spec.label_shape else ():
            if value is not None:
                raise BadInput(f"{option}: has no meaning for {spec.name}, which makes ids and labels of the text itself")

    def check(self, data: str, kind: str) -> None:
        """Raises BadInput for an option that would go unheard."""
        given = {"--label": self.label, "--classes": self.classes, "--text": self.text, "--vocabulary": self.vocabulary}
        for option, value in given.items():
            if value is not None and option not in TAKES.get(kind, ()):
                kinds = ", ".join(one for one, taken in TAKES.items() if option in taken)
                raise BadInput(f"{option}: has no meaning for --data {data}; it is for {kinds}")


@dataclass(frozen=True)
class Digits:
    """Which of the demo's devices to be."""

    devices: str | None
    of: int
    alpha: float
    seed: int


def find_source(data: str, digits: Digits, reading: Reading) -> Source:
    """How to get every device's examples once the model is known; what can be refused before is refused here, by BadInput."""
    if data == "digits":
        reading.check(data, data)
        first, last = _range(digits.devices or f"0-{digits.of - 1}", digits.of)
        return lambda spec: _digits(spec, first, last, digits)
    if digits.devices is not None:
        raise BadInput(f"--devices: has no meaning for --data {data}; it is for digits")
    name, colon, argument = data.partition(":")
    if colon and (own := _own_entry(name)) is not None:
        reading.check(data, name)
        return _own_source(name, own, argument)
    path = Path(data)
    try:
        exists, kind = bool(data) and path.exists(), "folder" if path.is_dir() else path.suffix.lower()
    except OSError as error:
        raise BadInput(f"--data {data}: {error.strerror}; allowed: {ALLOWED}") from error
    if not exists or kind not in TAKES:
        known = f"; stores installed here: {', '.join(_own_names()) or 'none'}" if colon else ""
        raise BadInput(f"--data {data}: {'allowed' if exists else 'no such file; allowed'}: {ALLOWED}{known}")
    reading.check(data, kind)
    device = Path(os.path.abspath(path)).stem
    if not device:
        raise BadInput(f"--data {data}: has no name that the device could be called by")
    return lambda spec: {device: _file_store(path, kind, spec, reading)}


def fitting(models: Iterable[str], source: Source) -> tuple[dict[str, ExampleStore], set[str]]:
    """Every device's examples, and the models that they fit; raises what the first one raises where they fit none."""
    from fedrho.client.stores.checked import DataFileError, ExamplesByModel
    from fedrho.models.zoo import UnknownModel, lookup

    found: dict[str, dict[str, ExampleStore]] = {}
    failure: Exception | None = None
    with console.working("reading the examples"):
        for model in dict.fromkeys(models):
            try:
                found[model] = source(lookup(model))
            except (BadInput, DataFileError, UnknownModel) as error:
                failure = failure or error
    if failure is not None and not found:
        raise failure
    devices = next(iter(found.values()), {})
    return {name: ExamplesByModel({model: stores[name] for model, stores in found.items()}) for name in devices}, set(found)


def _file_store(path: Path, kind: str, spec: ModelSpec, reading: Reading) -> ExampleStore:
    from fedrho.client.stores.checked import class_names

    classes = None if reading.classes is None else class_names(reading.classes, spec)
    label = reading.label or "label"
    match kind:
        case ".npz":
            from fedrho.client.stores.npz import npz_examples

            return npz_examples(path, spec)
        case ".csv":
            from fedrho.client.stores.tables import csv_examples

            return csv_examples(path, spec, label, classes)
        case ".parquet":
            from fedrho.client.stores.tables import parquet_examples

            return parquet_examples(path, spec, label, classes)
        case ".txt":
            from fedrho.client.stores.texts import text_examples

            return text_examples(path, spec)
        case ".jsonl" if spec.label_shape:
            from fedrho.client.stores.texts import text_examples

            reading.check_text(spec)
            return text_examples(path, spec, reading.text or "text")
        case ".jsonl":
            from fedrho.client.stores.json_lines import json_lines_examples

            reading.check_text(spec)
            return json_lines_examples(path, spec, label, reading.text or "text", _vocabulary(reading.vocabulary), classes)
        case ".sqlite":
            from fedrho.client.stores.cache import cached_examples

            return cached_examples(path, spec)
        case _:
            from fedrho.client.stores.images import image_examples

            return image_examples(path, spec, classes)


def _vocabulary(text: str | None) -> Vocabulary | None:
    """A number is that many hashed words; anything else is a file."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else Path(text)


# -- a store of somebody's own ------------------------------------------------------------------------------------------------


def _own_names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def _own_entry(name: str) -> EntryPoint | None:
    """The installed store of that name; raises BadInput where two packages claim it."""
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if len(found) > 1:
        raise BadInput(f"--data {name}: several packages have a store of that name: {', '.join(sorted(found))}; keep one")
    return next(iter(found.values()), None) if re.fullmatch(NAME, name) else None


def _own_source(name: str, entry: EntryPoint, argument: str) -> Source:
    from fedrho.client.stores.checked import CheckedExamples, Inputs

    store = _made(name, entry, argument)

    def source(spec: ModelSpec) -> dict[str, ExampleStore]:
        checked = CheckedExamples(f"--data {name}", store, Inputs.of(spec))
        _try(name, checked, spec)
        return {name: checked}

    return source


def _made(name: str, entry: EntryPoint, argument: str) -> ExampleStore:
    """The store, which can travel to another process; raises BadInput."""
    try:
        store: ExampleStore = entry.load()(argument)
    except Exception as error:  # somebody's code may raise anything
        raise BadInput(f"--data {name}: {entry.value} cannot be made of {argument!r}: {_said(error)}") from error
    if not callable(getattr(store, "batches", None)):
        raise BadInput(f"--data {name}: {entry.value} makes a {type(store).__name__}, which has no method batches(plan)")
    try:
        pickle.dumps(store)
    except Exception as error:
        raise BadInput(
            f"--data {name}: a store is pickled for the process that trains, and this one cannot be: keep paths in it, and open "
            f"files in batches ({_said(error)})"
        ) from error
    return store


def _try(name: str, store: ExampleStore, spec: ModelSpec) -> None:
    """Reads one example, so that a mistake is seen before the device takes part; raises DataFileError.

    What somebody's code says of an example may show it, so it is told where that was, and not what.
    """
    from fedrho.client.examples import described
    from fedrho.client.stores.checked import DataFileError, trial_plan

    try:
        next(iter(store.batches(trial_plan(spec))), None)
    except DataFileError:
        raise
    except Exception as error:
        raise DataFileError(f"--data {name}: {described(error)}") from error


def _said(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# -- the demo's data ----------------------------------------------------------------------------------------------------------


def _digits(spec: ModelSpec, first: int, last: int, chosen: Digits) -> dict[str, ExampleStore]:
    from fedrho.models.digits import INPUT_SHAPE
    from fedrho.simulations.population import digits

    if spec.input_shape != INPUT_SHAPE:
        raise BadInput(
            f"--data digits: the server trains {spec.name!r}, which takes inputs of shape {spec.input_shape}, not {INPUT_SHAPE}"
        )
    try:
        shares = digits(chosen.of, chosen.alpha, chosen.seed).devices
    except ValueError as error:
        raise BadInput(f"--of: {error}") from error
    return {f"device-{number:03d}": shares[number] for number in range(first, last + 1)}


def _range(text: str, of: int) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < of:
            return first, last
    raise BadInput(f"--devices {text!r}: allowed: FIRST-LAST with 0 <= FIRST <= LAST < {of}")
