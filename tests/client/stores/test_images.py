"""Folders of images: a class a folder, pictures as the model takes them, and one line for what is none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedrho.client.stores import images
from fedrho.client.stores.images import image_examples
from fedrho.models.base import ModelSpec
from tests.client.fleet import plan
from tests.client.stores.shelf import SPEC, contents, tried

COLOURED = ModelSpec("coloured", "", (4, 6, 3), 3, SPEC.build)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def said(folder: Path, spec: ModelSpec = COLOURED, classes: tuple[str, ...] | None = None) -> str:
    return tried(lambda: image_examples(folder, spec, classes))


def plain(colour: tuple[int, ...] = (255, 0, 51), size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, colour)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 6, 3), [1.0, 0.0, 0.2]),
        ((4, 6), [0.321568]),
        ((4, 6, 1), [0.321568]),
        ((4, 6, 4), [1.0, 0.0, 0.2, 1.0]),
        ((25,), [0.321568]),
    ],
)
@pytest.mark.parametrize("size", [(6, 4), (60, 40), (3, 2), (1, 1)])
def test_size_and_channels_are_those_of_the_model(
    shape: tuple[int, ...], expected: list[float], size: tuple[int, int], tmp_path: Path
) -> None:
    saved(tmp_path / "2" / "a.png", plain(size=size))
    spec = ModelSpec("m", "", shape, 3, SPEC.build)
    (batch,) = image_examples(tmp_path, spec).batches(plan())
    assert batch.features.shape == (1, *shape)
    assert np.allclose(batch.features.reshape(-1, len(expected)), expected, atol=1e-5)
    assert batch.labels.tolist() == [2]


@pytest.mark.parametrize("shape", [(), (5,), (4, 6, 2), (4, 6, 5), (2, 4, 6, 3)])
def test_model_that_takes_no_image_is_named(shape: tuple[int, ...], tmp_path: Path) -> None:
    saved(tmp_path / "2" / "a.png", plain())
    assert "model 'm' takes float32 of shape" in said(tmp_path, ModelSpec("m", "", shape, 3, SPEC.build))


def test_rows_are_rows(tmp_path: Path) -> None:
    levels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    saved(tmp_path / "0" / "a.png", Image.fromarray(levels))
    (batch,) = image_examples(tmp_path, ModelSpec("m", "", (4, 6), 1, SPEC.build)).batches(plan())
    assert np.array_equal(np.rint(batch.features[0] * 255), levels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_usual_kind_of_image_is_read(mode: str, tmp_path: Path) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    saved(tmp_path / "0" / f"a.{suffix}", plain((255, 255, 255)).convert(mode))
    ((label, pixels),) = contents(image_examples(tmp_path, COLOURED))
    assert label == 0
    assert min(pixels) > 0.98


def test_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image = plain((0, 0, 0), (4, 6))
    image.paste((255, 255, 255), (0, 0, 4, 3))  # the upper half
    saved(tmp_path / "0" / "a.jpg", image, exif=exif, quality=100)
    (batch,) = image_examples(tmp_path, ModelSpec("m", "", (4, 6), 1, SPEC.build)).batches(plan())
    assert (batch.features[0, :, 4:] > 0.9).all()
    assert (batch.features[0, :, :2] < 0.1).all()


def test_class_is_the_folders_number_or_the_place_of_its_name(tmp_path: Path) -> None:
    saved(tmp_path / "cat" / "a.png", plain())
    saved(tmp_path / "ape" / "b.png", plain())
    assert "cat: the name is none of the names" in said(tmp_path, classes=("ape", "bee", "cow"))
    assert sorted(label for label, _ in contents(image_examples(tmp_path, COLOURED, ("cat", "dog", "ape")))) == [0, 2]
    assert "the name is not a whole number" in said(tmp_path)


@pytest.mark.parametrize("name", ["3", "-1", "99999999999"])
def test_class_that_the_model_has_not_is_refused(name: str, tmp_path: Path) -> None:
    saved(tmp_path / name / "a.png", plain())
    assert f"{name}: classes of model 'coloured' lie between 0 and 2" in said(tmp_path)


def test_what_is_no_folder_of_images_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}: holds no images" in said(tmp_path)
    (tmp_path / "0").mkdir()
    assert f"{tmp_path}: holds no images" in said(tmp_path)
    (tmp_path / "0" / "notes.txt").write_text("mine")
    assert "notes.txt: not an image; allowed: .png, .jpg, .jpeg" in said(tmp_path)
    (tmp_path / "0" / "notes.txt").unlink()
    saved(tmp_path / "loose.png", plain())
    assert "loose.png: not a folder" in said(tmp_path)
    assert "gone: no such folder" in said(tmp_path / "gone")


def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    saved(tmp_path / "0" / "a.png", plain())
    (tmp_path / ".DS_Store").write_bytes(b"mine")
    (tmp_path / "0" / ".thumbs").write_bytes(b"mine")
    assert len(contents(image_examples(tmp_path, COLOURED))) == 1


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


BAD = {
    "empty": b"",
    "text": b"no image at all",
    "cut PNG": encoded("PNG")[:-200],
    "cut JPEG": encoded("JPEG")[:-200],
    "GIF by another name": encoded("GIF"),
    "TIFF by another name": encoded("TIFF"),
    "PNG of 40,000 x 40,000": png_of(40_000, 40_000),
    "PNG of 9,000 x 9,000": png_of(9_000, 9_000),
    "PNG of no size": png_of(0, 0),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_image_is_one_line_with_its_name(case: str, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(BAD[case])
    assert "a.png: not an image that can be used" in said(tmp_path)


def test_sixteen_bits_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    saved(tmp_path / "0" / "a.png", Image.fromarray(np.full((4, 6), 40_000, dtype=np.uint16)))
    assert "more than 8 bits a channel" in said(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    os.mkfifo(tmp_path / "0" / "a.png")
    assert "a.png: not a file" in said(tmp_path)


def test_images_are_opened_one_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        saved(tmp_path / "0" / f"{number}.png", plain())
    store = image_examples(tmp_path, COLOURED)
    opened: list[Path] = []
    real = images.Frame.read

    def read(frame: images.Frame, path: Path) -> np.ndarray:
        opened.append(path)
        return real(frame, path)

    monkeypatch.setattr(images.Frame, "read", read)
    batches = store.batches(plan(batch_size=2))
    next(batches)
    assert len(opened) == 2
    next(batches)
    assert len(opened) == 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_image_is_an_image_or_a_data_file_error(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(encoded(kind))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        whole[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
    (tmp_path / "0").mkdir(exist_ok=True)
    path = tmp_path / "0" / "a.png"
    path.write_bytes(whole)
    shown = said(tmp_path)
    assert not shown or shown.startswith(f"{path}: not an image that can be used")
