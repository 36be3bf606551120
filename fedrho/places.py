"""Files and folders that the command line names, in folders that nobody lets us enter: one line, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedrho.console import BadInput

ASK: Final = "ask its owner, or name another place"
OF_THE_MACHINE: Final = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
    )
)
"""Errors that a program cannot help, whatever it does. That a file is missing, or is there already, it has to find out itself."""


def advised(line: str) -> str:
    """With what to do, where a line ends with the system's own word for a place that is somebody else's."""
    return f"{line}; {ASK}" if line.endswith(f"({os.strerror(errno.EACCES)})") else line


@contextmanager
def looked_at(what: str, hint: str = ASK) -> Iterator[None]:
    """Raises BadInput where it is not even allowed to see what is there; `what` is as the command line says it."""
    try:
        yield
    except PermissionError as error:
        raise BadInput(f"{what}: not yours to look at ({error.strerror or error}); {hint}") from error


def check_folder(option: str, folder: Path) -> None:
    """Raises BadInput where no file could be written in `folder`, which need not be there yet; writes nothing."""
    what = f"{option} {folder}"
    with looked_at(what):
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not nearest.is_dir():
            raise BadInput(f"{what}: {'is' if nearest == folder else f'{nearest} is'} a file; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInput(f"{what}: cannot be written (permission denied in {nearest}); {ASK}")


def told(error: OSError) -> str | None:
    """In one line what a file system said of a file, when nobody closer to it did; None where it may be a defect of ours."""
    if error.errno not in OF_THE_MACHINE or error.filename is None:
        return None
    name = next((one for one in (error.filename, error.filename2) if isinstance(one, str | Path)), None)
    if name is None:  # a descriptor, or bytes
        return None
    hint = ASK if isinstance(error, PermissionError) else "name another place, or mend this one"
    return f"{name}: {error.strerror or error}; {hint}"
