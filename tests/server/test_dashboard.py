"""The dashboard over real HTTP: who gets in, what a browser is told, what the pages say, and what they must never say."""

from __future__ import annotations

import asyncio
import html
import http.client
import json
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client import generate_latest

from fedrho.dashboard_command import KeptRuns
from fedrho.key_making import make_keys
from fedrho.keys import operator_server_tls
from fedrho.privacy.claims import verdict
from fedrho.server.coarse import GROUP, whole
from fedrho.server.ledger import charge
from fedrho.server.listen import ExposedAddress, PortBusy
from fedrho.server.operations.dashboard import forecast
from fedrho.server.operations.dashboard.guards import HEADERS
from fedrho.server.operations.dashboard.pages import NoSuchPage, Pages
from fedrho.server.operations.dashboard.port import DashboardPort
from fedrho.server.operations.dashboard.sessions import GUESS_SECONDS, GUESSES, SESSION_SECONDS, Sessions, TooManyGuesses
from fedrho.server.operations.dashboard.shown import coarse, moment
from fedrho.server.operations.dashboard.sources import ServedRuns
from fedrho.server.operations.metrics import Metrics
from fedrho.server.operations.watching import LOOK_SECONDS
from fedrho.server.release import RunState
from fedrho.server.shard import Shard
from fedrho.server.storage.store import open_store, read_history
from fedrho.server.tasks import parse_task
from tests.server.dashboarding import Browser, Seen, begun, text_of, watched
from tests.server.long_history import BEGAN, long_history
from tests.server.operating import open_population, small_task, until, visit

PAGES = ("/", "/runs/small", "/runs/small/history", "/runs/small/statement.json")
TOKEN = "f" * 64


async def released(place: Seen, folder: Path, step: int, name: str = "small") -> None:
    """Devices come by until a step is released."""

    def there() -> bool:
        return any(view.name == name and view.step >= step for view in place.population.views())

    while not there():
        await asyncio.gather(*(visit(place.device_address, folder / f"device-{number}.sqlite") for number in range(3)))


# -- who gets in ----------------------------------------------------------------------------------------------------------------


def test_without_a_session_there_is_the_login_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            for path in (*PAGES, "/runs/none", "/runs/none/history"):
                for cookie in ("", "x" * 43, place.access.token, place.cookie[:-1]):
                    answer = await place.browser.ask(path, cookie=cookie)
                    assert (answer.status, answer.headers["location"], answer.text) == (303, "/login", ""), path
            for path in ("/login", "/static/style.css", "/static/live.js", "/static/icon.svg", "/none", "/static/../port.py"):
                answer = await place.browser.ask(path)
                assert "/runs/small" not in answer.text, path
                assert place.access.token not in answer.text
            token = place.access.token
            for wrong in ("", token[:-1], token + "0", "{", '{"token": 3}', f'{{"token": "{TOKEN}"}}', "[" * 900):
                answer = await place.browser.login(wrong)
                assert answer.status == 403
                assert "set-cookie" not in answer.headers

    asyncio.run(scenario())


