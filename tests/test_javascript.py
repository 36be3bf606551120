"""A device in another language: tests/javascript against real servers, as docs/protocol.md describes it."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.client.app import Server, run_devices
from fedrho.client.examples import ArrayExamples
from fedrho.client.participant import Result
from fedrho.client.trainer import LocalTrainer
from fedrho.key_making import make_keys
from fedrho.keys import issuer_key, server_tls
from fedrho.privacy.clipping import clip
from fedrho.protos import codec, signing
from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m
from fedrho.protos.messages import Encoding, RoundPlan
from fedrho.protos.signing import SigningKey
from fedrho.server.guard import device_handlers
from fedrho.server.listen import ServerTls
from fedrho.server.ports import device_server
from fedrho.server.service import DeviceService
from fedrho.server.tasks import parse_task
from fedrho.server.uploads import UploadService
from tests.client import fleet
from tests.client.serving import answering, listening
from tests.models.reference import made_up
from tests.server.one_run import SIGNER, OneRun, open_one_run
from tests.server.operating import until

pytestmark = pytest.mark.slow  # its libraries come from the registry of npm

FOLDER = Path(__file__).with_name("javascript")
PROTO = Path(__file__).parents[1] / "protos" / "fedrho.proto"
NO_NETWORK = re.compile(r"code (E?AI_AGAIN|ENOTFOUND|ECONN\w+|ENET\w+|EHOST\w+|ETIMEDOUT|ERR_SOCKET\w*|E401|E403|E407|E5\d\d)\b")
TASK = """
name = "small"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = {steps}
population = 1000
[round]
goal = {goal}
overselect = {overselect}
deadline_seconds = 100
lease_seconds = 10
retry_seconds = [0.125, 0.25]
[privacy]
clip_norm = 0.5
rho = 1e15   # noise of at most 0.04 grid units, which is zero: what is released is the sum itself
delta = 1e-9
grid_bits = {grid_bits}
[participation]
max_times = {max_times}
min_separation = {min_separation}
server_window = {window}
[local]
epochs = 3
batch_size = 64
learning_rate = {learning_rate}
"""
EXAMPLES = 12
"""Of each device: one batch, so that the order in which a device takes them is nobody's concern."""


def installed() -> None:
    """The libraries of package-lock.json, once for all workers; skips where this machine cannot have them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node or no npm on this machine")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < 18:
        pytest.skip(f"node {version.strip()} is older than 18")
    with (FOLDER / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark, wanted = FOLDER / "node_modules" / ".installed", hashlib.sha256(lock.read()).hexdigest()
        if mark.is_file() and mark.read_text() == wanted:
            return
        command = [
            "npm",
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--fetch-retries=1",
            "--fetch-retry-mintimeout=1000",
        ]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300)
        if done.returncode and NO_NETWORK.search(done.stderr):
            pytest.skip("the registry of npm is out of reach")
        assert done.returncode == 0, done.stderr
        mark.write_text(wanted)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    installed()


def task_text(
    steps: int = 2,
    goal: int = 1,
    overselect: float = 2.0,
    grid_bits: int = 20,
    max_times: int = 2,
    min_separation: int = 1,
    window: bool = False,
    learning_rate: float = 0.05,
) -> str:
    """A task of softmax regression."""
    return TASK.format_map({**locals(), "window": str(window).lower()})


def run_of(issuer: bytes | None = None, **changes: Any) -> OneRun:
    """A run of it, from zero weights."""
    task = parse_task(task_text(**changes), "small.toml")
    return open_one_run(task, size=fleet.SIZE, now=time.monotonic(), issuer=issuer)


Methods = dict[str, grpc.RpcMethodHandler]
Lie = Callable[[Methods], Methods]


@asynccontextmanager
async def port(served: OneRun, lie: Lie = dict, tls: ServerTls | None = None) -> AsyncIterator[str]:
    """The address of a device port with all its limits. `lie` puts methods in the place of honest ones."""
    service, uploads = (
        DeviceService(served.population, time.monotonic, lambda _: None),
        UploadService(served.shard, time.monotonic),
    )
    honest = {**service.methods(), **uploads.methods()}
    server = device_server(60.0)
    place = "localhost:0"
    number = server.add_secure_port(place, tls.credentials()) if tls else server.add_insecure_port(place)
    server.add_generic_rpc_handlers((device_handlers({**honest, **lie(honest)}),))
    await server.start()
    rounds = asyncio.create_task(service.run_rounds(asyncio.Event()))
    try:
        yield f"localhost:{number}"
    finally:
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
        await server.stop(grace=None)


def unary(name: str, answer: Callable[[bytes, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]) -> Lie:
    """`answer`, given the request and the honest method for it, in the place of a method with one request and one answer."""

    def lie(honest: Methods) -> Methods:
        async def behave(request: bytes, context: Any) -> bytes:
            return await answer(request, lambda: honest[name].unary_unary(request, context))

        return {name: grpc.unary_unary_rpc_method_handler(behave)}

    return lie


def uploads(answer: Callable[[AsyncIterator[bytes], Any, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]) -> Lie:
    """The same in the place of `UploadUpdate`, which also gets the call's context."""

    def lie(honest: Methods) -> Methods:
        async def behave(parts: AsyncIterator[bytes], context: Any) -> bytes:
            return await answer(parts, context, lambda: honest["UploadUpdate"].stream_unary(parts, context))

        return {"UploadUpdate": grpc.stream_unary_rpc_method_handler(behave)}

    return lie


