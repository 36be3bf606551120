"""The dashboard in a real browser: by keyboard, as a round fills, in light and dark, on a phone; and whom the browser calls.

With FEDRHO_SCREENSHOTS=FOLDER the pictures stay there, to be looked at; those of docs/dashboard.md are among them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from fedrho.dashboard_command import KeptRuns
from fedrho.server.operations.dashboard.port import DashboardPort
from fedrho.server.operations.dashboard.sources import Snapshot
from fedrho.server.tasks import parse_task
from tests.server.dashboarding import Seen, begun, watched
from tests.server.long_history import long_history
from tests.server.operating import small_task, visit

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"),
]

QUIET = (
    "--headless=new",
    "--no-sandbox",  # which a container has no room for; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
LOOKS = {"light": (1100, "light"), "dark": (1100, "dark"), "phone": (390, "light"), "phone-dark": (390, "dark")}
TOKEN = "0123456789abcdef" * 4
LONG = """
name = "keyboard-spanish"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 128
population = 40000
[round]
goal = 500
[privacy]
clip_norm = 1.0
rho = 0.8
delta = 1e-6
[participation]
max_times = 4
min_separation = 32
"""

CELLS = """
const row = document.querySelector("table.blocks tbody tr");
const label = (cell) => getComputedStyle(cell, "::before").content.replaceAll('"', "");
return {
  row: getComputedStyle(row).display,
  cells: [...row.cells].map((cell) => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    return range.getBoundingClientRect().right;
  }),
  labels: [...row.cells].slice(1).map(label),
  heads: [...document.querySelectorAll("table.blocks thead th")].slice(1).map((one) => one.innerText),
};
"""
"""Of a table's first row: how it is shown, where what is in its cells ends, and what is said beside them."""

T = TypeVar("T")


class SoonAfter(KeptRuns):
    """A store as it is seen ten minutes after its latest release."""

    def look(self) -> Snapshot:
        found = super().look()
        return replace(found, at=max(view.committed_at for view in found.views) + 600.0)


class Background:
    """An event loop on a thread, for servers that a test talks to from outside."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._opened = AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def enter(self, context: Any) -> Any:
        return self.run(self._opened.enter_async_context(context))

    def close(self) -> None:
        self.run(self._opened.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("FEDRHO_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def chromium() -> Iterator[Any]:
    """Afterwards it must have complained of nothing, and have called this machine alone."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in QUIET:
        options.add_argument(option)
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
        assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
        assert called(driver) == {"127.0.0.1"}
    finally:
        driver.quit()


