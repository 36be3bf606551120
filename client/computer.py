"""The conditions that come with fedrho, for a computer: its owner, its power, its network, its load, its heat, the hour.

What cannot be found out does not hold, unless its owner adds `or-unknown`: `--when unmetered=or-unknown`.
"""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from datetime import time as Hour
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from fedrho.client.conditions import Make

OR_UNKNOWN: Final = "or-unknown"
COMMAND_SECONDS: Final = 0.25
LOGIN = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "IdleHint", "IdleSinceHint")
NETWORK = (
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
    "Metered",
)


@dataclass(frozen=True)
class Measured:
    """A condition on something that may be unknown. `measure` tells why it does not hold, or "" while it does, or None."""

    name: str
    measure: Callable[[], str | None]
    unknown: str
    allow_unknown: bool = False

    def unmet(self) -> str | None:
        found = self.measure()
        if found is None:
            return None if self.allow_unknown else f"{self.unknown}; add {OR_UNKNOWN} to take part nevertheless"
        return found or None


@dataclass(frozen=True)
class Hours:
    """Between two times of the day, by the clock on the wall: past midnight where the end is before the start.

    An hour that the clock leaves out in spring does not come, one that it repeats in autumn comes twice.
    """

    start: Hour
    end: Hour
    now: Callable[[], datetime] = datetime.now
    name: str = "hours"

    def unmet(self) -> str | None:
        now = self.now().time()
        after, before = now >= self.start, now < self.end
        if (after and before) if self.start < self.end else (after or before):
            return None
        return f"it is {now:%H:%M}, not between {self.start:%H:%M} and {self.end:%H:%M}"


@dataclass(frozen=True)
class OffSwitch:
    """A file that the owner makes to stop everything, and removes to go on."""

    file: Path
    name: str = "off-switch"

    def unmet(self) -> str | None:
        try:
            self.file.lstat()
        except FileNotFoundError:
            return None
        return f"{self.file} is there"


class OthersCpu:
    """How much of all processors other programs use, on average over the last seconds."""

    SECONDS: Final = 3.0
    EVERY: Final = 0.5

    def __init__(self) -> None:
        self._ours = psutil.Process()
        self._seen: deque[tuple[float, float, float]] = deque()

    def share(self) -> float | None:
        """From 0 to 1; None until two looks lie apart."""
        now = time.monotonic()
        if not self._seen or now - self._seen[-1][0] >= self.EVERY:
            self._seen.append((now, *self._used()))
            while len(self._seen) > 2 and now - self._seen[1][0] >= self.SECONDS:
                self._seen.popleft()
        (_, busy, total), (_, busy_now, total_now) = self._seen[0], self._seen[-1]
        return max(0.0, busy_now - busy) / (total_now - total) if total_now > total else None

    def _used(self) -> tuple[float, float]:
        """Seconds of all processors that others have used, and all seconds, since the machine was started."""
        times = psutil.cpu_times()
        total = math.fsum(times[:8])  # what follows on Linux is counted in these
        ours = math.fsum(self._ours.cpu_times()[:4])
        for child in self._ours.children(recursive=True):
            try:
                ours += math.fsum(child.cpu_times()[:2])
            except psutil.Error:
                continue
        return total - times.idle - getattr(times, "iowait", 0.0) - ours, total


def on_mains() -> str | None:
    """A computer without a battery is on mains."""
    read: Callable[[], Any] | None = getattr(psutil, "sensors_battery", None)
    if read is None:
        return None
    battery = read()
    if battery is None:
        return ""
    if battery.power_plugged is None:
        return None
    return "" if battery.power_plugged else "this computer runs on its battery"


def unmetered(asked: Callable[..., list[str] | None]) -> str | None:
    """As NetworkManager sees the network as a whole: yes, no, or a guess."""
    answer = asked(*NETWORK)
    known = {"1": "the network is metered", "3": "the network is probably metered", "2": "", "4": ""}
    return known.get(answer[0]) if answer else None


def idle(seconds: float, asked: Callable[..., list[str] | None], now: Callable[[], float] = time.time) -> str | None:
    """As logind sees all sessions together; where there is none, as the terminals of those who are logged in were last used."""
    answer = asked(*LOGIN)
    quiet = _terminals_quiet(now()) if answer is None else _sessions_quiet(answer, now())
    if quiet is None:
        return None
    return "" if quiet >= seconds else "someone is using this computer"