def test_no_stranger_causes_an_error_and_every_wrong_token_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An error would be a line in the log for each."""
    fields = "a=1&b=1&c=1&d=1&e=1&f=1&g=1&h=1&i=1"
    wrong = (f"{fields}&token=x", "token=" + quote('{"token": "\\ud800"}'), "token=%ff%fe", "token=%00", "&;&=%", "")
    leaving = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntok"

    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            assert (await place.browser.ask("/logout", "POST", fields, cookie=place.cookie)).status == 403
            with closing(socket.create_connection(("127.0.0.1", place.browser.port))) as connection:
                connection.sendall(leaving)
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.2)
            told = [(await place.browser.ask("/login", "POST", wrong[number % len(wrong)])).status for number in range(GUESSES)]
            assert set(told[: len(wrong)]) == {403}
            assert told[-1] == 429, "the one that left counts, too"

    asyncio.run(scenario())
    assert "error" not in "".join(capfd.readouterr())


def test_every_answer_is_guarded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            asked = [
                await place.browser.ask("/", cookie=place.cookie),
                await place.browser.ask("/"),
                await place.browser.ask("/none"),
                await place.browser.ask("/static/live.js"),
                await place.browser.ask("/", "PUT"),
                await place.browser.ask("/", "DELETE", cookie=place.cookie),
                await place.browser.ask("/login", "POST", "token=" + "x" * 5000),
                await place.browser.ask("/", host="rebound.example.org", cookie=place.cookie),
                await place.browser.login(place.access.token, origin="http://127.0.0.1.example.org"),
                await place.browser.login(place.access.token, origin="null"),
            ]
            assert [answer.status for answer in asked] == [200, 303, 404, 200, 405, 405, 413, 421, 403, 403]
            for answer in asked:
                assert HEADERS.items() <= dict(answer.headers).items()
                assert "server" not in answer.headers
            assert "unsafe" not in HEADERS["content-security-policy"]
            page = asked[0].text
            assert not re.search(r"<style|\sstyle=|<script(?! src=\"/static/)|\son\w+=|javascript:", page)
            assert not re.search(r"(?:href|src|action)=\"(?!/|#|\?)", page)

    asyncio.run(scenario())


def test_hosts_are_compared_without_their_port_and_said_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            for host in ("localhost:8080", "LOCALHOST", "127.0.0.1", "[::1]:1"):
                assert (await place.browser.ask("/login", host=host)).status == 200, host
            for raw in (
                b"",
                b"Host: a\r\nHost: 127.0.0.1\r\n",
                b"Host: 127.0.0.1.example.org\r\n",
                b"Host: @127.0.0.1\r\n",
                b"Host: localhost:1@a\r\n",
            ):
                told = await asyncio.to_thread(_raw, place.browser.port, b"GET /login HTTP/1.1\r\n" + raw + b"\r\n")
                assert told.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400")), (raw, told[:60])
            chunked = b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            assert (await asyncio.to_thread(_raw, place.browser.port, chunked)).startswith(b"HTTP/1.1 413")

    asyncio.run(scenario())


def _raw(port: int, data: bytes) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
        connection.sendall(data)
        return connection.recv(400)


def test_the_cookie_is_no_token_and_logging_out_needs_the_sessions_own_form(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            file = (tmp_path / "operator.json").read_text()
            answer = await place.browser.login(file, origin=f"http://127.0.0.1:{place.browser.port}")
            assert answer.status == 303, "the whole file will do"
            told = answer.headers["set-cookie"].lower()
            assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in told.split(";")}
            assert place.access.token not in told
            assert "expires" not in told
            page = (await place.browser.ask("/", cookie=answer.cookie)).text
            (form,) = re.findall(r'name="form" value="([^"]+)"', page)
            for body in ("", "form=", "form=x", f"form={form}&form={form}"):
                assert (await place.browser.ask("/logout", "POST", body, cookie=answer.cookie)).status == 403
            assert (await place.browser.ask("/", cookie=answer.cookie)).status == 200
            assert (await place.browser.ask("/logout", "POST", f"form={form}", cookie=answer.cookie)).status == 303
            assert (await place.browser.ask("/", cookie=answer.cookie)).status == 303
            assert (await place.browser.ask("/", cookie=place.cookie)).status == 200, "the other session goes on"

    asyncio.run(scenario())


def test_guesses_are_throttled_and_sessions_end() -> None:
    now = [1000.0]
    sessions = Sessions(TOKEN, lambda: now[0])
    name = sessions.login(TOKEN)
    assert name is not None
    for _ in range(GUESSES):
        assert sessions.login("e" * 64) is None
    with pytest.raises(TooManyGuesses):
        sessions.login(TOKEN)  # not even compared
    assert sessions.known(name) is not None
    now[0] += GUESS_SECONDS
    assert sessions.login(TOKEN) is not None
    assert sessions.login("e" * 64) is None
    with pytest.raises(TooManyGuesses):
        sessions.login("e" * 64)
    now[0] += SESSION_SECONDS
    assert sessions.known(name) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_it_is_not_exposed_without_certificates(host: str) -> None:
    with pytest.raises(ExposedAddress, match="dashboard there needs certificates"):
        DashboardPort(host, 0, None)


def test_a_busy_port_is_known_at_once() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(PortBusy, match="0 takes a free one"):
        DashboardPort("127.0.0.1", taken.getsockname()[1], None)


def test_with_certificates_a_caller_needs_one_of_the_operators(tmp_path: Path) -> None:
    make_keys(tmp_path / "set", ["localhost", "127.0.0.1", "fl.example.org"], 30)
    tls = operator_server_tls(tmp_path / "set")
    shown = ssl.create_default_context(cafile=str(tmp_path / "set" / "operator" / "operator-ca.crt"))
    known = ssl.create_default_context(cafile=str(tmp_path / "set" / "operator" / "operator-ca.crt"))
    known.load_cert_chain(tmp_path / "set" / "operator" / "operator.crt", tmp_path / "set" / "operator" / "operator.key")

    def told(port: int, context: ssl.SSLContext, host: str) -> bytes:
        request = f"POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: {6 + len(TOKEN)}\r\n\r\ntoken={TOKEN}".encode()
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(request)
            return connection.recv(2000).lower()

    def refused(port: int, context: ssl.SSLContext) -> bool:
        try:
            return told(port, context, "localhost") == b""
        except (ssl.SSLError, ConnectionError):
            return True

    async def scenario() -> None:
        port = DashboardPort("0.0.0.0", 0, tls)
        number = int(port.address.rpartition(":")[2])
        with open_store(tmp_path / "store") as store:
            source = ServedRuns(open_population(small_task(), shard=Shard(), store=store), Metrics(), tmp_path / "store")
            async with port.serving(source, TOKEN):
                assert port.address.startswith("https://")
                for host in ("fl.example.org:7080", "127.0.0.1"):
                    answer = await asyncio.to_thread(told, number, known, host)
                    assert answer.startswith(b"http/1.1 303")
                    assert b"; secure" in answer
                assert (await asyncio.to_thread(told, number, known, "other.example.org")).startswith(b"http/1.1 421")
                assert await asyncio.to_thread(refused, number, shown)

    asyncio.run(scenario())


def test_it_ends_at_once_whatever_callers_do(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with watched(tmp_path, small_task()) as place:
            kept = http.client.HTTPConnection("127.0.0.1", place.browser.port, timeout=5)
            await asyncio.to_thread(kept.request, "GET", "/login")
            await asyncio.to_thread(lambda: kept.getresponse().read())
            silent = socket.create_connection(("127.0.0.1", place.browser.port))
            half = socket.create_connection(("127.0.0.1", place.browser.port))
            half.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntok")
            await asyncio.sleep(0.1)
            began = time.monotonic()
        for connection in (kept, silent, half):
            connection.close()
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 5.0


def test_a_connection_is_for_one_request_and_warnings_about_it_fill_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """So nobody keeps a place by a second request, or a body, that never ends."""

    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            head = b"/login HTTP/1.1\r\nHost: localhost\r\n"
            for raw in (
                b"GET " + head + b"\r\nGET ",
                b"POST " + head + b"Content-Length: 5000\r\n\r\ntok",
                b"GET " + head + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                b"nonsense\r\n\r\n",
            ):
                assert (await asyncio.to_thread(_all, place.browser.port, raw)).count(b"HTTP/1.1 ") == 1, raw

    asyncio.run(scenario())
    assert capfd.readouterr().err == ""


def _all(port: int, data: bytes) -> bytes:
    """What comes until the other side closes."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=8)) as connection:
        connection.sendall(data)
        told = b""
        while part := connection.recv(65536):
            told += part
        return told


