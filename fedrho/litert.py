"""A model in LiteRT's form for devices, once called TensorFlow Lite: made by the converter of the installed TensorFlow.

Only LiteRT's own operations are used, so that the small interpreter runs it, and one example at a time is what it takes: the
batch is fixed to one, which recurrent layers need.
"""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from fedrho.console import BadInput

if TYPE_CHECKING:
    from fedrho.models.flat import FlatModel


def converted(model: FlatModel) -> bytes:
    """Raises BadInput where the installed TensorFlow has no converter, or where the model has what LiteRT has not."""
    from fedrho.models.backend import tf

    spec = model.spec
    try:
        make = tf.lite.TFLiteConverter.from_concrete_functions
    except AttributeError as error:
        raise BadInput(f"TensorFlow {tf.__version__} has no converter to LiteRT; choose another form of file") from error
    inputs = tf.TensorSpec((1, *spec.input_shape), tf.as_dtype(spec.input_dtype), "features")
    forward = tf.function(lambda features: model.keras_model(features, training=False), input_signature=[inputs], autograph=False)
    held = tf.Module()
    held.variables_of_the_model = [getattr(variable, "value", variable) for variable in model.keras_model.variables]
    try:
        with _quietly():
            made: bytes = make([forward.get_concrete_function()], held).convert()
    except Exception as error:  # the converter raises whatever it likes
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        raise BadInput(
            f"model {spec.name!r} does not convert to LiteRT: {reason.strip()}; choose another form of file"
        ) from error
    return made


def with_metadata(model: bytes, name: str, text: str) -> bytes:
    """The same model with a file `name`.json behind it, as LiteRT's own metadata has it: interpreters do not look there.

    A model with files at its end is a zip archive, too: `unzip -p MODEL.tflite privacy_statement.json` reads it.
    """
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"{name}.json", text)
    return buffer.getvalue()


@contextmanager
def _quietly() -> Iterator[None]:
    """The converter saves the model on the way, and tells both of its logs so; warnings of it are for who wrote it."""
    logs = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
