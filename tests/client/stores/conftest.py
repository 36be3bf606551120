"""For all tests of stores: a file that was opened is closed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_file_is_left_open(tmp_path: Path) -> Iterator[None]:
    """Looked at where the system tells; waiting for the garbage collector to warn would take half a second each."""
    yield
    folder = Path("/proc/self/fd")
    if folder.is_dir():
        held = [os.readlink(link) for link in folder.iterdir() if link.is_symlink()]
        assert not [path for path in held if path.startswith(str(tmp_path))]
