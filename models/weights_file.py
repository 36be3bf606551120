"""Weights in a file, as `fedrho export` writes them, read back for a model: by name, shape for shape.

NAME.keras        a Keras archive, with `privacy_statement.json` in it where fedrho wrote it
NAME.safetensors  one tensor a weight; the statement is `privacy_statement` of the metadata
NAME.npz          one array a weight; the statement is the array `privacy_statement`

Nothing in a file is run: arrays of objects are refused, and Keras loads in safe mode.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedrho.models.flat import FlatModel

KERAS: Final = ".keras"
STATEMENT: Final = "privacy_statement"
DAMAGED: Final = (OSError, EOFError, KeyError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Weights = dict[str, NDArray[Any]]
Statement = dict[str, Any]


class WeightsFileError(ValueError):
    """A file whose weights cannot be used, with its name and the reason."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds: weights by name, and the statement that fedrho put beside them, if it did."""

    path: Path
    named: Mapping[str, NDArray[Any]]
    statement: Statement | None

    def flat(self, model: FlatModel) -> NDArray[np.float32]:
        """As the flat vector of this model.

        Raises WeightsFileError for another layout, naming the first weight that differs, and for weights that are not finite.
        """
        wanted = {name: segment.shape for name, segment in zip(weight_names(model), model.layout, strict=True)}
        named = self._renamed(wanted)
        more = [name for name in named if name not in wanted]
        for name, shape in wanted.items():
            self._check(model.spec.name, name, shape, named)
        if more:
            raise WeightsFileError(f"{self.path}: has a weight {more[0]!r}, which model {model.spec.name!r} has not")
        return np.concatenate([named[name].reshape(-1) for name in wanted])

    def _renamed(self, wanted: Mapping[str, tuple[int, ...]]) -> Mapping[str, NDArray[Any]]:
        """Of a Keras archive, in the model's order, by the model's names: Keras shortens those of cells as it loads a layer."""
        if self.path.suffix != KERAS or len(wanted) != len(self.named):
            return self.named
        pairs = zip(wanted, self.named.items(), strict=True)
        return {name if _last(name) == _last(own) else own: value for name, (own, value) in pairs}

    def _check(self, model: str, name: str, shape: tuple[int, ...], named: Mapping[str, NDArray[Any]]) -> None:
        found = named.get(name)
        if found is None:
            first = next(iter(named), None)
            begins = f"its own begin with {first!r}" if first else "it has none at all"
            raise WeightsFileError(f"{self.path}: has no weight {name!r} of shape {shape}, as model {model!r} has; {begins}")
        if found.shape != shape:
            raise WeightsFileError(f"{self.path}: weight {name!r} has shape {found.shape}; that of model {model!r} has {shape}")
        if found.dtype != np.float32:
            raise WeightsFileError(f"{self.path}: weight {name!r} is {found.dtype}; allowed: float32")
        if not np.isfinite(found).all():
            raise WeightsFileError(f"{self.path}: weight {name!r} has values that are not finite")


def weight_names(model: FlatModel) -> list[str]:
    """Those of the layout as Keras gives them, without the model's own, which differs from process to process."""
    prefix = f"{model.keras_model.name}/"
    return [_plain(segment.name, prefix) for segment in model.layout]


def named_weights(model: FlatModel) -> dict[str, NDArray[np.float32]]:
    """The model's weights by name."""
    weights = model.weights()
    return {
        name: weights[segment.offset : segment.offset + segment.size].reshape(segment.shape)
        for name, segment in zip(weight_names(model), model.layout, strict=True)
    }


def read_weights(path: Path) -> WeightsFile:
    """Raises WeightsFileError for what is no such file, or not a whole one. For `.keras` this imports TensorFlow."""
    if path.suffix not in READERS:
        raise WeightsFileError(f"{path}: allowed: a name that ends in {', '.join(READERS)}")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        hint = "; `fedrho export` writes one" if isinstance(error, FileNotFoundError) else ""
        raise WeightsFileError(f"{path}: cannot be read ({error.strerror or error}){hint}") from error
    try:
        named, statement = READERS[path.suffix](path)
        return WeightsFile(path, named, None if statement is None else _statement(statement))
    except WeightsFileError:
        raise
    except DAMAGED as error:
        raise WeightsFileError(f"{path}: is not a whole {path.suffix} file of weights ({_line(error)})") from error


def weights_in(content: bytes, path: Path) -> WeightsFile:
    """Of these very bytes, which were read from `path`: nobody looks there again, for it may be replaced meanwhile.

    Raises WeightsFileError, and OSError where there is no room for a copy.
    """
    with TemporaryDirectory(prefix="fedrho-") as folder:
        copy = Path(folder) / f"weights{path.suffix}"
        copy.write_bytes(content)
        try:
            return replace(read_weights(copy), path=path)
        except WeightsFileError as error:
            raise WeightsFileError(str(error).replace(str(copy), str(path))) from error


def _npz(path: Path) -> tuple[Weights, str | None]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        named = {name: file[name] for name in file.files}
    statement = named.pop(STATEMENT, None)
    return named, None if statement is None else str(statement)


def _safetensors(path: Path) -> tuple[Weights, str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(STATEMENT)  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _keras(path: Path) -> tuple[Weights, str | None]:
    import fedrho.models.layers  # noqa: F401  (registered, so that safe mode finds them)
    from fedrho.models.backend import keras

    with zipfile.ZipFile(path) as archive:
        inside = f"{STATEMENT}.json"
        statement = archive.read(inside).decode() if inside in archive.namelist() else None
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise WeightsFileError(f"{path}: Keras does not load it in safe mode: {_line(error)}") from error
    found: Weights = {}
    for variable in model.trainable_variables:
        name = _plain(getattr(variable, "path", variable.name), f"{model.name}/")
        found[f"{len(found)}/{name}" if name in found else name] = np.asarray(variable.numpy())
    return found, statement


READERS: Final[dict[str, Callable[[Path], tuple[Weights, str | None]]]] = {
    KERAS: _keras,
    ".safetensors": _safetensors,
    ".npz": _npz,
}


def _statement(text: str) -> Statement:
    found = json.loads(text, parse_constant=_not_json)
    if not isinstance(found, dict):
        raise ValueError("its privacy statement is no object")
    return found


def _not_json(text: str) -> None:
    raise ValueError(f"its privacy statement has {text}, which is no number")


def _plain(name: str, prefix: str) -> str:
    """Keras 2 ends the names of TensorFlow's variables in `:0`."""
    return name.removeprefix(prefix).removesuffix(":0")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
