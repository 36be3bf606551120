"""The connection breaks, or the server does, between GO and the receipt: recorded, and counted once or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.participant import Result, WireLost
from fedrho.protos import messages as m
from fedrho.server.storage.store import MemoryStore
from tests.client.fleet import LocalWire, contributions, device, one_hot, open_small_run, released, small_task, visit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sqlite"


@dataclass
class Faulty(LocalWire):
    """Loses the first `cut` uploads before the server has them, and the next `deaf` receipts after it counted."""

    cut: int = 0
    deaf: int = 0

    async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
        if self.cut:
            self.cut -= 1
            self.calls.append("upload")
            raise WireLost("the connection broke")
        receipt = await super().upload(message, plan)
        if self.deaf:
            self.deaf -= 1
            raise WireLost("no acknowledgement")
        return receipt


def faulty(cut: int = 0, deaf: int = 0) -> Faulty:
    return Faulty(open_small_run(small_task()), cut=cut, deaf=deaf)


def test_contribution_is_in_the_history_before_the_first_byte_leaves(path: Path) -> None:
    class Looking(LocalWire):
        async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
            assert contributions(path) == [(plan.run, plan.step)]
            return await super().upload(message, plan)

    wire = Looking(open_small_run(small_task()))
    assert visit(device(wire, path)).result is Result.COUNTED
    assert "upload" in wire.calls


def test_lost_acknowledgement_is_counted_once(path: Path) -> None:
    wire = faulty(deaf=1)
    assert visit(device(wire, path, place=2)).result is Result.COUNTED
    assert wire.calls[-2:] == ["upload", "status"]
    assert contributions(path) == [(wire.server.run, 1)]
    assert np.abs(released(wire.server) - one_hot(2)).max() < 1e-5


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_cut_upload_is_repeated_in_the_same_session(path: Path, cut: int) -> None:
    wire = faulty(cut=cut)
    assert visit(device(wire, path, place=2)).result is Result.COUNTED
    assert wire.calls.count("upload") == cut + 1
    assert wire.calls.count("check in") == 1
    assert wire.statuses() == {m.SessionStatus.COUNTED: 1}
    assert contributions(path) == [(wire.server.run, 1)]
    assert np.abs(released(wire.server) - one_hot(2)).max() < 1e-5


def test_cut_upload_and_lost_acknowledgement_are_counted_once(path: Path) -> None:
    wire = faulty(cut=1, deaf=1)
    assert visit(device(wire, path, place=2)).result is Result.COUNTED
    assert np.abs(released(wire.server) - one_hot(2)).max() < 1e-5


def test_acknowledgement_lost_after_the_release_is_still_counted(path: Path) -> None:
    class Releasing(LocalWire):
        async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
            await super().upload(message, plan)
            released(self.server)
            raise WireLost("no acknowledgement")

    assert visit(device(Releasing(open_small_run(small_task())), path)).result is Result.COUNTED


def test_upload_that_arrives_after_its_status_was_asked_is_counted(path: Path) -> None:
    """The broken stream's last bytes are still on their way when the device asks; they arrive before it asks again."""

    class Slow(LocalWire):
        async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
            self.late = message
            raise WireLost("the connection broke")

        async def begin_upload(self, message: m.BeginUpload) -> m.Reservation:
            if hasattr(self, "late"):
                self.server.upload(self.late, self.now)
            return await super().begin_upload(message)

    wire = Slow(open_small_run(small_task()))
    assert visit(device(wire, path)).result is Result.COUNTED
    assert wire.statuses() == {m.SessionStatus.COUNTED: 1}


def test_upload_refused_while_the_broken_stream_is_still_open_is_repeated(path: Path) -> None:
    """As the service answers until it notices that the first stream is dead; RESERVED is not final."""

    class HalfOpen(Faulty):
        async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
            if self.calls.count("upload") == 1:
                self.calls.append("upload")
                return m.Receipt(m.SessionStatus.RESERVED, m.Refusal.ALREADY_OPEN)
            return await super().upload(message, plan)

    async def pause(seconds: float) -> None:
        pass

    wire = HalfOpen(open_small_run(small_task()), cut=1)
    assert visit(replace(device(wire, path), pause=pause)).result is Result.COUNTED
    assert contributions(path) == [(wire.server.run, 1)]


def test_server_that_restarts_in_the_middle_does_not_count_but_the_device_remembers(path: Path) -> None:
    task, store = small_task(), MemoryStore()

    class Restarting(LocalWire):
        async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
            await super().upload(message, plan)
            self.server = open_small_run(task, store)
            raise WireLost("the connection broke")

    wire = Restarting(open_small_run(task, store))
    assert visit(device(wire, path)).result is Result.NOT_COUNTED
    assert wire.statuses() == {}
    assert contributions(path) == [(wire.server.run, 1)]
    assert visit(device(wire, path)).result is Result.LATER


def test_attempt_that_ended_while_the_wire_was_down_is_not_counted_but_recorded(path: Path) -> None:
    class Stuck(Faulty):
        async def status(self, message: m.StatusRequest) -> m.StatusAnswer:
            self.now += 1000.0
            return await super().status(message)

    wire = Stuck(open_small_run(small_task()), cut=1)
    assert visit(device(wire, path)).result is Result.NOT_COUNTED
    assert contributions(path) == [(wire.server.run, 1)]


def test_lease_that_ran_out_is_taken_again_before_the_second_upload(path: Path) -> None:
    class Late(Faulty):
        async def status(self, message: m.StatusRequest) -> m.StatusAnswer:
            self.now += 11.0
            return await super().status(message)

    wire = Late(open_small_run(small_task()), cut=1)
    assert visit(device(wire, path)).result is Result.COUNTED
    assert wire.calls[-4:] == ["upload", "status", "begin upload", "upload"]


def test_server_that_stays_away_after_go_leaves_the_contribution_recorded(path: Path) -> None:
    class Gone(LocalWire):
        async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
            raise WireLost("the connection broke")

        async def status(self, message: m.StatusRequest) -> m.StatusAnswer:
            raise WireLost("nobody answers")

    wire = Gone(open_small_run(small_task()))
    with pytest.raises(WireLost):
        visit(device(wire, path))
    assert contributions(path) == [(wire.server.run, 1)]
