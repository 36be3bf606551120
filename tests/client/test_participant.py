"""One device's visit to a real engine: what is counted, what is recorded, and in which order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.history import DeviceHistory, HistoryError
from fedrho.client.history_view import read_ledger
from fedrho.client.participant import BadPlan, CannotTrain, Outcome, Result, TrainingFailed
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import Abort, AbortReason, BeginUpload, Reservation, RetryWindow, RoundPlan, SessionStatus
from tests.client.fleet import (
    LocalWire,
    contributions,
    device,
    gives,
    one_hot,
    open_small_run,
    released,
    small_task,
    small_wire,
    visit,
)

UNIT = 2.0**-20
"""One grid unit; clipping loses less than one, and the noise of these runs is about one."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sqlite"


def test_visit_counts_once(path: Path) -> None:
    wire = small_wire()
    outcome = visit(device(wire, path, place=3))
    assert outcome.result is Result.COUNTED
    assert wire.calls == ["population", "check in", "artifact", "begin upload", "upload"]
    assert wire.statuses() == {SessionStatus.COUNTED: 1}
    assert contributions(path) == [(wire.server.run, 1)]
    assert np.abs(released(wire.server) - one_hot(3)).max() < 10 * UNIT


def test_outcome_carries_the_step_and_the_window_of_the_population(path: Path) -> None:
    wire = small_wire(steps=3)
    first = visit(device(wire, path))
    released(wire.server)
    second = visit(device(wire, path))
    window = RetryWindow(0.125, 0.25)
    assert (first, second) == (Outcome(Result.COUNTED, 0, 3, window), Outcome(Result.COUNTED, 1, 3, window))


def test_large_update_is_clipped_before_it_leaves(path: Path) -> None:
    wire = small_wire()
    visit(replace(device(wire, path), train=gives(one_hot(3, length=100.0))))
    assert np.abs(released(wire.server) - one_hot(3, length=1.0)).max() < 10 * UNIT


def test_device_whose_history_forbids_the_step_never_checks_in(path: Path) -> None:
    wire = small_wire(goal=2)
    visit(device(wire, path))
    wire.calls.clear()
    assert visit(device(wire, path)).result is Result.LATER
    assert wire.calls == ["population", "population"]
    assert wire.statuses() == {SessionStatus.COUNTED: 1}


@pytest.mark.parametrize(("separation", "calls"), [(1, 5), (2, 2)])
def test_device_keeps_the_separation_that_the_population_announces(path: Path, separation: int, calls: int) -> None:
    wire = small_wire(steps=4, min_separation=separation)
    visit(device(wire, path))
    released(wire.server)
    wire.calls.clear()
    visit(device(wire, path))
    assert len(wire.calls) == calls


def test_device_that_has_given_all_is_finished_and_never_checks_in(path: Path) -> None:
    wire = small_wire(steps=4, max_times=1)
    visit(device(wire, path))
    wire.calls.clear()
    assert visit(device(wire, path)).result is Result.FINISHED
    assert set(wire.calls) == {"population"}


def test_device_is_finished_when_the_run_is(tmp_path: Path) -> None:
    wire = small_wire(steps=1)
    visit(device(wire, tmp_path / "first.sqlite"))
    released(wire.server)
    assert visit(device(wire, tmp_path / "second.sqlite")).result is Result.FINISHED
    assert contributions(tmp_path / "second.sqlite") == []


def test_device_without_a_seat_comes_back_later(tmp_path: Path) -> None:
    wire = LocalWire(open_small_run(small_task(overselect=1.0)))
    wire.server.seat(wire.now)
    assert visit(device(wire, tmp_path / "device.sqlite")).result is Result.LATER
    assert wire.calls == ["population", "check in"]


