"""Examples from a file of the user's own: `.npz` with arrays `x` (features) and `y` (labels)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fedrho.client.examples import ArrayExamples
from fedrho.models.base import ModelSpec


class DataFileError(ValueError):
    """A data file that cannot be used, with its name and the reason."""


def load_npz(path: Path, spec: ModelSpec) -> ArrayExamples:
    """The examples of one device, checked against the model's signature; raises DataFileError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            features, labels = np.asarray(arrays["x"]), np.asarray(arrays["y"])
    except FileNotFoundError as error:
        raise DataFileError(f"{path}: no such file") from error
    except KeyError as error:
        raise DataFileError(f"{path}: needs two arrays, x (features) and y (labels)") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise DataFileError(f"{path}: not an .npz file of plain arrays") from error
    try:
        return ArrayExamples(_features(features, spec), _labels(labels, spec))
    except ValueError as error:
        raise DataFileError(f"{path}: {error}") from error


def _features(values: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if values.dtype.kind not in "fiu" or values.shape[1:] != spec.input_shape:
        wanted = ("examples", *spec.input_shape)
        raise ValueError(f"x must be numbers of shape {wanted} for model {spec.name!r}, not {values.dtype} {values.shape}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _labels(values: np.ndarray, spec: ModelSpec) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise ValueError(f"y must be integers of shape (examples,), not {values.dtype} {values.shape}")
    if values.size and not (values.min() >= 0 and values.max() < spec.classes):
        raise ValueError(f"y must lie between 0 and {spec.classes - 1} for model {spec.name!r}")
    return values.astype(np.int32)
