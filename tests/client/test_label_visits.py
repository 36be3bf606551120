"""Visits to runs with label privacy: who joins, what travels, and what a lying server gains."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.client import training
from fedrho.client.app import Owner, Server, run_devices
from fedrho.client.examples import ArrayExamples
from fedrho.client.fleet_training import logistic
from fedrho.client.history import ServerChanged
from fedrho.client.history_view import read_ledger
from fedrho.client.labels import answering, objecting
from fedrho.client.limits import NO_LIMITS, Limits
from fedrho.client.participant import BadPlan, Participant, Result
from fedrho.privacy.statement import Unit
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos import messages as m
from fedrho.server.tasks import Task, TaskFile, build_task
from tests.client.fleet import MODELS, LocalWire, contributions, no_pause, open_small_run, opened, small_task, specs, visit
from tests.client.serving import serving
from tests.client.test_labels import noisy
from tests.commanding import runner
from tests.models.reference import made_up
from tests.server.one_run import SIGNER, new_id


def labelled(epsilon: float = 2.0, correction: str = "forward", **changes: Any) -> Task:
    values = small_task(steps=3, max_times=3, **changes).file.model_dump()
    return build_task(TaskFile.model_validate({**values, "labels": {"epsilon": epsilon, "correction": correction}}))


def store_of(seed: int = 0) -> ArrayExamples:
    return ArrayExamples(*made_up(12, seed=seed))


def device(wire: LocalWire, path: Path, limits: Limits = NO_LIMITS, store: ArrayExamples | None = None) -> Participant:
    """Answers, and trains by numpy."""
    history, held = opened(path), store or store_of()

    async def train(plan: m.RoundPlan, weights: FloatVector) -> Update:
        asked = answering(path, limits)(plan, held) if plan.labels is not None else held
        return logistic(plan, weights, asked)

    return Participant(
        wire, specs(wire, history), history, MODELS, train, no_pause, new_id, limits=limits, labels=objecting(path, limits)
    )


def incidents(path: Path) -> list[tuple[str, str]]:
    return [(one.kind, one.detail) for one in read_ledger(path).incidents]


def test_terms_reach_the_device_in_spec_and_plan_and_its_answers_last_all_rounds(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    wire = LocalWire(open_small_run(labelled()))
    one = device(wire, path)
    kept = []
    for _ in range(3):
        assert visit(one).result is Result.COUNTED
        kept.append(noisy(path))
        wire.server.release(wire.now)
    assert len(kept[0]) == 12
    assert kept[0] == kept[1] == kept[2]
    ledger = read_ledger(path)
    assert (ledger.label_epsilon, [one.labels for one in ledger.labels]) == (2.0, [12])
    assert len(contributions(path)) == 3


def test_device_without_a_memo_or_whose_owner_wants_more_is_not_there(tmp_path: Path) -> None:
    wire = LocalWire(open_small_run(labelled(epsilon=2.0)))
    bare = replace(device(wire, tmp_path / "bare.sqlite"), labels=Participant.labels)
    strict = device(wire, tmp_path / "strict.sqlite", Limits(max_label_epsilon_per_run=1.0))
    for one in (bare, strict):
        assert visit(one).result is Result.FINISHED
    assert "check in" not in wire.calls
    assert incidents(tmp_path / "bare.sqlite") == [
        ("not joined", "small: it asks for answers for labels, and this device keeps none")
    ]
    assert "a label epsilon of 2 is above the owner's max_label_epsilon_per_run 1" in incidents(tmp_path / "strict.sqlite")[0][1]
    plain = LocalWire(open_small_run(small_task()))
    assert visit(device(plain, tmp_path / "other.sqlite", Limits(max_label_epsilon=4.0))).result is Result.FINISHED
    assert "trains on labels as they are" in incidents(tmp_path / "other.sqlite")[0][1]


@dataclass
class Lying(LocalWire):
    """Plans with label terms that nobody has announced."""

    labels: m.LabelTerms | None = None

    async def check_in(self, message: m.CheckIn) -> m.Assignment | m.TryLater:
        answer = await super().check_in(message)
        assert isinstance(answer, m.Assignment)
        return replace(answer, plan=replace(answer.plan, labels=self.labels))


@pytest.mark.parametrize("said", [None, m.LabelTerms("rr-with-prior", 9.0), m.LabelTerms("rr-with-prior", 2.0, (), "none")])
def test_plan_with_other_label_terms_than_announced_is_refused_before_a_label_is_touched(
    tmp_path: Path, said: m.LabelTerms | None
) -> None:
    wire = Lying(open_small_run(labelled()), labels=said)
    with pytest.raises(BadPlan, match="the plan differs from the announced task"):
        visit(device(wire, tmp_path / "device.sqlite"))
    assert noisy(tmp_path / "device.sqlite") == {}


@dataclass
class Restless(LocalWire):
    """Signs other label terms for the same run in every spec."""

    terms: list[m.LabelTerms | None] = field(default_factory=list)

    async def population(self, request: m.PopulationRequest) -> m.PopulationAnswer:
        from fedrho.protos import codec

        answer = await super().population(m.PopulationRequest())
        spec = codec.decode(m.PopulationSpec, answer.spec)
        (task,) = spec.tasks
        said = self.terms.pop(0) if self.terms else task.terms.labels
        data = codec.encode(replace(spec, epoch=spec.epoch + 1, tasks=(replace(task, terms=replace(task.terms, labels=said)),)))
        return replace(answer, spec=data, signature=SIGNER.sign_spec(data))


def test_run_whose_label_terms_change_is_left(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    wire = Restless(open_small_run(labelled()))
    assert visit(device(wire, path)).result is Result.COUNTED
    before = noisy(path)
    for said in (None, m.LabelTerms("rr-with-prior", 2.5), m.LabelTerms("rr-with-prior", 2.0, (0.91,) + (0.01,) * 9)):
        wire.terms = [said]
        with pytest.raises(ServerChanged, match="asks for labels under other terms than before"):
            visit(device(wire, path))
    assert noisy(path) == before


@pytest.mark.parametrize("terms", [m.LabelTerms("gaussian", 1.0), m.LabelTerms("rr-with-prior", 1.0, (), "backward")])
def test_mechanism_or_correction_that_is_not_known_is_not_joined(tmp_path: Path, terms: m.LabelTerms) -> None:
    path = tmp_path / "device.sqlite"
    wire = Restless(open_small_run(labelled()), terms=[terms, terms])
    assert visit(device(wire, path)).result is Result.FINISHED
    assert "are unknown to this version of fedrho" in incidents(path)[0][1]


def test_two_runs_with_the_same_terms_share_the_answers_and_one_with_others_is_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    for task, result in ((labelled(), Result.COUNTED), (labelled(), Result.COUNTED), (labelled(epsilon=1.0), Result.FINISHED)):
        wire = LocalWire(open_small_run(task))
        history = opened(path)
        history.pin("here", SIGNER.public)
        assert visit(device(wire, path)).result is result
    assert len(noisy(path)) == 12
    assert "labels were answered under other terms already" in incidents(path)[-1][1]


def test_label_outside_the_classes_is_counted_as_zeros_whichever_it_is(tmp_path: Path) -> None:
    features, labels = made_up(12, seed=0)
    seen = []
    for number, wrong in enumerate((-1, 10, 77)):
        mine = labels.copy()
        mine[3] = wrong
        wire = LocalWire(open_small_run(labelled()))
        outcome = visit(device(wire, tmp_path / f"{number}.sqlite", store=ArrayExamples(features, mine)))
        assert outcome.failure == "a label is none of the 10 classes; nothing was answered"
        wire.server.release(wire.now)
        seen.append((outcome.result, wire.calls, wire.aborts))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] is Result.COUNTED


# -- a real server, real processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_devices_over_the_wire_send_answers_alone_to_the_process_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes to the training process is searched; what comes of it is what training on the answers gives."""
    sent: list[Any] = []
    pickled = training._pickled

    async def watched(examples: Any) -> bytes:
        sent.append(examples)
        return await pickled(examples)

    monkeypatch.setattr(training, "_pickled", watched)
    stores = {f"device-{number}": ArrayExamples(*made_up(40, seed=number)) for number in range(2)}
    engine = open_small_run(labelled(goal=2), now=time.monotonic())

    async def run() -> None:
        async with serving(engine) as address:
            results = await run_devices(
                Server(address), stores, MODELS, tmp_path, 20.0, lambda name, outcome: None, owner=Owner()
            )
            assert results[Result.COUNTED] == 6

    asyncio.run(run())
    assert engine.progress.step == 3
    assert len(sent) == 6
    for examples in sent:
        data = pickle.dumps(examples)
        for number in range(2):
            labels = made_up(40, seed=number)[1]
            assert all(labels.astype(kind).tobytes() not in data for kind in ("<i4", "<i8", "<f4", "i1"))
    for name in stores:
        with closing(opened(tmp_path / f"{name}.sqlite")):
            assert read_ledger(tmp_path / f"{name}.sqlite").label_epsilon == 2.0
            assert len(noisy(tmp_path / f"{name}.sqlite")) == 40
    statement = engine.task.label_statement()
    assert statement is not None
    assert (statement.unit, statement.epsilon, statement.delta) == (Unit.LABEL, 2.0, 0.0)