def planning(**changes: Any) -> Lie:
    """Plans that are not what the spec announces."""

    async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        assignment = codec.decode_answer(await honest())
        assert isinstance(assignment, m.Assignment)
        return codec.encode_answer(replace(assignment, plan=replace(assignment.plan, **changes)))

    return unary("CheckIn", answer)


@dataclass(frozen=True)
class Device:
    """A device in JavaScript, in a folder of its own, with examples of its own."""

    folder: Path
    seed: int = 0

    async def visit(self, address: str, **settings: Any) -> dict[str, Any]:
        """How its visit ended."""
        code, out, err = await self.run(address, **settings)
        assert (code, err) == (0, ""), err
        ended: dict[str, Any] = json.loads(out)
        return ended

    async def refuse(self, address: str, **settings: Any) -> str:
        """What it says of a server that it has nothing to do with."""
        code, out, err = await self.run(address, **settings)
        assert (code, out) == (1, "")
        assert err.startswith("device: ")
        assert err.count("\n") == 1
        return err

    async def run(self, address: str, **settings: Any) -> tuple[int | None, str, str]:
        process = await self.start(address, **settings)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()

    async def start(
        self, address: str, scale: float = 1.0, require: str | None = None, **settings: Any
    ) -> asyncio.subprocess.Process:
        """With examples `scale` times as large; `require` is a program that runs before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        features, labels = made_up(EXAMPLES, self.seed)
        scaled = (features * np.float64(scale)).tolist()
        rows = [{"features": x, "label": y} for x, y in zip(scaled, labels.tolist(), strict=True)]
        (self.folder / "examples.json").write_text(json.dumps(rows))
        given = {"address": address, "proto": str(PROTO), "history": str(self.folder / "history")}
        given |= {"examples": str(self.folder / "examples.json"), **settings}
        (self.folder / "settings.json").write_text(json.dumps(given))
        command = (
            "node",
            *(("--require", require) if require else ()),
            str(FOLDER / "device.js"),
            str(self.folder / "settings.json"),
        )
        return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def steps(self) -> list[int]:
        """The steps in its ledger."""
        files = sorted((self.folder / "history").glob("contribution-*.json"))
        return [json.loads(path.read_text())["step"] for path in files]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "device")


def plan_of(served: OneRun, step: int = 1) -> RoundPlan:
    local, grid = served.task.file.local, served.task.mechanism.grid
    return fleet.plan(
        step=step,
        clip_norm=grid.clip_norm,
        grid_bits=grid.bits,
        encoding=Encoding.for_grid(grid.bits),
        epochs=local.epochs,
        batch_size=local.batch_size,
        learning_rate=local.learning_rate,
    )


@cache
def trainer() -> LocalTrainer:
    return LocalTrainer()


def in_python(served: OneRun, *seeds: int) -> NDArray[np.int64]:
    """The sum of what the product's own devices would upload in the first step from these examples."""
    plan, zeros = plan_of(served), np.zeros(fleet.SIZE, dtype=np.float32)
    updates = [trainer().train(plan, zeros, ArrayExamples(*made_up(EXAMPLES, seed))) for seed in seeds]
    total: NDArray[np.int64] = np.sum([clip(one, served.task.mechanism.grid).vector for one in updates], axis=0, dtype=np.int64)
    return total


