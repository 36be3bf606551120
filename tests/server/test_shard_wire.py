"""The channel between coordinator and shard, with an end that lies, freezes, goes away and comes back, or is a stranger."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedrho.privacy.vectors import Grid
from fedrho.protos import shard_pb2 as pb
from fedrho.protos.messages import BeginUpload, Go, SessionStatus, Upload
from fedrho.server import shard_wire
from fedrho.server.intake import AttemptId, Order
from fedrho.server.rounds import Phase, Round
from fedrho.server.shard import Shard, ShardLost
from fedrho.server.shard_wire import SERVICE, RemoteShard, ShardService
from fedrho.server.shares import Shares
from tests.server.one_run import new_id

GRID = Grid(1.0, 8)


def order(run: int = 1, key: bytes = b"k" * 32) -> Order:
    return Order(AttemptId(bytes([run]) * 16, 1, 1, b"o" * 16), key, 4, GRID, 10, 60.0, 0.5)


class Moody(ShardService):
    """A shard's end that answers as it is told: `away` (not at all), `lie` (a wrong answer), `stuck` (no part comes)."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(shard, ":1", time.monotonic)
        self.away = self.stuck = False
        self.lie: dict[str, Any] = {}

    async def _check(self, request: Any, context: Any) -> None:
        while self.away:
            await asyncio.sleep(0.01)
        await super()._check(request, context)

    def _progress(self, request: Any) -> Any:
        return self.lie.get("progress") or super()._progress(request)

    async def _seal(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        while self.stuck:
            await asyncio.sleep(0.01)
        if "part" in self.lie:
            yield self.lie["part"].SerializeToString()
            return
        async for piece in super()._seal(data, context):
            yield piece


@dataclass
class Wired:
    shard: Shard
    service: Moody
    link: RemoteShard
    talk: asyncio.Task[None]
    target: str


@asynccontextmanager
async def wired() -> AsyncIterator[Wired]:
    shard, stop, server = Shard(), asyncio.Event(), grpc.aio.server()
    service = Moody(shard)
    server.add_generic_rpc_handlers((service.handlers(),))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    link = RemoteShard(target)
    talk, watch = asyncio.create_task(link.run(stop)), asyncio.create_task(service.watch(stop))
    try:
        await until(lambda: link.alive)
        yield Wired(shard, service, link, talk, target)
    finally:
        service.away = service.stuck = False
        stop.set()
        await asyncio.gather(talk, watch)
        await server.stop(None)


async def until(met: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.01)


def lost(link: RemoteShard, attempt: AttemptId) -> bool:
    try:
        link.seal(attempt)
    except ShardLost:
        return True
    return False


def count_one(shard: Shard, of: Order) -> bytes:
    session = new_id()
    assert shard.begin_upload(BeginUpload(session, of.ticket(session)), time.monotonic()).answer is Go.GO
    shard.upload(Upload(session, np.ones(4, dtype=np.int32)), time.monotonic())
    return session


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_wire, "CALL_SECONDS", 0.4)
    monkeypatch.setattr(shard_wire, "AWAY_SECONDS", 0.3)


