"""One contract over every store: memory, a folder, PostgreSQL with its blobs in an object store."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.noise import KeptVector, NoiseNode, SystemNoise
from fedrho.privacy.zcdp import Rho
from fedrho.server.coordinator import Coordinator
from fedrho.server.ledger import Charge
from fedrho.server.release import Commit, RunState, Store, StoreConflict, Stored
from fedrho.server.storage.store import MemoryStore, open_store
from fedrho.server.tasks import Task

SIZE = 12
RUN, OTHER = b"r" * 16, b"s" * 16
MakeTask = Callable[..., Task]
MakeEngine = Callable[..., Coordinator]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "sqlite":
        with open_store(tmp_path / "store") as opened:
            yield opened
    else:
        url = request.getfixturevalue("postgres_url")
        with open_store(url, f"memory://{os.urandom(8).hex()}") as opened:
            yield opened


def commit(
    step: int, drawn: tuple[NoiseNode, ...] = (), live: frozenset[str] = frozenset(), tags: tuple[bytes, ...] = ()
) -> Commit:
    weights = np.full(SIZE, step, dtype=np.float32)
    return Commit(Charge(step, Rho(step / 8)), 1, weights, weights.astype(np.float64) / 3, drawn, live, tags, 1.0, 2.0)


def priced(step: int, rho: float) -> Commit:
    return replace(commit(step), charge=Charge(step, Rho(rho)))


def started(store: Store, task: Task, run: bytes = RUN) -> Store:
    store.create(task, run, b"k" * 32, commit(0))
    return store


def named(make_task: MakeTask, name: str, **changes: str) -> Task:
    return make_task(**{'"small"': f'"{name}"'}, **changes)


def assert_same(one: Stored, other: Stored) -> None:
    assert (one.run, one.tag_key, one.charge, one.nodes, one.participations) == (
        other.run,
        other.tag_key,
        other.charge,
        other.nodes,
        other.participations,
    )
    assert one.weights.tobytes() == other.weights.tobytes()
    assert one.velocity.tobytes() == other.velocity.tobytes()
    assert [(kept.name, kept.vector.tobytes()) for kept in one.kept] == [
        (kept.name, kept.vector.tobytes()) for kept in other.kept
    ]


def test_what_was_committed_is_loaded_again(store: Store, make_task: MakeTask) -> None:
    task = make_task()
    assert store.find(task) is None
    assert store.runs() == ()
    started(store, task)
    _, node = SystemNoise().draw("tree.0.0", SIZE, 10.0)
    store.commit(RUN, commit(1, (node,), frozenset({node.name}), (b"t" * 16,)))
    stored = store.load(task, RUN)
    assert store.find(task) == RUN
    assert (stored.run, stored.tag_key, stored.charge) == (RUN, b"k" * 32, Charge(1, Rho(0.125)))
    np.testing.assert_array_equal(stored.weights, commit(1).weights)
    np.testing.assert_array_equal(stored.velocity, commit(1).velocity)
    assert stored.nodes == (node,)
    assert stored.participations == ((b"t" * 16, 1),)


@pytest.mark.parametrize("step", [0, 1, 3, -1])
def test_only_the_next_step_can_be_committed(store: Store, make_task: MakeTask, step: int) -> None:
    started(store, make_task()).commit(RUN, commit(1))
    before = store.load(make_task(), RUN)
    with pytest.raises(StoreConflict, match="does not follow the latest release"):
        store.commit(RUN, commit(step))
    assert_same(store.load(make_task(), RUN), before)


@pytest.mark.parametrize("rho", [0.1, math.nan, math.inf, -1.0])
def test_a_price_that_falls_or_is_no_number_is_refused(store: Store, make_task: MakeTask, rho: float) -> None:
    started(store, make_task()).commit(RUN, commit(1))
    with pytest.raises(StoreConflict, match="cannot cost"):
        store.commit(RUN, priced(2, rho))
    assert store.load(make_task(), RUN).charge == Charge(1, Rho(0.125))


def test_a_run_is_created_once(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    for task, run in ((make_task(), RUN), (make_task(), OTHER), (named(make_task, "other"), RUN)):
        with pytest.raises(StoreConflict, match="already"):
            started(store, task, run)
    assert [record.run for record in store.runs()] == [RUN]


def test_a_run_that_is_not_there_is_said(store: Store, make_task: MakeTask) -> None:
    for call in (
        lambda: store.load(make_task(), RUN),
        lambda: store.commit(RUN, commit(1)),
        lambda: store.set_state(RUN, RunState.PAUSED),
    ):
        with pytest.raises(StoreConflict, match="no such run"):
            call()


def test_another_task_of_the_same_name_is_refused_and_the_difference_named(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    other = make_task(**{"steps = 4": "steps = 3"})
    for call in (lambda: store.find(other), lambda: store.load(other, RUN)):
        with pytest.raises(StoreConflict, match="steps is 4 there, 3 here"):
            call()


def test_runs_are_listed_as_they_were_made_with_what_they_spent(store: Store, make_task: MakeTask) -> None:
    first, second = named(make_task, "zebra"), named(make_task, "ape")
    started(store, first)
    started(store, second, OTHER)
    store.commit(OTHER, commit(1))
    zebra, ape = store.runs()
    assert (zebra.file.name, zebra.run, zebra.step, zebra.rho, zebra.state) == ("zebra", RUN, 0, 0.0, RunState.ACTIVE)
    assert (ape.file, ape.run, ape.step, ape.rho) == (second.file, OTHER, 1, 0.125)
    assert (ape.created_at, ape.committed_at) == (2.0, 2.0)
    assert (store.find(first), store.find(second)) == (RUN, OTHER)


def test_runs_do_not_touch_one_another(store: Store, make_task: MakeTask) -> None:
    """The same names of nodes, vectors and tags, in two runs."""
    first, second = named(make_task, "first"), named(make_task, "second")
    started(store, first)
    started(store, second, OTHER)
    _, node = SystemNoise().draw("tree.0.0", SIZE, 10.0)
    _, same_name = SystemNoise().draw("tree.0.0", SIZE, 10.0)
    kept = KeptVector("vector", np.arange(SIZE))
    store.commit(RUN, replace(commit(1, (node,), frozenset({node.name}), (b"t" * 16,)), kept=(kept,)))
    before = store.load(first, RUN)
    store.commit(OTHER, replace(commit(1, (same_name,), frozenset({node.name}), (b"t" * 16,)), kept=(kept,)))
    store.commit(OTHER, replace(commit(2), last=True))
    assert_same(store.load(first, RUN), before)
    assert store.load(second, OTHER).kept == ()


def test_the_blobs_of_a_run_outlive_the_steps_of_another(store: Store, make_task: MakeTask) -> None:
    first, second = named(make_task, "first"), named(make_task, "second")
    started(store, first)
    started(store, second, OTHER)
    store.commit(OTHER, replace(commit(1), weights=np.full(SIZE, 77, dtype=np.float32)))
    for step in range(1, 6):
        store.commit(RUN, commit(step))
    assert store.load(second, OTHER).weights[0] == 77
    assert store.load(first, RUN).weights[0] == 5


def test_seeds_that_nothing_needs_are_forgotten(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    nodes = [SystemNoise().draw(f"tree.0.{index}", SIZE, 1.0)[1] for index in range(2)]
    store.commit(RUN, commit(1, (nodes[0],), frozenset({nodes[0].name})))
    store.commit(RUN, commit(2, (nodes[1],), frozenset({nodes[1].name})))
    assert store.load(make_task(), RUN).nodes == (nodes[1],)


def test_kept_vectors_are_stored_while_they_are_needed(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    vectors: list[NDArray[Any]] = [np.arange(SIZE, dtype=np.int64) * 7, np.linspace(0, 1, SIZE), np.arange(SIZE, dtype=np.int32)]
    kept = [KeptVector(f"vector.{number}", vector) for number, vector in enumerate(vectors)]
    store.commit(RUN, replace(commit(1), kept=(kept[0], kept[1])))
    store.commit(RUN, replace(commit(2), kept=(kept[1], kept[2])))
    stored = store.load(make_task(), RUN)
    assert {one.name: one.vector.tobytes() for one in stored.kept} == {one.name: one.vector.tobytes() for one in kept[1:]}
    assert {one.name: one.vector.dtype for one in stored.kept} == {one.name: one.vector.dtype for one in kept[1:]}
    store.commit(RUN, replace(commit(3), last=True))
    assert store.load(make_task(), RUN).kept == ()


# -- states


def test_a_finished_run_takes_nothing_more(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    _, node = SystemNoise().draw("tree.0.0", SIZE, 10.0)
    store.commit(RUN, commit(1, (node,), frozenset({node.name}), (b"t" * 16,)))
    store.commit(RUN, replace(commit(2), last=True))
    stored = store.load(make_task(), RUN)
    assert (stored.tag_key, stored.nodes, stored.participations, stored.kept) == (b"", (), (), ())
    assert store.runs()[0].state is RunState.FINISHED
    with pytest.raises(StoreConflict, match="is finished"):
        store.commit(RUN, commit(3))
    for state in (RunState.ACTIVE, RunState.PAUSED, RunState.CANCELLED):
        with pytest.raises(StoreConflict, match="is finished and cannot be"):
            store.set_state(RUN, state)


def test_a_paused_run_goes_on_and_its_full_round_may_still_be_released(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    for state in (RunState.PAUSED, RunState.PAUSED, RunState.ACTIVE, RunState.PAUSED):
        store.set_state(RUN, state)
        assert store.runs()[0].state is state
    store.commit(RUN, commit(1))
    assert store.load(make_task(), RUN).charge.step == 1
    with pytest.raises(StoreConflict, match="cannot be finished"):
        store.set_state(RUN, RunState.FINISHED)


def test_a_cancelled_run_has_spent_what_it_spent_and_never_comes_back(store: Store, make_task: MakeTask) -> None:
    started(store, make_task()).commit(RUN, commit(1))
    for _ in range(2):
        store.set_state(RUN, RunState.CANCELLED)
    (record,) = store.runs()
    assert (record.state, record.step, record.rho) == (RunState.CANCELLED, 1, 0.125)
    for call in (lambda: store.find(make_task()), lambda: store.load(make_task(), RUN)):
        with pytest.raises(StoreConflict, match=r"was cancelled.*give the task another name"):
            call()
    with pytest.raises(StoreConflict, match="is cancelled"):
        store.commit(RUN, commit(2))
    with pytest.raises(StoreConflict, match="cannot be active"):
        store.set_state(RUN, RunState.ACTIVE)
    store.create(named(make_task, "again"), OTHER, b"k" * 32, commit(0))
    store.set_budget(Rho(0.25))
    store.commit(OTHER, priced(1, 0.125))
    with pytest.raises(BudgetExhausted):
        store.commit(OTHER, priced(2, 0.126))


# -- the budget of all runs


def test_the_budget_is_spent_to_the_last_bit_and_no_further(store: Store, make_task: MakeTask) -> None:
    """0.1 + 0.2 is above 0.3 in floats; what is compared is the sum of all, correctly rounded."""
    started(store, named(make_task, "first"))
    started(store, named(make_task, "second"), OTHER)
    assert store.budget() is None
    store.set_budget(Rho(0.75))
    assert store.budget() == 0.75
    store.commit(RUN, priced(1, 0.25))
    with pytest.raises(BudgetExhausted, match=r"run 'second' would bring rho to 0\.7501, above the store's budget 0\.75"):
        store.commit(OTHER, priced(1, math.nextafter(0.5, 1.0)))
    assert store.load(named(make_task, "second"), OTHER).charge.step == 0
    store.commit(OTHER, priced(1, 0.5))
    with pytest.raises(BudgetExhausted):
        store.commit(RUN, priced(2, 0.3))
    store.commit(RUN, priced(2, 0.25))
    store.set_budget(None)
    store.commit(RUN, priced(3, 7.0))
    assert math.fsum(record.rho for record in store.runs()) == 7.5


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_budget_is_refused(store: Store, rho: float) -> None:
    with pytest.raises(ValueError, match="must be a finite rho above 0"):
        store.set_budget(Rho(rho))
    assert store.budget() is None


def test_a_budget_below_what_is_spent_is_refused(store: Store, make_task: MakeTask) -> None:
    started(store, make_task()).commit(RUN, priced(1, 0.5))
    store.set_budget(Rho(0.5))
    with pytest.raises(BudgetExhausted, match="already"):
        store.set_budget(Rho(0.49))
    assert store.budget() == 0.5


def test_two_runs_commit_at_once_and_never_more_than_the_budget(store: Store, make_task: MakeTask) -> None:
    """Each step costs 1/64; of the 32 that the budget allows, none is lost and none is too many."""
    for name, run in (("first", RUN), ("second", OTHER)):
        started(store, named(make_task, name), run)
    store.set_budget(Rho(0.5))
    together = threading.Barrier(2)
    refused: list[BudgetExhausted] = []

    def release(run: bytes) -> None:
        together.wait(20)
        try:
            for step in range(1, 40):
                weights = np.full(SIZE, step + run[0], dtype=np.float32)
                store.commit(run, replace(priced(step, step / 64), weights=weights))
        except BudgetExhausted as error:
            refused.append(error)

    threads = [threading.Thread(target=release, args=(run,)) for run in (RUN, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    steps = [record.step for record in store.runs()]
    assert len(refused) == 2
    assert sum(steps) == 32
    for name, run, step in zip(("first", "second"), (RUN, OTHER), steps, strict=True):
        assert store.load(named(make_task, name), run).weights[0] == (step + run[0] if step else 0)


def test_two_threads_that_release_the_same_step_give_one_result(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    together = threading.Barrier(2)
    results: list[float | None] = []

    def release(value: float) -> None:
        together.wait(20)
        try:
            store.commit(RUN, replace(commit(1), weights=np.full(SIZE, value, dtype=np.float32)))
            results.append(value)
        except StoreConflict:
            results.append(None)

    threads = [threading.Thread(target=release, args=(value,)) for value in (3.0, 4.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results.count(None) == 1
    assert store.load(make_task(), RUN).weights[0] in results


def test_an_engine_goes_on_where_another_stopped(store: Store, make_engine: MakeEngine) -> None:
    from fedrho.privacy.vectors import ClippedSum
    from fedrho.server.release import Attempt

    for step in range(5):
        engine = make_engine(store)
        assert engine.progress.step == step
        assert engine.finished == (step == 4)
        if step < 4:
            total = ClippedSum(np.zeros(SIZE, np.int64), engine.task.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)
