"""Examples from a folder of images: a folder for each class, named by its number, or by its name where the classes have names.

Which number a class has must be the same on all devices, so it never follows from which folders this device happens to have.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedrho.client.examples import Example, ShuffledExamples
from fedrho.client.stores.checked import DataFileError, Inputs, check_file, label_number, reason
from fedrho.models.base import ModelSpec

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MOST_PIXELS = 2**26
"""64 megapixels: beyond, an image is refused before it is unpacked."""


@dataclass(frozen=True)
class Frame:
    """How an image becomes a model's input: resized to `width` by `height`, in `mode`, scaled to [0, 1]."""

    width: int
    height: int
    mode: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, inputs: Inputs) -> Frame:
        """For (height, width), (height, width, channels) with 1, 3 or 4 channels, or a square of grey values in a row."""
        shape = inputs.shape
        channels = shape[2] if len(shape) == 3 else 1
        side = math.isqrt(inputs.size)
        height, width = shape[:2] if len(shape) in (2, 3) else (side, side)
        if inputs.tokens or channels not in MODES or height * width * channels != inputs.size or not 1 <= len(shape) <= 3:
            raise ValueError(f"model {inputs.model!r} takes {inputs.dtype} of shape {shape}, which is no image")
        return cls(width, height, MODES[channels], shape)

    def read(self, path: Path) -> np.ndarray:
        """Raises DataFileError."""
        check_file(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._read(path)
        except UnidentifiedImageError:
            raise DataFileError(f"{path}: not an image that can be used: no {' or '.join(FORMATS)}") from None
        except Exception as error:  # a decoder of damaged bytes may raise anything
            raise DataFileError(f"{path}: not an image that can be used: {reason(error)}") from error

    def _read(self, path: Path) -> np.ndarray:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, of at most {MOST_PIXELS}")
            if image.mode not in EIGHT_BITS:
                raise ValueError("more than 8 bits a channel")
            image.load()
            upright = ImageOps.exif_transpose(image)
            pixels = upright.convert(self.mode).resize((self.width, self.height), Image.Resampling.BILINEAR)
            return (np.asarray(pixels, dtype=np.float32) / np.float32(255)).reshape(self.shape)


@dataclass(frozen=True)
class ImageFolder(ShuffledExamples):
    """Images are opened when their batch is due, so that a folder may hold more than memory does."""

    path: Path
    inputs: Inputs
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for _ in self.read():
            pass

    def read(self) -> Sequence[Example]:
        """Raises DataFileError; an image that cannot be used does so when it is asked for."""
        try:
            self.inputs.check_one_label()
            frame, found = Frame.of(self.inputs), list(self._found())
        except (OSError, ValueError) as error:
            raise DataFileError(f"{self.path}: {reason(error)}") from error
        return Images(frame, found)

    def _found(self) -> Iterator[tuple[Path, int]]:
        if not self.path.is_dir():
            raise ValueError("no such folder")
        folders = [folder for folder in sorted(self.path.iterdir()) if not folder.name.startswith(".")]
        labelled = [(folder, self._label(folder)) for folder in folders]
        empty = True
        for folder, label in labelled:
            for path in sorted(folder.iterdir()):
                if not path.name.startswith("."):
                    empty = False
                    yield _image(path), label
        if empty:
            raise ValueError("holds no images; needs folders named by class, with images in them")

    def _label(self, folder: Path) -> int:
        if not folder.is_dir():
            raise DataFileError(f"{folder}: not a folder; images belong into folders named by class")
        try:
            label = label_number(folder.name, self.classes)
        except ValueError as error:
            raise DataFileError(f"{folder}: the name {reason(error)}") from error
        if not 0 <= label < self.inputs.classes:
            raise DataFileError(f"{folder}: classes of model {self.inputs.model!r} lie between 0 and {self.inputs.classes - 1}")
        return label


@dataclass(frozen=True)
class Images(Sequence[Example]):
    """Pairs of an image and its label, each read when it is asked for."""

    frame: Frame
    found: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Images: ...
    def __getitem__(self, place: int | slice) -> Example | Images:
        if isinstance(place, slice):
            return Images(self.frame, self.found[place])
        path, label = self.found[place]
        return self.frame.read(path), label


def _image(path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise DataFileError(f"{path}: not an image; allowed: {', '.join(SUFFIXES)}")
    return path


def image_examples(path: Path, spec: ModelSpec, classes: tuple[str, ...] | None = None) -> ImageFolder:
    """The examples of one device; raises DataFileError."""
    return ImageFolder(path, Inputs.of(spec), classes)
