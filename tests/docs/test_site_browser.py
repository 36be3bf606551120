"""The built site on a phone, in one browser: no page is wider than the screen, and its navigation opens by keyboard."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.docs.pages import TOP
from tests.server.test_dashboard_browser import CHROMIUM, DRIVER, chromium, press

SITE = TOP / "site"
WIDTH = 390

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"),
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no site here: ./dev docs builds it"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: Any) -> None:
        """Nothing."""


@contextmanager
def served() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def phone() -> Iterator[tuple[Any, str]]:
    with served() as address, chromium() as driver:
        size = {"width": WIDTH, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver, address


def test_no_page_is_wider_than_a_phone() -> None:
    """Wide tables and code scroll within themselves."""
    pages = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
    assert len(pages) > 30
    wide = {}
    with phone() as (driver, address):
        for page in pages:
            driver.get(f"{address}/{page}")
            width = driver.execute_script("return document.documentElement.scrollWidth")
            if width > WIDTH:
                wide[page] = width
    assert wide == {}


def test_the_navigation_of_a_phone_opens_and_closes_by_keyboard_and_is_not_in_the_way_when_closed() -> None:
    from selenium.webdriver.common.keys import Keys

    drawer = "return document.getElementById('__drawer').checked"
    left = "const e = document.activeElement.getBoundingClientRect(); return e.left"
    with phone() as (driver, address):
        driver.get(f"{address}/deploy/")
        for _ in range(12):
            press(driver, Keys.TAB)
            assert driver.execute_script(left) >= 0, "nothing has the focus that cannot be seen"
        for key in (Keys.ENTER, Keys.SPACE):
            driver.execute_script("document.querySelector('label.md-header__button[for=__drawer]').focus()")
            press(driver, key)
            time.sleep(0.5)
            assert driver.execute_script(drawer), "open"
            press(driver, Keys.ESCAPE)
            assert not driver.execute_script(drawer), "closed"
