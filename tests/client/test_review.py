"""Ways around the ledger that a review found: cheaper afterwards, less than nothing, from before it began, from where it was."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedrho.cli import _exit_code
from fedrho.client import marker
from fedrho.client.history import DeviceHistory, HistoryError, ServerChanged
from fedrho.client.history_view import read_ledger
from fedrho.client.limits import NO_LIMITS, Group, Limits
from fedrho.client.participant import BadPlan, check_terms
from fedrho.client.scheduler import Schedule
from fedrho.client.spec import BadSpec, SpecReader
from fedrho.protos import codec
from fedrho.protos.messages import PopulationAnswer, PopulationRequest, RetryWindow
from fedrho.protos.signing import SigningKey
from tests.client.announcing import DAILY, DAY, OTHER, RUN, TERMS, Clock, known, still, task
from tests.client.fleet import OPENED, device, small_wire, visit

DEAR = replace(TERMS, rho_budget=2.0)


def begin(path: Path, limits: Limits = NO_LIMITS, clock: Callable[[], float] | None = None) -> DeviceHistory:
    OPENED.append(DeviceHistory(path, clock or Clock(), limits, steady=still))
    return OPENED[-1]


def end(history: DeviceHistory) -> None:
    OPENED.remove(history)
    history.close()


def test_run_that_is_announced_as_cheaper_afterwards_still_costs_what_it_did(tmp_path: Path) -> None:
    path, limits = tmp_path / "device.sqlite", Limits(max_rho=3.0)
    history = begin(path, limits)
    history.hear(known(task(RUN, DEAR), task(OTHER, DEAR, task="other")))
    assert history.record(RUN, 1, DEAR)
    cheap = replace(DEAR, rho_budget=0.001)
    for epoch in (2, 3):
        history.hear(known(task(RUN, cheap, released=epoch), task(OTHER, DEAR, task="other"), epoch=epoch))
        assert not history.allows(OTHER, 1, DEAR)
    end(history)
    assert not begin(path, limits).allows(OTHER, 1, DEAR)


@pytest.mark.parametrize("change", [{"rho_budget": -100.0}, {"rho_budget": 0.0}, {"noise_multiplier": 0.0}, {"clip_norm": -1.0}])
def test_terms_that_cost_nothing_or_less_make_no_sense(tmp_path: Path, change: dict[str, float]) -> None:
    terms = replace(TERMS, **change)  # type: ignore[arg-type]
    with pytest.raises(BadPlan, match=f"{next(iter(change))} must be above 0"):
        check_terms(terms)
    history = begin(tmp_path / "device.sqlite")
    history.hear(known(task(RUN, terms)))
    assert read_ledger(tmp_path / "device.sqlite").runs == ()


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(max_rho=3.0), "other: with it all runs of this device may cost rho 4, above the owner's max_rho 3"),
        (Limits(groups=(Group("all", ("*",), 1),)), "other: the owner's group 'all' has had its 1 participations"),
    ],
)
def test_what_the_limits_over_several_runs_refuse_is_on_record(tmp_path: Path, limits: Limits, why: str) -> None:
    path = tmp_path / "device.sqlite"
    history = begin(path, limits)
    history.hear(known(task(RUN, DEAR), task(OTHER, DEAR, task="other")))
    assert history.record(RUN, 1, DEAR)
    assert history.exhausted(OTHER, DEAR)
    assert [(one.kind, one.detail, one.run) for one in read_ledger(path).incidents] == [("not joined", why, OTHER)]


def test_copy_of_before_the_first_contribution_without_its_marker_waits_as_a_new_device(tmp_path: Path) -> None:
    path, copy, clock = tmp_path / "device.sqlite", tmp_path / "copy", Clock()
    history = begin(path, clock=clock)
    history.hear(known(task(RUN, DAILY), at=clock.now))
    end(history)
    shutil.copy(path, copy)
    clock.now += DAY
    history = begin(path, clock=clock)
    history.hear(known(task(RUN, DAILY), at=clock.now))
    assert history.record(RUN, 1, DAILY)
    end(history)
    marker.beside(path, "marker").unlink()
    shutil.copy(copy, path)
    history = begin(path, clock=clock)
    for passed, allowed in ((0.0, False), (DAY - 1.0, False), (1.0, True)):
        clock.now += passed
        history.hear(known(task(RUN, DAILY, released=1), at=clock.now, epoch=2))
        assert history.allows(RUN, 2, DAILY) is allowed


def test_many_small_incidents_push_no_grave_one_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrho.client.history_file.MOST_INCIDENTS", 5)
    path = tmp_path / "device.sqlite"
    history = begin(path)
    history.hear(known(task(RUN, released=3)))
    with pytest.raises(ServerChanged):
        history.hear(known(task(RUN, released=1), epoch=2))
    for number in range(10):
        history.note("not joined", f"task {number}")
    assert [one.kind for one in read_ledger(path).incidents] == ["terms"] + 5 * ["not joined"]


IN_ITS_PLACE = """
import sys
from pathlib import Path
from fedrho.client.history import DeviceHistory
from tests.client.announcing import RUN, TERMS, known, task
history = DeviceHistory(Path(sys.argv[1]))
history.hear(known(task(RUN)))
assert history.record(RUN, 1, TERMS)
"""


@pytest.mark.parametrize("replaced", [True, False])
def test_process_whose_folder_was_taken_away_gives_nothing_more(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "here" / "device.sqlite"
    history = begin(path)
    history.hear(known(task(RUN)))
    shutil.move(path.parent, tmp_path / "away")
    if replaced:
        subprocess.run([sys.executable, "-c", IN_ITS_PLACE, str(path)], check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(HistoryError, match="removed or replaced while this process was using it; start the process again"):
        history.record(RUN, 1, TERMS)


@pytest.mark.parametrize("value", ['{"drawn_at": 0, "seconds": 1, "failures": 1e999}', '{"drawn_at": 1%s}' % ("0" * 400)])
def test_schedule_with_impossible_numbers_says_at_once(tmp_path: Path, value: str) -> None:
    (tmp_path / "next.json").write_text(f'{{"there": {value}}}')
    assert Schedule(tmp_path / "next.json").left("there") == 0.0


def test_answer_that_cannot_be_read_is_refused_and_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def garbage(*_: object) -> PopulationAnswer:
        raise codec.MalformedMessage("not an answer")

    for name, error in (("population", BadSpec), ("check_in", BadPlan)):
        wire, path = small_wire(), tmp_path / f"{name}.sqlite"
        monkeypatch.setattr(wire, name, garbage)
        with pytest.raises(error, match="not an answer"):
            visit(device(wire, path))
        assert [one.kind for one in read_ledger(path).incidents] == ["refused"]


def test_spec_that_is_not_signed_ends_a_command_in_a_line() -> None:
    assert _exit_code(BadSpec("not signed")) == 1


def test_another_population_at_the_same_address_may_be_younger() -> None:
    """Whether it may be there at all is for `trust` to say, which knows the address."""
    trusted: list[tuple[bytes, int]] = []
    answers = []
    for epoch in (7, 1):
        key, spec = SigningKey.generate(), codec.encode(known(task(), epoch=epoch).spec)
        answers.append(PopulationAnswer(spec, key.sign_spec(spec), key.public, RetryWindow(0.0, 0.0)))

    async def ask(_: PopulationRequest) -> PopulationAnswer:
        return answers[len(trusted)]

    async def both() -> None:
        reader = SpecReader(ask, lambda key, epoch: trusted.append((key, epoch)), still)
        for _ in answers:
            await reader.read(fresh=True)

    asyncio.run(both())
    assert trusted == [(answers[0].public_key, 7), (answers[1].public_key, 1)]