def test_nothing_of_it_is_loaded_before_somebody_calls() -> None:
    heavy = {"starlette", "uvicorn", "jinja2", "matplotlib"}
    program = f"import sys, fedrho.server.operations.dashboard.port; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


# -- what is on the pages --------------------------------------------------------------------------------------------------------


def test_a_device_that_is_counted_changes_nothing_before_a_group_is_full(tmp_path: Path) -> None:
    """Nor is there anything on a page, or in the metrics, that only that device, or whoever talks to it, knows."""

    async def scenario() -> None:
        async with watched(tmp_path, small_task(goal=30, population=40, window=True)) as place:
            coordinator = next(iter(place.population.members.values())).coordinator

            def counted(wanted: int) -> bool:
                told = place.metrics.registry.get_sample_value("fedrho_uploads_total", {"outcome": "COUNTED"})
                return (coordinator.round.counted(), told) == (wanted, whole(wanted))

            async def seen() -> dict[str, str]:
                await asyncio.sleep(2 * LOOK_SECONDS)
                shown = {path: await place.page(path) for path in PAGES[:3]}
                return {**shown, "metrics": generate_latest(place.metrics.registry).decode()}

            before = await seen()
            for number in range(1, 11):
                await visit(place.device_address, tmp_path / f"device-{number}.sqlite")
                await until(lambda wanted=number: counted(wanted))  # type: ignore[misc]
                now = await seen()
                assert (now == before) == (number % GROUP > 0), number
                before = now
            secrets = [*coordinator.round.sessions, *(seat.tag for seat in coordinator.round.sessions.values())]
            secrets += list(coordinator.round.requests)
            assert len(set(secrets)) == 30
            for text in before.values():
                assert not any(secret.hex() in text or str(secret) in text for secret in secrets)
                assert place.device_address not in text
                assert "127.0.0.1" not in text
            assert "30 % of 30" in text_of(before["/"])

    asyncio.run(scenario())


