"""A saved Keras model, `NAME.keras`, as a model of the zoo: named `keras:` and the first 16 hex digits of its file's SHA-256.

Server and devices each have the file; that they mean the same one follows from the name. What a device must know of it before it
trains is read from the archive's `config.json`, without TensorFlow; Keras loads it later, in safe mode, which runs no code out of
the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrho.models.base import ModelSpec, Outputs, UnknownModel, register, registered

if TYPE_CHECKING:
    import keras

SUFFIX = ".keras"
NAME = re.compile(r"keras:[0-9a-f]{16}")
UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, RecursionError, NotImplementedError, zipfile.BadZipFile, zlib.error)
LONGEST_CONFIG = 16 << 20
"""Bytes of a `config.json`; real ones have thousands."""

CROSS_ENTROPY = ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
PASSES_CLASSES_ON = ("Activation", "Softmax")

Layer = dict[str, Any]


class SavedModelError(ValueError):
    """A saved model that cannot be used, with its name and the reason."""


def is_saved(name: str) -> bool:
    """Whether `name` is that of a saved model, known here or not."""
    return NAME.fullmatch(name) is not None


def add_saved(path: Path) -> ModelSpec:
    """Adds the model in `path` to the zoo, and returns it; raises SavedModelError. Adding it again changes nothing."""
    digest = _digest(path)
    name = f"keras:{digest[:16]}"
    return registered(name) or register(_described(path, name, digest))


@dataclass(frozen=True)
class LoadSaved:
    """Loads the model from its file, if that is still the file that was named."""

    path: str
    sha256: str

    def __call__(self) -> keras.Model:
        from fedrho.models.backend import keras

        path = Path(self.path)
        if _digest(path) != self.sha256:
            raise UnknownModel(f"{path}: is not the file any more that it was when it was named")
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UnknownModel(f"{path}: Keras does not load it in safe mode: {reason}") from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SavedModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def _described(path: Path, name: str, digest: str) -> ModelSpec:
    try:
        config = _config(path)
        first, last = _ends(config)
        return ModelSpec(
            name,
            f"saved in {path.name}",
            _input_shape(first),
            _classes(config, last),
            LoadSaved(str(path.resolve()), digest),
            outputs=_outputs(config, last),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise SavedModelError(f"{path}: is not a Sequential or Functional model as Keras saves it") from error
    except ValueError as error:
        raise SavedModelError(f"{path}: {error}") from error


def _config(path: Path) -> Layer:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("config.json") as file:
            text = file.read(LONGEST_CONFIG + 1)
        if len(text) > LONGEST_CONFIG:
            raise ValueError("its config.json is too long")
        return dict(json.loads(text))
    except UNREADABLE as error:
        raise ValueError("is not a model saved by `model.save('NAME.keras')`") from error


def _ends(config: Layer) -> tuple[Layer, Layer]:
    """The layer that takes the input, and the one that gives the output."""
    if config["class_name"] not in ("Sequential", "Functional"):
        raise ValueError(f"is a {config['class_name']}; allowed: Sequential and Functional models of Keras's own layers")
    layers = config["config"]["layers"]
    if config["class_name"] == "Sequential":
        return layers[0], layers[-1]
    ends = config["config"]["input_layers"], config["config"]["output_layers"]
    first, last = (_only(end, layers) for end in ends)
    return first, last


def _only(end: list[Any], layers: list[Layer]) -> Layer:
    """The one input or output: Keras writes it as [name, 0, 0], or as a list of one such."""
    while isinstance(end[0], list):
        if len(end) != 1:
            raise ValueError("has several inputs or outputs; allowed: one of each")
        end = end[0]
    return next(layer for layer in layers if layer["config"]["name"] == end[0])


def _input_shape(first: Layer) -> tuple[int, ...]:
    values = first["config"]
    shape = values.get("batch_shape") or values.get("batch_input_shape")
    if first["class_name"] != "InputLayer" or not shape:
        raise ValueError("has no fixed input shape; begin it with keras.Input(shape)")
    if values.get("dtype") != "float32" or not all(isinstance(side, int) and side > 0 for side in shape[1:]):
        raise ValueError(f"takes {values.get('dtype')} inputs of shape {tuple(shape[1:])}; allowed: float32 of a fixed shape")
    return tuple(shape[1:])


def _classes(config: Layer, last: Layer) -> int:
    """The units of the last Dense layer; what follows it may only pass them on."""
    while last["class_name"] in PASSES_CLASSES_ON:
        last = _before(config, last)
    if last["class_name"] != "Dense":
        raise ValueError(f"ends in a {last['class_name']} layer; allowed: a Dense layer, one unit a class")
    if not (isinstance(last["config"]["units"], int) and last["config"]["units"] > 1):
        raise ValueError("has one output; allowed: a Dense layer with one unit for each of two classes or more")
    return int(last["config"]["units"])


def _before(config: Layer, layer: Layer) -> Layer:
    layers: list[Layer] = config["config"]["layers"]
    if config["class_name"] == "Sequential":
        return layers[layers.index(layer) - 1]
    (source,) = set(re.findall(r'"keras_history": \["([^"]+)"', json.dumps(layer["inbound_nodes"])))
    return next(other for other in layers if other["config"]["name"] == source)


def _outputs(config: Layer, last: Layer) -> Outputs:
    """As its compiled loss says; without one, probabilities after a softmax and logits otherwise."""
    loss = (config.get("compile_config") or {}).get("loss")
    if loss is None:
        softmax = last["class_name"] == "Softmax" or last["config"].get("activation") == "softmax"
        return Outputs.PROBABILITIES if softmax else Outputs.LOGITS
    kind = loss["class_name"] if isinstance(loss, dict) else loss
    if kind not in CROSS_ENTROPY:
        raise ValueError(f"was compiled with the loss {kind!r}; allowed: SparseCategoricalCrossentropy, or none")
    from_logits = isinstance(loss, dict) and loss["config"].get("from_logits")
    return Outputs.LOGITS if from_logits else Outputs.PROBABILITIES
