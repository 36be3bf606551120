"""Checkpoints of a simulation: `checkpoints/step-000010/` with the state as safetensors and JSON, and the digests of both.

A checkpoint gets its name when it is whole and on the disk. One that is damaged all the same is known by its digests, and the
one before is used. Which ones are left at the end depends on the study alone: those at its regular steps, the last few of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrho.simulations.files import SCRATCH, sync_folder, write_through
from fedrho.simulations.state import State

FORMAT = 1
ARRAYS, VALUES, DIGESTS = "state.safetensors", "state.json", "SHA256SUMS"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after a step, and what had been written by then: the length and SHA-256 of `metrics.jsonl`.

    `study` is the SHA-256 of the study that it belongs to.
    """

    state: State
    study: str
    metrics_bytes: int
    metrics_sha256: str

    @property
    def step(self) -> int:
        return self.state.step


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Raises OSError where the disk will not have it; the checkpoints that were there before are not touched."""
    final = _path(folder, checkpoint.step)
    scratch = folder / f".{final.name}{SCRATCH}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        files = _files(checkpoint)
        for name, content in files.items():
            write_through(scratch / name, content)
        sync_folder(scratch)
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_folder(folder)


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    from safetensors.numpy import save

    values = {
        "format": FORMAT,
        "step": checkpoint.step,
        "study_sha256": checkpoint.study,
        "metrics_bytes": checkpoint.metrics_bytes,
        "metrics_sha256": checkpoint.metrics_sha256,
        "state": dict(checkpoint.state.values),
    }
    files = {ARRAYS: save(dict(checkpoint.state.arrays)), VALUES: json.dumps(values, indent=1).encode() + b"\n"}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return {**files, DIGESTS: sums.encode()}


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes on the disk."""
    return sum(len(content) for content in _files(checkpoint).values())


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that are there, whole or not, in order."""
    found = (path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name) for name in found if name.isdigit())


def whole(folder: Path) -> Iterator[Checkpoint]:
    """Those that can be used, the latest first."""
    for step in reversed(steps(folder)):
        checkpoint = read(folder, step)
        if checkpoint is not None:
            yield checkpoint


def read(folder: Path, step: int) -> Checkpoint | None:
    """None where a file is missing or is not what was written."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = _path(folder, step)
    try:
        files = {name: (path / name).read_bytes() for name in (ARRAYS, VALUES)}
        lines = (path / DIGESTS).read_text(encoding="ascii").splitlines()
        digests = {name: digest for digest, name in (line.split("  ") for line in lines)}
        if any(hashlib.sha256(content).hexdigest() != digests[name] for name, content in files.items()):
            return None
        values: dict[str, Any] = json.loads(files[VALUES])
        if values["format"] != FORMAT or values["step"] != step:
            return None
        state = State(values["state"], load(files[ARRAYS]))
        return Checkpoint(state, values["study_sha256"], values["metrics_bytes"], values["metrics_sha256"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def forget(folder: Path, after: int) -> None:
    """Removes what comes after a step: damaged checkpoints, and those of metrics that are gone."""
    for step in steps(folder):
        if step > after:
            shutil.rmtree(_path(folder, step))


def prune(folder: Path, every: int, last: int, keep: int) -> None:
    """Leaves the last `keep` of the regular ones, and none in between that a stop made; one that is the latest stays."""
    there = steps(folder)
    regular = [step for step in there if step % every == 0 or step == last]
    stay = {*regular[-keep:], there[-1]}
    for step in there:
        if step not in stay:
            shutil.rmtree(_path(folder, step))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"