def test_the_page_tells_a_measured_drop_out_from_one_that_the_task_expects(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            coordinator = next(iter(place.population.members.values())).coordinator

            async def seen(*fates: int) -> str:
                coordinator.shown_drop_out = coordinator.shown_drop_out.observed(*fates)
                return text_of(await place.page("/runs/small")).partition("Drop-out ")[2]

            expected, again, measured = await seen(0, 0), await seen(34, 15), await seen(1, 0)
            assert re.match(r"\d+ % expected by the task; none measured yet\. About \d+ seats ", expected)
            assert again == expected, "of 49 seats nothing is shown"
            assert re.match(r"30 % of the latest seats that had time to report, 50 at least\. About \d+ seats ", measured)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("count", "said"), [(0, "under 5"), (5, "5 or more"), (10, "10 or more"), (95, "50 or more"), (1200, "1,000 or more")]
)
def test_counts_are_coarse(count: int, said: str) -> None:
    assert coarse(count) == said


def test_neighbouring_counts_look_alike_nearly_always_and_never_too_large() -> None:
    shown = [coarse(whole(count)) for count in range(20_000)]
    assert sum(one != other for one, other in pairwise(shown)) == 1 + 3 * 3 + 1, "at 5, 10, 20, 50 … 10,000"
    for count, text in enumerate(shown[5:], 5):
        least = int(text.removesuffix(" or more").replace(",", ""))
        assert least <= count < 2.5 * least


def test_several_runs_in_every_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        names = ("small", "paused", "gone", "fresh")
        tasks = [small_task(name, steps=2) for name in names]
        async with watched(tmp_path, *tasks) as place:
            runs = {view.name: view.run for view in place.population.views()}
            for name in names[1:]:
                place.population.pause(runs[name])
            for page in [await place.page(f"/runs/{name}{part}") for name in names for part in ("", "/history")]:
                assert "Do not trust" not in page
            assert "nothing to draw" in text_of(await place.page("/runs/small"))
            assert (await place.browser.ask("/runs/small/statement.json", cookie=place.cookie)).status == 404
            await released(place, tmp_path, 1)
            await released(place, tmp_path, 2)
            place.population.cancel(runs["gone"])
            place.population.resume(runs["fresh"])
            small, gone = text_of(await place.page("/runs/small")), text_of(await place.page("/runs/gone"))
            assert {"finished", "active", "paused", "cancelled"} <= set(text_of(await place.page("/")).split())
            view = place.population.views()[0]
            assert view.state is RunState.FINISHED
            for row in view.statement.rows(view.delta):
                assert " ".join(row) in small
            assert html.escape(verdict(view.statement)).replace("&#x27;", "&#39;") in small
            for text in view.statement.assumptions:
                assert html.escape(text).replace("&#x27;", "&#39;") in small
            assert "chain whole" in small
            assert "chain whole" in gone
            assert "no measure of quality was released" in small
            overview = text_of(await place.page("/"))
            assert all(f"{name} " in overview for name in names)
            statement = json.loads(await place.page("/runs/small/statement.json"))
            link = read_history(tmp_path / "store", runs["small"]).links[-1]
            assert (statement["step"], statement["link"], statement["rho"]) == (2, link.hex(), view.statement.rho)
            for path in ("/runs/small/history?page=0", "/runs/small/history?page=2", "/runs/small/history?page=x", "/runs/SMALL"):
                assert (await place.browser.ask(path, cookie=place.cookie)).status == 404, path

    asyncio.run(scenario())


