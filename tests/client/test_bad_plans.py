"""A server that asks for something else than it announced gets nothing: no training, no record, no byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

from fedrho.client.participant import BadPlan
from fedrho.protos import messages as m
from tests.client.fleet import LocalWire, contributions, device, open_small_run, released, small_task, visit

Tamper = Callable[[m.RoundPlan], m.RoundPlan]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sqlite"


@dataclass
class Lying(LocalWire):
    """Changes the plan, or the weights, on their way to the device."""

    tamper: Tamper = lambda plan: plan
    spoil: Callable[[bytes], bytes] = lambda data: data

    async def check_in(self, message: m.CheckIn) -> m.Assignment | m.TryLater:
        answer = await super().check_in(message)
        assert isinstance(answer, m.Assignment)
        return replace(answer, plan=self.tamper(answer.plan))

    async def artifact(self, sha256: bytes, size: int) -> bytes:
        return self.spoil(await super().artifact(sha256, size))


def is_refused(wire: Lying, path: Path) -> None:
    with pytest.raises(BadPlan):
        visit(device(wire, path))
    assert wire.aborts == [m.AbortReason.NOT_ALLOWED]
    assert wire.statuses() == {m.SessionStatus.EXPIRED: 1}
    assert "begin upload" not in wire.calls
    assert contributions(path) == []


OTHERS: dict[str, Tamper] = {
    "clip norm above": lambda plan: replace(plan, clip_norm=1.5),
    "clip norm one ulp above": lambda plan: replace(plan, clip_norm=math.nextafter(1.0, 2.0)),
    "clip norm below": lambda plan: replace(plan, clip_norm=0.5),
    "model": lambda plan: replace(plan, model="digits-mlp"),
    "run": lambda plan: replace(plan, run=bytes([255]) * 16),
    "size": lambda plan: replace(plan, size=651),
    "step released already": lambda plan: replace(plan, step=1),
    "step beyond the last": lambda plan: replace(plan, step=5),
    "step zero": lambda plan: replace(plan, step=0),
}


@pytest.mark.parametrize("other", OTHERS)
def test_plan_that_differs_from_the_population_is_refused(path: Path, tmp_path: Path, other: str) -> None:
    server = open_small_run(small_task(steps=4))
    visit(device(LocalWire(server), tmp_path / "first.sqlite"))
    released(server)
    wire = Lying(server, tamper=OTHERS[other])
    is_refused(wire, path)
    assert "artifact" not in wire.calls


@pytest.mark.parametrize("step", [1, 2, 4])
def test_plan_for_any_step_still_to_come_is_taken(path: Path, step: int) -> None:
    wire = Lying(open_small_run(small_task(steps=4)), tamper=lambda plan: replace(plan, step=step))
    visit(device(wire, path))
    assert contributions(path) == [(wire.server.run, step)]


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "cut short": lambda data: data[:-4],
    "too long": lambda data: data + bytes(4),
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_weights_that_are_not_those_of_the_plan_are_refused(path: Path, spoiled: str) -> None:
    is_refused(Lying(open_small_run(small_task()), spoil=SPOILED[spoiled]), path)


def test_weights_of_the_right_digest_but_another_length_are_refused(path: Path) -> None:
    """The server serves, consistently, weights that are not `size` long."""

    class Short(Lying):
        async def artifact(self, sha256: bytes, size: int) -> bytes:
            return bytes(8)

    digest = sha256(bytes(8)).digest()
    is_refused(Short(open_small_run(small_task()), tamper=lambda plan: replace(plan, checkpoint_sha256=digest)), path)


IMPOSSIBLE: dict[str, Tamper] = {
    "encoding too narrow for the grid": lambda plan: replace(plan, encoding=m.Encoding.INT16_LE),
    "chunks of nothing": lambda plan: replace(plan, chunk_bytes=0),
    "unknown optimizer": lambda plan: replace(plan, optimizer="lion"),
    "momentum where there is none": lambda plan: replace(plan, optimizer="adam", momentum=0.9),
    "momentum of 1": lambda plan: replace(plan, momentum=1.0),
    "no learning": lambda plan: replace(plan, learning_rate=0.0),
    "batches of nothing": lambda plan: replace(plan, batch_size=0),
    "no epochs and no steps": lambda plan: replace(plan, epochs=0),
}


@pytest.mark.parametrize("plan", IMPOSSIBLE)
def test_plan_that_cannot_be_carried_out_is_refused_before_it_is_recorded(path: Path, plan: str) -> None:
    is_refused(Lying(open_small_run(small_task()), tamper=IMPOSSIBLE[plan]), path)


@pytest.mark.parametrize("bits", [0, 25, 1000])
def test_grid_that_is_none_is_aborted_and_counts_nothing(path: Path, bits: int) -> None:
    wire = Lying(open_small_run(small_task()), tamper=lambda plan: replace(plan, grid_bits=bits))
    with pytest.raises(ValueError, match=r"grid|encoded"):
        visit(device(wire, path))
    assert wire.aborts == [m.AbortReason.NOT_ALLOWED]
    assert contributions(path) == []
