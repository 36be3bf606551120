"""The weights that a run begins with: those of the fresh model, or of a file that the task names.

    start = "weights.npz"                                      in a task file, a path that begins beside it
    start = "weights.npz sha256:8d96…"                         the same, and no other file of that name
           what a checked task has: the file's name, and its digest

The file is one of `fedrho export` (`models/weights_file.py`). It is read once, when the run begins; from then on the store has
the weights, and a file that was named with its digest may be gone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedrho.models.saved import PREFIX as SAVED
from fedrho.models.saved import is_saved
from fedrho.privacy.vectors import FloatVector

if TYPE_CHECKING:
    from fedrho.models.flat import FlatModel
    from fedrho.server.tasks import TaskFile

NAMED: Final = re.compile(r"(?P<name>.*\S) +sha256:(?P<digest>[0-9a-f]{64})", re.DOTALL)
SUFFIXES: Final = (".keras", ".npz", ".safetensors")
SETTINGS: Final = "the settings of the task"
"""As claims call them; a study whose vocabulary the devices' words chose has to make an exception."""


class StartError(ValueError):
    """Weights that a run cannot begin with: the file and the reason, in one line."""


@dataclass(frozen=True)
class Start:
    """A file of weights, by its name and the SHA-256 of its content in hex."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} sha256:{self.sha256}"

    def matches(self, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self.sha256


def start_of(file: TaskFile) -> Start | None:
    """What a checked task begins with; None where that is the fresh model. Raises StartError for a file without its digest."""
    if file.start is None:
        return None
    found = NAMED.fullmatch(file.start)
    if found is None:
        raise StartError(f"{file.start!r} has no digest; say NAME sha256:HEX, or give the task as a file")
    return Start(found["name"], found["digest"])


def found_start(text: str, folder: Path) -> tuple[Start, Path]:
    """Of a key in a task file in `folder`: the name and the digest, and where the file is; raises StartError.

    A missing file is none to begin with, but its run may have begun long ago: where it has its digest, it is missed only later.
    """
    named = NAMED.fullmatch(text)
    path = folder / (named["name"] if named else text)
    if path.suffix not in SUFFIXES:
        raise StartError(f"{path}: allowed: a file that `fedrho export` wrote, {', '.join(SUFFIXES)}")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        if named and not path.exists():
            return Start(path.name, named["digest"]), path
        raise StartError(f"{path}: cannot be read ({error.strerror or error})") from error
    if named and named["digest"] != digest:
        raise StartError(f"{path}: its SHA-256 is {digest}, not {named['digest']}: it is another file by now")
    return Start(path.name, digest), path


def begun_with(model: FlatModel, start: Start | None, path: Path | None) -> FloatVector:
    """Where a run begins: the fresh model's weights, or those of the file.

    Raises StartError for a file that is damaged or has changed, and for weights that are not finite or of another layout, where
    it names the first that differs.
    """
    from fedrho.models.weights_file import WeightsFileError, weights_in

    if start is None:
        return model.weights()
    if path is None:
        raise StartError(f"{start.name} is known by its name alone; give the task as a file, beside its weights")
    try:
        content = path.read_bytes()
        if not start.matches(content):
            raise StartError(f"{path}: was changed since the task was read")
        return weights_in(content, path).flat(model)
    except OSError as error:
        raise StartError(f"{path}: cannot be read ({error.strerror or error})") from error
    except WeightsFileError as error:
        raise StartError(str(error)) from error


def starting_assumption(file: TaskFile) -> str:
    """What a claim about the run says of its beginning. Nobody knows here what such a file tells of these devices."""
    files = _brought(file)
    if not files:
        return f"neither the starting weights nor {SETTINGS} were chosen with these devices' data"
    return (
        f"the run started from {' and from '.join(files)}, and this is about what its steps tell beyond them: what those weights "
        "tell of these devices is not included, and a privacy statement that came with the file is a separate one; "
        f"{SETTINGS} were not chosen with these devices' data"
    )


def brings_weights(file: TaskFile) -> bool:
    """Whether some of what the run begins with was made elsewhere."""
    return bool(_brought(file))


def _brought(file: TaskFile) -> list[str]:
    """The files that the run begins with, which may be of these devices' data."""
    start, found = start_of(file), []
    if start is not None:
        found.append(f"the weights of file {start.name!r} with SHA-256 {start.sha256}")
    if is_saved(file.model):
        digest = file.model.removeprefix(SAVED)
        found.append(f"all weights of the saved model, frozen ones too, whose file's SHA-256 begins with {digest}")
    return found