def test_a_changed_history_is_called_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path, small_task()) as place:
            await released(place, tmp_path, 1)
            with closing(sqlite3.connect(tmp_path / "store" / "fedrho.sqlite")) as database, database:
                database.execute("UPDATE releases SET rho = rho / 2 WHERE step = 1")
            for path in PAGES[1:3]:
                text = text_of(await place.page(path))
                assert "its link does not follow" in text
                assert "chain whole" not in text

    asyncio.run(scenario())


def test_thousands_of_steps_are_paged_checked_and_drawn_thinly(tmp_path: Path) -> None:
    task = small_task("long", steps=3000)
    run = long_history(tmp_path / "store", task, 2500)
    runs = KeptRuns(tmp_path / "store")
    pages, now = Pages(runs, live=False), runs.look()
    assert now.views[0].step == 2500
    first, last = pages.history(now, "long", 1, "f"), pages.history(now, "long", 51, "f")
    assert "every price and the names of all noise of steps 0 to 2500" in text_of(first)
    history = read_history(tmp_path / "store", run)
    assert [link.hex() for link in history.links[::-1][:50]] == re.findall(r'digest">(\w{64})</code></td>', first)
    assert re.findall(r'digest">(\w{64})</code></td>', last) == [history.links[0].hex()]
    with pytest.raises(NoSuchPage):
        pages.history(now, "long", 52, "f")
    page = pages.run(now, "long", "f")
    assert len(page) < 120_000
    assert "depend on when a server goes on with it" in text_of(page)
    began = time.perf_counter()
    pages.run(now, "long", "f")
    assert time.perf_counter() - began < 0.5, "nothing is read, checked or drawn again"


def test_the_forecast_is_the_ledgers_price_at_the_pace_of_late(tmp_path: Path) -> None:
    task = small_task("long", steps=40)
    history = read_history(tmp_path, long_history(tmp_path, task, 30, seconds=90.0))
    prices, latest = forecast.Prices(task), forecast.Latest(30, history.entries[-1].committed_at)
    pace = forecast.pace(history.entries)
    assert pace == forecast.Pace(90.0, 90.0, 90.0, forecast.RECENT)
    found = forecast.forecast(prices, latest, pace, latest.at + 60.0)
    ends = latest.at + 10 * 90.0
    assert found.ends == forecast.Span(ends, ends, ends)
    assert (found.affordable, found.final_rho) == (40, charge(task, 40).rho)
    ahead = forecast.ahead(prices, latest, pace, latest.at + 60.0)
    assert [(step, rho) for step, _, rho in ahead] == [(step, charge(task, step).rho) for step in range(30, 41)]
    assert forecast.pace(history.entries[:2]) is None, "one release is no pace"
    assert forecast.forecast(prices, latest, None, latest.at).ends is None
    assert forecast.pace(history.entries[:3]) == forecast.Pace(90.0, 90.0, 90.0, 1)


def test_no_step_to_come_is_said_to_have_come_already() -> None:
    prices, latest, pace = forecast.Prices(small_task(steps=40)), forecast.Latest(37, 1000.0), forecast.Pace(40.0, 60.0, 90.0, 20)
    shown = set()
    for waited in range(271):
        now = latest.at + waited
        found, ahead = forecast.forecast(prices, latest, pace, now), forecast.ahead(prices, latest, pace, now)
        assert found.ends is not None
        assert found.due_at is None
        times = [at for _, at, _ in ahead]
        assert now <= times[1] <= max(now + forecast.GRAIN * pace.median, latest.at + pace.median)
        assert times == [latest.at, times[1], times[1] + 60.0, found.ends.at]
        assert now + 2 * pace.quick <= found.ends.earliest <= found.ends.at <= found.ends.latest
        shown.add(tuple(times))
    assert len(shown) == 1 + (270 - 60) / (forecast.GRAIN * 60), "the chart is not drawn anew with every look"
    late = forecast.forecast(prices, latest, pace, 1271.0)
    assert (late.ends, late.due_at) == (None, 1060.0)
    assert forecast.ahead(prices, latest, pace, 1271.0) == []


