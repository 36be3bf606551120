"""Nothing of a single device is left anywhere: every byte that a real run leaves behind is searched, while it runs and after.

The server is the real command, with TLS, device tokens, a window of tags, metrics and logs, with shards and without. Devices
connect from an address of their own, through a proxy, so that it can be looked for.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.app import prover
from fedrho.client.spec import SpecReader
from fedrho.client.transport import GrpcWire
from fedrho.key_making import make_keys
from fedrho.keys import client_tls, device_token
from fedrho.protos import codec
from fedrho.protos.messages import (
    Assignment,
    BeginUpload,
    CheckIn,
    DeviceProof,
    Encoding,
    Go,
    SessionStatus,
    Upload,
    Willing,
)

SIZE = 650
GOAL = 3
DEVICE_ADDRESS = "127.0.0.77"
TASK = f"""
name = "retained"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 2
population = 1000
[round]
goal = {GOAL}
overselect = 2.0
deadline_seconds = 60
retry_seconds = [0.1, 0.2]
[privacy]
clip_norm = 1.0
rho = 1.0
delta = 1e-4
[participation]
max_times = 1
server_window = true
"""


@dataclass
class Secrets:
    """What must not be found, by what it is."""

    known: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, value: bytes) -> None:
        """Also as text, as hexadecimal digits and in base64."""
        self.known[name] = value
        if len(value) >= 16:
            self.known[f"{name}, in hexadecimal"] = value.hex().encode()
            self.known[f"{name}, in base64"] = base64.b64encode(value[: len(value) // 3 * 3])

    def add_vector(self, name: str, vector: np.ndarray) -> None:
        """Windows of it, as the wire and as the sums write it, and as weights would."""
        for width in ("<i4", "<i8", "<f4", "<f8"):
            data = vector.astype(width).tobytes()
            for place in (0, len(data) // 2, len(data) - 64):
                self.known[f"{name} as {width} at {place}"] = data[place : place + 64]

    def found_in(self, data: bytes) -> list[str]:
        return [name for name, value in self.known.items() if value in data]


@contextmanager
def server(folder: Path, port: int, metrics: int, shards: int) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "task.toml").write_text(TASK)
    options = ["--store", "store", "--port", str(port), "--tls", "keys", "--require-device-token", "--shards", str(shards)]
    options += ["--metrics-port", str(metrics), "--log-format", "json", "--log-file", "server.log"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedrho", "serve", "task.toml", *options],
            cwd=folder,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), "GRPC_VERBOSITY": "INFO"},
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@asynccontextmanager
async def proxied(target: int) -> AsyncIterator[int]:
    """A port whose connections come out at `target` from DEVICE_ADDRESS."""

    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", target, local_addr=(DEVICE_ADDRESS, 0))
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(pump(reader, here))
                both.create_task(pump(there, writer))
        finally:
            for one in (here, writer):
                one.close()
                with suppress(OSError):
                    await one.wait_closed()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(asyncio.create_task(relay(reader, writer)))

    proxy = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        for one in relays:
            one.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError("one side has gone")  # ends the other direction, too


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def left_behind(folder: Path, metrics: int | None) -> bytes:
    """Every file but the keys that this test made itself, and what Prometheus is told."""
    files = [path for path in folder.rglob("*") if path.is_file() and "keys" not in path.relative_to(folder).parts]
    data = b"\0".join(path.read_bytes() for path in files if not path.is_socket())
    if metrics is not None:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
            data += answer.read()
    return data


@dataclass
class Search:
    folder: Path
    metrics: int
    secrets: Secrets = field(default_factory=Secrets)
    counted: int = 0

    def nothing_is_found(self, running: bool = True) -> None:
        data = left_behind(self.folder, self.metrics if running else None)
        assert b"retained" in data, "the search looks at the wrong place"
        assert self.secrets.found_in(data) == []

    async def device(self, number: int, address: str) -> None:
        """Takes part once; all that it shows or sends is secret from then on."""
        token = device_token(self.folder / "keys" / "devices" / f"{number:04d}.token")
        wire = GrpcWire(address, client_tls(self.folder / "keys"))
        known = await SpecReader(wire.population, lambda key, epoch: None, time.monotonic).read()
        tag, request = os.urandom(16), os.urandom(16)
        unproved = CheckIn(request, (Willing(known.spec.tasks[0].run, tag),))
        proof = prover(token.key, token.credential)(known, unproved)
        answer = await wire.check_in(CheckIn(request, unproved.willing, proof))
        assert isinstance(answer, Assignment)
        self._keep(number, proof, answer, tag, request, token.key.public)
        shard = wire.to(answer.upload_address)
        assert (await shard.begin_upload(BeginUpload(answer.session, answer.ticket))).answer is Go.GO
        receipt = await shard.upload(Upload(answer.session, self._vector(number, answer.plan.encoding)), answer.plan)
        assert receipt.status is SessionStatus.COUNTED
        self.counted += 1
        await wire.close()

    def _keep(self, number: int, proof: DeviceProof, answer: Assignment, tag: bytes, request: bytes, key: bytes) -> None:
        parts = {
            "credential": proof.credential,
            "signature": proof.signature,
            "key": key,
            "session": answer.session,
            "ticket": answer.ticket,
            "tag": tag,
            "request": request,
        }
        for name, value in parts.items():
            self.secrets.add(f"{name} of device {number}", value)

    def _vector(self, number: int, encoding: Encoding) -> np.ndarray:
        """Random, and the sum so far with it; small enough for the radius 2**20."""
        vector = np.random.default_rng(number).integers(1000, 30_000, SIZE).astype(np.int32)
        self.secrets.add_vector(f"update {number}", vector)
        self.secrets.add("payload", codec.encode_vector(vector, encoding)[:96])
        self._sum = vector.astype(np.int64) + (self._sum if self.counted % GOAL else 0)
        self.secrets.add_vector(f"sum with {number}", self._sum)
        return vector

    _sum: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, dtype=np.int64))


@pytest.mark.slow
@pytest.mark.parametrize("shards", [0, 2])
def test_no_byte_of_a_device_is_left_behind(shards: int, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    make_keys(tmp_path / "keys", ["localhost", "127.0.0.1"], 2, 2 * GOAL)
    port, metrics = free_port(), free_port()
    search = Search(tmp_path, metrics)
    search.secrets.add("device address", DEVICE_ADDRESS.encode())
    search.secrets.add("device address, packed", socket.inet_aton(DEVICE_ADDRESS))

    async def run(process: subprocess.Popen[bytes]) -> None:
        async with proxied(port) as entrance:
            address = f"127.0.0.1:{entrance}"
            await answering(tmp_path, process)
            for number in range(2 * GOAL):
                await search.device(number, address)
                search.nothing_is_found()
                if number == GOAL - 1:
                    await released(tmp_path, 1)
                    search.nothing_is_found()
            await released(tmp_path, 2)

    with server(tmp_path, port, metrics, shards) as process:
        asyncio.run(run(process))
    search.nothing_is_found(running=False)


async def answering(folder: Path, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(60):
        while b"listening on" not in (folder / "output").read_bytes():
            assert process.poll() is None, (folder / "output").read_text()
            await asyncio.sleep(0.1)


async def released(folder: Path, step: int) -> None:
    async with asyncio.timeout(30):
        while f'"step": {step}, ' not in (folder / "server.log").read_text().replace('"steps"', ""):
            await asyncio.sleep(0.1)


def test_the_search_finds_what_is_planted() -> None:
    secrets, vector = Secrets(), np.arange(1, SIZE + 1)
    secrets.add("session", bytes(range(16)))
    secrets.add_vector("update", vector)
    for planted in (bytes(range(16)), bytes(range(16)).hex().encode(), *(vector.astype(w).tobytes() for w in ("<i4", "<i8"))):
        assert secrets.found_in(b"before" + planted + b"after")
    assert secrets.found_in(b"nothing") == []