def _sessions_quiet(answer: list[str], now: float) -> float | None:
    if len(answer) != 2 or not answer[1].isdigit():
        return None
    if answer[0] != "true":
        return 0.0
    return now - int(answer[1]) / 1e6 if answer[1] != "0" else math.inf


def _terminals_quiet(now: float) -> float | None:
    """Seconds since a terminal was used; None where someone sits at a screen, whose use is not to be seen here."""
    quiet = math.inf
    for user in psutil.users():
        if not (user.terminal or "").startswith("pts/"):
            return None
        try:
            quiet = min(quiet, now - Path("/dev", str(user.terminal)).stat().st_atime)
        except OSError:
            return None
    return quiet


def cool(celsius: float) -> str | None:
    """By the hottest sensor there is."""
    read: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()
    hottest = max((one.current for sensors in read.values() for one in sensors), default=None)
    if hottest is None:
        return None
    return "" if hottest <= celsius else f"{hottest:.0f} °C is above {celsius:g} °C"


def quiet(percent: float, others: OthersCpu) -> str | None:
    share = others.share()
    if share is None:
        return None
    return "" if 100 * share <= percent else f"other programs use {100 * share:.0f} % of the processors, more than {percent:g} %"


def bus_property(service: str, path: str, interface: str, *names: str) -> list[str] | None:
    """Values of properties on the system's bus, as words; None where there is no such bus or service."""
    command = ["busctl", "--system", "get-property", service, path, interface, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [line.split(maxsplit=1)[-1] for line in done.stdout.splitlines() if line]
    return values if done.returncode == 0 and len(values) == len(names) else None


def _measured(name: str, unknown: str, measure: Callable[[], str | None]) -> Make:
    """Without a number in its setting."""

    def make(setting: str) -> Measured:
        if setting not in ("", OR_UNKNOWN):
            raise ValueError(f"allowed after {name}: nothing, or ={OR_UNKNOWN}")
        return Measured(name, measure, unknown, bool(setting))

    return make


def _numbered(name: str, unknown: str, default: float, limits: tuple[float, float], measure: Callable[[float], Any]) -> Make:
    """With a number in its setting, `default` where there is none; `measure` makes what measures."""

    def make(setting: str) -> Measured:
        text, comma, rest = setting.partition(",")
        if setting == OR_UNKNOWN:
            text, comma, rest = "", ",", OR_UNKNOWN
        try:
            number = float(text) if text else default
        except ValueError:
            number = math.nan
        if not limits[0] <= number <= limits[1] or (comma and rest != OR_UNKNOWN):
            low, high = limits
            raise ValueError(f"allowed after {name}: a number from {low:g} to {high:g}, {OR_UNKNOWN}, or both with a comma")
        return Measured(name, measure(number), unknown, bool(comma))

    return make


def hours(setting: str) -> Hours:
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", setting)
    if match is None or (match[1], match[2]) == (match[3], match[4]):
        raise ValueError("allowed after hours: HH:MM-HH:MM with two different times, such as hours=22:00-06:00")
    return Hours(Hour(int(match[1]), int(match[2])), Hour(int(match[3]), int(match[4])))


def off_switch(setting: str) -> OffSwitch:
    if not setting:
        raise ValueError("allowed after off-switch: the path of a file, such as off-switch=/etc/fedrho/stop")
    return OffSwitch(Path(setting).absolute())


BUILT_IN: Mapping[str, Make] = {
    "idle": _numbered(
        "idle", "whether someone uses this computer is unknown", 300, (1, 86_400), lambda n: partial(idle, n, bus_property)
    ),
    "mains-power": _measured("mains-power", "the source of power is unknown", on_mains),
    "unmetered": _measured("unmetered", "whether the network is metered is unknown", partial(unmetered, bus_property)),
    "hours": hours,
    "cool": _numbered("cool", "the temperature is unknown", 80, (1, 150), lambda n: partial(cool, n)),
    "quiet": _numbered("quiet", "the load is not known yet", 50, (0, 100), lambda n: partial(quiet, n, OthersCpu())),
    "off-switch": off_switch,
}
"""By the name that stands before `=`."""