PART = pb.SealRoundPart
LIES = {
    "unknown status": {"progress": pb.GetProgressResponse(sessions=b"s" * 16, statuses=b"\x63")},
    "unequal lengths": {"progress": pb.GetProgressResponse(sessions=b"s" * 16, statuses=b"\x01\x01")},
    "half a session": {"progress": pb.GetProgressResponse(sessions=b"s" * 15, statuses=b"\x01")},
    "half a coordinate": {"part": PART(sum=bytes(31))},
    "a sum too long": {"part": PART(sum=bytes(40))},
    "one counted twice": {"part": PART(counted=b"s" * 32, sum=bytes(32))},
    "more than the quota": {"part": PART(counted=os.urandom(16 * 11), sum=bytes(32))},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_shard_that_answers_nonsense_is_lost_and_served_again_once_it_makes_sense(
    lie: dict[str, Any], impatient: None, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with wired() as ends:
            ends.service.lie = lie
            ends.link.open(order())
            await until(lambda: lost(ends.link, order().attempt))
            assert not ends.talk.done()
            ends.service.lie = {}
            await until(lambda: ends.link.alive)
            ends.link.open(order(2))
            await until(lambda: ends.link.ready(order(2).attempt))

    asyncio.run(run())
    told = capfd.readouterr()
    assert "a shard answers nonsense" in told.out + told.err
    assert "Traceback" not in told.out + told.err


def test_a_part_that_does_not_come_is_lost_in_time_and_holds_up_no_other_run(impatient: None) -> None:
    async def run() -> None:
        async with wired() as ends:
            ends.service.stuck = True
            ends.link.open(order(1))
            await until(lambda: ends.link.ready(order(1).attempt))
            began = time.monotonic()
            assert ends.link.seal(order(1).attempt) is None
            await asyncio.sleep(0.1)
            ends.link.open(order(2))
            await until(lambda: ends.link.ready(order(2).attempt))
            assert time.monotonic() - began < 0.35
            await until(lambda: lost(ends.link, order(1).attempt))
            assert time.monotonic() - began < 0.3 + 0.4 + 0.5
            assert ends.link.alive
            assert ends.link.ready(order(2).attempt)

    asyncio.run(run())


def test_a_shard_that_freezes_while_it_seals_is_lost_with_everything(impatient: None) -> None:
    async def run() -> None:
        async with wired() as ends:
            ends.link.open(order(1))
            await until(lambda: ends.link.ready(order(1).attempt))
            ends.service.stuck = ends.service.away = True
            began = time.monotonic()
            await until(lambda: lost(ends.link, order(1).attempt))
            assert time.monotonic() - began < 0.3 + 0.4 + 0.5
            assert not ends.link.alive

    asyncio.run(run())


def test_a_part_arrives_with_its_sessions(impatient: None) -> None:
    async def run() -> None:
        async with wired() as ends:
            ends.link.open(order(1))
            await until(lambda: ends.link.ready(order(1).attempt))
            session = count_one(ends.shard, order(1))
            await until(lambda: ends.link.seal(order(1).attempt) is not None)
            part = ends.link.seal(order(1).attempt)
            assert part is not None
            assert part.counted == (session,)

    asyncio.run(run())


def test_an_attempt_that_ended_while_its_shard_was_away_is_dropped_there_when_it_is_back(impatient: None) -> None:
    async def run() -> None:
        async with wired() as ends:
            round_ = Round(1, 1, 10, 10, 10, 60.0, 60.0, 0.0)
            shares = Shares([ends.link], order(), lambda: b"k" * 32)
            shares.open()
            await until(lambda: ends.link.ready(order().attempt))
            count_one(ends.shard, order())
            ends.service.away = True
            await until(lambda: not ends.link.alive)
            shares.hear(round_, 0.0)
            shares.drop()
            assert ends.shard.intake(order().attempt).open
            ends.service.away = False
            await until(lambda: not ends.shard.intake(order().attempt).open)

    asyncio.run(run())


def test_a_share_is_dropped_also_where_its_order_was_lost() -> None:
    class Silent(RemoteShard):
        dropped = 0

        def drop(self, attempt: AttemptId) -> None:
            self.dropped += 1

    link = Silent("127.0.0.1:1")
    shares = Shares([link], order(), lambda: b"k" * 32)
    shares.drop()
    assert link.dropped == 1


def test_an_attempt_opened_anew_after_a_loss_is_not_dropped(impatient: None) -> None:
    async def run() -> None:
        async with wired() as ends:
            ends.link.open(order())
            await until(lambda: ends.link.ready(order().attempt))
            ends.service.away = True
            await until(lambda: not ends.link.alive)
            anew = order(key=b"n" * 32)
            ends.link.open(anew)
            ends.service.away = False
            await until(lambda: ends.link.ready(anew.attempt))
            await asyncio.sleep(0.3)
            assert ends.shard.intake(anew.attempt).open
            assert ends.shard.intake(anew.attempt).order.key == anew.key

    asyncio.run(run())


def test_an_attempt_nobody_asks_about_is_orphaned_though_others_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_wire, "ORPHANED_SECONDS", 0.5)

    async def run() -> None:
        async with wired() as ends, grpc.aio.insecure_channel(ends.target) as channel:
            ends.link.open(order(1))
            hello = pb.HelloResponse.FromString(await call(channel, "Hello", b""))
            await call(channel, "OpenRound", opening(hello.incarnation, run=b"\x02" * 16))
            intake = ends.shard.intake(AttemptId(b"\x02" * 16, 1, 1, b"o" * 16))
            await until(lambda: not intake.open)
            assert ends.link.ready(order(1).attempt)
            assert ends.shard.intake(order(1).attempt).open
            with pytest.raises(ShardLost):
                ends.shard.intake(intake.order.attempt)

    asyncio.run(run())


# -- strangers


async def call(channel: grpc.aio.Channel, method: str, data: bytes) -> bytes:
    return bytes(await channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=10))