def sum_of(served: OneRun) -> NDArray[np.int64]:
    """The sum of the first release, in grid units: without noise, and the weights were zeros before."""
    units = served.progress.weights.astype(np.float64) * served.task.file.round.goal / served.task.mechanism.grid.unit
    assert np.abs(units - np.rint(units)).max() < 0.3
    return np.rint(units).astype(np.int64)


async def released(served: OneRun, step: int = 1) -> None:
    await until(lambda: served.progress.step >= step)


# -- rounds -----------------------------------------------------------------------------------------------------------------


def test_a_round_of_two_devices_in_python_and_one_in_javascript(device: Device) -> None:
    """Both trainers keep weights in float32, and add up in different orders and widths. That is some 1e-7 of a weight after three
    passes, a tenth of a grid unit here; truncation makes it one whole unit where a coordinate lies beside an integer.
    """
    served = run_of(steps=1, goal=3)
    others = {f"device-{seed}": ArrayExamples(*made_up(EXAMPLES, seed)) for seed in (1, 2)}

    async def run() -> dict[str, Any]:
        async with port(served) as address:
            python = run_devices(Server(address), others, fleet.MODELS, device.folder, 30.0, lambda name, outcome: None)
            visit = asyncio.create_task(device.visit(address, patience_seconds=30))
            assert (await python)[Result.COUNTED] == 2
            return await visit

    assert asyncio.run(run()) == {
        "run": served.run.hex(),
        "step": 1,
        "result": "counted",
        "receipt": {"status": "COUNTED", "refusal": "REFUSAL_UNSPECIFIED"},
    }
    assert served.finished
    assert device.steps() == [1]
    assert np.abs(sum_of(served) - in_python(served, 0, 1, 2)).max() <= 1


@pytest.mark.parametrize("grid_bits", [14, 20])
@pytest.mark.parametrize("learning_rate", [0.05, 4.0])
def test_the_sum_holds_what_python_would_have_sent(grid_bits: int, learning_rate: float, device: Device) -> None:
    """Whether clipped or not, as int16 or as int32; within the tolerance of the test above."""
    served = run_of(steps=1, grid_bits=grid_bits, learning_rate=learning_rate)

    async def run() -> dict[str, Any]:
        async with port(served) as address:
            ended = await device.visit(address)
            await released(served)
            return ended

    assert asyncio.run(run())["result"] == "counted"
    expected, radius = in_python(served, 0), served.task.mechanism.grid.radius
    norm = np.linalg.norm(expected)
    assert (norm > 0.9 * radius) == (learning_rate == 4.0)
    assert norm > 0.1 * radius
    assert np.abs(sum_of(served) - expected).max() <= 1


def test_a_device_whose_training_comes_to_nothing_is_counted_with_zeros(device: Device) -> None:
    """Whether a device is counted must not depend on its data."""
    served = run_of()

    async def run() -> dict[str, Any]:
        async with port(served) as address:
            ended = await device.visit(address, scale=1e200)
            await released(served)
            return ended

    assert asyncio.run(run())["result"] == "counted"
    assert not sum_of(served).any()


# -- its own history --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"max_times": 1}, "nothing to do"), ({"max_times": 2, "min_separation": 2}, "not now")],
)
def test_a_device_sits_out_by_its_own_history(limits: dict[str, Any], said: str, device: Device) -> None:
    """The server, which keeps no tags here, would have taken it."""
    served = run_of(steps=3, **limits)

    async def run() -> None:
        async with port(served) as address:
            assert (await device.visit(address))["result"] == "counted"
            await released(served)
            assert await device.visit(address) == {"result": said}
            assert served.round.sessions == {}
            assert (await Device(device.folder.with_name("other")).visit(address))["step"] == 2

    asyncio.run(run())
    assert device.steps() == [1]


def test_steps_as_far_apart_as_they_must_be_are_joined(device: Device) -> None:
    served = run_of(steps=4, max_times=2, min_separation=2)

    async def run() -> list[str]:
        results = []
        async with port(served) as address:
            for step in (1, 2, 3, 4):
                other = Device(device.folder.with_name(f"other-{step}"))
                results.append((await device.visit(address))["result"])
                if results[-1] != "counted":
                    await other.visit(address)
                await released(served, step)
        return results

    assert asyncio.run(run()) == ["counted", "not now", "counted", "nothing to do"]
    assert device.steps() == [1, 3]


