"""Names of pictures, as `--plot` takes them: looked at before the work that the picture is of, and without matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fedrho.console import BadInput
from fedrho.places import looked_at

ENDINGS: Final = (".png", ".svg", ".pdf")


def kind_of(path: Path) -> str:
    """`png`, `svg` or `pdf`."""
    return path.suffix[1:].lower()


def check_picture(path: Path | None) -> Path | None:
    """Raises BadInput for what is no picture's name, or cannot be written; matplotlib would find out after all the work."""
    if path is None:
        return None
    if path.suffix.lower() not in ENDINGS:
        nearest = path.with_suffix(".svg") if path.stem.strip(".") else path / "plot.svg"
        raise BadInput(f"--plot: {str(path)!r} is no file name that ends in {', '.join(ENDINGS)}; nearest: {nearest}")
    with looked_at(f"--plot: {path}"):
        _check_place(path)
    return path


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise BadInput(f"--plot: {path} cannot be written (there is no folder {path.parent}); nearest: {path.name}")
    if path.is_dir():
        raise BadInput(f"--plot: {path} cannot be written (it is a folder); nearest: {path / 'plot.svg'}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"--plot: {path} cannot be written (permission denied); name another place")
