"""Artifacts over real gRPC: a broken stream is resumed, and no more is held than was announced."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from fedrho.client.participant import WireLost
from fedrho.client.transport import ServerRefused
from fedrho.protos import codec
from fedrho.protos.messages import (
    ArtifactChunk,
    ArtifactRequest,
)
from tests.client.serving import answering, listening, wired

DATA = np.random.default_rng(0).bytes(10_000)
SHA = hashlib.sha256(DATA).digest()


class Cutting:
    """Serves DATA, and breaks each of the first streams after so many bytes."""

    def __init__(self, *cuts: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.cuts = list(cuts)
        self.code = code
        self.offsets: list[int] = []

    async def artifact(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        asked = codec.decode(ArtifactRequest, request)
        assert asked.sha256 == SHA
        self.offsets.append(asked.offset)
        rest = DATA[asked.offset :]
        if self.cuts:
            cut = self.cuts.pop(0)
            yield codec.encode(ArtifactChunk(rest[:cut]))
            await context.abort(self.code, "cut")
        for start in range(0, len(rest), 999):
            yield codec.encode(ArtifactChunk(rest[start : start + 999]))


def download(server: Cutting, size: int = len(DATA)) -> bytes:
    async def fetch() -> bytes:
        async with listening(answering(GetArtifact=server.artifact)) as address, wired(address) as wire:
            return await wire.artifact(SHA, size)

    return asyncio.run(fetch())


def test_download_goes_on_where_a_broken_stream_stopped() -> None:
    server = Cutting(4000, 3000)
    assert download(server) == DATA
    assert server.offsets == [0, 4000, 7000]


def test_download_that_breaks_every_time_is_a_lost_wire() -> None:
    server = Cutting(10, 10, 10, 10, 10)
    with pytest.raises(WireLost):
        download(server)
    assert server.offsets == [0, 10, 20]


def test_more_bytes_than_announced_are_refused() -> None:
    with pytest.raises(ServerRefused, match="more than the plan announces"):
        download(Cutting(), size=len(DATA) - 1)


def test_endless_stream_is_refused_as_soon_as_it_is_too_long() -> None:
    sent: list[int] = []

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            sent.append(1000)
            yield codec.encode(ArtifactChunk(bytes(1000)))
            await asyncio.sleep(0)

    async def fetch() -> bytes:
        async with listening(answering(GetArtifact=endless)) as address, wired(address) as wire:
            return await wire.artifact(SHA, 5000)

    with pytest.raises(ServerRefused):
        asyncio.run(asyncio.wait_for(fetch(), 10))
    assert sum(sent) < 10_000_000


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED])
def test_error_that_a_repetition_will_not_change_is_not_repeated(code: grpc.StatusCode) -> None:
    server = Cutting(10, code=code)
    with pytest.raises(ServerRefused, match=code.name):
        download(server)
    assert server.offsets == [0]
