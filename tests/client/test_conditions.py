"""Conditions: what each means, and that one that fails, hangs or cannot be found out stops a device rather than lets it go on."""

from __future__ import annotations

import asyncio
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from datetime import time as Hour
from importlib.metadata import EntryPoint
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import pytest

from fedrho.client import computer, conditions
from fedrho.client.computer import Hours, Measured, OffSwitch, OthersCpu
from fedrho.client.conditions import BadCondition, Conditions, Interrupted, condition, first_unmet

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> Callable[[], datetime]:
    return lambda: datetime.fromisoformat(text)


def holds(setting: str, now: datetime) -> bool:
    return replace(computer.hours(setting), now=lambda: now).unmet() is None


@pytest.mark.parametrize(
    ("setting", "inside", "outside"),
    [
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ("09:00-17:30", ["09:00", "17:29"], ["08:59", "17:30", "00:00"]),
        ("00:00-06:00", ["00:00", "05:59"], ["06:00", "23:59"]),
    ],
)
def test_hours_begin_with_their_first_minute_and_end_before_their_last(
    setting: str, inside: list[str], outside: list[str]
) -> None:
    assert all(holds(setting, at(f"2026-03-01T{text}")()) for text in inside)
    assert not any(holds(setting, at(f"2026-03-01T{text}")()) for text in outside)


@pytest.mark.parametrize(("day", "length"), [("2026-03-28", 7), ("2026-10-24", 9), ("2026-06-01", 8)])
def test_a_night_is_as_long_as_the_clock_on_the_wall_makes_it(day: str, length: int) -> None:
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=BERLIN).astimezone(UTC)
    minutes = [(noon + timedelta(minutes=n)).astimezone(BERLIN) for n in range(24 * 60)]
    assert sum(holds("22:00-06:00", minute) for minute in minutes) == length * 60


@pytest.mark.parametrize("setting", ["", "22-06", "22:00", "25:00-06:00", "22:00-22:00", "22:00-06:60", "9:00-17:00", "x"])
def test_hours_that_make_no_sense_are_refused(setting: str) -> None:
    with pytest.raises(BadCondition, match="hours=22:00-06:00"):
        condition(f"hours={setting}")


def test_off_switch_is_a_file_of_any_kind(tmp_path: Path) -> None:
    switch = condition(f"off-switch={tmp_path / 'stop'}")
    assert switch.unmet() is None
    (tmp_path / "stop").symlink_to("nowhere")
    assert "is there" in str(switch.unmet())


def test_off_switch_that_cannot_be_looked_at_stops(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert first_unmet([OffSwitch(tmp_path / "file" / "stop")]) is not None


@pytest.mark.parametrize("name", ["mains-power", "unmetered", "idle", "cool", "quiet"])
def test_what_is_unknown_does_not_hold_unless_its_owner_says_so(name: str) -> None:
    unknown = Measured(name, lambda: None, "it is unknown")
    assert "or-unknown" in str(unknown.unmet())
    assert replace(unknown, allow_unknown=True).unmet() is None
    made = condition(f"{name}=or-unknown")
    assert isinstance(made, Measured)
    assert made.allow_unknown


@pytest.mark.parametrize(
    "text", ["nothing", "", "=", "idle=soon", "idle=0", "idle=nan", "idle=60,maybe", "idle=60,", "mains-power=yes", "cool=1000"]
)
def test_what_is_no_condition_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadCondition, match="allowed"):
        condition(text)


Battery = namedtuple("Battery", ["power_plugged"])


@pytest.mark.parametrize(
    ("battery", "expected"),
    [(None, ""), (Battery(True), ""), (Battery(False), "this computer runs on its battery"), (Battery(None), None)],
)
def test_mains_power(battery: Battery | None, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert computer.on_mains() == expected


def answers(*values: str) -> Callable[..., list[str] | None]:
    return lambda *asked: list(values) or None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("1", "the network is metered"), ("2", ""), ("3", "the network is probably metered"), ("4", ""), ("0", None), ("x", None)],
)
def test_unmetered_network(answer: str, expected: str | None) -> None:
    assert computer.unmetered(answers(answer)) == expected


def test_without_network_manager_nothing_is_known() -> None:
    assert computer.unmetered(answers()) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("false", "0"), "someone is using this computer"),
        (("true", "900000000"), "someone is using this computer"),  # 100 s ago
        (("true", "100000000"), ""),  # 900 s ago
        (("true", "0"), ""),
        (("true", "x"), None),
        (("true",), None),
    ],
)
def test_idle_by_logind(answer: tuple[str, ...], expected: str | None) -> None:
    assert computer.idle(300.0, answers(*answer), lambda: 1000.0) == expected


User = namedtuple("User", ["terminal"])


@pytest.mark.parametrize(
    ("users", "expected"),
    [([], ""), ([User("tty2")], None), ([User(None)], None), ([User(":0")], None), ([User("pts/none")], None)],
)
def test_idle_by_terminals(users: list[User], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "users", lambda: users)
    assert computer.idle(300.0, answers(), time.time) == expected


Sensor = namedtuple("Sensor", ["current"])


@pytest.mark.parametrize(("hottest", "expected"), [(79.0, ""), (80.0, ""), (95.0, "95 °C is above 80 °C")])
def test_cool_goes_by_the_hottest_sensor(hottest: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"a": [Sensor(20.0)], "b": [Sensor(hottest)]}, raising=False)
    assert computer.cool(80.0) == expected


