"""Metrics as a scraper sees them, after real traffic; and what must never be among them."""

from __future__ import annotations

import asyncio
import re
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedrho.protos.messages import LaterReason, Receipt, Refusal, RetryWindow, SessionStatus, TryLater
from fedrho.server.coarse import GROUP, whole
from fedrho.server.listen import PortBusy
from fedrho.server.operations import metrics as metrics_module
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.metrics import (
    REFUSALS,
    SCRAPERS,
    Metrics,
    MetricsInterceptor,
    device_metrics,
    methods_of,
    metrics_port,
    operator_metrics,
)
from fedrho.server.release import RunState
from tests.server.operating import Site, channel, site, small_task, until, visit

STRANGERS = GROUP + 1

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(address: str) -> tuple[str, Samples]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return text, {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def traffic(place: Site, folder: Path) -> None:
    """Devices that are counted until the run has ended, a stranger, and bytes that are nothing."""
    while place.population.views()[0].state is RunState.ACTIVE:
        await asyncio.gather(*(visit(place.device_address, folder / f"device-{number}.sqlite") for number in range(3)))
    for _ in range(STRANGERS):
        await strange(place)


async def strange(place: Site) -> None:
    async with channel(place.device_address) as opened:
        for path, request in (
            ("/fedrho.v1.DeviceService/CheckIn", b"\xff\xff"),
            ("/fedrho.v1.DeviceService/s3cret-path", b""),
            (f"/{'s3cret' * 300}", b""),
        ):
            with suppress(grpc.aio.AioRpcError):
                await opened.unary_unary(path)(request, timeout=5)
        with suppress(grpc.aio.AioRpcError):
            await opened.stream_unary("/fedrho.v1.DeviceService/UploadUpdate")(iter([b"\x0a\xff"]), timeout=5)
    async with channel(place.access.address) as opened:
        with suppress(grpc.aio.AioRpcError):
            await opened.unary_unary(wire.path("s3cret-path"))(b"", timeout=5)


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Samples, Site, Path]:
    """One run with server-side tags, and what was scraped in the end."""
    folder = tmp_path_factory.mktemp("metrics")

    async def scenario() -> tuple[str, Samples, Site]:
        async with site(folder, small_task(window=True)) as place:
            with metrics_port(place.metrics) as address:
                await traffic(place, folder)
                await until(lambda: place.metrics.registry.get_sample_value("fedrho_step", {"task": "small"}) == 3)
                text, samples = await asyncio.to_thread(scraped, address)
                return text, samples, place

    return *asyncio.run(scenario()), folder


def test_what_devices_did_is_counted_by_the_group(scrape: tuple[str, Samples, Site, Path]) -> None:
    _, samples, _, _ = scrape
    assert whole(STRANGERS) == GROUP, "one of them is not told yet"
    assert value(samples, "fedrho_uploads_total", outcome="COUNTED") == whole(3 * 2), "three steps of two reports"
    assert value(samples, "fedrho_uploads_total", outcome="WRONG_FRAMING") == GROUP
    assert value(samples, "fedrho_check_ins_total", answer="ASSIGNED") >= GROUP
    assert value(samples, "fedrho_calls_total", method="CheckIn", code="INVALID_ARGUMENT") == GROUP
    assert value(samples, "fedrho_calls_total", method="other", code="UNIMPLEMENTED") == whole(2 * STRANGERS)
    assert value(samples, "fedrho_calls_total", method="other", code="UNAUTHENTICATED") == GROUP
    assert value(samples, "fedrho_calls_refused_total", reason="MALFORMED") == GROUP
    assert value(samples, "fedrho_calls_refused_total", reason="UNKNOWN_METHOD") == whole(2 * STRANGERS)
    assert value(samples, "fedrho_calls_refused_total", reason="NO_TOKEN") == GROUP
    assert value(samples, "fedrho_open_calls", method="UploadUpdate") == 0


