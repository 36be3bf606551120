"""Released weights as a file that other tools read, with the privacy statement inside.

NAME.keras        a Keras archive for `keras.saving.load_model`, with `privacy_statement.json` in it
NAME.safetensors  one tensor a weight, by its name; the statement is `privacy_statement` of the metadata
NAME.npz          one array a weight, by its name; the statement is the array `privacy_statement`
NAME.tflite       LiteRT's form for devices, of the whole model; the statement is the metadata entry `privacy_statement`

A file appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.models.weights_file import STATEMENT, named_weights
from fedrho.places import looked_at

if TYPE_CHECKING:
    from fedrho.models.flat import FlatModel
    from fedrho.models.whole import WholeModel
    from fedrho.operator_client import Exported


def check_out(out: Path, force: bool) -> None:
    """Raises BadInput for what could never be written; before anybody is asked for anything."""
    if out.suffix not in WRITERS:
        raise BadInput(f"--out {out}: allowed: a name that ends in {', '.join(WRITERS)}")
    with looked_at(f"--out {out}"):
        if not out.parent.is_dir():
            raise BadInput(f"--out {out}: there is no folder {out.parent}; make it, or choose another")
        if out.is_dir():
            raise BadInput(f"--out {out}: is a folder; name a file, such as {out / f'model{out.suffix}'}")
        if out.exists() and not force:
            raise BadInput(f"--out {out}: is there already; choose another name, or add --force")


def write_export(out: Path, exported: Exported) -> None:
    """Raises BadInput where the weights are not those of the model, or the disk will not have them; UnknownModel."""
    write_model(out, _model(exported), exported.statement)


def write_model(out: Path, model: FlatModel, statement: Mapping[str, Any]) -> None:
    """Raises BadInput where the disk will not have it, or the model is none that the form of the file can hold."""
    text = json.dumps(statement, indent=2, allow_nan=False)
    _written(out, lambda scratch: WRITERS[out.suffix](scratch, model, text))


def write_whole(out: Path, model: WholeModel, statement: Mapping[str, Any]) -> None:
    """A model that was trained in one place; raises BadInput as `write_model` does."""
    if out.suffix != ".keras":
        raise BadInput(f"--out {out}: this model has weights beside the trained ones, which only a .keras file holds")
    text = json.dumps(statement, indent=2, allow_nan=False)
    _written(out, lambda scratch: _write_keras(scratch, model, text))


def _written(out: Path, write: Callable[[Path], None]) -> None:
    scratch = out.with_name(f".{out.stem}.{secrets.token_hex(4)}{out.suffix}")
    try:
        write(scratch)
        _through(scratch)
        scratch.replace(out)
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        scratch.unlink(missing_ok=True)


def _model(exported: Exported) -> FlatModel:
    from fedrho.models.flat import FlatModel
    from fedrho.models.zoo import lookup

    model = FlatModel(lookup(str(exported.statement["model"])))
    try:
        model.assign(exported.weights)
    except ValueError as error:
        raise BadInput(f"{error}; was the run made with another version of fedrho?") from error
    return model


def _write_keras(path: Path, model: FlatModel | WholeModel, statement: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras, of TensorFlow's variables
        model.keras_model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{STATEMENT}.json", statement)


def _write_safetensors(path: Path, model: FlatModel, statement: str) -> None:
    from safetensors.numpy import save_file

    save_file(named_weights(model), path, metadata={STATEMENT: statement})


def _write_tflite(path: Path, model: FlatModel, statement: str) -> None:
    from fedrho.litert import converted, with_metadata

    path.write_bytes(with_metadata(converted(model), STATEMENT, statement))


def _write_npz(path: Path, model: FlatModel, statement: str) -> None:
    with path.open("xb") as file:
        file.write(npz(model, statement))


def npz(model: FlatModel, statement: str) -> bytes:
    """The same bytes for the same model and statement."""
    arrays: Mapping[str, NDArray[np.generic]] = {**named_weights(model), STATEMENT: np.array(statement)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


WRITERS: Final[dict[str, Callable[[Path, FlatModel, str], None]]] = {
    ".keras": _write_keras,
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".tflite": _write_tflite,
}


def _through(path: Path) -> None:
    """To the disk, before the name is given."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