def called(driver: Any) -> set[str | None]:
    """Every host that a page asked for anything."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname for url in urls if not url.startswith("data:")}


def until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.1)


def text(driver: Any, selector: str) -> str:
    shown: str = driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
    return " ".join(shown.split())


def focused(driver: Any) -> str:
    return str(driver.execute_script("const e = document.activeElement; return e.id || e.innerText || e.tagName"))


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def tab_to(driver: Any, wanted: str) -> list[str]:
    """What Tab came by on its way."""
    from selenium.webdriver.common.keys import Keys

    seen: list[str] = []
    while not seen or seen[-1] != wanted:
        assert len(seen) < 40, seen
        press(driver, Keys.TAB)
        seen.append(focused(driver))
        outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"{seen[-1]}: its focus cannot be seen"
    return seen


def photographed(driver: Any, file: Path, look: str, most: int = 4000) -> None:
    """The whole page, which must not be wider than the screen."""
    width, scheme = LOOKS[look]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide, high = driver.execute_script("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
    assert wide <= width, f"{file.name}: {wide} pixels wide"
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": min(high, most)})
    file.write_bytes(driver.get_screenshot_as_png())
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_an_operator_follows_a_run_by_keyboard(tmp_path: Path, pictures: Path, background: Background) -> None:
    from selenium.webdriver.common.keys import Keys

    place: Seen = background.enter(watched(tmp_path, small_task(goal=10, population=20), small_task("other")))

    def come(number: int) -> None:
        background.run(visit(place.device_address, tmp_path / f"device-{number}.sqlite"))

    place.population.pause(place.population.views()[1].run)
    with chromium() as driver:
        driver.get(f"http://127.0.0.1:{place.browser.port}/runs/small")
        assert driver.current_url.endswith("/login")
        photographed(driver, pictures / "login.png", "phone-dark")
        assert focused(driver) == "token"
        press(driver, place.access.token, Keys.ENTER)
        until(lambda: text(driver, "h1") == "Runs on these devices")
        assert tab_to(driver, "to-small")[:3] == ["Skip to the content", "fedrho", "small"]
        press(driver, Keys.ENTER)
        until(lambda: text(driver, "h1").startswith("small"))
        press(driver, Keys.TAB, Keys.ENTER)
        assert driver.execute_script("return location.hash") == "#content"
        driver.execute_script("window.loaded = true")
        for number in range(5):
            come(number)
        until(lambda: "50 % of 10 reports" in text(driver, "#now"))
        tab_to(driver, "assumptions-summary")
        press(driver, Keys.ENTER)
        for number in range(5, 10):
            come(number)
        until(lambda: text(driver, "#now").startswith("Step 1 of 3"))
        until(lambda: "chain whole" in text(driver, "#chain"))
        until(lambda: "Take any one device" in text(driver, "#privacy"))
        assert driver.execute_script("return window.loaded"), "nothing was loaded anew"
        assert focused(driver) == "assumptions-summary", "the focus stays where it was"
        assert not driver.execute_script("return document.getElementById('assumptions').open"), "and what was closed stays so"
        tab_to(driver, "to-history")
        press(driver, Keys.ENTER)
        until(lambda: text(driver, "h1") == "History of small")
        for look in LOOKS:
            for name, path in (("overview", "/"), ("history", "/runs/small/history"), ("fresh", "/runs/other")):
                driver.get(f"http://127.0.0.1:{place.browser.port}{path}")
                photographed(driver, pictures / f"{name}-{look}.png", look)
        press(driver, Keys.HOME)
        tab_to(driver, "Log out")
        press(driver, Keys.ENTER)
        until(lambda: driver.current_url.endswith("/login"))


def test_a_long_run_looks_well_everywhere(tmp_path: Path, pictures: Path, background: Background) -> None:
    from selenium.webdriver.common.by import By

    long_history(tmp_path, parse_task(LONG, "long.toml"), 83, seconds=1500.0, spread=0.4)
    port = DashboardPort("127.0.0.1", 0, None)
    background.enter(port.serving(SoonAfter(tmp_path), TOKEN, live=False))
    with chromium() as driver:
        driver.get(port.address)
        driver.find_element(By.ID, "token").send_keys(TOKEN)
        driver.find_element(By.CSS_SELECTOR, "button").click()
        until(lambda: text(driver, "h1") == "Runs of this store")
        driver.get(f"{port.address}/runs/keyboard-spanish")
        assert "chain whole" in text(driver, "#chain")
        for look in LOOKS:
            photographed(driver, pictures / f"run-{look}.png", look)
        driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        photographed(driver, pictures / "numbers-phone.png", "phone")
        driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = false })")
        for look in ("light", "dark"):
            photographed(driver, pictures / f"dashboard-{look}.png", look, most=820)
        colours = {driver.execute_script("return getComputedStyle(document.querySelector('figure svg path[stroke]')).stroke")}
        photographed(driver, pictures / "unused.png", "light")
        colours.add(driver.execute_script("return getComputedStyle(document.querySelector('figure svg path[stroke]')).stroke"))
        assert len(colours) == 2, "the charts follow light and dark"
        (pictures / "unused.png").unlink()
        driver.get(f"{port.address}/runs/keyboard-spanish/history?page=2")
        photographed(driver, pictures / "history-2-phone.png", "phone")
        assert "Page 2 of 2" in text(driver, "nav.pages")
        for width, shown in ((390, "block"), (600, "block"), (601, "table-row")):
            for path, cells in (("/", 5), ("/runs/keyboard-spanish/history", 6)):
                size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.get(f"{port.address}{path}")
                seen = driver.execute_script(CELLS)
                assert seen["row"] == shown, (width, path)
                assert len(seen["cells"]) == cells
                if shown == "block":
                    assert max(seen["cells"]) <= width, f"{path}: a cell ends at {max(seen['cells'])} of {width} pixels"
                    assert seen["labels"] == seen["heads"], (width, path)


def test_the_pages_of_a_store_follow_it_and_say_when_they_no_longer_do(tmp_path: Path, background: Background) -> None:
    from selenium.webdriver.common.by import By

    begun(tmp_path, small_task())
    port = DashboardPort("127.0.0.1", 0, None)
    serving = port.serving(KeptRuns(tmp_path), TOKEN, live=False)
    background.run(serving.__aenter__())
    with chromium() as driver:
        driver.get(port.address)
        driver.find_element(By.ID, "token").send_keys(TOKEN)
        driver.find_element(By.CSS_SELECTOR, "button").click()
        until(lambda: text(driver, "h1") == "Runs of this store")
        driver.execute_script("window.loaded = true")
        assert "other" not in text(driver, "#runs")
        begun(tmp_path, small_task("other"))
        until(lambda: "other" in text(driver, "#runs"))
        lost = driver.find_element(By.ID, "lost")
        assert not lost.is_displayed()
        background.run(serving.__aexit__(None, None, None))
        until(lost.is_displayed)
        assert lost.text.startswith("fedrho dashboard has ended")
        assert driver.execute_script("return window.loaded"), "nothing was loaded anew"
        assert all("ERR_CONNECTION_REFUSED" in entry["message"] for entry in driver.get_log("browser"))
        driver.get("about:blank")
        driver.get_log("browser")