@pytest.mark.parametrize("damage", ["cut", "gone", "unknown server"])
def test_a_damaged_history_takes_part_in_nothing(damage: str, device: Device) -> None:
    served = run_of(steps=3, max_times=3)
    first = device.folder / "history" / "contribution-0.json"

    async def run() -> None:
        async with port(served) as address:
            for step in (1, 2):
                await device.visit(address)
                await released(served, step)
            if damage == "cut":
                first.write_text(first.read_text()[:10])
            elif damage == "gone":
                first.unlink()
            else:
                (device.folder / "history" / "known.json").unlink()
            await device.refuse(address)

    asyncio.run(run())
    assert served.round.sessions == {}


def test_two_processes_with_one_history_contribute_once(device: Device) -> None:
    served, together = run_of(goal=2), asyncio.Barrier(2)

    async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        await together.wait()
        return await honest()

    async def run() -> list[str]:
        async with port(served, unary("BeginUpload", answer)) as address:
            ended = await asyncio.gather(device.visit(address), device.visit(address))
            return sorted(one["result"] for one in ended)

    assert asyncio.run(run()) == ["counted", "not now"]
    assert device.steps() == [1]


def test_a_contribution_is_on_the_disk_before_a_byte_leaves_and_survives_a_kill(device: Device) -> None:
    served, begun = run_of(), asyncio.Event()

    async def hang(parts: AsyncIterator[bytes], context: Any, honest: Any) -> bytes:
        assert device.steps() == [1]
        begun.set()
        await asyncio.sleep(60)
        return b""

    async def run() -> None:
        async with port(served, uploads(hang)) as address:
            process = await device.start(address)
            await asyncio.wait_for(begun.wait(), 30)
            process.kill()
            await process.communicate()
            assert await device.visit(address) == {"result": "not now"}

    asyncio.run(run())
    assert device.steps() == [1]