def test_nothing_is_recorded_before_go(path: Path) -> None:
    class Looking(LocalWire):
        async def begin_upload(self, message: BeginUpload) -> Reservation:
            assert contributions(path) == []
            return await super().begin_upload(message)

    async def train(plan: RoundPlan, weights: FloatVector) -> Update:
        assert contributions(path) == []
        return Update(one_hot(0))

    wire = Looking(open_small_run(small_task()))
    assert visit(replace(device(wire, path), train=train)).result is Result.COUNTED


def test_device_told_to_wait_pauses_for_as_long_as_the_server_says(path: Path) -> None:
    wire = small_wire(goal=1)
    other = wire.server.seat(wire.now)
    wire.server.reserve(other, wire.now)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        assert contributions(path) == []
        pauses.append(seconds)
        if len(pauses) == 3:
            wire.server.abort(Abort(other.session, AbortReason.CONDITIONS, other.ticket), wire.now)

    assert visit(replace(device(wire, path), pause=pause)).result is Result.COUNTED
    assert pauses == [pytest.approx(0.125, rel=0.01)] * 3  # a little longer for each session that waits
    assert wire.calls.count("begin upload") == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training_that_diverged_counts_as_zeros_so_that_data_never_decide_who_is_counted(path: Path, value: float) -> None:
    wire = small_wire()
    diverged: FloatVector = np.full(650, value, dtype=np.float32)
    assert visit(replace(device(wire, path), train=gives(diverged))).result is Result.COUNTED
    assert wire.aborts == []
    assert wire.statuses() == {SessionStatus.COUNTED: 1}
    assert np.abs(released(wire.server)).max() < 10 * UNIT
    assert len(contributions(path)) == 1


class Raising:
    """Training that ends in an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def __call__(self, plan: RoundPlan, weights: FloatVector) -> Update:
        raise self.error


FAILURES: dict[str, tuple[Exception, str]] = {
    "training failed": (TrainingFailed("the training process was ended by SIGKILL"), "the training process was ended by SIGKILL"),
    "examples raised": (KeyError("a diagnosis"), "training raised KeyError"),
    "examples raised what a plan does": (ValueError("a diagnosis"), "training raised ValueError"),
    "memory": (MemoryError(), "training raised MemoryError"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_training_that_fails_counts_as_zeros_and_only_the_owner_hears_why(path: Path, failure: str) -> None:
    wire, (error, reason) = small_wire(), FAILURES[failure]
    outcome = visit(replace(device(wire, path), train=Raising(error)))
    assert (outcome.result, outcome.failure) == (Result.COUNTED, reason)
    noted = [(one.kind, one.detail) for one in read_ledger(path).incidents]
    assert noted == [("nothing learnt", f"digits-logistic, step 1: zeros were sent, because {reason}")]


def test_a_failure_that_cannot_be_noted_changes_nothing_that_the_server_sees(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise HistoryError("no space left on device")

    wire = small_wire()
    monkeypatch.setattr(DeviceHistory, "note", full)
    assert visit(replace(device(wire, path), train=Raising(KeyError("a diagnosis")))).result is Result.COUNTED
    assert len(contributions(path)) == 1
    assert wire.calls == ["population", "check in", "artifact", "begin upload", "upload"]
    assert wire.statuses() == {SessionStatus.COUNTED: 1}
    assert np.abs(released(wire.server)).max() < 10 * UNIT
    assert len(contributions(path)) == 1


def test_device_that_cannot_train_at_all_gives_its_seat_back(path: Path) -> None:
    wire = small_wire()
    with pytest.raises(CannotTrain, match="no child"):
        visit(replace(device(wire, path), train=Raising(CannotTrain("no child"))))
    assert wire.aborts == [AbortReason.CONDITIONS]
    assert contributions(path) == []


def test_plan_that_nobody_could_train_is_aborted(path: Path) -> None:
    wire = small_wire()
    with pytest.raises(BadPlan, match="another model"):
        visit(replace(device(wire, path), train=Raising(BadPlan("another model"))))
    assert wire.aborts == [AbortReason.NOT_ALLOWED]
    assert contributions(path) == []
