"""What the owner allows: each limit at both sides, over several runs too, and files that are not limits."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fedrho.client.history import DeviceHistory
from fedrho.client.history_view import read_ledger
from fedrho.client.limits import NO_LIMITS, Group, GroupTable, Limits, LimitsError, LimitsFile, parse_limits
from fedrho.client.participant import Result
from tests.client.announcing import DAY, KEY, OTHER_KEY, TERMS, Clock, known, still, task
from tests.client.fleet import OPENED, LocalWire, contributions, device, open_small_run, small_task, visit

FIRST, SECOND, THIRD = (bytes([number]) * 16 for number in (1, 2, 3))

SIDES: list[tuple[Limits, dict[str, Any], bool]] = [
    (Limits(max_rho_per_run=1.0), {"rho_budget": 1.0}, True),
    (Limits(max_rho_per_run=1.0), {"rho_budget": 1.0000001}, False),
    (Limits(max_rho_per_run=1.0), {"rho_budget": float("nan")}, False),
    (Limits(max_participations=3), {"max_participations": 3}, True),
    (Limits(max_participations=3), {"max_participations": 4}, False),
    (Limits(min_separation=4), {"min_separation": 4}, True),
    (Limits(min_separation=4), {"min_separation": 3}, False),
    (Limits(min_period_seconds=DAY), {"min_period_seconds": DAY}, True),
    (Limits(min_period_seconds=DAY), {"min_period_seconds": DAY - 1.0}, False),
    (Limits(min_period_seconds=DAY), {"min_period_seconds": float("nan")}, False),
    (Limits(populations=(KEY,)), {}, True),
    (Limits(populations=(OTHER_KEY,)), {}, False),
    (Limits(populations=()), {}, False),
    (Limits(models=("digits-logistic",)), {}, True),
    (Limits(models=("digits-mlp",)), {}, False),
    (Limits(models=()), {}, False),
    (NO_LIMITS, {"rho_budget": 1e30, "max_participations": 10**9}, True),
]


@pytest.mark.parametrize(("limits", "changes", "joined"), SIDES)
def test_task_that_is_weaker_is_objected_to(limits: Limits, changes: dict[str, Any], joined: bool) -> None:
    assert (limits.objection(KEY, task(terms=replace(TERMS, **changes))) is None) is joined


def test_device_does_not_join_what_its_owner_does_not_want_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    wire = LocalWire(open_small_run(small_task(max_times=2)))
    for _ in range(2):
        assert visit(replace(device(wire, path), limits=Limits(max_participations=1))).result is Result.FINISHED
    assert set(wire.calls) == {"population"}
    assert contributions(path) == []
    found = [(one.kind, one.detail) for one in read_ledger(path).incidents]
    assert found == [("not joined", "small: 2 participations are above the owner's max_participations 1")]
    assert visit(replace(device(wire, path), limits=Limits(max_participations=2))).result is Result.COUNTED


# -- over several runs ------------------------------------------------------------------------------------------------------


def begin(path: Path, limits: Limits, clock: Clock) -> DeviceHistory:
    clock.now -= 10 * DAY
    OPENED.append(DeviceHistory(path, clock, limits, still))
    hear(OPENED[-1], clock)
    clock.now += 10 * DAY
    hear(OPENED[-1], clock)
    return OPENED[-1]


def hear(history: DeviceHistory, clock: Clock) -> None:
    names = {FIRST: "keyboard-en", SECOND: "keyboard-de", THIRD: "voice"}
    terms = replace(TERMS, rho_budget=1.0, min_separation=1, max_participations=5)
    history.hear(known(*(task(run, terms, task=name) for run, name in names.items()), at=clock.now))


def gives(history: DeviceHistory, run: bytes, step: int) -> bool:
    terms = replace(TERMS, min_separation=1, max_participations=5)
    allowed = history.allows(run, step, terms)
    assert history.record(run, step, terms) is allowed
    return allowed


@pytest.mark.parametrize(("most", "third"), [(3.0, True), (2.999, False), (2.0, False)])
def test_rho_adds_up_over_all_runs_that_the_device_has_contributed_to(tmp_path: Path, most: float, third: bool) -> None:
    history = begin(tmp_path / "device.sqlite", Limits(max_rho=most), Clock())
    assert [gives(history, run, 1) for run in (FIRST, SECOND, THIRD)] == [True, True, third]
    assert gives(history, FIRST, 2)
    assert history.exhausted(THIRD, TERMS) is not third


def test_run_whose_price_nobody_remembers_leaves_no_room(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    history = begin(path, NO_LIMITS, Clock())
    assert history.record(bytes([9]) * 16, 1, TERMS)
    OPENED.append(DeviceHistory(path, Clock(), Limits(max_rho=1e9)))
    assert not gives(OPENED[-1], FIRST, 1)


def test_group_shares_the_number_of_participations(tmp_path: Path) -> None:
    group = Group("keyboards", ("keyboard-*",), max_participations=3)
    history = begin(tmp_path / "device.sqlite", Limits(groups=(group,)), Clock())
    assert [gives(history, run, step) for run, step in ((FIRST, 1), (SECOND, 1), (FIRST, 2), (SECOND, 2))] == [True] * 3 + [False]
    assert history.exhausted(FIRST, TERMS)
    assert gives(history, THIRD, 1)
    assert not history.exhausted(THIRD, TERMS)


@pytest.mark.parametrize(("passed", "allowed"), [(7 * DAY - 1.0, False), (7 * DAY, True)])
def test_group_shares_a_period(tmp_path: Path, passed: float, allowed: bool) -> None:
    group = Group("keyboards", ("keyboard-*",), min_period_seconds=7 * DAY)
    clock = Clock()
    history = begin(tmp_path / "device.sqlite", Limits(groups=(group,)), clock)
    assert gives(history, FIRST, 1)
    assert gives(history, THIRD, 1)
    clock.now += passed
    hear(history, clock)
    assert gives(history, THIRD, 2)
    assert gives(history, SECOND, 1) is allowed


def test_run_whose_name_nobody_remembers_is_in_every_group(tmp_path: Path) -> None:
    group = Group("keyboards", ("keyboard-*",), max_participations=1)
    history = begin(tmp_path / "device.sqlite", Limits(groups=(group,)), Clock())
    assert history.record(bytes([9]) * 16, 1, TERMS)
    assert not gives(history, FIRST, 1)


# -- the file ----------------------------------------------------------------------------------------------------------------

WHOLE = f"""
max_rho_per_run = 2
max_rho = 5.5
max_participations = 10
min_separation = 2
min_period_seconds = 86400
populations = ["{KEY.hex()}"]
models = ["digits-logistic"]
[groups.keyboards]
tasks = ["keyboard-*"]
max_participations = 20
min_period_seconds = 604800.0
"""


def test_file_holds_every_limit() -> None:
    keyboards = Group("keyboards", ("keyboard-*",), 20, 604800.0)
    assert parse_limits(WHOLE, "l") == Limits(2.0, 5.5, 10, 2, 86400.0, (KEY,), ("digits-logistic",), (keyboards,))
    assert parse_limits("", "l") == NO_LIMITS
    assert set(LimitsFile.model_fields) == {field.name for field in fields(Limits)}
    assert parse_limits("populations = []\nmodels = []", "l") == Limits(populations=(), models=())


BROKEN = {
    "max_rho = nan": "limits.toml: max_rho:",
    "max_rho = inf": "limits.toml: max_rho:",
    "max_rho = -1": "limits.toml: max_rho:",
    "max_rho = true": "limits.toml: max_rho:",
    'max_rho = "1"': "limits.toml: max_rho:",
    "max_participations = 0": "limits.toml: max_participations:",
    "max_participations = 2.0": "limits.toml: max_participations:",
    "min_separation = 0": "limits.toml: min_separation:",
    "max_rhos = 1": "limits.toml: max_rhos:",
    'populations = ["abc"]': "limits.toml: populations.0:",
    "populations = 7": "limits.toml: populations:",
    "[groups.a]": "limits.toml: groups.a.tasks:",
    "[groups.a]\ntasks = []": "limits.toml: groups.a.tasks:",
    "[groups.a]\ntasks = ['x']\nmax_times = 1": "limits.toml: groups.a.max_times:",
    "max_rho = ": "limits.toml: not TOML:",
    "\x00": "limits.toml: not TOML:",
}


@pytest.mark.parametrize("text", BROKEN)
def test_file_that_is_not_limits_is_one_line_that_names_the_key(text: str) -> None:
    with pytest.raises(LimitsError, match=f"^{re.escape(BROKEN[text])}") as refused:
        parse_limits(text, "limits.toml")
    assert "\n" not in str(refused.value)


def test_page_documents_every_key_and_its_example_loads() -> None:
    page = (Path(__file__).parents[2] / "docs" / "device.md").read_text(encoding="utf-8")
    documented = re.findall(
        r"^\| `([a-z_.NAME]+)` \|", page.partition("<!-- limits -->")[2].partition("<!-- /limits -->")[0], re.M
    )
    ours = [name for name in LimitsFile.model_fields if name != "groups"]
    assert documented == [*ours, *(f"groups.NAME.{name}" for name in GroupTable.model_fields)]
    (example,) = re.findall(r"^```ini\n(.*?)^```$", page, re.M | re.S)
    assert parse_limits(example, "docs/device.md") != NO_LIMITS
