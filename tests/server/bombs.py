"""Four gzip bombs at once: `python -m tests.server.bombs ADDRESS MEGABYTES`.

A process of its own, because making them holds the interpreter for seconds, and nobody else in it would be heard. Exits 0 when
all were refused unread.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc

from fedrho.server.ports import MIB
from tests.server.attacker import path


def throw(address: str, megabytes: int) -> None:
    """Raises CalledProcessError when one of them was answered otherwise."""
    command = [sys.executable, "-m", "tests.server.bombs", address, str(megabytes)]
    subprocess.run(command, cwd=Path(__file__).parents[2], timeout=100, check=True)


def main(address: str, megabytes: int) -> None:
    with grpc.insecure_channel(address) as channel:
        call, bomb = channel.unary_unary(path("CheckIn")), bytes(megabytes * MIB)
        bombs = [call.future(bomb, timeout=60, compression=grpc.Compression.Gzip) for _ in range(4)]
        assert {each.code() for each in bombs} == {grpc.StatusCode.UNIMPLEMENTED}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
