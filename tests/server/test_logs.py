"""Logs of real traffic: what they tell, and that every byte of them is free of devices."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.zcdp import Rho
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.logs import COMPLAINT_SECONDS, FIELDS, LogFormat, RunLog, _Kinds, logging_to
from fedrho.server.operations.metrics import Metrics
from fedrho.server.population import RunView
from fedrho.server.release import RunState
from tests.server.operating import channel, site, small_task, until, visit
from tests.server.test_metrics import known_of_devices, traffic


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where JSON logs go."""
    with logging_to(LogFormat.JSON, tmp_path / "server.log"):
        yield tmp_path / "server.log"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def view(**changes: Any) -> RunView:
    statement = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(0.5), ())
    made = RunView(b"r" * 16, "small", "dp-ftrl", "m", RunState.ACTIVE, 1, 3, 1, 2, 4, 0.0, 0.5, statement, 2.0, 1e-3, 0.0, 0.0)
    return replace(made, **changes)


def test_every_byte_of_the_logs_of_real_traffic_is_free_of_devices(path: Path, tmp_path: Path) -> None:
    metrics = Metrics(with_runs=True)
    ports: set[str] = set()

    async def scenario() -> tuple[bytes, str]:
        told = RunLog(metrics.refusals).observe
        async with site(tmp_path, small_task(window=True), tell=told, metrics=metrics) as place:
            await traffic(place, tmp_path)
            ports.add(place.device_address)
            await until(lambda: any(line["event"] == "finished" for line in lines(path)))
            assert place.population._signer.public
            return place.population.views()[0].run, place.access.token

    run, token = asyncio.run(scenario())
    text = path.read_text()
    told = lines(path)
    assert [line["event"] for line in told if line["event"] != "refused"][-1] == "finished"
    assert sum(line["releases"] for line in told if line["event"] == "released") == 3
    assert all(set(line) <= FIELDS for line in told)
    secrets = {one for one in known_of_devices(tmp_path) if one != run}
    assert len(secrets) >= 3
    for secret in secrets:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    for forbidden in (token, "s3cret", "Traceback", "ipv4:", *ports):
        assert forbidden not in text


def test_the_log_tells_of_abandoned_attempts(path: Path, tmp_path: Path) -> None:

    async def scenario() -> None:
        async with site(tmp_path, small_task(deadline=1.0), tell=RunLog().observe) as place:
            await visit(place.device_address, tmp_path / "lonely.sqlite")
            await until(lambda: any(line["event"] == "abandoned" for line in lines(path)))

    asyncio.run(scenario())
    (abandoned, *_) = [line for line in lines(path) if line["event"] == "abandoned"]
    assert (abandoned["task"], abandoned["step"], abandoned["attempts"], abandoned["level"]) == ("small", 1, 1, "warning")


def test_differences_between_two_looks_are_told(path: Path) -> None:
    refusals = {"TOO_LATE": 1}
    log = RunLog(lambda: refusals)
    after = view(step=3, attempt=1, state=RunState.FINISHED)
    for seen in (
        view(),
        view(attempt=3),
        view(attempt=3),
        view(step=2, attempt=2),
        view(step=2, attempt=2, state=RunState.PAUSED),
    ):
        log.observe((seen,))
    refusals["WRONG_LENGTH"] = 4
    for seen in (view(step=2, attempt=2), after, after):
        log.observe((seen,))
    told = [
        {name: text for name, text in line.items() if name not in ("timestamp", "level", "task", "run")} for line in lines(path)
    ]
    spent = {"rho": 0.5, "rho_budget": 2.0, "unit": "device", "neighbours": "zero-out", "steps": 3}
    assert told == [
        {"event": "serving", "step": 1, "steps": 3, "state": "active"},
        {"event": "abandoned", "step": 2, "attempts": 2},
        {"event": "abandoned", "step": 3, "attempts": 1},
        {"event": "released", "step": 2, "releases": 1, **spent},
        {"event": "refused", "reasons": {"TOO_LATE": 1}},
        {"event": "paused", "step": 2, "steps": 3},
        {"event": "resumed", "step": 2, "steps": 3},
        {"event": "released", "step": 3, "releases": 1, **spent},
        {"event": "refused", "reasons": {"WRONG_LENGTH": 4}},
        {"event": "finished", "step": 3, "steps": 3},
    ]