@pytest.mark.parametrize("last", [2, 3])
def test_a_contribution_that_the_disk_does_not_take_is_not_sent(last: int, device: Device, tmp_path: Path) -> None:
    """The first two times that the device waits for the disk are for the key, the next two for the contribution."""
    begun, program = [], tmp_path / "disk.js"
    program.write_text(f"""
        const fs = require('node:fs');
        const honest = fs.fsyncSync;
        let times = 0;
        fs.fsyncSync = file => {{ if (times++ === {last}) throw new Error('the disk is full'); honest(file); }};
    """)

    async def listen(parts: AsyncIterator[bytes], context: Any, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        begun.append("upload")
        return await honest()

    async def reserve(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        begun.append("reservation")
        return await honest()

    async def run() -> None:
        async with port(run_of(), lambda honest: uploads(listen)(honest) | unary("BeginUpload", reserve)(honest)) as address:
            assert await device.refuse(address, require=str(program)) == "device: the disk is full\n"

    asyncio.run(run())
    assert begun == ["reservation"]


# -- a server that is busy, or breaks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience_seconds", [0, 30])
def test_a_device_for_which_there_is_no_seat_comes_back_if_it_has_the_patience(patience_seconds: int, device: Device) -> None:
    served = run_of(overselect=1.0)

    async def run() -> dict[str, Any]:
        seat = served.seat(time.monotonic())

        async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
            answered = await honest()
            if patience_seconds:
                served.abort(m.Abort(seat.session, m.AbortReason.CONDITIONS, seat.ticket), time.monotonic())
            return answered

        async with port(served, unary("CheckIn", answer)) as address:
            return await device.visit(address, patience_seconds=patience_seconds)

    ended = asyncio.run(run())
    if patience_seconds:
        assert ended["result"] == "counted"
    else:
        assert ended == {"result": "later", "reason": "NO_SEATS"}
        assert device.steps() == []


def test_a_device_that_is_told_to_wait_asks_again(device: Device) -> None:
    served, asked = run_of(), []

    async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        asked.append(time.monotonic())
        return await honest() if len(asked) == 3 else codec.encode(m.Reservation(m.Go.WAIT, 0.2))

    async def run() -> dict[str, Any]:
        async with port(served, unary("BeginUpload", answer)) as address:
            return await device.visit(address)

    assert asyncio.run(run())["result"] == "counted"
    assert len(asked) == 3
    assert min(after - before for before, after in pairwise(asked)) >= 0.19


def test_a_device_that_is_not_needed_has_contributed_nothing(device: Device) -> None:
    async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        return codec.encode(m.Reservation(m.Go.NOT_NEEDED))

    async def run() -> dict[str, Any]:
        async with port(run_of(), unary("BeginUpload", answer)) as address:
            return await device.visit(address)

    assert asyncio.run(run())["result"] == "not counted"
    assert device.steps() == []


@pytest.mark.parametrize(
    ("arrives", "code"),
    [(False, grpc.StatusCode.UNAVAILABLE), (True, grpc.StatusCode.UNAVAILABLE), (True, grpc.StatusCode.INTERNAL)],
)
def test_an_upload_whose_connection_breaks_is_counted_once(arrives: bool, code: grpc.StatusCode, device: Device) -> None:
    served, tries = run_of(), []

    async def answer(parts: AsyncIterator[bytes], context: Any, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        tries.append(device.steps())
        receipt = await honest() if arrives or len(tries) > 1 else b""
        if len(tries) == 1:
            await context.abort(code, "gone")
        return receipt

    async def run() -> dict[str, Any]:
        async with port(served, uploads(answer)) as address:
            ended = await device.visit(address)
            await released(served)
            return ended

    assert asyncio.run(run())["result"] == "counted"
    assert tries == [[1]] * (1 if arrives else 2)
    assert device.steps() == [1]
    assert np.abs(sum_of(served) - in_python(served, 0)).max() <= 1


def test_a_download_that_breaks_goes_on_where_it_stopped(device: Device) -> None:
    served, offsets = run_of(), []

    def lie(honest: Methods) -> Methods:
        async def some(request: bytes, context: Any) -> AsyncIterator[bytes]:
            wanted = codec.decode(m.ArtifactRequest, request)
            offsets.append(wanted.offset)
            data = served.artifact(wanted.sha256)
            assert data is not None
            yield codec.encode(m.ArtifactChunk(data[wanted.offset : wanted.offset + 1000]))
            if wanted.offset + 1000 < len(data):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

        return {"GetArtifact": grpc.unary_stream_rpc_method_handler(some)}

    async def run() -> dict[str, Any]:
        async with port(served, lie) as address:
            return await device.visit(address)

    assert asyncio.run(run())["result"] == "counted"
    assert offsets == [0, 1000, 2000]


def test_an_update_of_several_chunks_is_framed_as_described(device: Device) -> None:
    heard: list[Any] = []

    async def listen(parts: AsyncIterator[bytes], context: Any, honest: Any) -> bytes:
        heard.extend([codec.decode_part(part) async for part in parts])
        return codec.encode(m.Receipt(m.SessionStatus.COUNTED))

    async def run() -> dict[str, Any]:
        async with port(run_of(), lambda honest: uploads(listen)(honest) | planning(chunk_bytes=1000)(honest)) as address:
            return await device.visit(address)

    assert asyncio.run(run())["result"] == "counted"
    header, *chunks, trailer = heard
    assert (header.total_bytes, [len(chunk) for chunk in chunks]) == (2600, [1000, 1000, 600])
    assert trailer.crc32 == zlib.crc32(b"".join(chunks))


# -- a server that lies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"run": bytes(16)},
        {"clip_norm": 1.0},
        {"step": 3},
        {"encoding": Encoding.INT16_LE},
        {"batch_size": 0},
        {"checkpoint_sha256": bytes(32)},
    ],
)
def test_a_plan_that_is_not_what_was_announced_is_given_back(changes: dict[str, Any], device: Device) -> None:
    """The seat is free again, and nothing is in the history."""
    served = run_of(overselect=1.0)

    async def run() -> None:
        async with port(served, planning(**changes)) as address:
            if "checkpoint_sha256" in changes:  # of no artifact: as where its step was released meanwhile
                assert (await device.visit(address))["result"] == "later"
            else:
                assert "the plan is not what the spec announces" in await device.refuse(address)
                served.seat(time.monotonic())

    asyncio.run(run())
    assert device.steps() == []


LATER_FIELDS = """
  string optimizer = 15;
  double momentum = 16;
  uint32 local_steps = 17;
}

enum Encoding {"""


@pytest.mark.parametrize(
    ("fields", "trains"),
    [
        (b"\x7a\x03sgd", True),
        (b"\x7a\x04adam", False),
        (b"\x81\x01" + struct.pack("<d", 0.9), False),
        (b"\x50\x00\x88\x01\x03", True),  # no epochs, but three local steps: as many batches as three epochs have
    ],
    ids=["sgd", "adam", "momentum", "local steps"],
)
def test_local_training_is_as_the_plan_says_or_is_not_begun(fields: bytes, trains: bool, device: Device, tmp_path: Path) -> None:
    served, text = run_of(overselect=1.0), PROTO.read_text()
    if "string optimizer" not in text:
        text = text.replace("}\n\nenum Encoding {", LATER_FIELDS, 1)
    (tmp_path / "later.proto").write_text(text)

    async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        answered = pb.CheckInResponse.FromString(await honest())
        answered.assignment.plan.MergeFromString(fields)
        return answered.SerializeToString()

    async def run() -> None:
        async with port(served, unary("CheckIn", answer)) as address:
            if not trains:
                assert "only plain SGD" in await device.refuse(address, proto=str(tmp_path / "later.proto"))
                served.seat(time.monotonic())
                return
            assert (await device.visit(address, proto=str(tmp_path / "later.proto")))["result"] == "counted"
            await released(served)

    asyncio.run(run())
    assert device.steps() == ([1] if trains else [])
    assert not trains or np.abs(sum_of(served) - in_python(served, 0)).max() <= 1


def test_weights_that_are_not_those_of_the_plan_are_not_trained(device: Device) -> None:
    def lie(honest: Methods) -> Methods:
        async def others(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield codec.encode(m.ArtifactChunk(b"\1" * 4 * fleet.SIZE))

        return {"GetArtifact": grpc.unary_stream_rpc_method_handler(others)}

    async def run() -> None:
        async with port(run_of(), lie) as address:
            assert "weights are not those of the plan" in await device.refuse(address)

    asyncio.run(run())
    assert device.steps() == []


@asynccontextmanager
async def announcing(*answers: m.PopulationAnswer) -> AsyncIterator[str]:
    """The address of a server that says one after another, and hears nothing else."""
    left = iter(answers)

    async def tell(request: bytes, context: Any) -> bytes:
        return codec.encode(next(left))

    async with listening(answering(GetPopulation=tell)) as address:
        yield address


def announced(signer: SigningKey, epoch: int = 1, signed: bytes | None = None) -> m.PopulationAnswer:
    """A population without tasks; `signed` is what its signature is over, if not itself."""
    spec = codec.encode(m.PopulationSpec(epoch, 0.0, 1.0, 1.0, False, ()))
    return m.PopulationAnswer(spec, signer.sign_spec(spec if signed is None else signed), signer.public, m.RetryWindow(0.0, 0.0))


def test_a_server_that_has_gone_back_is_refused(device: Device) -> None:
    """Of epochs that a float cannot tell apart."""
    epoch = 2**64 - 2

    async def run() -> None:
        async with announcing(*(announced(SIGNER, one) for one in (epoch, epoch + 1, epoch))) as address:
            for _ in range(2):
                assert await device.visit(address) == {"result": "nothing to do"}
            assert f"went back from epoch {epoch + 1} to {epoch}" in await device.refuse(address)

    asyncio.run(run())


def test_a_spec_that_is_not_signed_by_its_key_is_refused_and_not_remembered(device: Device) -> None:
    async def run() -> None:
        async with announcing(announced(SIGNER, signed=b"another"), announced(SigningKey.generate())) as address:
            assert "not signed by its key" in await device.refuse(address)
            await device.visit(address)

    asyncio.run(run())


def test_keys_under_which_anybody_can_sign_are_refused() -> None:
    """Each with 64 messages and two signatures, of which OpenSSL would have taken several."""
    program = f"""
        const {{ signed }} = require({json.dumps(str(FOLDER / "wire.js"))});
        const tried = {json.dumps([y.to_bytes(32, "little").hex() for y in signing.WEAK_Y])}.flatMap(key =>
            ['01'.padEnd(64, '0'), key].flatMap(point => Array.from({{ length: 64 }}, (_, number) =>
                signed(Buffer.from(key, 'hex'), Buffer.from(`${{number}}`), Buffer.from(point.padEnd(128, '0'), 'hex')))));
        console.log(tried.length, tried.filter(Boolean).length);
    """
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(2 * 64 * len(signing.WEAK_Y)), "0"]


def test_a_server_that_changes_its_key_is_refused_unless_its_owner_names_the_new_one(device: Device) -> None:
    other = SigningKey.generate()

    async def run() -> None:
        async with announcing(announced(SIGNER), announced(other), announced(other), announced(SIGNER)) as address:
            await device.visit(address)
            assert f"another population key: {other.public.hex()}" in await device.refuse(address)
            await device.visit(address, population_key=other.public.hex())
            assert "another population key" in await device.refuse(address)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "joins"),
    [
        ({"at_most": {"rho_budget": 1e15, "max_participations": 2}, "at_least": {"min_separation": 1}}, True),
        ({"at_most": {"rho_budget": 1e14}}, False),
        ({"at_least": {"min_separation": 2}}, False),
        ({"at_least": {"a term of a later version": 1.0}}, False),
    ],
)
def test_terms_weaker_than_the_owners_are_not_joined(limits: dict[str, Any], joins: bool, device: Device) -> None:
    served = run_of()

    async def run() -> dict[str, Any]:
        async with port(served) as address:
            return await device.visit(address, limits=limits)

    assert asyncio.run(run())["result"] == ("counted" if joins else "nothing to do")
    assert device.steps() == ([1] if joins else [])


