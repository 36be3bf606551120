"""Bad input gets one line that says what to do and exit code 2; no traceback, nothing half-written."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from fedrho import cli, operate
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import ClippedSum
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.release import Attempt
from fedrho.server.storage.store import open_store
from fedrho.server.tasks import load_task
from tests.commanding import Run, refused, runner

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"


@pytest.fixture
def fedrho(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command in an empty folder, with a home of its own; exit code, standard output, standard error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")

    return runner(monkeypatch, capfd)


def in_a_process(*arguments: object, cwd: Path | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "fedrho", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def edited(folder: Path, before: str, after: str) -> Path:
    text = EXAMPLE.read_text()
    assert before in text
    path = folder / "edited.toml"
    path.write_text(text.replace(before, after, 1))
    return path


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("goal = 10 ", "gaol = 10 ", "edited.toml: round.gaol: unknown key; did you mean 'goal'?"),
        ("steps = 30", 'steps = "many"', "edited.toml: steps: input should be a valid integer"),
        ("rho = 10.0", "rho = 10.0\nnoise_multiplier = 0.1", "above the budget privacy.rho = 10; allowed: 2.646 or more"),
        ("goal = 10 ", "goal = 100 ", "edited.toml: round.goal: 100 is above population = 40; allowed: 1 to 40"),
        ('"digits-logistic"', '"gpt"', "edited.toml: model: unknown model 'gpt'; known models: adult-logistic, adult-mlp"),
    ],
)
def test_serve_names_file_key_and_what_is_allowed(before: str, after: str, expected: str, fedrho: Run, tmp_path: Path) -> None:
    refused(fedrho("serve", edited(tmp_path, before, after)), expected)
    assert list((tmp_path / "work").iterdir()) == []


def test_serve_of_a_missing_file(fedrho: Run) -> None:
    refused(fedrho("serve", "nothing.toml"), "nothing.toml: no such file; examples/digits.toml")


def test_serve_on_a_busy_port_writes_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(
            in_a_process("serve", EXAMPLE, "--port", port, cwd=work),
            f"cannot listen on 127.0.0.1:{port}",
            "--port 0 takes a free one",
        )
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::"])
def test_serve_does_not_expose_an_unencrypted_port_by_accident(host: str, fedrho: Run) -> None:
    refused(fedrho("serve", EXAMPLE, "--host", host), "--insecure")


def test_serve_in_a_folder_that_another_server_holds(fedrho: Run, tmp_path: Path) -> None:
    with open_store(tmp_path / "held"):
        refused(fedrho("serve", EXAMPLE, "--store", tmp_path / "held", "--port", 0), "another server is using this folder")


def test_serve_in_a_place_that_is_no_folder(fedrho: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(fedrho("serve", EXAMPLE, "--store", tmp_path / "file", "--port", 0), "not a usable store")
    assert (tmp_path / "file").read_text() == "mine"


def test_join_without_a_server_says_so_in_time(fedrho: Run, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        refused(fedrho("join", address, "--data", "digits", "--wait", 0.5), f"no server answered at {address}", "fedrho serve")
    assert list((tmp_path / "work").iterdir()) == []


def test_join_says_that_it_waits_for_a_server_and_how_long_unless_it_is_to_be_quiet(fedrho: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        code, out, err = fedrho("join", address, "--data", "digits", "--wait", 2)
        refused(fedrho("join", address, "--data", "digits", "--wait", 2, "--quiet"), "no server answered")
    waits, failed = err.splitlines()
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"no server at {address} yet; trying for another \d+ s", waits)
    assert failed.startswith(f"fedrho: no server answered at {address} within 2 s")


@pytest.mark.parametrize("address", ["localhost", "localhost:", "host:port", "http://x:70", "a b:70", "127.0.0.1:99999", ""])
def test_join_needs_host_and_port(address: str, fedrho: Run) -> None:
    refused(fedrho("join", address, "--data", "digits"), "is not HOST:PORT")


@pytest.mark.parametrize("devices", ["40", "5-2", "x", "-1", "0-40", "1-2-3"])
def test_join_needs_devices_that_exist(devices: str, fedrho: Run) -> None:
    refused(fedrho("join", "127.0.0.1:1", "--data", "digits", f"--devices={devices}"), "allowed: FIRST-LAST")


@pytest.mark.parametrize("more", [(), ("--forever",)])
def test_join_looks_at_the_folder_of_histories_before_it_waits(more: tuple[str, ...], fedrho: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    refused(
        fedrho("join", "127.0.0.1:1", "--data", "digits", "--history", tmp_path / "taken", *more),
        f"--history {tmp_path / 'taken'}: is a file; name a folder",
    )


def test_join_needs_data_that_exist(fedrho: Run) -> None:
    refused(fedrho("join", "127.0.0.1:1", "--data", "mine.npz"), "mine.npz: no such file")


@pytest.mark.parametrize("data", ["a:b:c", "[bold]mine[/].csv", "x" * 5000 + ".csv", "", "*.csv", "\N{PILE OF POO}.npz"])
def test_join_shows_what_was_given_as_data_letter_by_letter(data: str, fedrho: Run) -> None:
    refused(fedrho("join", "127.0.0.1:1", "--data", data), f"--data {data}: ", "allowed: digits")


def test_status_of_nothing(fedrho: Run, tmp_path: Path) -> None:
    refused(fedrho("status"), "no run here", "fedrho serve TASK.toml")
    refused(fedrho("status", tmp_path / "nowhere"), "no run here")


def test_status_of_something_else(fedrho: Run, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "fedrho.sqlite").write_bytes(b"not a database at all" * 100)
    refused(fedrho("status", tmp_path / "s"), "not a usable store")


@pytest.mark.parametrize("rho", ["-1", "0", "nan", "inf"])
def test_demo_with_an_impossible_budget(rho: str, fedrho: Run, tmp_path: Path) -> None:
    refused(fedrho("demo", "--rho", rho, "--store", tmp_path / "d"), "privacy.rho")
    assert not (tmp_path / "d").exists()


def test_demo_in_the_folder_of_another_demo(fedrho: Run, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "task.toml").write_text(EXAMPLE.read_text().replace("steps = 30", "steps = 31"))
    refused(fedrho("demo", "--store", tmp_path / "d"), "holds a demo with other options")


def test_demo_in_a_place_that_is_no_folder(fedrho: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(fedrho("demo", "--store", tmp_path / "file"), "cannot be used as a folder")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("demo --algorithm sgd", ("--algorithm: ", "'dp-ftrl', 'dp-fedavg'")),
        ("demo --devices 2", ("--devices: ", "allowed: 4 to 400")),
        ("demo --devices 401", ("--devices: ", "allowed: 4 to 400")),
        ("demo --alpha 2000", ("--alpha: ", "allowed: 0.01 to 1000")),
        ("join 127.0.0.1:1 --data digits --wait 0", ("--wait: ", "allowed: 0.1 or more")),
        ("demo --steps abc", ("--steps: ", "valid integer", "allowed: 1 to 1000")),
        ("account spend --noise-multiplier 1 --rounds abc", ("--rounds: ", "valid integer; allowed: a whole number")),
        ("account spend --noise-multiplier 1 --rounds 2.5", ("--rounds: ", "valid integer")),
        ("account spend --noise-multiplier much", ("--noise-multiplier: ", "valid number; allowed: a number")),
        ("account spend --rounds 5", ("--noise-multiplier: missing", "fedrho account spend --help")),
        ("account spend --rounds", ("--rounds: requires an argument",)),
        ("account spend --json=3", ("--json: does not take a value",)),
        ("serve", ("TASK.toml...: missing", "fedrho serve --help")),
        ("join 127.0.0.1:1", ("--data: missing",)),
        ("join --qq", ("--qq: no such option", "fedrho join --help")),
        ("demo --step 3", ("--step: no such option", "did you mean", "--steps")),
        ("nonsense", ("no such command 'nonsense'; allowed: demo, serve, join, status",)),
        ("account nonsense", ("no such command 'nonsense'; allowed: spend, calibrate",)),
        ("status one two", ("unexpected extra argument", "two")),
    ],
)
def test_wrong_options_are_refused_in_one_line(line: str, expected: tuple[str, ...], fedrho: Run) -> None:
    refused(fedrho(*line.split()), *expected)


@pytest.mark.parametrize("arguments", [[], ["account"]])
def test_no_arguments_are_answered_with_help(arguments: list[str], fedrho: Run) -> None:
    code, out, err = fedrho(*arguments)
    assert (code, err.strip()) == (2, "")
    assert "Usage: fedrho" in out


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_someone_who_stops_a_command_ends_it_with_130(
    error: type[BaseException], fedrho: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(folder: Path) -> None:
        raise error

    monkeypatch.setattr(operate, "status_values", stopped)
    assert fedrho("status") == (130, "", "fedrho: stopped\n")


def test_too_little_memory_is_one_line(fedrho: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(folder: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(operate, "status_values", large)
    code, out, err = fedrho("status")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "not enough memory" in err


@pytest.mark.slow
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("line", ["account convert --rho 1", "account convert --rho 1 --json", "--version", "demo --help"])
def test_a_full_disk_behind_standard_output_is_one_line(line: str, buffering: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fedrho", *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": buffering},
        )
    assert done.returncode == 1
    assert done.stderr == "fedrho: standard output cannot be written: No space left on device\n"


@pytest.mark.slow
def test_a_reader_that_has_left_is_told_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fedrho", "account", "convert", "--rho", "1", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("name", [*cli.MENDABLE, *cli.FAILED])
def test_every_error_that_is_known_by_name_is_one(name: str) -> None:
    module, kind = f"fedrho.{name}".rsplit(".", 1)
    found = getattr(importlib.import_module(module), kind)
    assert issubclass(found, Exception)
    assert found.__module__ == module


@pytest.mark.slow
def test_completion_is_still_there() -> None:
    around = os.environ | {"_FEDRHO_COMPLETE": "complete_bash", "COMP_WORDS": "fedrho acc", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'fedrho'; from fedrho.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=around)
    assert done.stdout.split() == ["account"]


def test_status_as_json(fedrho: Run, tmp_path: Path) -> None:
    task = load_task(EXAMPLE)
    with open_store(tmp_path / "s") as store:
        around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), [])
        engine = open_run(task, around, lambda: np.zeros(650, dtype=np.float32), 0.0)
        total = ClippedSum(np.zeros(650, dtype=np.int64), task.mechanism.grid)
        engine.install(engine.through_gate(Attempt(1, total, (), 0.0), 0.0), 0.0)
    code, out, err = fedrho("status", tmp_path / "s", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    (run,) = values["runs"]
    assert (run["algorithm"], run["step"], run["steps"], run["state"]) == ("dp-ftrl", 1, 30, "active")
    assert (values["running"], values["pid"], values["operator"]) == (False, None, None)
    assert run["rho"] == task.mechanism.cost(1, task.participation)
    assert (run["unit"], run["delta"], run["rho_budget"]) == ("device", 1e-5, 10.0)
    code, out, _ = fedrho("status", tmp_path / "s")
    assert code == 0
    assert "step 1 of 30, active, no server is running" in out


@pytest.mark.parametrize(("asked", "kept"), [("DEBUG", "NONE"), ("info", "NONE"), ("ERROR", "ERROR"), ("none", "none")])
def test_grpc_traces_nothing_whatever_the_environment_says(asked: str, kept: str) -> None:
    """Its traces name the address of every device."""
    program = """
import asyncio, os
from fedrho import cli
import grpc
async def talk():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
    await server.stop(None)
asyncio.run(talk())
print(os.environ.get("GRPC_TRACE"), os.environ["GRPC_VERBOSITY"])
"""
    environment = {**os.environ, "GRPC_TRACE": "all", "GRPC_VERBOSITY": asked}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert done.stdout.split() == ["None", kept]
    assert "127.0.0.1" not in done.stderr


def test_version_and_help_in_a_process_of_its_own() -> None:
    code, out, err = in_a_process("--version")
    assert (code, err) == (0, "")
    assert out.startswith("fedrho 0.")
    for command in ("demo", "serve", "join", "status"):
        code, out, err = in_a_process(command, "--help")
        assert (code, err) == (0, "")
        assert "Example: fedrho" in out
