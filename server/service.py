"""gRPC in front of a population: what devices ask before they have a session, the passing of time, and releases on threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Final

import grpc

from fedrho.protos import codec
from fedrho.protos.messages import CHUNK_BYTES, ArtifactChunk, ArtifactRequest, CheckIn, PopulationRequest
from fedrho.server.coordinator import Coordinator
from fedrho.server.guard import guarded
from fedrho.server.operations.observer import Observer, Place
from fedrho.server.population import Population
from fedrho.server.ports import DevicePort
from fedrho.server.release import Attempt, Leg

TICK_SECONDS: Final = 0.02
OPTIONS: Final = DevicePort().options()


class DeviceService:
    """The calls of a device that has no session yet, and the life of the runs."""

    def __init__(
        self,
        population: Population,
        clock: Callable[[], float],
        on_release: Callable[[Coordinator], None],
        observer: Observer | None = None,
    ) -> None:
        self._population = population
        self._clock = clock
        self._on_release = on_release
        self._observer = observer or Observer()
        self._releasing: set[asyncio.Task[None]] = set()

    def methods(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Handlers over raw bytes, so that parsing happens under our own error handling."""
        return {
            "GetPopulation": grpc.unary_unary_rpc_method_handler(guarded(self._get_population)),
            "CheckIn": grpc.unary_unary_rpc_method_handler(guarded(self._check_in)),
            "GetArtifact": grpc.unary_stream_rpc_method_handler(self._artifact),
        }

    async def run_rounds(self, stop: asyncio.Event) -> None:
        """Lets time pass, and releases every full round, until every run has ended or `stop` is set.

        Releases of several runs go side by side; one that has begun is finished and installed first. An error in one must stop
        the server, and is raised here.
        """
        while not self._population.finished and not stop.is_set():
            self._population.tick(self._clock())
            self._tell_places()
            for coordinator in self._population.due():
                with self._observer.leg(coordinator.task.file.name, Leg.SUM):
                    attempt = coordinator.take_full_round()  # at once: until then an operator may cancel the run
                self._releasing.add(asyncio.create_task(self._release(coordinator, attempt)))
            await self._settle(wait=False)
            await asyncio.sleep(TICK_SECONDS)
        await self._settle(wait=True)
        self._tell_places()

    def _tell_places(self) -> None:
        for member in self._population.members.values():
            name, round_ = member.coordinator.task.file.name, member.coordinator.round
            self._observer.stands(Place(name, round_.step, round_.attempt, round_.phase, member.ended))

    async def _settle(self, wait: bool) -> None:
        if self._releasing and wait:
            await asyncio.wait(self._releasing)
        for task in [task for task in self._releasing if task.done()]:
            self._releasing.discard(task)
            task.result()

    async def _release(self, coordinator: Coordinator, attempt: Attempt) -> None:
        began = time.perf_counter()
        name = coordinator.task.file.name
        legs = partial(self._observer.leg, name)
        progress = await asyncio.to_thread(coordinator.through_gate, attempt, self._clock(), legs)
        coordinator.install(progress, self._clock())
        self._population.released(coordinator, self._clock())
        self._observer.released(name, time.perf_counter() - began)
        self._on_release(coordinator)

    async def _get_population(self, request: bytes, context: Any) -> bytes:
        return codec.encode(self._population.population(codec.decode(PopulationRequest, request), self._clock()))

    async def _check_in(self, request: bytes, context: Any) -> bytes:
        answer = self._population.check_in(codec.decode(CheckIn, request), self._clock())
        self._observer.checked_in(answer)
        return codec.encode_answer(answer)

    async def _artifact(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            wanted = codec.decode(ArtifactRequest, request)
        except codec.MalformedMessage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed message")
        data = self._population.artifact(wanted.sha256)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such artifact; check in again")
            return
        for start in range(wanted.offset, len(data), CHUNK_BYTES):
            yield codec.encode(ArtifactChunk(data[start : start + CHUNK_BYTES]))