DIGITS = """
name = "digits"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 2
population = 4
[round]
goal = 2
deadline_seconds = 60
retry_seconds = [0.2, 0.4]
[privacy]
clip_norm = 0.5
rho = 10.0
delta = 1e-5
[participation]
max_times = 4
[labels]
epsilon = 2.0
"""


@pytest.mark.slow
def test_commands_from_task_file_to_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Server and devices in processes of their own; what is asked of them afterwards in this one."""
    task, store, histories = tmp_path / "task.toml", tmp_path / "store", tmp_path / "devices"
    task.write_text(DIGITS)
    monkeypatch.setenv("COLUMNS", "250")
    run = runner(monkeypatch, capfd)

    def fedrho(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    command = [sys.executable, "-m", "fedrho", "serve", str(task), "--store", str(store), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            from fedrho.server.app import read_address

            deadline = time.monotonic() + 300
            while (known := read_address(store) if store.exists() else None) is None:
                assert time.monotonic() < deadline
                assert server.poll() is None, server.communicate()
                time.sleep(0.2)
            join = ["join", known[0], "--data", "digits", "--of", "4", "--history", str(histories), "--wait", "300"]
            subprocess.run([sys.executable, "-m", "fedrho", *join], capture_output=True, check=True, timeout=500)
            out, _ = server.communicate(timeout=300)
        finally:
            server.kill()
    assert "about labels, of digits; never added to the other" in out
    assert "one label" in out
    (shown,) = json.loads(fedrho("status", store, "--json"))["runs"]
    assert (shown["unit"], shown["labels"]["unit"], shown["labels"]["epsilon"]) == ("device", "label", 2.0)
    assert "m labels has m times the epsilon" in " ".join(shown["labels"]["assumptions"])
    assert "beside it, and never added to it: epsilon 2 (pure), unit: one label" in fedrho("status", store)
    (derived,) = json.loads(fedrho("account", "ledger", store, "--json"))["runs"]
    assert derived["labels"] == shown["labels"]
    told = fedrho("account", "ledger", store)
    assert told.index("derived anew from the store") < told.index("about labels, of digits; never added to the other")
    fedrho("export", store, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as exported:
        said = json.loads(str(exported["privacy_statement"]))
    assert said["labels"]["epsilon"] == 2.0
    assert said["unit"] == "device"
    devices = json.loads(fedrho("device", "ledger", "--history", histories, "--json"))["devices"]
    assert {one["label_epsilon"] for one in devices} <= {0.0, 2.0}
    assert max(one["label_epsilon"] for one in devices) == 2.0
    assert "no label has paid more than epsilon 2 in sum" in fedrho("device", "ledger", "--history", histories)
