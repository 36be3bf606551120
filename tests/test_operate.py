"""The operator's commands against a real server and against its store: what they do, and one clear line where they cannot."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from fedrho.key_making import make_keys
from fedrho.keys import operator_server_tls
from fedrho.server.listen import ServerTls
from fedrho.server.operations.operator_port import OPERATOR_FILE
from fedrho.server.release import RunState
from fedrho.server.storage.store import open_store
from fedrho.server.tasks import Task
from tests.commanding import Run, refused, runner
from tests.server.operating import Site, site, small_task, until, visit


class Running:
    """A server on a thread of its own, with a store on the disk."""

    def __init__(self, folder: Path, *tasks: Task, tls: ServerTls | None = None) -> None:
        self.folder = folder
        self._tasks = tasks
        self._tls = tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.place: Site

    async def _serve(self) -> None:
        with open_store(self.folder) as store:
            async with site(self.folder, *self._tasks, store=store, tls=self._tls) as self.place:
                self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
                self._ready.set()
                await self._over.wait()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *details: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def release(self, steps: int) -> None:
        """Devices come by until the first run has released so many steps, and nothing is on its way."""

        async def visits() -> None:
            while self.place.population.views()[0].step < steps:
                homes = (self.folder / f"device-{number}.sqlite" for number in range(3))
                await asyncio.gather(*(visit(self.place.device_address, home) for home in homes))

            await until(lambda: not any(one.coordinator.releasing for one in self.place.population.members.values()))

        asyncio.run_coroutine_threadsafe(visits(), self._loop).result(20)

    def pause(self, number: int) -> None:
        async def paused() -> None:
            self.place.population.pause(self.place.population.views()[number].run)

        asyncio.run_coroutine_threadsafe(paused(), self._loop).result(20)

    def state(self, number: int = 0) -> RunState:
        return self.place.population.views()[number].state


@pytest.fixture
def fedrho(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command in an empty folder; exit code, standard output, standard error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    return runner(monkeypatch, capfd)


def done(result: tuple[int, str, str], *expected: str) -> str:
    code, out, err = result
    assert (code, err) == (0, ""), result
    for text in expected:
        assert text in out
    return out


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """One run of three steps."""
    with Running(tmp_path / "s", small_task()) as running:
        yield running


# -- pause, resume, cancel -------------------------------------------------------------------------------------------------------


def test_pause_and_resume(server: Running, fedrho: Run) -> None:
    done(fedrho("pause", server.folder), "small, step 0 of 3: paused")
    assert server.state() is RunState.PAUSED
    refused(fedrho("pause", server.folder), "cannot pause 'small': the run is paused")
    done(fedrho("resume", server.folder), "small, step 0 of 3: resumed")
    assert server.state() is RunState.ACTIVE
    refused(fedrho("resume", server.folder), "cannot resume 'small': the run is active")


def test_cancel_asks_and_says_what_stays_spent(server: Running, fedrho: Run) -> None:
    server.release(1)
    refused(fedrho("cancel", server.folder), "ends 'small' for good", "stays spent", "--yes")
    assert server.state() is RunState.ACTIVE
    done(fedrho("cancel", server.folder, "--yes"), "cancelled; what was released stays, and rho", "of 2 stays spent")
    assert server.state() is RunState.CANCELLED
    for command in (("cancel", "--yes"), ("pause",), ("resume",)):
        refused(fedrho(command[0], server.folder, *command[1:]), f"cannot {command[0]} 'small': the run is cancelled")


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "state", "code"), [("n", RunState.ACTIVE, 130), ("y", RunState.CANCELLED, 0)])
def test_cancel_on_a_terminal_asks(answer: str, state: RunState, code: int, server: Running) -> None:
    primary, secondary = os.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "fedrho", "cancel", str(server.folder)],
        stdin=secondary,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.write(primary, f"{answer}\n".encode())
    out, _ = command.communicate(timeout=60)
    os.close(primary)
    os.close(secondary)
    assert command.returncode == code, out
    assert b"will never go on" in out
    assert server.state() is state


def test_a_run_that_has_finished_cannot_be_moved(tmp_path: Path, fedrho: Run) -> None:
    with Running(tmp_path / "s", small_task(steps=1), small_task("other", steps=1)) as server:
        server.release(1)
        for command in ("pause", "resume", "cancel"):
            extra = ["--yes"] if command == "cancel" else []
            refused(fedrho(command, server.folder, "--task", "small", *extra), f"cannot {command} 'small': the run is finished")


def test_of_several_tasks_one_must_be_named(tmp_path: Path, fedrho: Run) -> None:
    with Running(tmp_path / "s", small_task("one"), small_task("two")) as server:
        for command in ("pause", "resume", "cancel"):
            refused(fedrho(command, server.folder), "--task: which one? There are: one, two")
            refused(fedrho(command, server.folder, "--task", "three"), "--task 'three': no such task here; there are: one, two")
        done(fedrho("pause", server.folder, "--task", "two"), "two, step 0 of 3: paused")
        assert (server.state(0), server.state(1)) == (RunState.ACTIVE, RunState.PAUSED)


@pytest.mark.parametrize("command", ["pause", "resume", "cancel", "status"])
def test_a_place_without_a_run(command: str, fedrho: Run, tmp_path: Path) -> None:
    refused(fedrho(command), "no run here")
    refused(fedrho(command, tmp_path / "nowhere"), "no run here")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_store_whose_server_is_gone(command: str, fedrho: Run, tmp_path: Path) -> None:
    with Running(tmp_path / "s", small_task()) as server:
        access = (server.folder / OPERATOR_FILE).read_text()
    refused(fedrho(command, tmp_path / "s"), "no server is running here")
    (tmp_path / "s" / OPERATOR_FILE).write_text(access)  # as a server leaves it that was killed
    refused(fedrho(command, tmp_path / "s"), "no operator port answers at 127.0.0.1:")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_server_that_is_just_stopping(command: str, server: Running, fedrho: Run) -> None:
    server.place.stop.set()
    refused(fedrho(command, server.folder), "the server is stopping")


# -- who may -------------------------------------------------------------------------------------------------------------------


def token_file(server: Running, folder: Path, token: str | None = None, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text((server.place.access.token if token is None else token) + "\n")
    path.chmod(mode)
    return path


def test_from_elsewhere_with_address_and_token(server: Running, fedrho: Run, tmp_path: Path) -> None:
    address = server.place.access.address
    done(fedrho("pause", "--operator", address, "--token-file", token_file(server, tmp_path)), "paused")
    done(fedrho("resume", "--operator", address, "--token-file", server.folder / OPERATOR_FILE), "resumed")
    out = done(fedrho("status", "--operator", address, "--token-file", token_file(server, tmp_path), "--json"))
    values = json.loads(out)
    assert (values["running"], values["operator"], values["store"]) == (True, address, None)


def test_what_does_not_get_in(server: Running, fedrho: Run, tmp_path: Path) -> None:
    address = server.place.access.address
    for command in ("status", "pause"):

        def knock(*arguments: object, command: str = command) -> tuple[int, str, str]:
            return fedrho(command, *arguments)

        refused(knock("--operator", address), "--operator: needs --token-file")
        refused(knock("--token-file", token_file(server, tmp_path)), "--token-file: goes with --operator")
        refused(knock(server.folder, "--operator", address, "--token-file", tmp_path / "token"), "contradicts STORE")
        refused(knock("--operator", address, "--token-file", tmp_path / "none"), "cannot be read (No such file")
        refused(knock("--operator", "nonsense", "--token-file", tmp_path / "token"), "not HOST:PORT")
        wrong = token_file(server, tmp_path, "0" * 64)
        refused(knock("--operator", address, "--token-file", wrong), "operator token missing or wrong", "each start")
        for text in ("", "zz", "0" * 63, "0" * 65, "\x00", "A" * 100_000):
            refused(knock("--operator", address, "--token-file", token_file(server, tmp_path, text)), "not a token")
        open_to_all = token_file(server, tmp_path, mode=0o644)
        refused(knock("--operator", address, "--token-file", open_to_all), "others may read it")
        token_file(server, tmp_path)
        refused(knock("--operator", server.place.device_address, "--token-file", tmp_path / "token"), "not an operator port")
    assert server.state() is RunState.ACTIVE


def test_an_address_where_nobody_or_nothing_known_answers(server: Running, fedrho: Run, tmp_path: Path) -> None:
    token = token_file(server, tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(fedrho("status", "--operator", address, "--token-file", token), f"no operator port answers at {address}")


@pytest.mark.slow
def test_with_certificates_both_the_certificate_and_the_token_are_needed(fedrho: Run, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    make_keys(tmp_path / "others")
    with Running(tmp_path / "s", small_task(), tls=operator_server_tls(tmp_path / "keys")) as server:
        refused(fedrho("pause", server.folder), "is encrypted; add --tls FOLDER")
        refused(apart("pause", server.folder, "--tls", tmp_path / "others"), "no operator port answers", "same certificates")
        wrong = token_file(server, tmp_path, "0" * 64)
        reached = ("--operator", server.place.access.address, "--tls", tmp_path / "keys", "--token-file")
        refused(fedrho("pause", *reached, wrong), "operator token missing or wrong")
        assert server.state() is RunState.ACTIVE
        done(fedrho("pause", server.folder, "--tls", tmp_path / "keys"), "paused")
        done(fedrho("resume", *reached, token_file(server, tmp_path)), "resumed")


# -- status ----------------------------------------------------------------------------------------------------------------------


def test_status_of_a_server_and_of_its_store(tmp_path: Path, fedrho: Run) -> None:
    with Running(tmp_path / "s", small_task("one"), small_task("two")) as server:
        done(fedrho("pause", server.folder, "--task", "two"))
        server.release(1)
        out = done(
            fedrho("status", server.folder), "one (dp-fedavg): step ", "two (dp-fedavg): step 0 of 3, paused", "all together: rho"
        )
        assert "unit: one device, neighbours: zero-out" in out
        live = json.loads(done(fedrho("status", server.folder, "--json")))
        assert live["running"]
        assert live["operator"] == server.place.access.address
        assert live["runs"][1]["seats"] == 4
    stored = json.loads(done(fedrho("status", tmp_path / "s", "--json")))
    assert not stored["running"]
    assert (stored["operator"], stored["address"], stored["pid"]) == (None, None, None)
    assert stored["combined"]["rho"] == sum(run["rho"] for run in stored["runs"])
    known_live = ("attempt", "seats", "filled", "drop_out")
    for before, after in zip(live["runs"], stored["runs"], strict=True):
        assert [after[name] for name in known_live] == [None] * 4
        if before["step"] == after["step"]:
            assert {**before, **dict.fromkeys(known_live), "committed_at": after["committed_at"]} == after
    done(fedrho("status", tmp_path / "s"), "two (dp-fedavg): step 0 of 3, paused, no server is running")


def test_status_falls_back_to_the_store_of_a_server_that_was_killed(tmp_path: Path, fedrho: Run) -> None:
    with Running(tmp_path / "s", small_task()) as server:
        access = (server.folder / OPERATOR_FILE).read_text()
    (tmp_path / "s" / OPERATOR_FILE).write_text(access)
    done(fedrho("status", tmp_path / "s"), "step 0 of 3, active, no server is running")


@pytest.mark.slow
def test_status_watch_tells_every_change_until_the_server_goes(server: Running, fedrho: Run) -> None:
    with in_a_process("status", str(server.folder), "--watch", "--json") as watcher:
        assert watcher.stdout is not None
        assert json.loads(watcher.stdout.readline())["runs"][0]["state"] == "active"
        done(fedrho("pause", server.folder))
        assert json.loads(watcher.stdout.readline())["runs"][0]["state"] == "paused"
        done(fedrho("cancel", server.folder, "--yes"))
        assert json.loads(watcher.stdout.readline())["runs"][0]["state"] == "cancelled"
        server._loop.call_soon_threadsafe(server.place.stop.set)
        rest, err = watcher.communicate(timeout=20)
        assert (watcher.returncode, rest, err.strip()) == (0, "", "the server has stopped")


def apart(*arguments: object) -> tuple[int, str, str]:
    """In a process of its own, away from what gRPC says at the server's end."""
    command = [sys.executable, "-m", "fedrho", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


@contextmanager
def in_a_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fedrho", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def test_status_watch_needs_a_server(tmp_path: Path, fedrho: Run) -> None:
    with Running(tmp_path / "s", small_task()):
        pass
    refused(fedrho("status", tmp_path / "s", "--watch"), "no server is running here")


# -- export ----------------------------------------------------------------------------------------------------------------------


def weights_of(server: Running) -> tuple[int, Any]:
    step, weights, _ = server.place.population.model(server.place.population.views()[0].run)
    return step, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose run has released two steps and is paused."""
    folder = tmp_path_factory.mktemp("trained")
    with Running(folder / "s", small_task(), small_task("young", steps=9)) as running:
        running.pause(1)
        running.release(2)
        if running.state() is RunState.ACTIVE:
            running.pause(0)
        yield running


def test_exports_are_the_released_weights_with_their_statement(trained: Running, fedrho: Run, tmp_path: Path) -> None:
    step, weights = weights_of(trained)
    for suffix in (".keras", ".safetensors", ".npz"):
        out = tmp_path / f"model{suffix}"
        done(fedrho("export", trained.folder, "--task", "small", "--out", out), f"step {step} of 3", "unit: one device")
        said, arrays = READERS[suffix](out)
        np.testing.assert_array_equal(np.concatenate([array.ravel() for array in arrays]), weights)
        assert (said["step"], said["task"], said["unit"], said["neighbours"]) == (step, "small", "device", "zero-out")
        assert said["link"] == (bytes([step]) * 32).hex()
        assert len(said["assumptions"]) > 5
    assert sorted(path.name for path in tmp_path.glob("*model*")) == ["model.keras", "model.npz", "model.safetensors"]


def read_keras(path: Path) -> tuple[dict[str, Any], list[Any]]:
    from fedrho.models.backend import keras

    with zipfile.ZipFile(path) as archive:
        said = json.loads(archive.read("privacy_statement.json"))
    model = keras.saving.load_model(path)
    assert model.predict(np.zeros((1, 64), np.float32), verbose=0).shape == (1, 10)
    return said, [variable.numpy() for variable in model.trainable_variables]


def read_safetensors(path: Path) -> tuple[dict[str, Any], list[Any]]:
    with safe_open(path, "numpy") as file:
        assert sorted(file.keys()) == ["logits/bias", "logits/kernel"]
        return json.loads(file.metadata()["privacy_statement"]), [
            file.get_tensor(f"logits/{name}") for name in ("kernel", "bias")
        ]


def read_npz(path: Path) -> tuple[dict[str, Any], list[Any]]:
    with np.load(path) as file:
        return json.loads(str(file["privacy_statement"])), [file[f"logits/{name}"] for name in ("kernel", "bias")]


READERS = {".keras": read_keras, ".safetensors": read_safetensors, ".npz": read_npz}


def test_a_step_must_have_been_released(trained: Running, fedrho: Run, tmp_path: Path) -> None:
    out = tmp_path / "model.npz"
    refused(fedrho("export", trained.folder, "--task", "young", "--out", out), "no step has been released yet")
    assert not out.exists()


def test_export_without_a_server_is_the_same_but_for_the_real_link(fedrho: Run, tmp_path: Path) -> None:
    with Running(tmp_path / "s", small_task(), small_task("young")) as server:
        server.pause(1)
        server.release(3)
        done(fedrho("export", server.folder, "--task", "small", "--out", tmp_path / "a.npz"))
    done(fedrho("export", server.folder, "--task", "small", "--out", tmp_path / "b.npz"))
    (first, one), (second, other) = read_npz(tmp_path / "a.npz"), read_npz(tmp_path / "b.npz")
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(before, after)
    assert len(bytes.fromhex(second["link"])) == 32
    assert {**first, "link": second["link"]} == second
    refused(
        fedrho("export", server.folder, "--task", "young", "--out", tmp_path / "c.npz"), "no step of 'young' has been released"
    )


def test_an_export_never_replaces_or_half_writes_a_file(trained: Running, fedrho: Run, tmp_path: Path) -> None:
    out, export = tmp_path / "model.npz", ("export", trained.folder, "--task", "small", "--out")
    out.write_text("mine")
    refused(fedrho(*export, out), "is there already; choose another name, or add --force")
    assert out.read_text() == "mine"
    done(fedrho(*export, out, "--force"))
    assert read_npz(out)[0]["task"] == "small"
    refused(fedrho(*export, tmp_path / "model.pt"), "allowed: a name that ends in .keras, .safetensors, .npz")
    refused(fedrho(*export, tmp_path / "none" / "model.npz"), "there is no folder")
    (tmp_path / "folder.npz").mkdir()
    refused(fedrho(*export, tmp_path / "folder.npz", "--force"), "is a folder")
    refused(fedrho(*export, "/proc/model.npz"), "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npz", "model.npz", "work"]


def test_a_run_is_cancelled_without_a_server_so_that_another_can_begin(tmp_path: Path, fedrho: Run) -> None:
    with Running(tmp_path / "s", small_task("one"), small_task("two")) as server:
        server.release(1)
    (server.folder / OPERATOR_FILE).write_text("{}")  # as a server leaves it that was killed
    refused(fedrho("cancel", server.folder, "--task", "one"), "ends 'one' for good", "--yes")
    done(fedrho("cancel", server.folder, "--task", "one", "--yes"), "one, step ", " of 3: cancelled; what was released stays")
    assert [view["state"] for view in json.loads(done(fedrho("status", server.folder, "--json")))["runs"]] == [
        "cancelled",
        "active",
    ]
    refused(fedrho("cancel", server.folder, "--task", "one", "--yes"), "cannot cancel 'one': the run is cancelled")


def test_the_status_of_a_database_that_was_put_back_is_refused(tmp_path: Path, fedrho: Run) -> None:
    """What it says was spent is less than what was."""
    with Running(tmp_path / "s", small_task()) as server:
        server.release(1)
        before = server.place.population.views()[0].step  # 1, or what one more visit came to
    shutil.copy(server.folder / "fedrho.sqlite", tmp_path / "older")
    with Running(tmp_path / "s", small_task()) as server:
        server.release(before + 1)
        after = server.place.population.views()[0].step
    done(fedrho("status", server.folder), f"step {after} of 3")
    for log in server.folder.glob("fedrho.sqlite-*"):  # which would bring the later releases back
        log.unlink()
    shutil.copy(tmp_path / "older", server.folder / "fedrho.sqlite")
    refused(fedrho("status", server.folder), f"older than what was published (step {after}")
