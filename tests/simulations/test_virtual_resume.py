"""Broken off after any step and taken up again, in another process too: the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.poisson import SamplingSection, sampled_task
from fedrho.simulations.state import BadState, State
from fedrho.simulations.virtual import Plan, Simulation
from tests.simulations.toy import MECHANISMS, ToyEngine, poisson_values, toy_task, zeros

UNRELIABLE = AvailabilitySection(model="diurnal", drop_out=0.25, slow_share=0.2, slow_factor=30.0)
SHUFFLED = AvailabilitySection(model="shuffled", drop_out=0.2)
LONG = {"steps": 20, "population": 60, "participation": {"max_times": 9, "min_separation": 2}}


@cache
def plan(name: str) -> Plan:
    """By name, so that another process makes the same."""
    if name == "poisson":
        task = sampled_task(
            poisson_values(privacy={"noise_multiplier": 1.0}), SamplingSection(kind="poisson"), AvailabilitySection()
        )
        return Plan(task, 5)
    if name == "shuffled":
        return Plan(toy_task(**LONG), 5, SHUFFLED)
    if name == "periods and tags":
        limits = {"max_times": 9, "min_separation": 2, "min_period_seconds": 400.0, "server_window": True}
        return Plan(toy_task(**{**LONG, "participation": limits}), 5, UNRELIABLE)
    return Plan(toy_task(**{**LONG, **MECHANISMS[name]}), 5, UNRELIABLE)


PLANS = [*MECHANISMS, "poisson", "shuffled", "periods and tags"]


def begun(name: str, state: State | None = None) -> Simulation:
    made = plan(name)
    task = made.task.task if hasattr(made.task, "task") else made.task
    return Simulation(made, ToyEngine(task.mechanism.grid), zeros(), state)


def through_json(state: State) -> State:
    return State(json.loads(json.dumps(state.values)), {name: array.copy() for name, array in state.arrays.items()})


@pytest.mark.parametrize("name", PLANS)
def test_interrupted_after_any_step_it_goes_on_with_the_same_bytes(name: str) -> None:
    whole = begun(name)
    states, records, weights = [whole.state()], [], []
    while not whole.finished:
        records.append(whole.step())
        weights.append(whole.weights.tobytes())
        states.append(whole.state())
    assert name == "poisson" or any(one.abandoned or one.dropped for one in records)
    for step, state in enumerate(states):
        again = begun(name, through_json(state))
        assert again.released == step
        assert again.state().same(state)
        for later in range(step, min(step + 2, len(records))):
            assert again.step() == records[later]
            assert again.weights.tobytes() == weights[later]
            assert again.state().same(states[later + 1])


@pytest.mark.slow
def test_another_process_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    ends = {}
    for name in PLANS:
        simulation = begun(name)
        for _ in range(3):
            simulation.step()
        folder = tmp_path / name
        folder.mkdir()
        state = simulation.state()
        (folder / "values.json").write_text(json.dumps(state.values))
        np.savez(folder / "arrays.npz", **state.arrays)  # type: ignore[arg-type]
        ends[name] = end_of(simulation)
    script = "import sys; from tests.simulations.test_virtual_resume import go_on; go_on(sys.argv[1])"
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == ends


def go_on(folder: str) -> None:
    """In the other process."""
    ends = {}
    for name in PLANS:
        values = json.loads((Path(folder) / name / "values.json").read_text())
        with np.load(Path(folder) / name / "arrays.npz") as arrays:
            ends[name] = end_of(begun(name, State(values, dict(arrays))))
    print(json.dumps(ends))


def end_of(simulation: Simulation) -> list[Any]:
    records = []
    while not simulation.finished:
        records.append(repr(simulation.step()))
    return [simulation.weights.tobytes().hex(), records, simulation.statement().rows(1e-7)[-1][1]]


def test_a_state_of_another_task_is_refused() -> None:
    with pytest.raises(BadState, match="another study"):
        begun("banded", through_json(begun("tree").state()))


def test_a_state_of_the_other_kind_is_refused() -> None:
    with pytest.raises(BadState, match="Poisson"):
        begun("tree", begun("poisson").state())
    with pytest.raises(BadState, match="Poisson"):
        begun("poisson", begun("tree").state())


@pytest.mark.parametrize("missing", ["velocity", "pool.places", "pace", "past.steps"])
def test_a_state_with_something_missing_is_refused_in_one_line(missing: str) -> None:
    simulation = begun("tree")
    simulation.step()
    state = simulation.state()
    with pytest.raises(BadState, match=missing) as caught:
        begun("tree", State(state.values, {name: array for name, array in state.arrays.items() if name != missing}))
    assert "\n" not in str(caught.value)


def test_a_seed_that_does_not_give_its_noise_is_refused() -> None:
    from fedrho.privacy.noise import NoiseMismatch

    simulation = begun("tree")
    simulation.step()
    state = simulation.state()
    nodes = [[name, "00" * 32, digest] for name, _, digest in state.values["nodes"]]
    with pytest.raises(NoiseMismatch):
        begun("tree", State({**state.values, "nodes": nodes}, state.arrays))
