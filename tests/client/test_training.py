"""The training process: real children, and examples that misbehave in them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.confinement import Guard
from fedrho.client.examples import ArrayExamples, ExampleStore
from fedrho.client.participant import BadPlan, CannotTrain, TrainingFailed
from fedrho.client.trainer import LocalTrainer
from fedrho.client.training import TrainingLimits, TrainingProcess, environment
from fedrho.client.training_child import HEADER, Frame
from fedrho.models.base import ModelSpec
from fedrho.privacy.vectors import Update
from fedrho.protos.messages import RoundPlan
from tests.client import hostile
from tests.client.fleet import plan
from tests.client.hostile import SECRET, Does
from tests.models.reference import made_up

MIB = 1 << 20
EXAMPLES = ArrayExamples(*made_up(18, seed=1))
WEIGHTS = np.random.default_rng(2).normal(0.0, 0.2, 650).astype(np.float32)
LOCAL = plan(epochs=2, step=3)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def warm(runner: asyncio.Runner) -> Iterator[TrainingProcess]:
    """One for all tests whose limits it has; a child that dies of one of them is replaced. There is a secret around."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        process = TrainingProcess(TrainingLimits(memory_bytes=1500 * MIB, wall_seconds=120.0))
        runner.run(process.warm())
    yield process
    runner.run(process.close())


def trained(runner: asyncio.Runner, process: TrainingProcess, examples: ExampleStore, local: RoundPlan = LOCAL) -> Update:
    return runner.run(process.train(local, WEIGHTS, examples))


def fails(runner: asyncio.Runner, process: TrainingProcess, examples: ExampleStore) -> str:
    """Why; in one line that tells nothing of the examples. And the next training goes well."""
    with pytest.raises(TrainingFailed) as failed:
        trained(runner, process, examples)
    reason = str(failed.value)
    assert reason
    assert "\n" not in reason
    assert SECRET not in reason
    return reason


def alive(pid: int | None) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid or 0, 0)
        return True
    return False


# -- what it gives -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "digits-mlp", "size": 2410},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"optimizer": "sgd", "momentum": 0.9, "local_steps": 7},
    ],
    ids=str,
)
def test_update_is_that_of_training_in_this_process_bit_for_bit(
    runner: asyncio.Runner, warm: TrainingProcess, changes: dict[str, object]
) -> None:
    local = replace(LOCAL, **changes)  # type: ignore[arg-type]
    weights = np.resize(WEIGHTS, local.size)
    expected = LocalTrainer().train(local, weights, EXAMPLES).vector
    for _ in range(2):
        assert runner.run(warm.train(local, weights, EXAMPLES)).vector.tobytes() == expected.tobytes()


def test_child_stays_warm_and_serves_devices_in_turn(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    stores = [ArrayExamples(*made_up(6, seed=seed)) for seed in range(4)]
    trained(runner, warm, EXAMPLES)
    pid = warm.pid

    async def together() -> list[Update]:
        return await asyncio.gather(*(warm.train(LOCAL, WEIGHTS, store) for store in stores))

    updates = runner.run(together())
    assert warm.pid == pid
    here = LocalTrainer()
    for update, store in zip(updates, stores, strict=True):
        assert update.vector.tobytes() == here.train(LOCAL, WEIGHTS, store).vector.tobytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "gpt"}, "unknown model"),
        ({"size": 651}, "has 650 weights here, 651 in the plan"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
    ],
)
def test_plan_that_nobody_could_train_is_refused_before_the_examples_are_there(
    runner: asyncio.Runner, warm: TrainingProcess, changes: dict[str, object], reason: str
) -> None:
    trained(runner, warm, EXAMPLES)
    pid = warm.pid
    with pytest.raises(BadPlan, match=reason):
        trained(runner, warm, Does(hostile.exits), replace(LOCAL, **changes))  # type: ignore[arg-type]
    assert trained(runner, warm, EXAMPLES).vector.any()
    assert warm.pid == pid


def test_model_whose_build_function_cannot_be_sent_is_refused(
    runner: asyncio.Runner, warm: TrainingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec("local", "defined in a function", (64,), 10, lambda: None)
    monkeypatch.setattr("fedrho.client.training.lookup", lambda name: spec)
    with pytest.raises(BadPlan, match="must be one of a module"):
        trained(runner, warm, EXAMPLES)


# -- what it survives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (hostile.raises, "training raised ValueError (hostile.py:"),
        (hostile.runs_in_circles, "training raised RecursionError"),
        (hostile.prints, ""),
    ],
)
def test_examples_that_raise_or_print_cost_no_child_and_tell_nothing(
    runner: asyncio.Runner, warm: TrainingProcess, capfd: pytest.CaptureFixture[str], what: Callable[[], None], reason: str
) -> None:
    trained(runner, warm, EXAMPLES)
    pid = warm.pid
    if reason:
        assert fails(runner, warm, Does(what)).startswith(reason)
    else:
        assert not trained(runner, warm, Does(what)).vector.any()
    assert trained(runner, warm, EXAMPLES).vector.any()
    assert warm.pid == pid
    assert SECRET not in "".join(capfd.readouterr())