def test_without_sensors_the_temperature_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    assert computer.cool(80.0) is None


def test_our_own_work_is_no_load() -> None:
    """All the CPU that others can have used is what this process has not."""
    load = OthersCpu()
    load.share()
    processors, before, busy = psutil.cpu_count() or 1, psutil.cpu_times(), time.process_time()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pass
    share, after, ours = load.share(), psutil.cpu_times(), time.process_time() - busy
    every = sum(after[:8]) - sum(before[:8]) - (after.idle - before.idle) - (after.iowait - before.iowait)
    assert share is not None
    assert share <= (every - ours) / processors + 0.15


@dataclass
class Fixed:
    """A condition that answers, after a while, as it is told; or fails."""

    answer: str | None = None
    seconds: float = 0.0
    error: type[Exception] | None = None
    name: str = "fixed"
    asked: int = 0

    def unmet(self) -> str | None:
        self.asked += 1
        time.sleep(self.seconds)
        if self.error:
            raise self.error("the text of the patient's record")
        return self.answer


async def done() -> str:
    return "done"


def test_work_is_done_while_conditions_hold() -> None:
    assert asyncio.run(Conditions([Fixed(), Fixed()]).during(done())) == "done"
    assert asyncio.run(Conditions([]).during(done())) == "done"


def test_first_condition_that_does_not_hold_is_named() -> None:
    with pytest.raises(Interrupted, match=r"^second: it rains$"):
        asyncio.run(Conditions([Fixed(), Fixed("it rains", name="second"), Fixed("no", name="third")]).during(done()))


def test_condition_that_fails_does_not_hold_and_its_text_is_not_repeated() -> None:
    with pytest.raises(Interrupted, match=r"^fixed: it cannot be found out \(KeyError\)$"):
        asyncio.run(Conditions([Fixed(error=KeyError)]).during(done()))


def test_condition_that_hangs_does_not_hold_and_is_not_asked_again_meanwhile() -> None:
    hanging = Fixed(seconds=2.0)

    async def ask() -> float:
        held, began = Conditions([hanging]), time.monotonic()
        for _ in range(3):
            assert "no answer" in str(await held.unmet())
        return time.monotonic() - began

    assert asyncio.run(ask()) < 1.5
    assert hanging.asked == 1


def test_many_devices_ask_once() -> None:
    one = Fixed()

    async def ask() -> None:
        held = Conditions([one])
        await asyncio.gather(*(held.unmet() for _ in range(100)))

    asyncio.run(ask())
    assert one.asked == 1


def test_looking_is_cheap() -> None:
    held = [
        condition("mains-power=or-unknown"),
        condition("off-switch=/nowhere"),
        condition("hours=22:00-06:00"),
        condition("cool=90"),
    ]
    before = time.process_time()
    for _ in range(50):
        first_unmet(held)
    assert time.process_time() - before < 50 * 0.01  # at five times a second: below 5 % of a processor


def test_errors_of_the_work_come_through_and_so_does_being_cancelled() -> None:
    ended: list[str] = []

    async def fails() -> None:
        raise ValueError("mine")

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("endless")

    async def run() -> None:
        held = Conditions([Fixed()])
        with pytest.raises(ValueError, match="mine"):
            await held.during(fails())
        task = asyncio.create_task(held.during(endless()))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert ended == ["endless"]


@pytest.mark.slow
def test_waiting_ends_when_conditions_hold_and_each_is_named_once() -> None:
    condition = Fixed("14:01")
    told: list[str] = []

    async def run() -> None:
        waiting = asyncio.create_task(Conditions([condition]).hold(told.append))
        await asyncio.sleep(1.2)
        condition.answer = "14:02"
        await asyncio.sleep(1.2)
        condition.answer = None
        await waiting

    asyncio.run(run())
    assert told == ["fixed: 14:01"]


class NightShift:
    """A user's own condition."""

    name = "night-shift"

    def __init__(self, setting: str) -> None:
        if not setting:
            raise ValueError("allowed after night-shift: the name of a ward")
        self.ward = setting

    def unmet(self) -> str | None:
        return f"ward {self.ward} is awake"


def registered(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, conditions.GROUP) for name, value in entries]
    monkeypatch.setattr(conditions, "entry_points", lambda group: found if group == "fedrho.conditions" else [])


def test_own_condition_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, ("night-shift", f"{__name__}:NightShift"))
    monkeypatch.setattr(EntryPoint, "load", lambda self: NightShift)
    assert condition("night-shift=7").unmet() == "ward 7 is awake"
    with pytest.raises(BadCondition, match="the name of a ward"):
        condition("night-shift")


def test_own_condition_that_cannot_be_loaded_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, ("mine", "no_such_module_anywhere:Mine"))
    with pytest.raises(BadCondition, match="entry point no_such_module_anywhere:Mine cannot be loaded"):
        condition("mine")
    assert condition("hours=09:00-17:00").name == "hours"


def test_own_condition_never_replaces_one_of_fedrho(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, ("hours", "no_such_module_anywhere:Mine"))
    assert condition("hours=09:00-17:00") == Hours(Hour(9), Hour(17))