def test_a_late_step_has_no_date_on_the_page(tmp_path: Path) -> None:
    long_history(tmp_path, small_task("long", steps=40), 30, seconds=90.0)
    runs = KeptRuns(tmp_path)
    pages, ended = Pages(runs, live=True), BEGAN + 30 * 90.0

    def shown(at: float) -> str:
        return text_of(pages.run(replace(runs.look(), at=at), "long", "f"))

    soon = shown(ended + 60.0)
    assert f"With step 40, the last one, about {moment(ended + 900.0)} UTC" in soon
    assert "to come, at the pace of late" in soon
    assert f"about {moment(ended + 112.5 + 810.0)} UTC" in shown(ended + 100.0), "one step is overdue"
    late = shown(ended + 271.0)
    assert "The latest release was" in late, "and the top of the page says so"
    assert f"late: the next release should have come about {moment(ended + 90.0)} UTC" in late
    assert "to come, at the pace of late" not in late
    assert moment(ended + 900.0) not in late


TREE = """
name = "tree"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 30
population = 40000
[round]
goal = 500
[privacy]
clip_norm = 1.0
rho = 10.0
delta = 1e-6
[participation]
max_times = 4
min_separation = 8
"""


@pytest.mark.parametrize("live", [True, False])
def test_the_budget_is_used_with_the_last_step_that_costs_anything(tmp_path: Path, live: bool) -> None:
    task = parse_task(TREE, "tree.toml")
    prices = [charge(task, step).rho for step in range(31)]
    assert prices[27] < prices[28] == prices[30] == 10.0

    def shown(step: int) -> str:
        folder = tmp_path / str(step)
        long_history(folder, task, step, seconds=60.0)
        runs = KeptRuns(folder)
        return text_of(Pages(runs, live=live).run(replace(runs.look(), at=BEGAN + step * 60.0), "tree", "f"))

    before, used, ended = shown(20), shown(28), shown(30)
    when = f" about {moment(BEGAN + 28 * 60.0)} UTC , between" if live else ""
    assert f"With step 28{when}" in before
    assert f"rho will {'then ' * live}be 10 of 10. The steps from there to 30 cost nothing more." in before
    since = f"Used since step 28 , {moment(BEGAN + 28 * 60.0)} UTC: rho 10 of 10."
    assert f"{since} The steps to 30 cost nothing more." in used
    for page in (before, used):
        assert (f"The run ends later: step 30, the last one, about {moment(BEGAN + 30 * 60.0)} UTC" in page) == live
        assert ("depend on when a server goes on with it" in page) == (not live)
    assert f"{since} No step is to come." in ended


def test_a_store_is_seen_anew_with_every_page_also_with_a_run_that_was_begun_since(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, runs = DashboardPort("127.0.0.1", 0, None), KeptRuns(tmp_path)
        begun(tmp_path, small_task())
        async with port.serving(runs, TOKEN, live=False):
            browser = Browser(int(port.address.rpartition(":")[2]))
            cookie = (await browser.login(TOKEN)).cookie
            first = await browser.ask("/runs/small", cookie=cookie)
            assert (first.status, first.text.count('<script src="/static/live.js" defer>')) == (200, 1)
            assert "last answered" in first.text
            begun(tmp_path, small_task("other"))
            assert 'href="/runs/other"' in (await browser.ask("/", cookie=cookie)).text
            assert (await browser.ask("/runs/other", cookie=cookie)).status == 200

    asyncio.run(scenario())


# -- how they look ---------------------------------------------------------------------------------------------------------------

TEXTS = ("ink", "muted", "link", "good", "bad", "warn")
BOTH = {("on-button", "button"): 4.5, ("bad", "bad-back"): 4.5, ("warn", "warn-back"): 4.5, ("edge", "card"): 3.0}
LINES = ("line", "ahead", "limit", "good", "edge")


def test_every_colour_has_the_contrast_that_wcag_aa_asks_for() -> None:
    """4.5 for text, 3 for the lines of a chart and the edges of a control, in light and in dark."""
    style = resources.files("fedrho.server.operations.dashboard").joinpath("static/style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in style.split("@media (prefers-color-scheme")[:2]
    )
    assert light.keys() == dark.keys()
    needed = {(text, back): 4.5 for text in TEXTS for back in ("page", "card")} | BOTH
    needed |= {(line, back): 3.0 for line in LINES for back in ("page", "card")}
    for colours in (light, dark):
        for (one, other), least in needed.items():
            assert contrast(colours[one], colours[other]) >= least, (one, other, colours[one], colours[other])


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance of sRGB."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
