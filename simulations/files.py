"""Files that appear whole or not at all, whatever happens meanwhile; nothing here says what is in them."""

from __future__ import annotations

import os
from pathlib import Path

SCRATCH = ".new"


def write_whole(path: Path, content: bytes) -> None:
    """`content` under `path`, on the disk before it has that name; raises OSError, and then the file is what it was."""
    scratch = path.with_name(f".{path.name}{SCRATCH}")
    try:
        write_through(scratch, content)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_through(path: Path, content: bytes) -> None:
    """A new file, on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_scratch(path: Path) -> bool:
    """Whether it is what a process left behind that ended while it wrote."""
    return path.name.startswith(".") and path.name.endswith(SCRATCH)
