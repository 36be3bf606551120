"""Several runs on the same devices: who is let in, who gets which seat, what devices are told, and what it costs together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.zcdp import Rho
from fedrho.protos import codec, signing
from fedrho.protos.messages import (
    Assignment,
    BeginUpload,
    CheckIn,
    DeviceProof,
    LaterReason,
    PopulationRequest,
    PopulationSpec,
    TryLater,
    Upload,
    Willing,
)
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.engine import Engine
from fedrho.server.population import ACCEPTED_SPECS, SPEC_SECONDS, Population, check_planned, planned_rho
from fedrho.server.release import RunState, Store
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.store import MemoryStore
from tests.server.conftest import MakeTask
from tests.server.one_run import SIGNER, new_id

SIZE = 4
ISSUER = signing.SigningKey.generate()
NOW = 1000.0
Runs = Callable[..., Engine]


@pytest.fixture
def runs(make_task: MakeTask) -> Runs:
    """An engine with a run of each name, on a store of its own or the one given."""

    def make(*names: str, store: Store | None = None, issuer: bytes | None = None, **task: object) -> Engine:
        store, shard = store or MemoryStore(), Shard()
        around = Surroundings(SystemNoise(), store, new_id, [LocalShard(shard)])
        tasks = [make_task(**{'"small"': f'"{name}"', **task}) for name in names]
        opened = [open_run(task, around, lambda: np.zeros(SIZE, dtype=np.float32), NOW) for task in tasks]
        return Engine(Population(opened, store, SIGNER, issuer), shard)

    return make


def run_of(engine: Engine, name: str) -> bytes:
    return next(run for run, one in engine.population.members.items() if one.coordinator.task.file.name == name)


def ask(
    engine: Engine, *names: str, request_id: bytes | None = None, tag: bytes = b"", now: float = NOW
) -> Assignment | TryLater:
    willing = tuple(Willing(run_of(engine, name), tag) for name in names)
    return engine.check_in(CheckIn(request_id or new_id(), willing), now)


def reason(answer: Assignment | TryLater) -> LaterReason | None:
    return answer.reason if isinstance(answer, TryLater) else None


def advance(engine: Engine, name: str, now: float = NOW) -> None:
    """One release."""
    while not engine.release_all(now):
        answer = ask(engine, name, now=now)
        assert isinstance(answer, Assignment), answer
        engine.begin_upload(BeginUpload(answer.session, answer.ticket), now)
        engine.upload(Upload(answer.session, np.zeros(SIZE, dtype=np.int32)), now)


def spec(engine: Engine, now: float = NOW) -> PopulationSpec:
    answer = engine.spec(PopulationRequest(), now)
    signing.verify_spec(SIGNER.public, answer.spec, answer.signature)
    return codec.decode(PopulationSpec, answer.spec)


# -- what it costs together


def test_runs_within_the_budget_are_served_and_one_too_many_is_refused_in_words(runs: Runs) -> None:
    store = MemoryStore()
    store.set_budget(Rho(4.0))
    assert spec(runs("one", "two", store=store)).rho_budget == 4.0
    with pytest.raises(BudgetExhausted, match=r"rho = 6(\.0*)? together, above its budget 4; give the new task a smaller"):
        runs("one", "two", "three", store=store)


def test_runs_that_are_not_served_now_count_too(runs: Runs) -> None:
    store = MemoryStore()
    runs("one", store=store)
    store.set_budget(Rho(3.9))
    with pytest.raises(BudgetExhausted):
        runs("two", store=store)


def test_a_cancelled_run_counts_what_it_has_spent_and_no_more(runs: Runs) -> None:
    store = MemoryStore()
    engine = runs("one", store=store)
    advance(engine, "one")
    engine.population.cancel(run_of(engine, "one"))
    spent = store.runs()[0].rho
    assert 0 < spent < 2.0
    assert spec(runs("two", store=store)).rho_budget == math.fsum([spent, 2.0])


def test_the_combined_statement_adds_up_what_every_run_has_released(runs: Runs) -> None:
    store = MemoryStore()
    engine = runs("one", "two", store=store)
    advance(engine, "one")
    advance(engine, "two")
    advance(engine, "two", NOW + 1)
    parts = [record.rho for record in store.runs()]
    assert engine.population.combined().rho == pytest.approx(sum(parts))
    assert runs("one", store=store).population.combined().rho == pytest.approx(sum(parts))


# -- the spec


def test_the_epoch_rises_with_every_run_release_and_cancellation_and_survives_reopening(runs: Runs) -> None:
    store = MemoryStore()
    epochs = [spec(runs("one", store=store)).epoch]
    engine = runs("one", "two", store=store)
    epochs.append(spec(engine).epoch)
    for name in ("one", "two", "one"):
        advance(engine, name)
        epochs.append(spec(engine).epoch)
    engine.population.cancel(run_of(engine, "two"))
    epochs.append(spec(engine).epoch)
    assert epochs == sorted(set(epochs))
    assert spec(runs("one", store=store)).epoch == epochs[-1]


def test_pausing_changes_nothing_that_devices_decide_upon(runs: Runs) -> None:
    engine = runs("one")
    before = spec(engine)
    engine.population.pause(run_of(engine, "one"))
    assert spec(engine) == before


def test_who_holds_the_newest_spec_hears_only_when_to_come(runs: Runs) -> None:
    engine = runs("one")
    first = engine.spec(PopulationRequest(), NOW)
    held = PopulationRequest(signing.etag(first.spec))
    assert engine.spec(held, NOW) == replace(first, spec=b"", signature=b"")
    assert engine.spec(PopulationRequest(bytes(32)), NOW) == first
    advance(engine, "one")
    assert engine.spec(held, NOW).spec != b""


def test_every_device_gets_the_same_bytes_until_half_of_their_time_is_over(runs: Runs) -> None:
    engine = runs("one")
    answers = [engine.spec(PopulationRequest(), NOW + seconds).spec for seconds in (0.0, SPEC_SECONDS / 2 - 1, SPEC_SECONDS / 2)]
    assert answers[0] == answers[1] != answers[2]


def test_the_spec_says_which_runs_have_ended(runs: Runs) -> None:
    engine = runs("one", "two", "three", **{"steps = 4": "steps = 2"})
    engine.population.cancel(run_of(engine, "two"))
    for _ in range(2):
        advance(engine, "one")
    assert [(task.task, task.ended, task.released) for task in spec(engine).tasks] == [
        ("one", True, 2),
        ("two", True, 0),
        ("three", False, 0),
    ]


# -- who gets which seat


def test_a_device_of_several_runs_sits_where_most_seats_are_free(runs: Runs) -> None:
    engine = runs("one", "two")
    for _ in range(2):
        ask(engine, "one")
    answers = [ask(engine, "one", "two") for _ in range(6)]
    sat = [answer.plan.run for answer in answers if isinstance(answer, Assignment)]
    assert [sat.count(run_of(engine, name)) for name in ("one", "two")] == [2, 4]


def test_a_request_has_one_answer_whichever_runs_have_more_room_by_then(runs: Runs) -> None:
    engine, request = runs("one", "two"), new_id()
    first = ask(engine, "one", "two", request_id=request)
    assert isinstance(first, Assignment)
    for _ in range(3):
        ask(engine, "one")
        assert ask(engine, "one", "two", request_id=request) == first


def test_a_request_with_a_seat_gets_no_second_one_while_its_run_is_releasing(runs: Runs) -> None:
    engine, request = runs("one", "two"), new_id()
    assert isinstance(ask(engine, "one", request_id=request), Assignment)
    for _ in range(3):
        answer = ask(engine, "one")
        assert isinstance(answer, Assignment)
        engine.begin_upload(BeginUpload(answer.session, answer.ticket), NOW)
        engine.upload(Upload(answer.session, np.zeros(SIZE, dtype=np.int32)), NOW)
    assert reason(ask(engine, "one", "two", request_id=request)) is LaterReason.RELEASING


def test_states_decide_what_a_device_hears(runs: Runs) -> None:
    engine = runs("one", "two", "three")
    engine.population.pause(run_of(engine, "one"))
    engine.population.cancel(run_of(engine, "two"))
    assert reason(ask(engine, "one")) is LaterReason.PAUSED
    assert reason(ask(engine, "two")) is LaterReason.FINISHED
    assert reason(ask(engine, "one", "two")) is LaterReason.PAUSED
    assert isinstance(ask(engine, "one", "two", "three"), Assignment)
    assert reason(engine.check_in(CheckIn(new_id(), (Willing(bytes(16)),)), NOW)) is LaterReason.OTHER_RUN
    assert reason(engine.check_in(CheckIn(new_id(), ()), NOW)) is LaterReason.OTHER_RUN
    engine.population.resume(run_of(engine, "one"))
    assert isinstance(ask(engine, "one"), Assignment)


def test_who_sits_when_a_run_is_paused_may_upload_and_when_it_is_cancelled_may_not(runs: Runs) -> None:
    engine, zeros = runs("one", "two"), np.zeros(SIZE, dtype=np.int32)
    kept, lost = ask(engine, "one"), ask(engine, "two")
    assert isinstance(kept, Assignment)
    assert isinstance(lost, Assignment)
    for seat in (kept, lost):
        engine.begin_upload(BeginUpload(seat.session, seat.ticket), NOW)
    engine.population.pause(kept.plan.run)
    engine.population.cancel(lost.plan.run)
    receipts = [engine.upload(Upload(seat.session, zeros), NOW) for seat in (kept, lost)]
    assert [receipt.status.name for receipt in receipts] == ["COUNTED", "EXPIRED"]


def test_an_operator_cannot_resume_what_runs_or_cancel_what_has_ended(runs: Runs) -> None:
    store = MemoryStore()
    engine = runs("one", store=store)
    run, population = run_of(engine, "one"), engine.population
    with pytest.raises(ValueError, match="it is active, not paused"):
        population.resume(run)
    population.pause(run)
    assert runs("one", store=store).population.members[run].coordinator.paused
    population.cancel(run)
    with pytest.raises(ValueError, match="it is cancelled already"):
        population.cancel(run)
    with pytest.raises(KeyError):
        population.pause(bytes(16))
    assert (population.finished, store.runs()[0].state) == (True, RunState.CANCELLED)


# -- who vouches for a device


@dataclass
class Device:
    """A device with a credential, which proves what it is told to."""

    engine: Engine
    key: signing.SigningKey
    credential: bytes

    def message(self, now: float = NOW, tag: bytes = b"", request_id: bytes | None = None) -> CheckIn:
        etag = signing.etag(self.engine.spec(PopulationRequest(), now).spec)
        message = CheckIn(request_id or new_id(), (Willing(run_of(self.engine, "one"), tag),))
        return replace(message, proof=self.prove(message, etag))

    def prove(self, message: CheckIn, etag: bytes, population: bytes = SIGNER.public) -> DeviceProof:
        runs = [willing.run for willing in message.willing]
        return DeviceProof(self.credential, etag, signing.prove(self.key, population, etag, message.request_id, runs))


@pytest.fixture
def device(runs: Runs) -> Device:
    engine = runs("one", "two", issuer=ISSUER.public, window=True)
    return new_device(engine)


def new_device(engine: Engine, expires_at: int = 2000, issuer: signing.SigningKey = ISSUER) -> Device:
    key = signing.SigningKey.generate()
    return Device(engine, key, signing.issue(issuer, key.public, expires_at))


def test_a_device_that_proves_who_it_is_gets_a_seat(device: Device) -> None:
    assert isinstance(device.engine.check_in(device.message(), NOW), Assignment)


def test_whatever_is_wrong_with_a_proof_gives_no_seat(device: Device) -> None:
    good, etag = device.message(), signing.etag(device.engine.spec(PopulationRequest(), NOW).spec)
    assert good.proof is not None
    stranger = new_device(device.engine, issuer=signing.SigningKey.generate())
    bad = {
        "missing": replace(good, proof=None),
        "forged": replace(good, proof=replace(good.proof, signature=bytes(64))),
        "no signature": replace(good, proof=replace(good.proof, signature=b"")),
        "no credential": replace(good, proof=replace(good.proof, credential=b"")),
        "another's credential": replace(good, proof=replace(good.proof, credential=new_device(device.engine).credential)),
        "another issuer": stranger.message(),
        "another request": replace(good, request_id=new_id()),
        "other runs": replace(good, willing=(*good.willing, Willing(run_of(device.engine, "two")))),
        "another population": replace(good, proof=device.prove(good, etag, bytes(32))),
        "an unknown spec": replace(good, proof=device.prove(good, bytes(32))),
        "another spec than it names": replace(good, proof=replace(good.proof, etag=bytes(32))),
    }
    answers = {kind: reason(device.engine.check_in(message, NOW)) for kind, message in bad.items()}
    assert answers == dict.fromkeys(bad, LaterReason.NOT_PROVED)
    assert isinstance(device.engine.check_in(good, NOW), Assignment)


@pytest.mark.parametrize(("now", "proved"), [(1999.0, True), (2000.0, False)])
def test_a_credential_is_good_until_it_expires(device: Device, now: float, proved: bool) -> None:
    assert isinstance(device.engine.check_in(device.message(now), now), Assignment) is proved


def test_a_spec_is_accepted_while_it_is_among_the_newest(device: Device) -> None:
    messages, now = [device.message(), device.message()], NOW
    for _ in range(ACCEPTED_SPECS - 1):
        now += SPEC_SECONDS / 2.0
        device.credential = signing.issue(ISSUER, device.key.public, 10**6)
        device.message(now)
    messages = [replace(one, proof=device.prove(one, one.proof.etag)) for one in messages if one.proof]
    assert isinstance(device.engine.check_in(messages[0], now), Assignment)
    now += SPEC_SECONDS / 2.0
    device.message(now)
    assert reason(device.engine.check_in(messages[1], now)) is LaterReason.NOT_PROVED


def test_a_proof_is_answered_again_but_seats_its_device_once(device: Device) -> None:
    """Who has recorded a check-in and plays it again after the attempt seats nobody."""
    message = device.message()
    first = device.engine.check_in(message, NOW)
    assert isinstance(first, Assignment)
    assert device.engine.check_in(message, NOW) == first
    assert reason(device.engine.check_in(message, NOW + 10.0)) is LaterReason.NOT_PROVED
    assert isinstance(device.engine.check_in(device.message(NOW + 10.0), NOW + 10.0), Assignment)


def test_a_proved_device_sits_once_whatever_tags_it_shows(device: Device) -> None:
    """Its key is its tag; tags are only for where nobody vouches."""
    seats = [device.engine.check_in(device.message(tag=bytes([number]) * 16), NOW) for number in range(4)]
    assert [reason(answer) for answer in seats] == [None, *[LaterReason.NOT_ALLOWED] * 3]
    assert isinstance(device.engine.check_in(new_device(device.engine).message(tag=bytes(16)), NOW), Assignment)


@pytest.mark.parametrize(("later", "allowed"), [(1, False), (2, True)])
def test_a_proved_device_keeps_the_separation(device: Device, later: int, allowed: bool) -> None:
    zeros, engine = np.zeros(SIZE, dtype=np.int32), device.engine
    others = [new_device(engine) for _ in range(10)]
    cohorts = [[device, *others[:2]], others[2:5], others[5:8]]
    for cohort in cohorts[:later]:
        for one in cohort:
            seat = engine.check_in(one.message(), NOW)
            assert isinstance(seat, Assignment)
            engine.begin_upload(BeginUpload(seat.session, seat.ticket), NOW)
            engine.upload(Upload(seat.session, zeros), NOW)
        engine.release_all(NOW)
    assert isinstance(engine.check_in(device.message(), NOW), Assignment) is allowed


def test_what_runs_may_come_to_cost_is_known_before_any_of_them_is_begun(make_task: MakeTask) -> None:
    """The runs that are stored, and those that new tasks would begin, each once."""
    first, second = make_task(), make_task(**{'name = "small"': 'name = "other"'})
    store = MemoryStore()
    assert planned_rho(store.runs(), [first, second]) == first.budget + second.budget
    open_run(first, Surroundings(SystemNoise(), store, new_id, [LocalShard(Shard())]), lambda: np.zeros(4, dtype=np.float32), 0.0)
    assert planned_rho(store.runs(), [first, second]) == first.budget + second.budget
    assert planned_rho(store.runs(), []) == first.budget
    check_planned(4.0, Rho(4.0))
    check_planned(4.0, None)
    with pytest.raises(BudgetExhausted, match="may come to cost rho = 4 together, above its budget 3"):
        check_planned(4.0, Rho(3.0))
