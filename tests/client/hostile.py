"""Examples that do in the training process what no examples should; they come to it by name, so they have a module."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrho.client.examples import Batch
from fedrho.protos.messages import RoundPlan

SECRET = "the-diagnosis-of-a-patient"


@dataclass(frozen=True)
class Does:
    """Runs `what` when its batches are asked for, and then gives none."""

    what: Callable[..., object]
    arguments: tuple[object, ...] = ()

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        self.what(*self.arguments)
        return iter(())


class Unpicklable:
    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        return iter(())

    def __reduce__(self) -> str:
        raise ValueError(SECRET)


def exits() -> None:
    os._exit(3)


def is_killed() -> None:
    os.kill(os.getpid(), 9)


def segfaults() -> None:
    ctypes.string_at(0)


def asks_to_exit() -> None:
    raise SystemExit(SECRET)


def raises() -> None:
    raise ValueError(SECRET)


def runs_in_circles() -> None:
    runs_in_circles()


def computes() -> None:
    while True:
        pass


def sleeps() -> None:
    time.sleep(1000)


def eats() -> None:
    held = []
    while True:
        held.append(np.ones(1 << 20))


def eats_shared_memory() -> None:
    """Which no limit of the process counts."""
    held = mmap.mmap(-1, 8 << 30)
    for place in range(0, 8 << 30, 4096):
        held[place] = 1


def connects(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=2.0)


def connects_natively(port: int) -> None:
    """Past Python: only the system can refuse it. Raises ConnectionError when it was not let through."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.socket(2, 1, 0)
    address = (2).to_bytes(2, sys.byteorder) + port.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
    if libc.connect(handle, address, 16) != 0:
        raise ConnectionError
    libc.send(handle, SECRET.encode(), len(SECRET), 0)


def writes(path: Path) -> None:
    path.write_text(SECRET)


def keeps_an_attribute(path: Path) -> None:
    os.setxattr(path, "user.example", b"3 4 5")


def logs(path: Path) -> None:
    import syslog

    syslog.syslog(f"{path}: 3 4 5")


def signals_the_client(path: Path) -> None:
    os.kill(os.getppid(), 0)


def writes_natively(path: Path) -> None:
    """Past Python: only the system can refuse it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(str(path).encode(), b"w")
    written = libc.fputs(SECRET.encode(), ctypes.c_void_p(file))
    if written < 0 or libc.fflush(ctypes.c_void_p(file)) != 0:
        raise OSError


def starts_a_process() -> None:
    subprocess.run([sys.executable, "-c", ""], check=False)


def answers(data: bytes) -> None:
    """Writes to the pipe to the parent, as if training had."""
    for handle in range(3, 20):
        try:
            if os.readlink(f"/proc/self/fd/{handle}").startswith("pipe:"):
                os.write(handle, data)
        except OSError:
            continue
    time.sleep(1000)


def looks_at_environment(unwanted: str) -> None:
    """Ends with code 4 when a variable of the parent's is there, in Python or in the process's first memory."""
    with open("/proc/self/environ", "rb") as file:
        if unwanted in os.environ or unwanted.encode() in file.read():
            os._exit(4)


def needs_what_keras_left_out() -> None:
    """Ends with code 4 when it is there already."""
    if "sklearn" in sys.modules or "matplotlib" in sys.modules:
        os._exit(4)
    importlib.import_module("sklearn.preprocessing")
    importlib.import_module("matplotlib.pyplot")


def prints() -> None:
    print(SECRET, flush=True)
    print(SECRET, file=sys.stderr, flush=True)
    os.write(1, SECRET.encode())
    os.write(2, SECRET.encode())