def test_a_call_is_counted_once_and_timed_once_as_far_as_both_are_told(scrape: tuple[str, Samples, Site, Path]) -> None:
    _, samples, _, _ = scrape
    calls: dict[str, list[float]] = {}
    for (name, labels), number in samples.items():
        if name == "fedrho_calls_total":
            calls.setdefault(dict(labels)["method"], []).append(number)
    timed = {dict(labels)["method"]: number for (name, labels), number in samples.items() if name == "fedrho_call_seconds_count"}
    assert calls.keys() == timed.keys()
    for method, numbers in calls.items():
        untold = timed[method] - sum(numbers)
        assert -GROUP < untold < GROUP * (len(grpc.StatusCode) + 1), method
        assert timed[method] % GROUP == 0


def test_gauges_are_what_the_run_is(scrape: tuple[str, Samples, Site, Path]) -> None:
    _, samples, place, _ = scrape
    (view,) = place.population.views()
    assert value(samples, "fedrho_rho_spent", task="small") == view.statement.rho
    assert value(samples, "fedrho_rho_budget", task="small") == view.rho_budget
    assert value(samples, "fedrho_step", task="small") == value(samples, "fedrho_steps", task="small") == 3
    assert value(samples, "fedrho_drop_out_rate", task="small") == round(view.drop_out, 2)
    assert value(samples, "fedrho_seats", task="small") == view.seats
    states = {state: value(samples, "fedrho_run_state", task="small", state=state.value) for state in RunState}
    assert states == {state: float(state is RunState.FINISHED) for state in RunState}
    assert value(samples, "fedrho_release_seconds_count") == 3


def test_no_label_comes_from_a_device(scrape: tuple[str, Samples, Site, Path]) -> None:
    _, samples, _, _ = scrape
    ours = {path.rpartition("/")[2] for path in methods_of("fedrho.v1.DeviceService", wire.SERVICE)} | {"other"}
    closed = {
        "method": ours,
        "code": {code.name for code in grpc.StatusCode},
        "reason": {*REFUSALS.values(), "UNKNOWN_METHOD"},
        "answer": {reason.name for reason in LaterReason} | {"ASSIGNED"},
        "outcome": {refusal.name for refusal in Refusal} | {status.name for status in SessionStatus},
        "task": {"small"},
        "state": {state.value for state in RunState},
    }
    for _, labels in samples:
        for name, text in labels:
            assert name == "le" or text in closed[name], (name, text)