def test_what_is_no_known_field_does_not_get_in(path: Path) -> None:
    log = structlog.get_logger("somewhere").bind(peer="ipv4:10.1.2.3:55555")
    try:
        raise ValueError("10.1.2.3 sent s3cret")
    except ValueError:
        log.exception("broken", session=b"s3cret", address="10.1.2.3", kind="ValueError", exc_info=True)
    log.error("odd", state=b"s3cret", reasons={"A": 1, "B": "s3cret"}, task=["s3cret"], kind=object(), run="x" * 5000)
    logging.getLogger("grpc._cython.cygrpc").error("Unexpected %s", "s3cret from 10.1.2.3")
    logging.getLogger("asyncio").error("never retrieved", exc_info=ValueError("s3cret"))
    text = path.read_text()
    assert "10.1.2.3" not in text
    assert "s3cret" not in text
    broken, odd, grpc_line, asyncio_line = lines(path)
    assert broken.keys() == {"event", "kind", "level", "timestamp"}
    assert odd["reasons"] == {"A": 1}
    assert odd.keys() == {"event", "reasons", "level", "timestamp", "run"}
    assert len(odd["run"]) == 200
    assert (grpc_line["logger"], asyncio_line["kind"]) == ("grpc._cython.cygrpc", "ValueError")


def test_what_a_library_says_again_and_again_is_one_line_a_minute_with_a_count(path: Path) -> None:
    now = [0.0]
    kinds = _Kinds(lambda: now[0])
    dropped = logging.LogRecord("grpc._cython.cygrpc", logging.ERROR, "", 0, "s3cret", None, None)
    other = logging.LogRecord("asyncio", logging.WARNING, "", 0, "s3cret", None, None)
    for record in [dropped] * 1000 + [other]:
        kinds.handle(record)
    now[0] = COMPLAINT_SECONDS
    kinds.handle(dropped)
    kinds.handle(dropped)
    kinds.tell_rest()
    kinds.tell_rest()
    told = [(line["logger"], line["kind"], line["count"]) for line in lines(path)]
    grpc_error = "grpc._cython.cygrpc", "ERROR"
    assert told == [(*grpc_error, 1), ("asyncio", "WARNING", 1), (*grpc_error, 1000), (*grpc_error, 1)]


def test_the_end_of_a_log_says_what_was_held_back(tmp_path: Path) -> None:
    with logging_to(LogFormat.JSON, tmp_path / "log"):
        for _ in range(5):
            logging.getLogger("grpc").error("s3cret")
    assert [line["count"] for line in lines(tmp_path / "log")] == [1, 4]


def test_text_is_one_line_an_event(tmp_path: Path) -> None:
    path = tmp_path / "server.txt"
    with logging_to(LogFormat.TEXT, path):
        structlog.get_logger().info("released", task="a\nforged line", step=3, rho=0.25)
    (line,) = path.read_text().splitlines()
    assert line.endswith("info released rho=0.25 step=3 task=a forged line")


def test_a_log_file_is_its_owners_alone_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    for number in range(2):
        with logging_to(LogFormat.JSON, path):
            structlog.get_logger().info("serving", step=number)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line["step"] for line in lines(path)] == [0, 1]


def test_a_full_disk_does_not_stop_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(LogFormat.JSON, Path("/dev/full")):
        structlog.get_logger().error("nothing of this arrives", step=1)
    assert capfd.readouterr() == ("", "")


def test_without_a_file_it_is_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(LogFormat.JSON):
        structlog.get_logger().info("serving", step=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "serving"


def test_the_operator_port_says_where_it_listens(path: Path, tmp_path: Path) -> None:

    async def scenario() -> str:
        async with site(tmp_path, small_task()) as place, channel(place.access.address) as opened:
            await opened.unary_unary(wire.path("ListRuns"))(b"", metadata=wire.bearer(place.access.token))
            return place.access.address

    address = asyncio.run(scenario())
    (line,) = lines(path)
    assert (line["event"], line["port"], line["listening"]) == ("listening", "operator", address)
