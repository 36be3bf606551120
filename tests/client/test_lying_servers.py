"""A server that takes back what it has said gets nothing, and the owner can read what it tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedrho.client.history import DeviceHistory, HistoryError, ServerChanged
from fedrho.client.history_view import Incident, read_ledger
from fedrho.client.limits import Limits
from fedrho.client.participant import MECHANISMS, BadPlan, Outcome, Result
from fedrho.client.spec import BadSpec, Known
from fedrho.privacy.adaptive import AdaptiveGaussian
from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.tree import BinaryTree
from fedrho.protos import codec, signing
from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m
from tests.client.announcing import KEY, OTHER, OTHER_KEY, RUN, TERMS, known, task
from tests.client.fleet import LocalWire, contributions, device, open_small_run, opened, released, small_task, visit
from tests.server.one_run import SIGNER


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sqlite"


@pytest.fixture
def history(path: Path) -> DeviceHistory:
    history = opened(path)
    history.hear(known(task(released=5), epoch=10))
    return history


def incidents(path: Path) -> list[tuple[str, str]]:
    return [(one.kind, one.detail) for one in read_ledger(path).incidents]


WEAKER: dict[str, dict[str, Any]] = {
    "clip_norm": {"clip_norm": 1.0000001},
    "noise_multiplier": {"noise_multiplier": 0.999999},
    "rho_budget": {"rho_budget": 1.5},
    "max_participations": {"max_participations": 4},
    "min_separation": {"min_separation": 3},
    "min_period_seconds": {"min_period_seconds": 59.0},
    "mechanism": {"mechanism": "independent-gaussian"},
}
FIRM = replace(TERMS, min_period_seconds=60.0)


@pytest.mark.parametrize("what", WEAKER)
def test_terms_never_become_weaker(path: Path, what: str) -> None:
    history = opened(path)
    history.hear(known(task(terms=FIRM)))
    with pytest.raises(ServerChanged, match=f"{what} is"):
        history.hear(known(task(terms=replace(FIRM, **WEAKER[what])), epoch=2))
    ((kind, detail),) = incidents(path)
    assert kind == "terms"
    assert what in detail
    history.hear(known(task(terms=FIRM), epoch=2))


STRICTER: dict[str, dict[str, Any]] = {
    "max_participations": {"max_participations": 2},
    "min_separation": {"min_separation": 5},
    "min_period_seconds": {"min_period_seconds": 61.0},
    "noise_multiplier": {"noise_multiplier": 2.0},
}


@pytest.mark.parametrize("what", STRICTER)
def test_terms_may_become_stricter_and_then_stay_so(path: Path, what: str) -> None:
    history = opened(path)
    history.hear(known(task(terms=FIRM)))
    history.hear(known(task(terms=replace(FIRM, **STRICTER[what])), epoch=2))
    with pytest.raises(ServerChanged):
        history.hear(known(task(terms=FIRM), epoch=3))


def test_terms_that_were_announced_hold_whatever_a_caller_asks_with(history: DeviceHistory) -> None:
    looser = replace(TERMS, max_participations=100, min_separation=1)
    assert history.record(RUN, 6, looser)
    assert not history.record(RUN, 9, looser)
    assert [history.record(RUN, step, looser) for step in (10, 14, 18)] == [True, True, False]
    assert history.exhausted(RUN, looser)


CONTRADICTIONS: dict[str, tuple[int, dict[str, Any], str]] = {
    "rounds go back": (11, {"released": 4}, "went back to 4 released steps, after 5"),
    "two specs of one epoch": (10, {"released": 6}, "two different specs under epoch 10"),
    "ends within an epoch": (10, {"released": 5, "ended": True}, "two different specs under epoch 10"),
    "another model": (11, {"released": 5, "model": "digits-mlp"}, "its model is 'digits-mlp' now"),
    "another size": (11, {"released": 5, "size": 651}, "its size is 651 now"),
    "more steps": (11, {"released": 5, "steps": 1001}, "its steps is 1001 now"),
    "another name": (11, {"released": 5, "task": "other"}, "its task is 'other' now"),
    "another beginning": (11, {"released": 5, "began": 2.0e9}, "began at another time"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_server_that_contradicts_itself_is_refused_and_leaves_a_record(path: Path, history: DeviceHistory, what: str) -> None:
    epoch, changes, says = CONTRADICTIONS[what]
    for _ in range(2):
        with pytest.raises(ServerChanged, match=says):
            history.hear(known(task(**changes), epoch=epoch))
    ((kind, detail),) = incidents(path)
    assert kind == "terms"
    assert says in detail
    assert read_ledger(path).incidents[0].times == 2
    history.hear(known(task(released=6), epoch=11))


def test_run_that_has_ended_does_not_go_on(history: DeviceHistory) -> None:
    history.hear(known(task(released=6, ended=True), epoch=11))
    with pytest.raises(ServerChanged, match="goes on after it had ended"):
        history.hear(known(task(released=6), epoch=12))


def test_refusal_outlives_the_process(path: Path, history: DeviceHistory) -> None:
    history.close()
    again = DeviceHistory(path)
    try:
        with pytest.raises(ServerChanged):
            again.hear(known(task(released=4), epoch=11))
    finally:
        again.close()


def test_spec_read_before_what_is_remembered_teaches_nothing(history: DeviceHistory) -> None:
    history.hear(known(task(released=4), epoch=9))
    history.hear(known(task(released=5), epoch=10))


def test_populations_do_not_speak_for_each_other(history: DeviceHistory) -> None:
    """Who names the run of another population can only make this device stricter with it."""
    history.hear(known(task(released=0, terms=replace(TERMS, max_participations=100)), key=OTHER_KEY))
    assert [history.record(RUN, step, replace(TERMS, max_participations=100)) for step in (6, 10, 14, 18)] == [True] * 3 + [False]
    history.hear(known(task(released=6), epoch=11, key=KEY))


def test_other_key_and_earlier_epoch_leave_records(path: Path, history: DeviceHistory) -> None:
    history.trust("here", KEY, 10)
    for key, epoch in ((OTHER_KEY, 11), (KEY, 9)):
        with pytest.raises(ServerChanged):
            history.trust("here", key, epoch)
    assert [detail.split(";")[0][:40] for _, detail in incidents(path)] == [
        "here: shows another population key than ",
        "here: went back to epoch 9 of its popula",
    ]


def test_records_are_bounded_and_the_newest_stay(path: Path, history: DeviceHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrho.client.history_file.MOST_INCIDENTS", 20)
    for number in range(50):
        history.note("refused", f"number {number}")
    found: tuple[Incident, ...] = read_ledger(path).incidents
    assert [one.detail for one in found] == [f"number {number}" for number in range(30, 50)]


def test_the_same_again_is_not_written_at_every_visit(path: Path, history: DeviceHistory) -> None:
    for _ in range(1000):
        history.note("not joined", "for a reason", RUN)
    assert [(one.times, one.run) for one in read_ledger(path).incidents] == [(1, RUN)]


# -- a device and a server --------------------------------------------------------------------------------------------------


@dataclass
class Lying(LocalWire):
    """Changes the spec before it is signed, or the answer after."""

    change: Callable[[m.TaskSpec], m.TaskSpec] = lambda task: task
    spoil: Callable[[m.PopulationAnswer], m.PopulationAnswer] = lambda answer: answer
    epochs: int = 0

    async def population(self, request: m.PopulationRequest) -> m.PopulationAnswer:
        answer = await super().population(m.PopulationRequest())
        spec = codec.decode(m.PopulationSpec, answer.spec)
        spec = replace(spec, epoch=spec.epoch + self.epochs, tasks=tuple(self.change(one) for one in spec.tasks))
        data = codec.encode(spec)
        return self.spoil(replace(answer, spec=data, signature=SIGNER.sign_spec(data)))


def lying(**changes: Any) -> Lying:
    return Lying(open_small_run(small_task(steps=9, max_times=3)), **changes)


def terms(**changes: Any) -> Callable[[m.TaskSpec], m.TaskSpec]:
    return lambda one: replace(one, terms=replace(one.terms, **changes))


LIES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "weaker terms": ({"change": terms(max_participations=9), "epochs": 1}, HistoryError, "weaker terms"),
    "rounds back": ({"change": lambda one: replace(one, released=0), "epochs": 1}, HistoryError, "went back to 0 released"),
    "epoch back": ({"epochs": -1}, HistoryError, "went back to epoch"),
    "two specs": ({"change": lambda one: replace(one, released=5)}, HistoryError, "two different specs"),
    "wrong signature": ({"spoil": lambda one: replace(one, signature=bytes(64))}, BadSpec, "not signed by its own key"),
    "other key": ({}, HistoryError, "another population key"),
    "terms that promise nothing": ({"change": terms(max_participations=0), "epochs": 1}, BadPlan, "make no sense"),
}


def with_another_key(answer: m.PopulationAnswer) -> m.PopulationAnswer:
    other = signing.SigningKey.generate()
    return replace(answer, public_key=other.public, signature=other.sign_spec(answer.spec))


@pytest.mark.parametrize("lie", LIES)
def test_lying_server_gets_no_visit_and_the_owner_a_record(path: Path, lie: str) -> None:
    changes, error, says = LIES[lie]
    honest = lying()
    visit(device(honest, path))
    released(honest.server)
    visit(device(honest, path, place=1))
    before = contributions(path)
    if lie == "other key":
        changes = {"spoil": with_another_key}
    wire = Lying(honest.server, **changes)
    with pytest.raises(error, match=says):
        visit(device(wire, path))
    assert set(wire.calls) <= {"population"}
    assert contributions(path) == before
    assert [says in one.detail for one in read_ledger(path).incidents] == [True]
    released(honest.server)
    assert visit(device(LocalWire(honest.server), path)).result is Result.COUNTED


def test_plan_that_differs_from_the_spec_leaves_a_record(path: Path) -> None:
    class Greedy(LocalWire):
        async def check_in(self, message: m.CheckIn) -> m.Assignment | m.TryLater:
            answer = await super().check_in(message)
            assert isinstance(answer, m.Assignment)
            return replace(answer, plan=replace(answer.plan, clip_norm=2.0))

    wire = Greedy(open_small_run(small_task()))
    with pytest.raises(BadPlan):
        visit(device(wire, path))
    assert incidents(path) == [("refused", "the plan differs from the announced task")]


# -- what nobody here knows -------------------------------------------------------------------------------------------------


def refused(wire: LocalWire, path: Path, limits: Limits | None = None) -> Outcome:
    outcome = visit(device(wire, path) if limits is None else replace(device(wire, path), limits=limits))
    assert set(wire.calls) == {"population"}
    assert contributions(path) == []
    return outcome


def test_task_with_an_unknown_mechanism_is_not_joined(path: Path) -> None:
    wire = lying(change=terms(mechanism="magic"))
    assert refused(wire, path).result is Result.FINISHED
    assert incidents(path) == [("not joined", "small: the mechanism 'magic' is unknown to this version of fedrho")]


def test_every_mechanism_of_this_version_is_known() -> None:
    kinds = (AdaptiveGaussian, BandedToeplitz, BufferedToeplitz, IndependentGaussian, BinaryTree)
    assert {kind.name for kind in kinds} == MECHANISMS


def test_task_whose_terms_have_a_part_of_a_later_version_is_not_joined(path: Path) -> None:
    """An unknown field of protobuf: what a later version adds, and this one would not see."""

    class Later(LocalWire):
        async def population(self, request: m.PopulationRequest) -> m.PopulationAnswer:
            answer = await super().population(m.PopulationRequest())
            spec = pb.PopulationSpec.FromString(answer.spec)
            spec.tasks[0].terms.MergeFromString(b"\xf8\x01\x07")  # field 31, a number
            data = spec.SerializeToString()
            return replace(answer, spec=data, signature=SIGNER.sign_spec(data))

    wire = Later(open_small_run(small_task()))
    assert refused(wire, path).result is Result.FINISHED
    assert incidents(path) == [("not joined", "small: its terms have a part that is unknown to this version of fedrho")]


def test_unknown_parts_elsewhere_say_nothing_about_terms() -> None:
    spec = pb.PopulationSpec.FromString(codec.encode(known(task(), task(OTHER)).spec))
    spec.MergeFromString(b"\xf8\x01\x07")
    assert codec.unknown_terms(spec.SerializeToString()) == frozenset()
    spec.tasks[1].terms.MergeFromString(b"\xfa\x01\x01x")
    assert codec.unknown_terms(spec.SerializeToString()) == {OTHER}
    spec.tasks[1].terms.Clear()
    spec.tasks[1].terms.labels.MergeFromString(b"\xfa\x01\x01x")
    assert codec.unknown_terms(spec.SerializeToString()) == {OTHER}


def test_known_is_ordinary_unless_something_is_strange() -> None:
    assert known(task()).strange == frozenset()
    assert isinstance(known(task()), Known)