def known_of_devices(folder: Path) -> Iterator[bytes]:
    """All that could tell a device apart: what its own history holds, and what it said."""
    for path in folder.glob("device-*.sqlite"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    yield from (cell for cell in row if isinstance(cell, bytes))


def test_the_text_holds_nothing_of_a_device(scrape: tuple[str, Samples, Site, Path]) -> None:
    text, _, place, folder = scrape
    run, key = place.population.views()[0].run, place.population._signer.public
    secrets = {one for one in known_of_devices(folder) if one not in (run, key)}
    assert len(secrets) >= 3, "every device has a tag"
    shown = text.lower()
    for secret in secrets:
        assert secret.hex() not in shown
    for forbidden in ("s3cret", "127.0.0.1", "localhost", "::1", place.access.token, "device-0"):
        assert forbidden not in shown
    assert not re.search(r"[0-9a-f]{32}", shown)


def test_refusals_are_those_of_uploads_and_of_calls() -> None:
    metrics = Metrics()
    for _ in range(STRANGERS):
        assert metrics.refusals() == {}
        for refusal in Refusal:
            metrics.uploaded(Receipt(SessionStatus.REFUSED, refusal))
        metrics.uploaded(Receipt(SessionStatus.COUNTED))
        metrics.refused("MALFORMED")
        metrics.checked_in(TryLater(LaterReason.NO_SEATS, RetryWindow(0.0, 1.0)))
        if metrics.refusals():
            break
    assert metrics.refusals() == {**{refusal.name: GROUP for refusal in Refusal}, "MALFORMED": GROUP}
    assert metrics.registry.get_sample_value("fedrho_check_ins_total", {"answer": "NO_SEATS"}) == GROUP


def test_the_page_about_operating_names_every_metric_with_its_labels() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    table = page.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")]
    documented = {(name.strip("`"), kind, labels.replace("`", "")) for name, kind, labels, _ in rows}
    registry = Metrics().registry
    known = {(one._name, one._type, ", ".join(one._labelnames)) for one in registry._collector_to_names}  # type: ignore[attr-defined]
    assert documented == known


# -- calls of every kind and end -------------------------------------------------------------------------------------------------


def test_every_kind_of_call_is_counted_by_how_it_ended() -> None:
    async def each(opened: grpc.aio.Channel) -> None:
        assert await opened.unary_unary("/t.T/Answer")(b"a") == b"a"
        assert [part async for part in opened.unary_stream("/t.T/Stream")(b"a")] == [b"a", b"a"]
        assert await opened.stream_unary("/t.T/Gather")(iter([b"a", b"b"])) == b"ab"
        assert [part async for part in opened.stream_stream("/t.T/Echo")(iter([b"a", b"b"]))] == [b"a", b"b"]
        for name in ("Abort", "Break", "SetCode"):
            with pytest.raises(grpc.aio.AioRpcError):
                await opened.unary_unary(f"/t.T/{name}")(b"")
        with pytest.raises(grpc.aio.AioRpcError, match="Deadline"):
            await opened.unary_unary("/t.T/Wait")(b"", timeout=0.1)

    async def scenario() -> Metrics:
        metrics = Metrics()
        server = grpc.aio.server(interceptors=[MetricsInterceptor(metrics, [f"/t.T/{name}" for name in METHODS])])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", METHODS),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with channel(f"127.0.0.1:{port}") as opened:
            for _ in range(GROUP):
                await each(opened)
            await until(lambda: code_of(metrics, "Wait", "CANCELLED") == GROUP)
        await server.stop(None)
        return metrics

    metrics = asyncio.run(scenario())
    for name in ("Answer", "Stream", "Gather", "Echo"):
        assert code_of(metrics, name, "OK") == GROUP
    assert code_of(metrics, "Abort", "RESOURCE_EXHAUSTED") == GROUP
    assert code_of(metrics, "SetCode", "NOT_FOUND") == GROUP
    assert code_of(metrics, "Break", "UNKNOWN") == GROUP
    for name in METHODS:
        assert metrics.registry.get_sample_value("fedrho_open_calls", {"method": name}) == 0


def code_of(metrics: Metrics, method: str, code: str) -> float | None:
    return metrics.registry.get_sample_value("fedrho_calls_total", {"method": method, "code": code})


async def _answer(request, context):  # type: ignore[no-untyped-def]
    return request


async def _stream(request, context):  # type: ignore[no-untyped-def]
    yield request
    yield request


async def _gather(requests, context):  # type: ignore[no-untyped-def]
    return b"".join([request async for request in requests])


async def _echo(requests, context):  # type: ignore[no-untyped-def]
    async for request in requests:
        yield request


async def _abort(request, context):  # type: ignore[no-untyped-def]
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


async def _break(request, context):  # type: ignore[no-untyped-def]
    raise ZeroDivisionError


async def _set_code(request, context):  # type: ignore[no-untyped-def]
    context.set_code(grpc.StatusCode.NOT_FOUND)
    return b""


async def _wait(request, context):  # type: ignore[no-untyped-def]
    await asyncio.sleep(60)


METHODS = {
    "Answer": grpc.unary_unary_rpc_method_handler(_answer),
    "Stream": grpc.unary_stream_rpc_method_handler(_stream),
    "Gather": grpc.stream_unary_rpc_method_handler(_gather),
    "Echo": grpc.stream_stream_rpc_method_handler(_echo),
    "Abort": grpc.unary_unary_rpc_method_handler(_abort),
    "Break": grpc.unary_unary_rpc_method_handler(_break),
    "SetCode": grpc.unary_unary_rpc_method_handler(_set_code),
    "Wait": grpc.unary_unary_rpc_method_handler(_wait),
}


def test_each_port_knows_the_methods_of_its_service() -> None:
    metrics = Metrics()
    assert device_metrics(metrics)._names["/fedrho.v1.DeviceService/UploadUpdate"] == "UploadUpdate"
    assert set(operator_metrics(metrics)._names) == set(methods_of(wire.SERVICE))


# -- the endpoint ----------------------------------------------------------------------------------------------------------------


def test_the_endpoint_is_on_loopback_unless_told_otherwise_and_ends() -> None:
    with metrics_port(Metrics()) as address:
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        scraped(address)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1)


