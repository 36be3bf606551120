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
PREFIX = "keras:"
NAME = re.compile(rf"{PREFIX}[0-9a-f]{{16}}")
UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, RecursionError, NotImplementedError, zipfile.BadZipFile, zlib.error)
LONGEST_CONFIG = 16 << 20
"""Bytes of a `config.json`; real ones have thousands."""

CROSS_ENTROPY = ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
SPECIAL_IDS = 2
"""Of nothing and of unknown words, in all text: a model that guesses ids never has to guess these."""
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
    name = f"{PREFIX}{digest[:16]}"
    return registered(name) or register(_described(path, name, digest))


@dataclass(frozen=True)
class LoadSaved:
    """Loads the model from its file, if that is still the file that was named."""

    path: str
    sha256: str

    def __call__(self) -> keras.Model:
        import fedrho.models.layers  # noqa: F401  (registered, so that safe mode finds them)
        from fedrho.models.backend import keras

        path = Path(self.path)
        if _digest(path) != self.sha256:
            raise UnknownModel(f"{path}: is not the file any more that it was when it was named")
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise UnknownModel(f"{path}: {_why_not_loaded(str(error))}") from error


def _why_not_loaded(said: str) -> str:
    """Keras's own reasons are paragraphs; the first sentence of one is enough here."""
    if "ambda" in said:
        return "has a Lambda layer, which is code that would run here; save it with a layer of Keras in its place"
    reason = " ".join(said.split()).partition(". ")[0]
    return f"Keras does not load it in safe mode: {reason[:300]}"


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
        dense = _last_dense(config, last)
        shape, vocabulary = _inputs(config, first)
        classes, label_shape = _classes(dense), _label_shape(dense)
        return ModelSpec(
            name,
            f"saved in {path.name}",
            shape,
            classes,
            LoadSaved(str(path.resolve()), digest),
            input_dtype="int32" if vocabulary else "float32",
            vocabulary=vocabulary,
            outputs=_outputs(config, last),
            label_shape=label_shape,
            ignored=SPECIAL_IDS if label_shape and vocabulary == classes else 0,
            frozen=True,
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


def _inputs(config: Layer, first: Layer) -> tuple[tuple[int, ...], int]:
    """Their shape, and below what number ids are; 0 where inputs are float32."""
    values = first["config"]
    shape = values.get("batch_shape") or values.get("batch_input_shape")
    if first["class_name"] != "InputLayer" or not shape:
        raise ValueError("has no fixed input shape; begin it with keras.Input(shape)")
    if not all(isinstance(side, int) and side > 0 for side in shape[1:]):
        raise ValueError(f"takes inputs of shape {tuple(shape[1:])}; allowed: a fixed shape")
    if values.get("dtype") not in ("float32", "int32"):
        raise ValueError(f"takes {values.get('dtype')} inputs; allowed: float32, or int32 for ids")
    return tuple(shape[1:]), _vocabulary(config, first) if values["dtype"] == "int32" else 0


def _vocabulary(config: Layer, first: Layer) -> int:
    """Below it are ids that every layer which takes them has an embedding for."""
    takers = _after(config, first)
    if not takers or any(layer["class_name"] != "Embedding" for layer in takers):
        raise ValueError("takes int32 inputs, and not into Embedding layers alone, which say how many ids there are")
    return min(int(layer["config"]["input_dim"]) for layer in takers)


def _after(config: Layer, layer: Layer) -> list[Layer]:
    """The layers that take what this one gives."""
    layers: list[Layer] = config["config"]["layers"]
    if config["class_name"] == "Sequential":
        return layers[layers.index(layer) + 1 :][:1]
    return [other for other in layers if layer["config"]["name"] in _sources(other)]


def _sources(layer: Layer) -> set[str]:
    return set(re.findall(r'"keras_history": \["([^"]+)"', json.dumps(layer["inbound_nodes"])))


def _last_dense(config: Layer, last: Layer) -> Layer:
    """What follows it may only pass its outputs on."""
    while last["class_name"] in PASSES_CLASSES_ON:
        last = _before(config, last)
    if last["class_name"] != "Dense":
        raise ValueError(f"ends in a {last['class_name']} layer; allowed: a Dense layer, one unit a class")
    return last


def _classes(dense: Layer) -> int:
    """Its units."""
    if not (isinstance(dense["config"]["units"], int) and dense["config"]["units"] > 1):
        raise ValueError("has one output; allowed: a Dense layer with one unit for each of two classes or more")
    return int(dense["config"]["units"])


def _label_shape(dense: Layer) -> tuple[int, ...]:
    """(length,) where the layer was built for sequences; if the file does not tell, a label for each example."""
    built = (dense.get("build_config") or {}).get("input_shape") or (None, 0)
    if not all(isinstance(side, int) for side in built[1:]) or len(built) > 3:
        raise ValueError(
            f"gives a label for each of {tuple(built[1:-1])} places; allowed: one an example, or a fixed length of them"
        )
    return tuple(built[1:-1])


def _before(config: Layer, layer: Layer) -> Layer:
    layers: list[Layer] = config["config"]["layers"]
    if config["class_name"] == "Sequential":
        return layers[layers.index(layer) - 1]
    (source,) = _sources(layer)
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
