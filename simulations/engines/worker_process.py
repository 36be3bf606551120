"""A worker of the engine `processes`: `python -P -m fedrho.simulations.engines.worker_process`, started by it and by nobody else.

    parent                                            this process
    Start                                ───▶         TensorFlow on one thread; opens the data, builds the model
                                         ◀───  Ready  or Failed, why
    Train (weights are in shared memory) ───▶         trains the unit, adds its sum to its own
                                         ◀───  Told
    HandOver                             ───▶         writes its own sum into shared memory, and holds nothing
                                         ◀───  HandedOver
    Measure                                 ───▶
                                         ◀───  Tested

It ends when its standard input does, whatever it is at: the other end is held by the parent, and closes however that ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from fedrho.models import lean
from fedrho.simulations.engines.base import Tested, Told
from fedrho.simulations.engines.dispatch import HandOver
from fedrho.simulations.engines.member import Failed, Member, one_line
from fedrho.simulations.engines.shared import Shared


@dataclass(frozen=True)
class Train:
    step: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    places: range


@dataclass(frozen=True)
class Ready:
    pass


@dataclass(frozen=True)
class HandedOver:
    """The sum lies in the shared memory: `pack`, to its last byte."""


Order = Train | HandOver | Measure
Reply = Ready | Told | HandedOver | Tested | Failed


def main() -> None:
    channel, weights, total = (int(number) for number in sys.argv[1:])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(Connection(channel), weights, total)
    except (EOFError, ConnectionError):
        os._exit(0)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


def _serve(channel: Connection, weights: int, total: int) -> None:
    start = channel.recv_bytes()
    lean.load()
    try:
        member = Member(pickle.loads(start))
    except Exception as error:
        channel.send(Failed(one_line(error)))
        return
    channel.send(Ready())
    shared, area = Shared.of_parent(weights).floats(), Shared.of_parent(total)
    while True:
        order: Order = channel.recv()
        if isinstance(order, HandOver):
            area.write(member.hand_over())
            channel.send(HandedOver())
        elif isinstance(order, Train):
            channel.send(member.train(order.step, shared, order.devices))
        else:
            channel.send(member.test(shared, order.places))


if __name__ == "__main__":
    # Pickles name the module, not the script: its classes have to be the same ones.
    from fedrho.simulations.engines import worker_process

    worker_process.main()