def test_the_endpoint_speaks_ipv6() -> None:
    with metrics_port(Metrics(), "::1") as address:
        assert address.startswith("[::1]:")
        scraped(address)


@pytest.mark.parametrize("host", ["192.0.2.1", "no host at all", "300.1.1.1"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(PortBusy, match="cannot publish metrics"), metrics_port(Metrics(), host):
        pass


def test_slow_callers_take_few_places_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "SCRAPE_SECONDS", 1.0)
    with metrics_port(Metrics()) as address, ExitStack() as callers:
        host, _, port = address.partition(":")
        slow = [callers.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(SCRAPERS + 1)]
        for one in slow[:SCRAPERS]:
            one.sendall(b"GET /metrics HT")
        assert slow[-1].recv(1) == b"", "beyond the limit"
        assert slow[0].recv(1) == b"", "cut, though it is not silent"
        until_free = time.monotonic() + 10
        while True:
            try:
                assert scraped(address)[1]
                return
            except OSError:
                assert time.monotonic() < until_free


def test_on_loopback_no_page_of_somebody_else_reads_the_metrics() -> None:
    """Through a name of its own that leads to this machine; a browser then says that name."""
    with metrics_port(Metrics(), "127.0.0.2") as address:
        port = address.rpartition(":")[2]
        for host in ("127.0.0.2", f"127.0.0.2:{port}", "127.0.0.1:9464", "localhost:1", "LOCALHOST", "[::1]:9464"):
            assert status(address, "/metrics", host) == status(address, "/", host) == 200, host
            assert status(address, "/foo", host) == status(address, "/favicon.ico", host) == 404, host
        for host in ("evil.example", "evil.example:9464", "127.0.0.1.evil.example", "localhost:1@a", "localhost\r\nHost: a", ""):
            assert status(address, "/metrics", host) == status(address, "/foo", host) == 421, host


def test_beyond_loopback_metrics_are_read_by_any_name() -> None:
    with metrics_port(Metrics(), "0.0.0.0") as address:
        for host in ("shard-0.fedrho.svc:9464", "10.0.0.7:9464", "localhost"):
            assert status(address, "/metrics?name[]=fedrho_open_calls", host) == 200, host
            assert status(address, "/metrics/more", host) == 404, host


def status(address: str, path: str, host: str) -> int:
    """What is answered whoever asks for a host."""
    name, _, port = address.rpartition(":")
    with closing(socket.create_connection((name, int(port)), timeout=5)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_a_busy_metrics_port_is_refused() -> None:
    with metrics_port(Metrics()) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(PortBusy), metrics_port(Metrics(), port=port):
            pass


@pytest.mark.parametrize("junk", [b"", b"\x16\x03\x01", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"GET\x00"])
def test_junk_neither_ends_the_endpoint_nor_is_written_down(junk: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with metrics_port(Metrics()) as address:
        host, _, port = address.rpartition(":")
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=2) as rude:
                rude.sendall(junk)
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        scraped(address)
    assert capfd.readouterr() == ("", "")
