"""Training in a process of its own, which may crash, hang or eat memory without hurting the client.

    nothing ──first training──▶ a child, warm ──every training──▶ the same child ──failure, cancellation, idleness──▶ nothing

The child has limits and no network, no disk and no secrets of the environment (`confinement`). It is not trusted: an update is as
many bytes as the plan has weights, and finite, or training has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing import spawn
from typing import Any

import numpy as np

from fedrho.client.confinement import Guard, resident_bytes
from fedrho.client.examples import ExampleStore
from fedrho.client.participant import BadPlan, CannotTrain, TrainingFailed
from fedrho.client.training_child import HEADER, Frame
from fedrho.models.zoo import UnknownModel, lookup
from fedrho.privacy.vectors import FloatVector, InvalidVector, Update
from fedrho.protos.messages import RoundPlan

KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "SYSTEMROOT",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)
KEPT_PREFIXES = ("DYLD_", "PYTHON", "KERAS_", "TF_", "XLA_", "OMP_", "CUDA_", "NVIDIA_", "OPENBLAS_", "MKL_")
"""The environment that a child is given; nothing else of it is there."""

POLL_SECONDS = 0.1
LAST_SECONDS = 1.0
LONGEST_TEXT = 2000


@dataclass(frozen=True)
class TrainingLimits:
    """What one training may take. `memory_bytes` is all that its process holds, some 700 MB of TensorFlow included.

    `wall_seconds` holds for a training, and as many again for all that it waits for: the start of the process, and the model.
    After `idle_seconds` without a training the process ends, and the next one starts another. Raises ValueError.
    """

    memory_bytes: int = 4 << 30
    cpu_seconds: float = 1800.0
    wall_seconds: float = 900.0
    idle_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "cpu_seconds", "wall_seconds", "idle_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and above 0, not {getattr(self, name)}")


@dataclass(eq=False)
class _Child:
    """A running child. `ended_for` is why its parent has killed it, if it has."""

    process: asyncio.subprocess.Process
    held: frozenset[Guard] = frozenset()
    ended_for: str = ""

    def kill(self, reason: str = "") -> None:
        """With all that it has started; at once."""
        self.ended_for = self.ended_for or reason
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()

    async def ended(self, limits: TrainingLimits) -> str:
        """Why it does not answer any more; kills it if it lives."""
        try:
            await asyncio.wait_for(self.process.wait(), LAST_SECONDS)
        except TimeoutError:
            self.kill("closed its end of the pipe")
            await self.process.wait()
        code = self.process.returncode or 0
        if self.ended_for:
            return self.ended_for
        if code == -getattr(signal, "SIGXCPU", 0):
            return f"used more than {limits.cpu_seconds:g} s of processor time"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _Broken(Exception):
    """The child has gone, or says what it may not."""


@dataclass(eq=False)
class TrainingProcess:
    """Trains one device after another in one child, of one event loop; the child starts when it is first needed.

    A child that fails, or whose training is cancelled, is killed, and the next training has a new one.
    """

    limits: TrainingLimits = field(default_factory=TrainingLimits)
    _child: _Child | None = field(default=None, init=False, repr=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _idle: asyncio.TimerHandle | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return None if self._child is None else self._child.process.pid

    @property
    def held(self) -> frozenset[Guard]:
        """What keeps the child in its bounds here; empty while there is none."""
        return frozenset() if self._child is None else self._child.held

    async def train(self, plan: RoundPlan, weights: FloatVector, examples: ExampleStore) -> Update:
        """What local training changes.

        Raises BadPlan for a plan that nobody could train here, and CannotTrain where no child can be had, both before a child has
        seen an example; and TrainingFailed for everything that happens later. When it is cancelled, the child is dead before the
        cancellation goes on.
        """
        try:
            spec = lookup(plan.model)
            request = pickle.dumps((plan, spec, self.limits.cpu_seconds))
        except UnknownModel as error:
            raise BadPlan(str(error)) from error
        except Exception as error:
            raise BadPlan(f"model {plan.model!r}: its build function must be one of a module ({type(error).__name__})") from error
        async with self._turn:
            async with self._limited(CannotTrain):
                child = await self._prepared(request)
            async with self._limited(TrainingFailed):
                frames = {Frame.WEIGHTS: weights.astype("<f4").tobytes(), Frame.EXAMPLES: await _pickled(examples)}
                kind, answer = await self._exchange(child, frames, most=4 * plan.size)
                if kind == Frame.FAILED.value:
                    raise TrainingFailed(_one_line(answer))
                if kind != Frame.UPDATE.value or len(answer) != 4 * plan.size:
                    raise _Broken(f"sent {len(answer)} bytes as an update of {plan.size} weights")
                return _update(answer)

    async def warm(self) -> None:
        """Starts the child ahead of the first training, which waits for it; a failure shows then."""
        async with self._turn:
            with contextlib.suppress(CannotTrain):
                async with self._limited(CannotTrain):
                    await self._started()

    async def close(self) -> None:
        """Ends the child; a later training would start another."""
        self._stay_awake()
        if self._child is not None:
            child, self._child = self._child, None
            child.kill()
            await child.process.wait()

    @contextlib.asynccontextmanager
    async def _limited(self, failure: type[TrainingFailed | CannotTrain]) -> AsyncIterator[None]:
        """Something of a child in its time; afterwards the child is warm for the next, or dead if it broke or was stopped."""
        self._stay_awake()
        try:
            async with asyncio.timeout(self.limits.wall_seconds):
                yield
        except (TrainingFailed, BadPlan):
            raise
        except _Broken as error:
            await self.close()
            raise failure(f"the training process {error}") from error
        except TimeoutError as error:
            await self.close()
            raise failure(f"training took longer than {self.limits.wall_seconds:g} s") from error
        except BaseException:
            await self.close()
            raise
        finally:
            if self._child is not None:
                self._idle = asyncio.get_running_loop().call_later(self.limits.idle_seconds, self._forget)

    async def _prepared(self, request: bytes) -> _Child:
        """A child that has built the model and seen nothing yet of these examples; another, if the one that was warm has died."""
        warm = self._child is not None
        child = await self._started()
        try:
            kind, answer = await self._exchange(child, {Frame.PLAN: request})
        except _Broken:
            if not warm:
                raise
            await self.close()
            return await self._prepared(request)
        if kind == Frame.REFUSED.value:
            raise BadPlan(_one_line(answer))
        if kind != Frame.READY.value:
            raise _Broken("does not answer as it should")
        return child

    async def _started(self) -> _Child:
        """The child there is, or a new one that has loaded TensorFlow."""
        if self._child is not None and self._child.process.returncode is None:
            return self._child
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "fedrho.client.training_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        child = self._child = _Child(process)
        settings = {"parent": os.getpid(), "memory_bytes": self.limits.memory_bytes, "sys_path": sys.path, "main": _script()}
        kind, held = await self._exchange(child, {Frame.SETTINGS: json.dumps(settings).encode()})
        if kind != Frame.READY.value:
            raise _Broken("does not answer as it should")
        child.held = frozenset(Guard(name) for name in json.loads(held))
        return child

    async def _exchange(self, child: _Child, frames: dict[Frame, bytes], most: int = LONGEST_TEXT) -> tuple[int, bytes]:
        """Sends frames, and returns what kind of frame came back and what it holds; the child's memory is watched meanwhile."""
        watching = asyncio.create_task(self._watch(child))
        try:
            await _send(child, frames)
            return await _answer(child, max(most, LONGEST_TEXT))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _Broken(await child.ended(self.limits)) from error
        finally:
            watching.cancel()

    async def _watch(self, child: _Child) -> None:
        """Kills a child that holds too much memory; its own limit does not count everything."""
        while (held := resident_bytes(child.process.pid)) is not None:
            if held > self.limits.memory_bytes:
                return child.kill(f"held more than {self.limits.memory_bytes >> 20} MiB of memory")
            await asyncio.sleep(POLL_SECONDS)

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _forget(self) -> None:
        """Ends a child that nobody needs for now."""
        if self._child is not None and not self._turn.locked():
            self._child.kill()
            self._child = None


