"""The training process itself: `python -P -m fedrho.client.training_child`, started by `TrainingProcess` and by nobody else.

    parent                                       this process
    settings                        ───▶         guards, TensorFlow, more guards
                                    ◀───  READY  which guards hold
    plan, model, processor time     ───▶         builds the model; it has no example yet
                                    ◀───  READY  or REFUSED, why
    weights, examples               ───▶         trains
                                    ◀───  UPDATE 4 * size bytes, or FAILED, why

A frame is one byte that says what it is, eight bytes with its length, and that many bytes. What comes from the parent is
believed; what goes to it is bytes and text, which it checks.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from enum import Enum
from functools import partial
from multiprocessing import spawn
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fedrho.client.confinement import confine, confine_early, limit_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedrho.client.examples import ExampleStore
    from fedrho.client.trainer import LocalTrainer
    from fedrho.models.base import ModelSpec
    from fedrho.privacy.vectors import FloatVector
    from fedrho.protos.messages import RoundPlan

HEADER = struct.Struct("<BQ")
LONGEST_REASON = 400
"""Characters."""


class Frame(Enum):
    """What a frame holds."""

    SETTINGS = 1
    PLAN = 2
    WEIGHTS = 3
    EXAMPLES = 4
    READY = 5
    REFUSED = 6
    UPDATE = 7
    FAILED = 8


def main() -> None:
    requests, replies = _pipes()
    settings = json.loads(_read(requests)[1])
    held = confine_early(settings["parent"])
    sys.path[:] = settings["sys_path"]
    from fedrho.models import lean

    lean.load()
    from fedrho.client.trainer import LocalTrainer

    held += confine(settings["memory_bytes"])
    _write(replies, Frame.READY, json.dumps([guard.value for guard in held]).encode())
    _serve(LocalTrainer(), settings["main"], requests, replies)


def _serve(trainer: LocalTrainer, script: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    """One training after another. A plan may be followed by another one, where its examples could not be sent."""
    plan: RoundPlan
    while True:
        kind, data = _read(requests)
        if kind is Frame.PLAN:
            plan, spec, cpu_seconds = _unpickled(data, script)
            limit_cpu(cpu_seconds)
            _write(replies, *_prepared(trainer, plan, spec))
        elif kind is Frame.WEIGHTS:
            weights = np.frombuffer(data, dtype="<f4").astype(np.float32)
            _, examples = _read(requests)
            _train(trainer, plan, weights, partial(_unpickled, examples, script), replies)


def _prepared(trainer: LocalTrainer, plan: RoundPlan, spec: ModelSpec) -> tuple[Frame, bytes]:
    from fedrho.client.participant import BadPlan

    try:
        trainer.prepare(plan, spec)
    except BadPlan as error:
        return Frame.REFUSED, _text(str(error))
    return Frame.READY, b""


def _train(
    trainer: LocalTrainer, plan: RoundPlan, weights: FloatVector, examples: Callable[[], ExampleStore], replies: BinaryIO
) -> None:
    """What is no ordinary exception, or has eaten all memory, ends the process, after it has said so."""
    from fedrho.client.examples import described
    from fedrho.client.participant import TrainingFailed

    try:
        update = trainer.train(plan, weights, examples())
    except TrainingFailed as error:
        _write(replies, Frame.FAILED, _text(str(error)))
        if isinstance(error.__cause__, MemoryError):
            os._exit(1)
    except BaseException as error:
        _write(replies, Frame.FAILED, _text(f"training raised {described(error)}"))
        if not isinstance(error, Exception):
            os._exit(1)
    else:
        _write(replies, Frame.UPDATE, update.vector.astype("<f4").tobytes())


def _unpickled(pickled: bytes, script: dict[str, Any]) -> Any:
    """Classes of the parent's own script are found by running it as a module, once, and only where one is needed."""
    if script and b"__main__" in pickled:
        spawn.prepare(script)
        script.clear()
    return pickle.loads(pickled)


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output, out of the reach of whoever prints or reads."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    return requests, replies


def _read(requests: BinaryIO) -> tuple[Frame, bytes]:
    """Ends the process when the parent has closed its end."""
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        os._exit(0)
    kind, length = HEADER.unpack(header)
    data = requests.read(length)
    if len(data) < length:
        os._exit(0)
    return Frame(kind), data


def _text(reason: str) -> bytes:
    return reason[:LONGEST_REASON].encode(errors="replace")


def _write(replies: BinaryIO, kind: Frame, data: bytes) -> None:
    replies.write(HEADER.pack(kind.value, len(data)))
    replies.write(data)
    replies.flush()


if __name__ == "__main__":
    main()