def test_examples_that_cannot_be_sent_are_a_failure_of_training(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    trained(runner, warm, EXAMPLES)
    pid = warm.pid
    assert "cannot be sent to the training process: ValueError" in fails(runner, warm, hostile.Unpicklable())
    assert trained(runner, warm, EXAMPLES).vector.any()
    assert warm.pid == pid


def test_training_that_diverges_is_a_failure(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    with pytest.raises(TrainingFailed, match="diverged"):
        trained(runner, warm, EXAMPLES, replace(LOCAL, learning_rate=1e38, epochs=5))


@pytest.mark.parametrize(
    ("what", "guard", "reason"),
    [
        (Does(hostile.connects, ("127.0.0.1", 0)), Guard.AUDITED, "PermissionError"),
        (Does(hostile.starts_a_process), Guard.AUDITED, "PermissionError"),
    ],
)
def test_python_is_refused_network_and_processes(
    runner: asyncio.Runner, warm: TrainingProcess, what: ExampleStore, guard: Guard, reason: str
) -> None:
    assert f"raised {reason}" in fails(runner, warm, what)
    assert guard in warm.held


def test_native_code_reaches_no_server_where_the_system_keeps_it_from_the_network(
    runner: asyncio.Runner, warm: TrainingProcess
) -> None:
    trained(runner, warm, EXAMPLES)
    if Guard.NO_NETWORK not in warm.held:
        pytest.skip("this system lets nobody leave the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "ConnectionError" in fails(runner, warm, Does(hostile.connects_natively, (server.getsockname()[1],)))


@pytest.mark.parametrize(
    "how", [hostile.writes, hostile.writes_natively, hostile.keeps_an_attribute, hostile.logs, hostile.signals_the_client]
)
def test_nothing_is_written_to_the_disk(
    runner: asyncio.Runner, warm: TrainingProcess, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    path = tmp_path / "kept"
    path.write_text("")
    assert "Error" in fails(runner, warm, Does(how, (path,)))
    assert path.read_text() == ""
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_child_that_is_killed_leaves_no_file_and_has_none_open(
    runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = TrainingProcess(TrainingLimits(wall_seconds=120.0))
    trained(runner, process, EXAMPLES)
    pid = process.pid
    assert pid is not None
    opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").glob("*")]
    assert not [path for path in opened if path.startswith((str(tmp_path), "/tmp", "/dev/shm"))]
    os.kill(pid, 9)
    assert trained(runner, process, EXAMPLES).vector.any()
    runner.run(process.close())
    assert list(tmp_path.iterdir()) == []


def test_environment_of_the_child_holds_no_secrets(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    assert not trained(runner, warm, Does(hostile.looks_at_environment, ("AWS_SECRET",))).vector.any()


def test_child_holds_no_library_that_only_its_examples_may_need(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    assert not trained(runner, warm, Does(hostile.needs_what_keras_left_out)).vector.any()


def test_only_what_training_needs_of_the_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    assert "AWS_SECRET_ACCESS_KEY" not in environment()
    assert environment()["TF_NUM_INTRAOP_THREADS"] == "1"


# -- what ends it ------------------------------------------------------------------------------------------------------------


def frame(kind: Frame, data: bytes, length: int | None = None) -> bytes:
    return HEADER.pack(kind.value, len(data) if length is None else length) + data


DEADLY = {
    "exit": (Does(hostile.exits), "ended with exit code 3"),
    "SIGKILL": (Does(hostile.is_killed), "was ended by SIGKILL"),
    "segmentation fault": (Does(hostile.segfaults), "was ended by SIGSEGV"),
    "SystemExit": (Does(hostile.asks_to_exit), "training raised SystemExit"),
    "memory": (Does(hostile.eats), "memory"),
    "giant answer": (Does(hostile.answers, (frame(Frame.UPDATE, b"", 1 << 40),)), "sent 1099511627776 bytes"),
    "short answer": (Does(hostile.answers, (frame(Frame.UPDATE, bytes(4)),)), "sent 4 bytes as an update of 650 weights"),
    "NaN": (Does(hostile.answers, (frame(Frame.UPDATE, np.full(650, np.nan, "<f4").tobytes()),)), "not finite"),
    "nonsense": (Does(hostile.answers, (bytes([77]) + bytes(8),)), "sent 0 bytes as an update"),
    "refusal after the examples": (Does(hostile.answers, (frame(Frame.REFUSED, b"x"),)), "sent 1 bytes as an update"),
}


@pytest.mark.slow
@pytest.mark.parametrize("death", DEADLY)
def test_death_or_lie_of_the_child_is_a_failure_and_the_next_training_goes_well(
    runner: asyncio.Runner, warm: TrainingProcess, death: str
) -> None:
    store, reason = DEADLY[death]
    trained(runner, warm, EXAMPLES)
    pid = warm.pid
    assert reason in fails(runner, warm, store)
    assert trained(runner, warm, EXAMPLES).vector.any()
    assert warm.pid != pid
    assert not alive(pid)


@pytest.mark.slow
def test_shared_memory_is_watched_from_outside(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    assert "held more than 1500 MiB" in fails(runner, warm, Does(hostile.eats_shared_memory))


@pytest.mark.slow
def test_processor_time_is_limited_for_each_training_by_itself(runner: asyncio.Runner) -> None:
    process = TrainingProcess(TrainingLimits(wall_seconds=240.0))
    trained(runner, process, EXAMPLES)  # the first one loads what has to be loaded
    process.limits = replace(process.limits, cpu_seconds=4.0)
    for _ in range(6):
        trained(runner, process, EXAMPLES, replace(LOCAL, epochs=300))
    assert "used more than 4 s of processor time" in fails(runner, process, Does(hostile.computes))
    runner.run(process.close())


@pytest.mark.slow
def test_hang_ends_when_its_time_is_over(runner: asyncio.Runner, warm: TrainingProcess) -> None:
    process = TrainingProcess(TrainingLimits(wall_seconds=30.0))
    trained(runner, process, EXAMPLES)
    process.limits = replace(process.limits, wall_seconds=0.5)
    before = time.monotonic()
    assert fails(runner, process, Does(hostile.sleeps)) == "training took longer than 0.5 s"
    assert time.monotonic() - before < 1.5
    assert process.pid is None


@pytest.mark.slow
@pytest.mark.parametrize("what", [hostile.sleeps, hostile.computes])
def test_cancelling_kills_the_child_within_a_second(
    runner: asyncio.Runner, warm: TrainingProcess, what: Callable[[], None]
) -> None:
    async def cancel() -> tuple[int | None, float]:
        await warm.train(LOCAL, WEIGHTS, EXAMPLES)
        pid, task = warm.pid, asyncio.create_task(warm.train(LOCAL, WEIGHTS, Does(what)))
        waiting = asyncio.create_task(warm.train(LOCAL, WEIGHTS, EXAMPLES))
        await asyncio.sleep(0.5)
        before = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        took = time.monotonic() - before
        assert not alive(pid)
        assert (await waiting).vector.any()
        return pid, took

    _, took = runner.run(cancel())
    assert took < 1.0


def test_child_that_cannot_start_is_no_failure_of_the_examples(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    process = TrainingProcess(TrainingLimits())
    with pytest.raises(CannotTrain, match="the training process ended with exit code 1"):
        trained(runner, process, EXAMPLES)
    assert process.pid is None


def test_child_that_takes_too_long_to_start_is_no_failure_of_the_examples(runner: asyncio.Runner) -> None:
    process = TrainingProcess(TrainingLimits(wall_seconds=0.3))
    with pytest.raises(CannotTrain, match=r"longer than 0\.3 s"):
        trained(runner, process, EXAMPLES)
    assert process.pid is None


@pytest.mark.slow
def test_cancelling_while_the_child_starts_leaves_none(runner: asyncio.Runner) -> None:
    process = TrainingProcess(TrainingLimits())

    async def cancel() -> int | None:
        task = asyncio.create_task(process.train(LOCAL, WEIGHTS, EXAMPLES))
        await asyncio.sleep(0.5)
        pid = process.pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    pid = runner.run(cancel())
    assert pid is not None
    assert not alive(pid)
    assert process.pid is None


@pytest.mark.slow
def test_child_that_nobody_needs_ends(runner: asyncio.Runner) -> None:
    process = TrainingProcess(TrainingLimits(idle_seconds=0.3))

    async def wait() -> int | None:
        await process.train(LOCAL, WEIGHTS, EXAMPLES)
        pid = process.pid
        async with asyncio.timeout(30):
            while alive(pid):
                await asyncio.sleep(0.05)
        return pid

    assert runner.run(wait()) is not None
    assert process.pid is None


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["memory_bytes", "cpu_seconds", "wall_seconds", "idle_seconds"])
def test_limit_that_limits_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TrainingLimits(**{name: value})  # type: ignore[arg-type]
