"""`fedrho device`: the owner reads the ledger and withdraws, also while the device is running."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedrho import device as commands
from fedrho.cli import app
from fedrho.client.history import DeviceHistory, HistoryError
from fedrho.client.participant import Result
from fedrho.client.withdrawal import EVERYTHING
from fedrho.console import BadInput
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import AbortReason, RoundPlan
from tests.client.announcing import KEY, OTHER, RUN, TERMS, known, task
from tests.client.fleet import LocalWire, contributions, device, one_hot, open_small_run, opened, small_task, visit
from tests.server.one_run import SIGNER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two devices, open all the while as if `fedrho join` were running: one with two contributions, one with none."""
    for name, steps in (("first", (3, 7)), ("second", ())):
        history = opened(tmp_path / f"{name}.sqlite")
        history.trust("fl.example.org:7070", KEY, 4)
        history.hear(known(task(released=2), task(OTHER, task="other\x1b[2J", ended=True), epoch=4))
        assert all(history.record(RUN, step, TERMS) for step in steps)
    history.note("refused", "for a reason", RUN)
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["device", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def as_json(folder: Path, *more: str) -> dict[str, Any]:
    ledgers = {one["device"]: one for one in json.loads(run("ledger", "--history", folder, "--json", *more))["devices"]}
    return ledgers


def test_ledger_as_json_holds_everything(folder: Path) -> None:
    ledgers = as_json(folder)
    assert list(ledgers) == ["first", "second"]
    first, other = ledgers["first"]["runs"]
    assert [given["step"] for given in first["contributions"]] == [3, 7]
    assert (first["run"], first["population"], first["task"], first["state"]) == (RUN.hex(), KEY.hex(), "small", "open")
    assert first["terms"]["max_participations"] == 3
    assert (other["state"], other["contributions"]) == ("ended", [])
    assert ledgers["first"]["complete"]
    assert ledgers["first"]["populations"][0]["servers"] == ["fl.example.org:7070"]
    assert [one["detail"] for one in ledgers["second"]["incidents"]] == ["for a reason"]


def test_ledger_for_people_shows_the_same_and_no_control_characters(folder: Path) -> None:
    text = run("ledger", "--history", folder)
    for shown in ("first", "second", "small", "2 of 3", KEY.hex(), "fl.example.org:7070", "for a reason", RUN.hex()[:8]):
        assert shown in text
    assert "\x1b[2J" not in text


def test_one_device_is_shown_alone(folder: Path) -> None:
    assert list(as_json(folder, "--device", "second")) == ["second"]


def test_ledger_changes_nothing(folder: Path) -> None:
    before = (folder / "first.sqlite").read_bytes()
    run("ledger", "--history", folder)
    assert (folder / "first.sqlite").read_bytes() == before


@pytest.mark.parametrize("what", [EVERYTHING, KEY.hex(), RUN.hex(), KEY.hex().upper(), RUN.hex()[:8]])
def test_left_device_takes_part_no_more_though_it_is_running(folder: Path, what: str) -> None:
    running = opened(folder / "first.sqlite")
    assert running.allows(RUN, 20, TERMS)
    said = run("leave", what, "--history", folder, "--device", "first")
    assert "What was contributed stays" in said
    assert not running.allows(RUN, 20, TERMS)
    assert not running.record(RUN, 20, TERMS)
    assert running.exhausted(RUN, TERMS)
    assert as_json(folder)["first"]["runs"][0]["state"] == "left"
    assert opened(folder / "second.sqlite").allows(RUN, 20, TERMS)
    run("leave", what, "--history", folder, "--device", "first", "--undo")
    assert running.record(RUN, 20, TERMS)


def test_leaving_one_run_leaves_no_other(folder: Path) -> None:
    run("leave", RUN.hex(), "--history", folder)
    assert opened(folder / "first.sqlite").allows(OTHER, 20, TERMS)


def test_half_of_the_key_of_a_population_is_not_taken_for_a_run(folder: Path) -> None:
    assert f"left {KEY.hex()}\n" in run("leave", KEY.hex()[:32], "--history", folder, "--device", "first")
    assert not opened(folder / "first.sqlite").allows(RUN, 20, TERMS)


def test_leaving_says_where_there_is_no_such_device(folder: Path) -> None:
    assert "no history of that name is in" in run("leave", "everything", "--history", folder, "--device", "frist")
    assert "no history" not in run("leave", "everything", "--history", folder, "--device", "first")


def test_leaving_outlives_the_process_and_the_history(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    wire = LocalWire(open_small_run(small_task()))
    history = DeviceHistory(path)
    history.close()
    run("leave", SIGNER.public.hex(), "--history", tmp_path)
    assert visit(device(wire, path)).result is Result.FINISHED
    path.unlink()
    assert visit(device(wire, tmp_path / "other.sqlite")).result is Result.COUNTED
    for rest in tmp_path.glob("device.sqlite-*"):
        rest.unlink()
    assert visit(device(LocalWire(open_small_run(small_task())), path)).result is Result.FINISHED
    assert contributions(path) == []


def test_leaving_in_the_middle_of_training_gives_the_seat_back(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    wire = LocalWire(open_small_run(small_task()))

    async def train(plan: RoundPlan, weights: FloatVector) -> Update:
        run("leave", "everything", "--history", tmp_path)
        return Update(one_hot(0))

    assert visit(replace(device(wire, path), train=train)).result is not Result.COUNTED
    assert wire.aborts == [AbortReason.NOT_ALLOWED]
    assert contributions(path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"everything": "yes"}', "7"])
def test_list_of_what_was_left_that_is_damaged_leaves_everything(folder: Path, text: str) -> None:
    (folder / "first.sqlite.left").write_text(text)
    assert not opened(folder / "first.sqlite").allows(RUN, 20, TERMS)
    with pytest.raises(BadInput, match="takes part in nothing"):
        run("leave", "everything", "--history", folder, "--device", "first")
    with pytest.raises(HistoryError):
        run("ledger", "--history", folder)


WRONG = {
    "no such device": (["ledger", "--device", "third"], "no history in"),
    "a path as a name": (["ledger", "--device", "../first"], "the name of a device"),
    "no name": (["leave", "everything", "--device", ""], "the name of a device"),
    "something else": (["leave", "nothing"], "'nothing' is not `everything`"),
    "too short": (["leave", "000"], "'000' is not `everything`"),
    "trust for all": (["ledger", "--trust"], "--trust: needs --device"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_makes_no_sense_is_one_line(folder: Path, wrong: str) -> None:
    arguments, says = WRONG[wrong]
    with pytest.raises(BadInput, match=says) as refused:
        run(*arguments, "--history", folder)
    assert "\n" not in str(refused.value)


def test_empty_folder_has_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no device's history is here"):
        run("ledger", "--history", tmp_path)


def test_damaged_history_is_not_shown_as_if_it_were_whole(tmp_path: Path) -> None:
    (tmp_path / "first.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(HistoryError, match="not a usable"):
        run("ledger", "--history", tmp_path)


def test_lost_history_is_shown_as_such_until_its_owner_trusts_it(tmp_path: Path) -> None:
    for _ in range(2):
        history = DeviceHistory(tmp_path / "device.sqlite")
        history.hear(known(task()))
        given = history.record(RUN, 1, TERMS)
        history.close()
        for rest in tmp_path.glob("device.sqlite*"):
            if given and not rest.name.endswith((".marker", ".lock")):
                rest.unlink()
    assert "not complete" in run("ledger", "--history", tmp_path)
    lost = as_json(tmp_path)["device"]
    assert (lost["complete"], lost["runs"][0]["state"]) == (False, "unknown")
    assert "above what is claimed" in run("ledger", "--history", tmp_path, "--device", "device", "--trust")
    assert as_json(tmp_path)["device"]["complete"]
    assert opened(tmp_path / "device.sqlite").record(RUN, 1, TERMS)


def test_a_history_is_not_trusted_behind_the_back_of_a_running_device(folder: Path) -> None:
    command = [sys.executable, "-m", "fedrho", "device", "ledger", "--trust", "--device", "first", "--history", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "another process is this device already" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_dates_beyond_every_calendar_are_shown_all_the_same() -> None:
    assert commands._date(1e300) == "1e+300"
    assert commands._date(None) == "an unknown date"
