"""Examples from an `.npz` file: arrays `x` (features) and `y` (labels)."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from numpy.lib import format as npy

from fedrho.client.stores.checked import MOST_BYTES, Array, DataFileError, FileExamples, Inputs
from fedrho.models.base import ModelSpec


@dataclass(frozen=True)
class NpzExamples(FileExamples):
    """Type and shape are read before the array is: a small file may unpack to a large one."""

    names: ClassVar[tuple[str, str]] = ("x", "y")
    sequences: ClassVar[bool] = True

    def read(self) -> tuple[Array, Array]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._array(archive, "x"), self._array(archive, "y")
        except KeyError as error:
            raise ValueError("needs two arrays, x (features) and y (labels)") from error
        except DataFileError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise ValueError("not an .npz file of plain arrays") from error

    def _array(self, archive: zipfile.ZipFile, name: str) -> Array:
        self._check_header(archive, name)
        with archive.open(f"{name}.npy") as member:
            array: Array = npy.read_array(member, allow_pickle=False)
            return array

    def _check_header(self, archive: zipfile.ZipFile, name: str) -> None:
        """Raises DataFileError for what the model does not take, or too much of it."""
        with archive.open(f"{name}.npy") as member:
            if npy.read_magic(member) != (1, 0):  # later versions are for what is not a plain array
                raise ValueError
            shape, _, dtype = npy.read_array_header_1_0(member)
        try:
            check = self.inputs.check_features if name == "x" else self.inputs.check_labels
            check(dtype, shape, name)
            if math.prod(shape) * dtype.itemsize > MOST_BYTES:
                raise ValueError(f"{name} unpacks to more than {MOST_BYTES >> 20} MiB")
        except ValueError as error:
            raise DataFileError(f"{self.path}: {error}") from error


def npz_examples(path: Path, spec: ModelSpec) -> NpzExamples:
    """The examples of one device; raises DataFileError."""
    return NpzExamples(path, Inputs.of(spec))