def opening(incarnation: bytes, run: bytes = b"r" * 16, opened: bytes = b"o" * 16, **changed: Any) -> bytes:
    sound: dict[str, Any] = {
        "key": b"k" * 32,
        "size": 4,
        "clip_norm": 1.0,
        "grid_bits": 8,
        "quota": 2,
        "lease_seconds": 1.0,
        "wait_seconds": 1.0,
    }
    attempt = pb.Attempt(run=run, step=1, attempt=1, opened=opened)
    return pb.OpenRoundRequest(incarnation=incarnation, attempt=attempt, **(sound | changed)).SerializeToString()


MALFORMED = (grpc.StatusCode.INVALID_ARGUMENT, "malformed message")


@pytest.mark.parametrize(
    "changed",
    [
        *({name: value} for name in ("lease_seconds", "wait_seconds", "clip_norm") for value in (math.nan, math.inf, 0.0, -1.0)),
        *({"size": size} for size in (0, 2**31 + 1, 2**40, 2**64 - 1)),
        *({"quota": quota} for quota in (2**39, 2**64 - 1)),
        {"grid_bits": 25},
        {"key": b""},
        {"run": b"r" * 15},
        {"opened": b""},
    ],
    ids=str,
)
def test_an_order_that_cannot_be_is_refused_with_a_fixed_text(changed: dict[str, Any]) -> None:
    async def run() -> None:
        async with wired() as ends, grpc.aio.insecure_channel(ends.target) as channel:
            hello = pb.HelloResponse.FromString(await call(channel, "Hello", b""))
            await call(channel, "OpenRound", opening(hello.incarnation))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(channel, "OpenRound", opening(hello.incarnation, **changed))
            assert (refused.value.code(), refused.value.details()) == MALFORMED

    asyncio.run(run())


def test_malformed_bytes_are_refused_with_a_fixed_text_by_every_method() -> None:
    async def run() -> None:
        async with wired() as ends, grpc.aio.insecure_channel(ends.target) as channel:
            for method in ("Hello", "OpenRound", "GrantQuota", "GetProgress", "DropRound"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(channel, method, b"\xff\xff\xff")
                assert (refused.value.code(), refused.value.details()) == MALFORMED
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_stream(f"/{SERVICE}/SealRound")(b"\xff\xff\xff", timeout=10).read()
            assert (refused.value.code(), refused.value.details()) == MALFORMED

    asyncio.run(run())


def test_an_order_that_does_not_fit_into_memory_is_refused_and_costs_no_other_run_its_part(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(shard_wire, "_memory_here", lambda: 4 * shard_wire.SUM_BYTES)

    async def run() -> None:
        async with wired() as ends:
            ends.link.open(order(1))
            large = Order(AttemptId(b"l" * 16, 1, 1, b"o" * 16), b"k" * 32, 5, GRID, 10, 60.0, 0.5)
            ends.link.open(large)
            await until(lambda: lost(ends.link, large.attempt))
            await asyncio.sleep(0.5)
            assert ends.link.ready(order(1).attempt)

    asyncio.run(run())


# -- the round


@pytest.mark.parametrize(("min_reports", "phase"), [(1, Phase.CLOSED), (2, Phase.ABANDONED)])
def test_a_full_round_that_loses_a_shard_while_it_seals_goes_on_with_min_reports(min_reports: int, phase: Phase) -> None:
    round_ = Round(1, 1, 2, min_reports, 4, 60.0, 60.0, 0.0)
    for shard, session in enumerate((b"a", b"b")):
        round_.admit(session, session, shard, b"", 0.0)
        round_.note(session, SessionStatus.COUNTED, 1.0)
    round_.phase = Phase.SEALING
    round_.lose(0)
    round_.settle(1, 1.0)
    assert round_.phase is phase


# -- its socket


@contextmanager
def shard_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fedrho", "shard", f"unix:{path}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def wait_for(met: Callable[[], bool]) -> None:
    until_then = time.monotonic() + 30
    while not met():
        assert time.monotonic() < until_then
        time.sleep(0.05)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


@pytest.mark.slow
def test_a_shard_takes_no_place_that_is_another_s(tmp_path: Path) -> None:
    path, file = tmp_path / "s", tmp_path / "file"
    file.write_text("mine")
    with shard_process(path) as first:
        wait_for(lambda: answers(path))
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        for place, why in ((path, "another process listens there"), (file, "there is something else")):
            with shard_process(place) as second:
                told, _ = second.communicate(timeout=30)
                assert second.returncode != 0
                assert why in told
        assert answers(path)
        first.kill()
        first.wait()
    assert path.is_socket()
    with shard_process(path) as third:
        wait_for(lambda: answers(path))
        third.terminate()
        assert third.wait(30) == 0
    assert (path.exists(), file.read_text()) == (False, "mine")