# -- over TLS, with a token, to a shard -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of keys of `fedrho keys`, with one device's token, and without a device's certificate in `bare`."""
    folder = tmp_path_factory.mktemp("javascript") / "keys"
    make_keys(folder, ["localhost"], 1, devices=1)
    shutil.copytree(folder / "device", folder / "bare", ignore=shutil.ignore_patterns("device.*"))
    return folder


@pytest.mark.parametrize("upload_address", ["", ":{port}"])
def test_a_certificate_and_a_token_let_a_device_in(upload_address: str, device: Device, made: Path) -> None:
    served = run_of(issuer=issuer_key(str(made)), window=True)
    addresses: list[str] = []

    async def answer(request: bytes, honest: Callable[[], Awaitable[bytes]]) -> bytes:
        """Uploads go elsewhere, as a device sees it."""
        answered = codec.decode_answer(await honest())
        if isinstance(answered, m.Assignment):
            answered = replace(answered, upload_address=upload_address.format(port=addresses[0].rpartition(":")[2]))
        return codec.encode_answer(answered)

    async def run() -> None:
        async with port(served, unary("CheckIn", answer), server_tls(made, require_device_certificate=True)) as address:
            addresses.append(address)
            assert "UNAVAILABLE" in await device.refuse(address, tls=str(made / "bare"))
            without = await device.visit(address, tls=str(made / "device"))
            assert without == {"result": "later", "reason": "NOT_PROVED"}
            token = str(made / "devices" / "0000.token")
            ended = await device.visit(address, tls=str(made / "device"), token=token)
            assert ended["result"] == "counted"

    asyncio.run(run())
    assert device.steps() == [1]


