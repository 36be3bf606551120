"""The operator port over real gRPC: who gets in, what each call does, and what is said where it cannot."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedrho.protos import codec
from fedrho.server.listen import ExposedAddress, PortBusy
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.operator_port import OPERATOR_FILE, OperatorPlace, OperatorServer, read_access
from fedrho.server.release import RunState
from tests.server.operating import Site, channel, site, small_task, until, visit

HEALTH = "/grpc.health.v1.Health/"
METHODS = ("ListRuns", "PauseRun", "ResumeRun", "CancelRun")
STREAMS = ("WatchRuns", "ExportModel")


async def call(place: Site, method: str, request: bytes = b"", token: str | None = None) -> bytes:
    metadata = wire.bearer(place.access.token if token is None else token)
    async with channel(place.access.address) as opened:
        answer: bytes = await opened.unary_unary(wire.path(method))(request, metadata=metadata, timeout=5)
        return answer


async def move(place: Site, method: str, run: bytes) -> None:
    assert await call(place, method, wire.encode_run(method, run)) == wire.DONE


async def exported(place: Site, run: bytes) -> list[wire.Header | bytes]:
    async with channel(place.access.address) as opened:
        request = wire.encode_run("ExportModel", run)
        answers = opened.unary_stream(wire.path("ExportModel"))(request, metadata=wire.bearer(place.access.token), timeout=20)
        return [wire.decode_part(data) async for data in answers]


async def refused(attempt: Coroutine[Any, Any, Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await attempt
    return error.value.code(), error.value.details()


async def releases(place: Site, folder: Path, steps: int) -> None:
    """Devices come by until a step is released."""
    while place.population.views()[0].step < steps:
        await asyncio.gather(*(visit(place.device_address, folder / f"device-{number}.sqlite") for number in range(3)))


def only_run(place: Site) -> bytes:
    return place.population.views()[0].run


# -- who gets in ----------------------------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_the_token(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place:
            token = place.access.token
            for wrong in (
                "",
                token[:-1],
                token.upper() if token.upper() != token else "A" * 64,
                token + "0",
                "0" * 64,
                "x" * 4000,
            ):
                for method in METHODS:
                    request = wire.encode_run("PauseRun", only_run(place)) if method != "ListRuns" else b""
                    answer = await refused(call(place, method, request, wrong))
                    assert answer == (grpc.StatusCode.UNAUTHENTICATED, "operator token missing or wrong")
            async with channel(place.access.address) as opened:
                for method in (*METHODS, "NoSuchMethod"):
                    assert (await refused(_bare(opened, wire.path(method))))[0] is grpc.StatusCode.UNAUTHENTICATED
                for method in STREAMS:
                    assert (await refused(_first(opened, wire.path(method))))[0] is grpc.StatusCode.UNAUTHENTICATED
            assert place.population.views()[0].state is RunState.ACTIVE

    asyncio.run(scenario())


async def _bare(opened: grpc.aio.Channel, path: str, metadata: Any = None) -> Any:
    return await opened.unary_unary(path)(b"", metadata=metadata, timeout=5)


async def _first(opened: grpc.aio.Channel, path: str) -> Any:
    async for answer in opened.unary_stream(path)(b"", timeout=5):
        return answer


def test_two_tokens_in_one_call_are_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place, channel(place.access.address) as opened:
            pair = wire.bearer(place.access.token)
            for metadata in ((*pair, *pair), (*wire.bearer("0" * 64), *pair), ((wire.AUTHORIZATION, place.access.token),)):
                code, _ = await refused(_bare(opened, wire.path("ListRuns"), metadata))
                assert code is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())


def test_operator_json_is_its_owners_alone_new_at_every_start_and_gone_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with site(tmp_path, small_task()) as place:
            path = tmp_path / OPERATOR_FILE
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert json.loads(path.read_text())["address"] == place.operator.address
            return place.access.token

    first, second = asyncio.run(scenario()), asyncio.run(scenario())
    assert len(bytes.fromhex(first)) == 32
    assert first != second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"address": "x"}', '{"address": 1, "token": 2}', "\udcff", "[" * 10_000]
)
def test_a_damaged_operator_json_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / OPERATOR_FILE).write_text(text, encoding="utf-8", errors="surrogateescape")
    assert read_access(tmp_path / OPERATOR_FILE) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::"])
def test_the_port_is_not_exposed_without_certificates(host: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ExposedAddress, match="operator port there needs certificates"):
            OperatorServer(OperatorPlace(tmp_path / OPERATOR_FILE, host))

    asyncio.run(scenario())


def test_a_busy_port_is_known_before_anything_is_written(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path / "one", small_task()) as place:
            with pytest.raises(PortBusy):
                OperatorServer(OperatorPlace(tmp_path / OPERATOR_FILE, port=int(place.access.address.rpartition(":")[2])))

    (tmp_path / "one").mkdir()
    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


# -- health and reflection -------------------------------------------------------------------------------------------------------


async def healthy(place: Site, service: str = "") -> bool:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    async with channel(place.access.address) as opened:
        answer = await opened.unary_unary(f"{HEALTH}Check")(request, timeout=5)
    return bool(health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING)


def test_health_needs_no_token_and_ends_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place:
            services = ("", codec.SERVICE, wire.SERVICE)
            assert [await healthy(place, service) for service in services] == [True, True, True]
            assert await refused(healthy(place, "nobody")) == (grpc.StatusCode.NOT_FOUND, "")
            place.stop.set()
            await asyncio.sleep(0.05)
            assert [await healthy(place, service) for service in services] == [False, False, False]
            answer = await refused(move(place, "PauseRun", only_run(place)))
            assert answer == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    asyncio.run(scenario())


def test_reflection_lists_the_services_of_this_port_and_describes_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place, channel(place.access.address) as opened:
            stub = reflection_pb2_grpc.ServerReflectionStub(opened)
            asked = (
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=wire.SERVICE),
            )
            answers = stub.ServerReflectionInfo(iter(asked), metadata=wire.bearer(place.access.token), timeout=5)
            listed, described = [answer async for answer in answers]
            names = {service.name for service in listed.list_services_response.service}
            assert names == {wire.SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
            assert b"CancelRun" in described.file_descriptor_response.file_descriptor_proto[0]
            # They ask nothing: of a message that is on its way when the call ends gRPC's client would tell, not of the answer.
            strangers = stub.ServerReflectionInfo(iter(()), timeout=5)
            assert (await refused(anext(aiter(strangers))))[0] is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())


def test_the_device_port_has_neither_health_nor_reflection_nor_operators(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place, channel(place.device_address) as opened:
            metadata = wire.bearer(place.access.token)
            for path in (
                f"{HEALTH}Check",
                wire.path("ListRuns"),
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            ):
                assert (await refused(_bare(opened, path, metadata)))[0] is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


# -- what can be asked -----------------------------------------------------------------------------------------------------------


def test_list_tells_exactly_what_the_runs_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task("one"), small_task("two", steps=5)) as place:
            listing = wire.decode_listing(await call(place, "ListRuns"))
            assert listing == wire.Listing(place.population.views(), place.population.combined())

    asyncio.run(scenario())


def test_a_paused_run_gives_no_seats_until_it_is_resumed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task(), small_task("other", steps=1)) as place:
            run = only_run(place)
            await move(place, "PauseRun", run)
            assert place.population.views()[0].state is RunState.PAUSED
            for number in range(6):
                await visit(place.device_address, tmp_path / f"{number}.sqlite")
            await until(lambda: place.population.views()[1].state is RunState.FINISHED)
            assert place.population.views()[0].step == 0
            await move(place, "ResumeRun", run)
            await releases(place, tmp_path, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("calls", "last", "text"),
    [
        (["PauseRun"], "PauseRun", "the run is paused"),
        ([], "ResumeRun", "the run is active"),
        (["CancelRun"], "CancelRun", "the run is cancelled"),
        (["CancelRun"], "ResumeRun", "the run is cancelled"),
        (["PauseRun", "CancelRun"], "PauseRun", "the run is cancelled"),
        (["PauseRun", "ResumeRun"], "ResumeRun", "the run is active"),
    ],
)
def test_a_state_forbids_with_a_fixed_text(calls: list[str], last: str, text: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task(), small_task("other")) as place:
            run = only_run(place)
            for method in calls:
                await move(place, method, run)
            before = place.population.views()
            assert await refused(move(place, last, run)) == (grpc.StatusCode.FAILED_PRECONDITION, text)
            assert place.population.views() == before

    asyncio.run(scenario())


def test_a_cancel_while_a_step_is_on_its_way_out_is_refused_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task(), small_task("other")) as place:
            coordinator = place.population.members[only_run(place)].coordinator
            coordinator._taken = True
            answer = await refused(move(place, "CancelRun", only_run(place)))
            coordinator._taken = False
            assert answer == (grpc.StatusCode.FAILED_PRECONDITION, "a step is being released at this moment; try again")
            assert place.population.views()[0].state is RunState.ACTIVE

    asyncio.run(scenario())


def test_of_many_pauses_at_once_one_takes_effect(tmp_path: Path) -> None:
    async def scenario() -> list[Any]:
        async with site(tmp_path, small_task()) as place:
            moves = (move(place, "PauseRun", only_run(place)) for _ in range(12))
            return await asyncio.gather(*moves, return_exceptions=True)

    results = asyncio.run(scenario())
    assert results.count(None) == 1
    assert {error.code() for error in results if error is not None} == {grpc.StatusCode.FAILED_PRECONDITION}


@pytest.mark.parametrize("method", ["PauseRun", "ResumeRun", "CancelRun", "ExportModel"])
def test_a_run_that_is_not_here_and_bytes_that_are_no_request(method: str, tmp_path: Path) -> None:
    async def ask(place: Site, request: bytes) -> Any:
        if method != "ExportModel":
            return await call(place, method, request)
        async with channel(place.access.address) as opened:
            answers = opened.unary_stream(wire.path(method))(request, metadata=wire.bearer(place.access.token), timeout=5)
            return [part async for part in answers]

    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place:
            missing = await refused(ask(place, wire.encode_run(method, b"?" * 16)))
            assert missing == (grpc.StatusCode.NOT_FOUND, "no such run is served here")
            for request in (
                b"",
                b"\xff",
                b"\x0a\x10short",
                wire.encode_run(method, b"x" * 17),
                wire.encode_run(method, bytes(100_000)),
            ):
                assert await refused(ask(place, request)) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed message")

    asyncio.run(scenario())


def test_watch_tells_now_and_after_every_change_and_ends_with_the_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place, channel(place.access.address) as opened:
            answers = opened.unary_stream(wire.path("WatchRuns"))(b"", metadata=wire.bearer(place.access.token))
            states = aiter(answers)
            assert await _state(states) is RunState.ACTIVE
            await move(place, "PauseRun", only_run(place))
            assert await _state(states) is RunState.PAUSED
            await move(place, "ResumeRun", only_run(place))
            assert await _state(states) is RunState.ACTIVE
            place.stop.set()
            assert await refused(_state(states)) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    asyncio.run(scenario())


async def _state(answers: Any) -> RunState:
    async with asyncio.timeout(5):
        return wire.decode_watched(await anext(answers)).runs[0].state


def test_many_watchers_come_and_go_and_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place, channel(place.access.address) as opened:
            metadata = wire.bearer(place.access.token)
            for _ in range(5):
                watchers = [opened.unary_stream(wire.path("WatchRuns"))(b"", metadata=metadata) for _ in range(12)]
                for watcher in watchers:
                    await watcher.read()
                    watcher.cancel()
                await until(lambda: place.metrics.registry.get_sample_value("fedrho_open_calls", {"method": "WatchRuns"}) == 0)
            assert await healthy(place)

    asyncio.run(scenario())


def test_export_is_the_latest_release_with_its_statement(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path, small_task()) as place:
            nothing = await refused(exported(place, only_run(place)))
            assert nothing == (grpc.StatusCode.FAILED_PRECONDITION, "no step has been released yet")
            await releases(place, tmp_path, 2)
            await move(place, "PauseRun", only_run(place))
            await until(lambda: not place.population.members[only_run(place)].coordinator.releasing)
            step, weights, statement = place.population.model(only_run(place))
            header, *chunks = await exported(place, only_run(place))
            assert isinstance(header, wire.Header)
            data = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
            np.testing.assert_array_equal(np.frombuffer(data, "<f4"), weights)
            assert header.sha256 == hashlib.sha256(data).digest()
            said = json.loads(header.statement_json)
            assert (said["step"], said["rho"], said["link"]) == (step, statement.rho, (bytes([step]) * 32).hex())
            assert said["epsilon"] == statement.epsilon(said["delta"])
            assert said["assumptions"] == list(statement.assumptions)

    asyncio.run(scenario())
