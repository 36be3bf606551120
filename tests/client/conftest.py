"""What holds for every test of the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client import fleet


@pytest.fixture(autouse=True)
def histories_are_closed() -> Iterator[None]:
    yield
    while fleet.OPENED:
        fleet.OPENED.pop().close()
