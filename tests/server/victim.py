"""A server in a process of its own, so that its memory and descriptors can be watched: `python -m tests.server.victim`.

It says its address and run in one line, serves until its standard input ends, and then says what was counted and summed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedrho.server.allocator import Trimmer
from fedrho.server.interceptors import Cap
from fedrho.server.listen import ServerTls
from fedrho.server.ports import DevicePort
from tests.server.attacker import attacked_run, released_sum, served

TRIMMED_ABOVE = 16 * 2**20
"""Bytes of growth that are left where they are."""


@dataclass(frozen=True)
class Victim:
    """What can be seen of the process from outside."""

    process: subprocess.Popen[str]
    address: str
    run: bytes

    def megabytes(self) -> float:
        """Resident now."""
        return self._status("VmRSS") / 1024

    def peak_megabytes(self) -> float:
        return self._status("VmHWM") / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> tuple[dict[int, int], str]:
        """Stops it; what was in the sum, and all that it logged."""
        said, logged = self.process.communicate(timeout=30)
        *lines, last = said.splitlines()
        return dict(json.loads(last)["sum"]), "\n".join([*lines, logged])

    def _status(self, name: str) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[1])


@contextmanager
def victim(tls: Path | None = None, stall: float = 30.0, **port: float) -> Iterator[Victim]:
    """A served run of its own. `port` are fields of its DevicePort; `stall` is how long it waits for a message of an upload."""
    command = [sys.executable, "-m", "tests.server.victim", str(tls or ""), str(stall), json.dumps(port)]
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            yield Victim(process, first["address"], bytes.fromhex(first["run"]))
        finally:
            process.kill()


def credentials(tls: str) -> grpc.ServerCredentials | None:
    if not tls:
        return None
    certificate, key = Path(tls, "server", "server.crt"), Path(tls, "server", "server.key")
    return ServerTls(certificate.read_bytes(), key.read_bytes()).credentials()


async def serve(tls: str, stall: float, port: DevicePort) -> None:
    run = attacked_run(goal=1024, now=time.monotonic())
    caps = {"UploadUpdate": Cap(60.0, 256, read_seconds=stall)}
    Trimmer(seconds=0.5, growth=TRIMMED_ABOVE).start()  # as the product does, more often
    async with served(run, port, time.monotonic, caps, credentials(tls)) as address:
        print(json.dumps({"address": address, "run": run.run.hex()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"sum": list(released_sum(run, time.monotonic()).items())}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2]), DevicePort(**json.loads(sys.argv[3]))))
