"""Numbers as the pages show them: rho and epsilon never below what they are, counts of devices in coarse steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup, escape

from fedrho.privacy.statement import round_up
from fedrho.server.coarse import GROUP

UNITS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def coarse(count: int) -> str:
    """A number of answers to devices, which comes in whole groups, in steps of 1, 2, 5."""
    if count < GROUP:
        return f"under {GROUP}"
    power = 10 ** (len(str(count)) - 1)
    return f"{max(step for step in (1, 2, 5) if step * power <= count) * power:,} or more"


def duration(seconds: float) -> str:
    """With two or three digits, in the unit that fits."""
    for length, unit in UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(0.0, seconds):.2g} s"


def moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def minute(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def machine(at: float) -> str:
    """For <time datetime=…>."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def tenths(filled: float) -> int:
    """Of the goal, as the gate has rounded them down."""
    return min(10, math.floor(10 * filled + 1e-9))


def percent(part: float, whole: float) -> str:
    """Rounded up, for a budget."""
    return f"{round_up(100 * part / whole, 3)} %" if whole > 0 else "0 %"


def words(name: str) -> str:
    """NORM_TOO_LARGE: norm too large."""
    return name.lower().replace("_", " ")


def coded(text: str) -> Markup:
    """What stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "coarse": coarse,
    "coded": coded,
    "duration": duration,
    "moment": moment,
    "machine": machine,
    "tenths": tenths,
    "rho": round_up,
    "words": words,
}