def environment() -> dict[str, str]:
    """What a child knows of this process's environment."""
    return {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}


async def _send(child: _Child, frames: dict[Frame, bytes]) -> None:
    assert child.process.stdin is not None
    for kind, data in frames.items():
        child.process.stdin.write(HEADER.pack(kind.value, len(data)))
        child.process.stdin.write(data)
        await child.process.stdin.drain()


async def _answer(child: _Child, most: int) -> tuple[int, bytes]:
    """One frame; a longer one than `most` is not even read."""
    assert child.process.stdout is not None
    kind, length = HEADER.unpack(await child.process.stdout.readexactly(HEADER.size))
    if length > most:
        raise _Broken(f"sent {length} bytes, where {most} are the most")
    return kind, await child.process.stdout.readexactly(length)


def _update(data: bytes) -> Update:
    try:
        return Update(np.frombuffer(data, dtype="<f4").astype(np.float32))
    except InvalidVector as error:
        raise _Broken("sent an update that is not finite") from error


async def _pickled(examples: ExampleStore) -> bytes:
    """Beside the event loop, for examples may be many; raises TrainingFailed."""
    try:
        return await asyncio.to_thread(pickle.dumps, examples, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TrainingFailed(f"the examples cannot be sent to the training process: {type(error).__name__}") from error


def _script() -> dict[str, Any]:
    """How a child finds what is defined in this process's own script, as `multiprocessing` does it."""
    known = spawn.get_preparation_data("training")
    return {name: known[name] for name in ("init_main_from_name", "init_main_from_path") if name in known}


def _one_line(text: bytes) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text.decode(errors="replace"))
