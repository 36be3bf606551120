"""What an exported model makes of a text, an image or numbers: the likeliest classes, or the likeliest next tokens."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.models.base import ModelSpec, Outputs
from fedrho.models.tokens import FIRST, NOTHING, UNKNOWN, Tokens
from fedrho.models.weights_file import WeightsFileError, read_weights
from fedrho.places import looked_at
from fedrho.privacy.progress import Progress, unwatched, watched

if TYPE_CHECKING:
    from fedrho.models.flat import FlatModel

Probabilities = NDArray[np.float64]
MOST_EXAMPLES = 100_000


@dataclass(frozen=True)
class Exported:
    """An export that was read: its model with the weights in it, and the statement beside them, if there is one."""

    model: FlatModel
    statement: Mapping[str, Any] | None

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @cached_property
    def _compiled(self) -> Any:
        from fedrho.models.backend import tf

        inputs = tf.TensorSpec((None, *self.spec.input_shape), tf.as_dtype(self.spec.input_dtype))
        return tf.function(lambda features: self.model.keras_model(features, training=False), [inputs], autograph=False)

    def probabilities(self, features: NDArray[Any]) -> Probabilities:
        """Of every class, (examples, *label_shape, classes); raises BadInput where the model overflows."""
        outputs = np.asarray(self._compiled(features).numpy(), np.float64)
        if not np.isfinite(outputs).all():
            raise BadInput(
                f"model {self.spec.name!r}: what it gives is not finite; its weights, or these features, are too large"
            )
        if self.spec.outputs is Outputs.PROBABILITIES:
            return outputs
        powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        shares: Probabilities = powers / powers.sum(axis=-1, keepdims=True)
        return shares


def read_export(path: Path, model: str | None) -> Exported:
    """`model` is a name, or a saved model's file, for an export that says none or a model that is not in the zoo.

    Raises BadInput for a file that is no whole export, or whose weights are not laid out as the model's; UnknownModel.
    """
    with looked_at(str(path)):
        if path.is_dir():
            inside = path / "weights.npz"
            better = f"take {inside}" if inside.exists() else f"`fedrho export {path} --out NAME.npz` writes a run's weights"
            raise BadInput(f"{path}: is a folder; {better}")
    try:
        found = read_weights(path)
        from fedrho.models.flat import FlatModel

        made = FlatModel(_spec(path, found.statement or {}, model))
        made.assign(found.flat(made))
    except WeightsFileError as error:
        raise BadInput(str(error)) from error
    return Exported(made, found.statement)


def _spec(path: Path, statement: Mapping[str, Any], given: str | None) -> ModelSpec:
    from fedrho.models.saved import is_saved
    from fedrho.models.zoo import lookup
    from fedrho.models_command import found_model

    said = statement.get("model")
    if said is not None and not isinstance(said, str):
        raise BadInput(f"{path}: its statement names no model")
    if given is not None:
        spec = found_model(given)
        if said is not None and spec.name != said:
            raise BadInput(f"--model {given}: is {spec.name!r}, and the weights in {path} are of {said!r}")
        return spec
    if said is None:
        raise BadInput(f"{path}: does not say which model its weights are of; is it an export of fedrho? --model NAME says it")
    return found_model(str(path)) if is_saved(said) and path.suffix == ".keras" else lookup(said)


# -- text ---------------------------------------------------------------------------------------------------------------------


def _tokens(wanted: str, given: bool) -> Tokens:
    """By name, or of a file with a word a line; raises BadInput. Where nobody gave them, the weights name them."""
    from fedrho.models.tokens import UnknownTokens, lookup, of_words

    try:
        if wanted.endswith(".txt"):
            return of_words(wanted, Path(wanted).read_text(encoding="utf-8-sig").splitlines(), "not known")
        return lookup(wanted)
    except UnknownTokens as error:
        if given:
            raise BadInput(f"--tokens: {error}") from error
        whose = "its weights were trained with words that were chosen for their study"
        raise BadInput(f"--text: {whose}; --tokens FOLDER/vocabulary.txt, of the study's folder, says which") from error
    except OSError as error:
        raise BadInput(f"--tokens {wanted}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise BadInput(f"--tokens {wanted}: is no list of words in UTF-8 ({error})") from error


@dataclass(frozen=True)
class Reader:
    """A language model and its tokens: the likeliest that follow a text."""

    exported: Exported
    tokens: Tokens

    @classmethod
    def of(cls, exported: Exported, name: str | None) -> Reader:
        """Raises BadInput for a model that guesses no tokens, or others than these."""
        spec = exported.spec
        said = (exported.statement or {}).get("tokens")
        wanted = name or said or spec.tokens
        if len(spec.input_shape) != 1 or not spec.vocabulary or spec.classes != spec.vocabulary:
            raise BadInput(
                f"--text: model {spec.name!r} does not guess the next of a text; it takes {spec.input_dtype} {spec.input_shape}"
            )
        if not isinstance(wanted, str) or not wanted:
            raise BadInput(f"--text: model {spec.name!r} does not say what its ids stand for; --tokens NAME says it")
        tokens = _tokens(wanted, given=name is not None)
        if tokens.size != spec.classes:
            raise BadInput(f"--tokens {wanted}: has {tokens.size} ids, and model {spec.name!r} {spec.classes}")
        return cls(exported, tokens)

    def ids(self, text: str) -> list[int]:
        """Raises BadInput for a text without one token that the model knows."""
        found = [int(one) for one in self.tokens.encode(text)]
        if all(one == UNKNOWN for one in found):
            what = "is empty" if not found else f"has nothing that {self.tokens.name} lists"
            raise BadInput(f"--text {text[:60]!r}: {what}; nothing can be said of what follows")
        return found

    def following(self, ids: list[int]) -> Probabilities:
        """Of every id to come next, (classes,); unknown and nothing among them."""
        (length,) = self.exported.spec.input_shape
        last = ids[-length:]
        empty = [NOTHING] * (length - len(last))
        if self.exported.spec.label_shape:  # a place sees nothing behind it
            shares: Probabilities = self.exported.probabilities(np.array([last + empty], np.int32))[0, len(last) - 1]
            return shares
        shares = self.exported.probabilities(np.array([empty + last], np.int32))[0]
        return shares

    def continued(self, ids: list[int], count: int, temperature: float, seed: int, progress: Progress = unwatched) -> list[int]:
        """So many ids that follow, each drawn where listed, likelier ones the more often the lower the temperature; 0 is none."""
        random = np.random.default_rng(seed)
        found = list(ids)
        for _ in watched(range(count), "token", progress, "going on"):
            found.append(self._drawn(self.following(found), temperature, random))
        return found[len(ids) :]

    def _drawn(self, probabilities: Probabilities, temperature: float, random: np.random.Generator) -> int:
        listed = probabilities[FIRST:]
        if temperature == 0:
            return FIRST + int(np.argmax(listed))
        logs = np.log(np.maximum(listed, 1e-300)) / temperature
        shares = np.exp(logs - logs.max())
        return FIRST + int(random.choice(len(shares), p=shares / shares.sum()))


# -- other features -----------------------------------------------------------------------------------------------------------


def typed(text: str, spec: ModelSpec) -> NDArray[Any]:
    """Numbers with commas between them, as one example; raises BadInput."""
    return _checked("--features", _rows("--features", [text.split(",")]), spec)


def read_data(path: Path, spec: ModelSpec) -> NDArray[Any]:
    """The array `features` of an `.npz`, or the columns of a `.csv` but `label`; raises BadInput."""
    readers = {".npz": _npz, ".csv": _csv}
    if path.suffix not in readers:
        raise BadInput(f"--data {path}: allowed: a name that ends in .npz or .csv")
    try:
        return _checked(f"--data {path}", readers[path.suffix](path), spec)
    except OSError as error:
        raise BadInput(f"--data {path}: cannot be read ({error.strerror or error})") from error


def _npz(path: Path) -> NDArray[Any]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return np.asarray(file["features"])
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise BadInput(f"--data {path}: is no .npz file with an array `features` of numbers") from error


def _csv(path: Path) -> NDArray[Any]:
    """A first line that is not of numbers names the columns."""
    try:
        lines = [line for line in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"--data {path}: is no CSV in UTF-8") from error
    if lines and not _numeric(lines[0]):
        heading, *lines = lines
        kept = [place for place, name in enumerate(heading) if name.strip() != "label"]
        lines = [[line[place] for place in kept if place < len(line)] for line in lines]
    return _rows(f"--data {path}", lines)


def _numeric(cells: list[str]) -> bool:
    try:
        return bool([float(cell) for cell in cells])
    except ValueError:
        return False


def _rows(what: str, lines: list[list[str]]) -> NDArray[np.float64]:
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise BadInput(f"{what}: no examples, or of different lengths")
    try:
        return np.array([[float(cell) for cell in line] for line in lines])
    except ValueError as error:
        raise BadInput(f"{what}: not numbers with commas between them ({error})") from error


def _checked(what: str, values: NDArray[Any], spec: ModelSpec) -> NDArray[Any]:
    """As the model takes them. A row is taken for an example of any shape with as many numbers."""
    from fedrho.client.stores.checked import Inputs

    inputs = Inputs.of(spec)
    if values.ndim == 2 and values.shape[1] == inputs.size:
        values = values.reshape(-1, *inputs.shape)
    if inputs.tokens and values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if not values.ndim or not 0 < len(values) <= MOST_EXAMPLES:
        raise BadInput(f"{what}: {len(values) if values.ndim else 'no'} examples; allowed: 1 to {MOST_EXAMPLES}")
    try:
        return np.asarray(inputs.features(values))
    except ValueError as error:
        raise BadInput(f"{what}: {error}") from error


def read_image(path: Path, spec: ModelSpec) -> tuple[NDArray[Any], tuple[int, int], tuple[int, int]]:
    """As the model takes it; how wide and high the image is, and what it was resized to. Raises BadInput."""
    from PIL import Image

    from fedrho.client.stores.checked import DataFileError, Inputs
    from fedrho.client.stores.images import Frame

    try:
        frame = Frame.of(Inputs.of(spec))
        values = frame.read(path)
    except (DataFileError, ValueError) as error:
        raise BadInput(f"--image {error}" if isinstance(error, DataFileError) else f"--image: {error}") from error
    with Image.open(path) as image:
        return np.asarray(values, np.float32).reshape(1, *spec.input_shape), image.size, (frame.width, frame.height)
