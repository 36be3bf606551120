"""A history that was deleted, damaged, restored or copied sits out rather than contribute twice; a new device takes part."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fedrho.client import marker
from fedrho.client.history import MIGRATIONS, DeviceHistory, HistoryError
from fedrho.client.history_view import read_ledger
from tests.client.announcing import DAILY, DAY, OTHER, RUN, TERMS, Clock, known, still, task
from tests.client.fleet import OPENED

BEGAN = 1.74e9
"""When RUN began: before any device here was made. OTHER begins later than whatever happens here."""
LATER = 1.76e9


@pytest.fixture(autouse=True)
def copies_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests copy at once what an owner copies minutes later."""
    monkeypatch.setattr(marker, "WRITTEN_TOLERANCE_NS", 50 * 10**6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "here" / "device.sqlite"


def begin(path: Path, clock: Clock) -> DeviceHistory:
    OPENED.append(DeviceHistory(path, clock, steady=still))
    return OPENED[-1]


def heard(history: DeviceHistory, clock: Clock, *tasks: bytes) -> DeviceHistory:
    runs = {RUN: task(RUN, began=BEGAN), OTHER: task(OTHER, task="later", began=LATER)}
    history.hear(known(*(runs[run] for run in tasks or (RUN,)), at=clock.now))
    return history


def close(history: DeviceHistory) -> None:
    OPENED.remove(history)
    history.close()


def used(path: Path, clock: Clock) -> None:
    """A device that contributed to step 1 of RUN, long enough ago for the file system to tell."""
    history = heard(begin(path, clock), clock)
    assert history.record(RUN, 1, TERMS)
    close(history)
    wait()


def wait() -> None:
    time.sleep(0.1)


def files(path: Path) -> list[Path]:
    return [one for one in sorted(path.parent.iterdir()) if one.is_file() and not one.name.endswith(".lock")]


def deleted(path: Path) -> None:
    path.unlink()


def restored(path: Path) -> None:
    """The file of before the contribution, beside the marker of after it."""
    shutil.move(path.parent / "old" / path.name, path)


def restored_in_place(path: Path) -> None:
    """All files of before, written into those that are there, as some backups do."""
    for one in (path.parent / "old").iterdir():
        shutil.copyfile(one, path.parent / one.name)


def restored_with_times(path: Path) -> None:
    """All files of before, with every time stamp that a program can set."""
    for one in (path.parent / "old").iterdir():
        shutil.copy2(one, path.parent / one.name)


def copied(path: Path) -> None:
    """Another folder, with all that is in this one, in its place."""
    shutil.copytree(path.parent, path.parent.with_name("copy"))
    shutil.move(path.parent, path.parent.with_name("original"))
    shutil.move(path.parent.with_name("copy"), path.parent)


def without_marker(path: Path) -> None:
    marker.beside(path, "marker").unlink()


def with_a_broken_marker(path: Path) -> None:
    marker.beside(path, "marker").write_bytes(b"{}")


def with_an_empty_marker(path: Path) -> None:
    marker.beside(path, "marker").write_bytes(b"")


def damaged_and_moved_away(path: Path) -> None:
    path.write_bytes(b"\xa5" * 4096)
    with pytest.raises(HistoryError):
        DeviceHistory(path)
    path.rename(path.with_name("damaged"))


LOSSES: list[Callable[[Path], None]] = [
    deleted,
    restored,
    restored_in_place,
    restored_with_times,
    copied,
    without_marker,
    with_a_broken_marker,
    with_an_empty_marker,
    damaged_and_moved_away,
]


def lost(path: Path, clock: Clock, how: Callable[[Path], None]) -> DeviceHistory:
    """What a device finds after it contributed to step 1 of RUN and its history went the way of `how`."""
    close(heard(begin(path, clock), clock))
    (path.parent / "old").mkdir()
    for one in files(path):
        shutil.copy2(one, path.parent / "old" / one.name)
    used(path, clock)
    for rest in ("-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)
    how(path)
    return begin(path, clock)


@pytest.mark.parametrize("how", LOSSES)
def test_lost_history_never_again_contributes_to_a_run_that_began_before(path: Path, how: Callable[[Path], None]) -> None:
    clock = Clock()
    history = heard(lost(path, clock, how), clock)
    for later in (0.0, DAY, 1000 * DAY):
        clock.now += later
        heard(history, clock)
        assert not any(history.allows(RUN, step, TERMS) or history.record(RUN, step, TERMS) for step in (1, 2, 500))
        assert history.exhausted(RUN, TERMS)
    close(history)
    assert not heard(begin(path, clock), clock).record(RUN, 900, TERMS)


@pytest.mark.parametrize("how", LOSSES)
def test_lost_history_takes_part_in_runs_that_begin_later_after_a_whole_period(path: Path, how: Callable[[Path], None]) -> None:
    clock = Clock()
    history = heard(lost(path, clock, how), clock, RUN, OTHER)
    daily = replace(TERMS, min_period_seconds=DAY)
    assert history.allows(OTHER, 1, TERMS)
    for passed, allowed in ((0.0, False), (DAY - 1, False), (1.0, True)):
        clock.now += passed
        heard(history, clock, RUN, OTHER)
        assert history.allows(OTHER, 1, daily) is allowed
    assert history.record(OTHER, 1, daily)


@pytest.mark.parametrize("how", LOSSES)
def test_loss_is_on_record_and_the_owner_can_vouch_for_the_history(path: Path, how: Callable[[Path], None]) -> None:
    clock = Clock()
    history = heard(lost(path, clock, how), clock)
    found = read_ledger(path)
    assert not found.complete
    assert [incident.kind for incident in found.incidents] == ["history"]
    history.vouch()
    assert history.allows(RUN, 500, TERMS)
    assert read_ledger(path).complete
    close(history)
    assert heard(begin(path, clock), clock).record(RUN, 500, TERMS)


def test_new_device_takes_part_at_once_where_no_period_is_asked_for(path: Path) -> None:
    clock = Clock()
    assert heard(begin(path, clock), clock).record(RUN, 1, TERMS)


@pytest.mark.parametrize(("passed", "allowed"), [(0.0, False), (DAY - 1e-3, False), (DAY, True)])
def test_new_device_waits_one_period_for_it_may_be_one_whose_folder_was_deleted(path: Path, passed: float, allowed: bool) -> None:
    clock = Clock()
    history = begin(path, clock)
    history.hear(known(task(terms=DAILY), at=clock.now))
    clock.now += passed
    history.hear(known(task(terms=DAILY), at=clock.now))
    assert history.record(RUN, 1, DAILY) is allowed


def test_history_that_stays_where_it_is_is_trusted_however_often_it_is_opened(path: Path) -> None:
    clock = Clock()
    used(path, clock)
    for step in (5, 9):
        history = heard(begin(path, clock), clock)
        assert history.record(RUN, step, TERMS)
        close(history)
        wait()
    assert read_ledger(path).complete
    assert read_ledger(path).incidents == ()


def test_folder_that_is_renamed_is_still_the_same(path: Path) -> None:
    clock = Clock()
    used(path, clock)
    moved = path.parent.rename(path.parent.with_name("there")) / path.name
    assert heard(begin(moved, clock), clock).record(RUN, 5, TERMS)


@pytest.mark.parametrize(
    ("how", "new"), [(deleted, True), (without_marker, True), (copied, False), (with_a_broken_marker, False)]
)
def test_device_that_never_contributed_loses_nothing_where_that_is_sure(
    path: Path, how: Callable[[Path], None], new: bool
) -> None:
    clock = Clock()
    close(begin(path, clock))
    wait()
    how(path)
    assert heard(begin(path, clock), clock).record(RUN, 1, TERMS) is new


@pytest.mark.parametrize("call", ["create", "write", "replace"])
def test_new_device_that_is_stopped_while_it_begins_is_still_new(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> None:
        raise OSError("the plug was pulled")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "replace" else marker, call, stopped)
        with pytest.raises(HistoryError):
            DeviceHistory(path)
    clock = Clock()
    assert heard(begin(path, clock), clock).record(RUN, 1, TERMS)


def test_history_deleted_twice_is_lost_twice(path: Path) -> None:
    clock = Clock()
    used(path, clock)
    for _ in range(2):
        path.unlink()
        history = heard(begin(path, clock), clock)
        assert not history.record(RUN, 5, TERMS)
        close(history)
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)


def test_image_of_a_disk_on_another_machine_is_a_copy(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells it from the original but the name of the machine."""
    identity = tmp_path / "machine-id"
    identity.write_text("one\n")
    monkeypatch.setattr(marker, "MACHINE_ID", identity)
    clock = Clock()
    used(path, clock)
    identity.write_text("another\n")
    assert not heard(begin(path, clock), clock).record(RUN, 5, TERMS)


def test_history_that_was_stopped_before_its_marker_is_not_a_stranger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    history = heard(begin(path, clock), clock)

    def stopped(*arguments: object) -> None:
        raise OSError("the plug was pulled")

    with monkeypatch.context() as patch:
        patch.setattr(marker, "write", stopped)
        with pytest.raises(HistoryError):
            history.record(RUN, 1, TERMS)
    close(history)
    wait()
    again = heard(begin(path, clock), clock)
    assert not again.allows(RUN, 4, TERMS)
    assert again.record(RUN, 5, TERMS)


ROWS = {
    "a contribution is gone": "DELETE FROM contributions WHERE step = 1",
    "a contribution is earlier": "UPDATE contributions SET at = at - 1e6, ticks = ticks - 1e6",
    "another step": "UPDATE contributions SET step = 700",
    "one more": "INSERT INTO contributions VALUES (zeroblob(16), 77, 1.0, 1.0)",
    "terms are weaker": "UPDATE runs SET announced = replace(announced, 'participations\": 3', 'participations\": 9')",
    "nothing was ever lost": "UPDATE seal SET trusted = NULL",
    "time was not signed": "DELETE FROM signed",
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("open_already", [True, False])
def test_changed_row_is_found_and_refused(path: Path, row: str, open_already: bool) -> None:
    clock = Clock()
    used(path, clock)
    history = heard(begin(path, clock), clock) if open_already else None
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(ROWS[row]).rowcount > 0
    with pytest.raises(HistoryError, match=r"damaged \(a row was changed or is missing\); move it away"):
        (history or heard(begin(path, clock), clock)).record(RUN, 500, TERMS)
    with pytest.raises(HistoryError, match="damaged"):
        read_ledger(path)


def test_marker_says_nothing_about_anybody(path: Path) -> None:
    used(path, Clock())
    text = marker.beside(path, "marker").read_text()
    identity = Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else ""
    assert len(text) == marker.MARKER_BYTES
    assert RUN.hex() not in text
    assert not identity or identity not in text
    assert os.stat(marker.beside(path, "marker")).st_mode & 0o077 == 0


# -- of an earlier version ---------------------------------------------------------------------------------------------------


def of_version_2(path: Path, at: float) -> None:
    """RUN at step 3, as the version before wrote it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statements in MIGRATIONS[:2]:
            for statement in statements:
                database.execute(statement)
        database.execute("INSERT INTO contributions VALUES (?, 3, ?)", (RUN, at))
        database.execute("PRAGMA user_version = 2")


def test_history_of_version_2_goes_on_with_what_it_holds(path: Path) -> None:
    clock = Clock()
    of_version_2(path, clock.now - 3600.0)
    history = heard(begin(path, clock), clock)
    assert read_ledger(path).complete
    assert [history.allows(RUN, step, TERMS) for step in (6, 7)] == [False, True]
    daily = replace(TERMS, min_period_seconds=DAY)
    assert not history.allows(RUN, 7, daily)
    clock.now += DAY
    assert heard(history, clock).record(RUN, 7, daily)


def test_history_of_version_2_that_takes_the_place_of_a_newer_one_is_lost(path: Path) -> None:
    clock = Clock()
    used(path, clock)
    for one in files(path):
        if not one.name.endswith(".marker"):
            one.unlink()
    of_version_2(path, clock.now - DAY)
    assert not heard(begin(path, clock), clock).record(RUN, 500, TERMS)
    assert not read_ledger(path).complete


def test_copy_made_the_moment_after_a_contribution_is_a_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too soon for its date to tell, but no other file has its number."""
    monkeypatch.setattr(marker, "WRITTEN_TOLERANCE_NS", 3600 * 10**9)
    clock = Clock()
    used(path, clock)
    copied(path)
    assert not heard(begin(path, clock), clock).record(RUN, 5, TERMS)
