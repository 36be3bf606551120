"""Which store this user's latest run was in, so that `fedrho status` needs no argument."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import typer

POINTER = "latest-store"


def remember(store: Path) -> None:
    """Best effort: a read-only home folder is no reason to fail."""
    with suppress(OSError):
        folder = Path(typer.get_app_dir("fedrho"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / POINTER).write_text(str(store), encoding="utf-8")


def latest() -> Path | None:
    with suppress(OSError, UnicodeDecodeError):
        store = Path((Path(typer.get_app_dir("fedrho")) / POINTER).read_text(encoding="utf-8"))
        return store if store.is_dir() else None
    return None