@contextmanager
def command(folder: Path, *arguments: object) -> Iterator[Callable[[str], str]]:
    """`fedrho serve` in `folder`: what it says, waited for, by a pattern with one group."""
    output = folder / "output"
    with output.open("wb") as heard:
        given = [sys.executable, "-m", "fedrho", "serve", *map(str, arguments)]
        process = subprocess.Popen(given, stdout=heard, stderr=heard, cwd=folder)

    def says(pattern: str) -> str:
        ends = time.monotonic() + 60
        while not (found := re.search(pattern, output.read_text())):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < ends, output.read_text()
            time.sleep(0.05)
        return found[1]

    try:
        yield says
    finally:
        process.terminate()
        process.wait(30)


def test_a_whole_round_against_the_command_and_its_shard(made: Path, tmp_path: Path) -> None:
    """Three devices in JavaScript, and nothing but `fedrho serve` as it is deployed."""
    (tmp_path / "task.toml").write_text(task_text(steps=1, goal=3))
    devices = [Device(tmp_path / f"device-{seed}", seed) for seed in range(3)]
    options = ("--store", "store", "--port", 0, "--tls", made, "--require-device-certificate", "--shards", 1)
    key = (made / "device" / "population.pub").read_text().strip()

    async def run(address: str) -> list[dict[str, Any]]:
        visits = [one.visit(address, tls=str(made / "device"), population_key=key, patience_seconds=30) for one in devices]
        return await asyncio.gather(*visits)

    with command(tmp_path, "task.toml", *options) as says:
        number = says(r"listening on \S+:(\d+)")
        ended = asyncio.run(run(f"localhost:{number}"))
        says(r"step (1)/1")
    assert [one["receipt"]["status"] for one in ended] == ["COUNTED"] * 3
    assert [one.steps() for one in devices] == [[1]] * 3
