"""The demo: one real server, forty devices in separate processes, a trained model, and what may be said about their privacy."""

from __future__ import annotations

import importlib.resources
import json
import shlex
import signal
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fedrho import processes
from fedrho.console import out, print_statement, working
from fedrho.privacy.claims import LITTLE, verdict
from fedrho.privacy.statement import PrivacyStatement, round_up
from fedrho.privacy.zcdp import Rho
from fedrho.progress import StepProgress
from fedrho.server.app import read_address
from fedrho.server.ledger import Charge, statement
from fedrho.server.release import StoreConflict
from fedrho.server.storage.store import RunStatus, latest_status, read_blob
from fedrho.server.tasks import Task, parse_task
from fedrho.simulations.population import FederatedData, digits

POLL_SECONDS = 0.1
START_SECONDS = 120.0
STALLED_SECONDS = 300.0
MOST_RESTARTS = 5


class DemoFailed(RuntimeError):
    """The run could not be brought to its end; the text says why and what to do."""


class DemoInterrupted(Exception):
    """Someone stopped the demo; its folder can be continued."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped; continue with the same command and --store {shlex.quote(str(folder))}")


@dataclass(frozen=True)
class DemoOptions:
    """What a user may choose; everything else stands in the task file."""

    algorithm: str
    steps: int
    devices: int
    processes: int
    alpha: float
    seed: int
    rho: float | None
    store: Path | None


@dataclass(frozen=True)
class DemoResult:
    """How a demo ended. `accuracy` exists in simulations only: it was measured without noise, on digits of no device."""

    task: Task
    status: RunStatus
    statement: PrivacyStatement
    accuracy: float
    folder: Path
    seconds: float

    def as_json(self) -> dict[str, object]:
        file = self.task.file
        return {
            "algorithm": file.algorithm,
            "model": file.model,
            "steps": self.status.step,
            "devices": file.population,
            "goal": file.round.goal,
            "accuracy": self.accuracy,
            "simulation_only": ["accuracy"],
            "rho": self.statement.rho,
            "epsilon": self.statement.epsilon(file.privacy.delta),
            "delta": file.privacy.delta,
            "unit": self.statement.unit.value,
            "neighbours": self.statement.neighbours.value,
            "assumptions": list(self.statement.assumptions),
            "clip_norm": self.task.mechanism.grid.clip_norm,
            "noise_multiplier": self.task.mechanism.noise_multiplier,
            "store": str(self.folder),
            "seconds": round(self.seconds, 1),
        }


def demo_task(options: DemoOptions) -> str:
    """The demo's task file, with the user's choices in it."""
    text = importlib.resources.files("fedrho.simulations").joinpath("digits.toml").read_text(encoding="utf-8")
    values: dict[str, Any] = tomllib.loads(text)
    share = options.devices / values["population"]
    values |= {"algorithm": options.algorithm, "steps": options.steps, "population": options.devices}
    values["round"]["goal"] = max(1, int(values["round"]["goal"] * share))
    values["round"]["min_reports"] = max(1, values["round"]["goal"] // 2)
    values["participation"]["max_times"] = max(1, -(-options.steps * values["participation"]["max_times"] // 30))
    if options.rho is not None:
        values["privacy"]["rho"] = options.rho
    return f"# Digits among {options.devices} devices, alpha {options.alpha}, seed {options.seed}.\n{_toml(values)}\n"


def run_demo(options: DemoOptions) -> DemoResult:
    """Runs, or continues, the demo in its folder; raises DemoFailed, TaskFileError, StoreConflict."""
    began = time.monotonic()
    text = demo_task(options)
    task = parse_task(text, "demo")
    folder = _folder(options, text)
    try:
        with _told_to_stop() as told:
            status, accuracy = _run(Demo(task, options, folder, digits(options.devices, options.alpha, options.seed), told))
    except KeyboardInterrupt:
        raise DemoInterrupted(folder) from None
    spent = statement(task, Charge(status.step, Rho(status.rho)))
    return DemoResult(task, status, spent, accuracy, folder, time.monotonic() - began)


def _run(demo: Demo) -> tuple[RunStatus, float]:
    with StepProgress(demo.options.steps, "starting server and devices") as progress, demo.children():
        status = demo.watch(progress)
    with working("measuring the accuracy"):
        return status, demo.accuracy(status)


@dataclass
class Demo:
    """The processes of one demo, and what their store says."""

    task: Task
    options: DemoOptions
    folder: Path
    data: FederatedData
    told: threading.Event
    _server: Child | None = None
    _clients: list[Child] = field(default_factory=list)
    _restarts: int = 0
    _evaluator: Evaluator = field(init=False)

    def __post_init__(self) -> None:
        self._evaluator = Evaluator(self.task.file.model, self.data)

    @property
    def store(self) -> Path:
        return self.folder / "server"

    @contextmanager
    def children(self) -> Iterator[None]:
        """Server and clients run while the block does, and no longer."""
        try:
            status = latest_status(self.store)
            if status is None or status.step < self.task.file.steps:
                address = self._start_server()
                self._start_clients(address)
            yield
        finally:
            processes.stop([child.process for child in (self._server, *self._clients) if child])

    def watch(self, progress: StepProgress) -> RunStatus:
        """Shows progress until the last step is released, and returns how the run stands then."""
        seen, changed = -1, time.monotonic()
        while True:
            if self.told.is_set():
                raise KeyboardInterrupt
            status = latest_status(self.store)
            if status is not None and status.step != seen:
                seen, changed = status.step, time.monotonic()
                progress.show(status.step, self._figures(status))
            if status is not None and status.step >= self.task.file.steps:
                return status
            self._mend(max(seen, 0), progress.note)
            if time.monotonic() - changed > STALLED_SECONDS:
                raise DemoFailed(f"no step for {STALLED_SECONDS:g} s; see the logs in {self.folder}")
            time.sleep(POLL_SECONDS)

    def accuracy(self, status: RunStatus) -> float:
        return self._evaluator.accuracy(read_blob(self.store, status.weights_sha256))

    def _figures(self, status: RunStatus) -> str:
        figures = f"rho {round_up(status.rho, 3)} of {self.task.file.privacy.rho:g}"
        if self._evaluator.ready:
            try:
                return f"{figures}, accuracy {self.accuracy(status):.3f} (simulation)"
            except StoreConflict:  # a newer release has replaced these weights meanwhile
                pass
        return figures

    def _start_server(self) -> str:
        """Returns where it listens; a restart goes to the same port."""
        self.store.mkdir(parents=True, exist_ok=True)
        arguments = ["serve", str(self.folder / "task.toml"), "--store", str(self.store), "--port"]
        self._server = Child([*arguments, "0"], self.folder / "server.log")
        address = self._address(self._server)
        self._server.arguments = [*arguments, address.rpartition(":")[2]]
        return address

    def _start_clients(self, address: str) -> None:
        count, devices = self.options.processes, self.options.devices
        edges = [devices * part // count for part in range(count + 1)]
        for part in range(count):
            arguments = ["join", address, "--data", "digits", "--devices", f"{edges[part]}-{edges[part + 1] - 1}"]
            arguments += ["--of", str(devices), "--alpha", str(self.options.alpha), "--seed", str(self.options.seed)]
            arguments += ["--history", str(self.folder / "devices"), "--wait", str(START_SECONDS)]
            self._clients.append(Child(arguments, self.folder / f"client-{part}.log"))

    def _address(self, server: Child) -> str:
        """Where the server listens, once it does."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            known = read_address(self.store)
            if known is not None and known[1] == server.process.pid:
                return known[0]
            code = server.process.poll()
            if code == 2:
                raise StoreConflict(server.last_line())
            if code is not None and (code > 0 or self._restarts >= MOST_RESTARTS):
                raise DemoFailed(f"the server did not start: {server.last_line()}")
            if code is not None:
                self._restarts += 1
                server.restart()
            time.sleep(POLL_SECONDS)
        raise DemoFailed(f"the server did not start within {START_SECONDS:g} s; see {server.log}")

    def _mend(self, step: int, note: Callable[[str], None]) -> None:
        """What was killed is started again: the server on its store, devices on their histories. What failed is not."""
        for name, child in (("server", self._server), *(("client", client) for client in self._clients)):
            if child is None or child.process.poll() is None:
                continue
            if child.process.returncode > 0 or self._restarts >= MOST_RESTARTS:
                raise DemoFailed(f"the {name} process stopped at step {step}: {child.last_line()}")
            if child.process.returncode < 0:
                self._restarts += 1
                note(f"a {name} process was killed; starting it again, where step {step} is the latest")
                child.restart()
        if self._clients and all(client.process.poll() == 0 for client in self._clients) and not self._finished():
            raise DemoFailed(f"every device has given all it may at step {step}, after a crash or two; raise max_times")

    def _finished(self) -> bool:
        """Read anew: the devices may have heard of the last step before the watcher did."""
        status = latest_status(self.store)
        return status is not None and status.step >= self.task.file.steps


class Child:
    """A process of the demo, with what it takes to start it again."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.arguments = arguments
        self.log = log
        self.process = processes.start(arguments, log)

    def restart(self) -> None:
        self.process = processes.start(self.arguments, self.log)

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("fedrho: ") if lines else f"no output in {self.log}"


class Evaluator:
    """Accuracy on the held-out digits; loads TensorFlow beside the run, not before it."""

    def __init__(self, model: str, data: FederatedData) -> None:
        self._data = data
        self._loader = threading.Thread(target=self._load, args=(model,), daemon=True)
        self._loader.start()

    @property
    def ready(self) -> bool:
        return not self._loader.is_alive()

    def accuracy(self, weights: bytes) -> float:
        self._loader.join()
        self._model.assign(np.frombuffer(weights, dtype="<f4").astype(np.float32))
        return self._model.accuracy(self._data.test_features, self._data.test_labels)

    def _load(self, model: str) -> None:
        from fedrho.models.flat import FlatModel
        from fedrho.models.zoo import lookup

        self._model = FlatModel(lookup(model))


def print_result(result: DemoResult) -> None:
    """Accuracy, the run in a short table, the statement with its assumptions, and what it is worth."""
    file = result.task.file
    table = Table(title="fedrho demo", show_header=False, title_justify="left")
    for name, value in (
        ("algorithm", file.algorithm),
        ("model", f"{file.model}, on scikit-learn's handwritten digits"),
        ("steps", f"{result.status.step} of {file.steps}, goal {file.round.goal} reports each"),
        ("devices", f"{file.population} in {result_processes(result)}"),
        ("accuracy", f"{result.accuracy:.3f} (simulation only: on held-out digits)"),
        ("time", f"{result.seconds:.0f} s"),
    ):
        table.add_row(name, value)
    out.print(table)
    print_statement(result.statement, file.privacy.delta)
    out.print(f"\n{plain_words(result)}", highlight=False)
    out.print(
        "The settings of this demo were chosen on these same public digits; a real run must keep what is assumed of settings."
    )
    out.print(f"\nstate: {result.folder}", highlight=False, soft_wrap=True)


def plain_words(result: DemoResult) -> str:
    """What the guarantee is worth, said as one would say it to a friend."""
    said = verdict(result.statement)
    if result.statement.rho <= LITTLE:
        return said
    return (
        f"{said} {result.task.file.population} devices are too few to hide in and still learn. With thousands of devices a step "
        "the same noise is spread over all of them: that is where rho below 1 and a useful model go together."
    )


def result_processes(result: DemoResult) -> str:
    count = len(list(result.folder.glob("client-*.log")))
    return f"{count} client processes" if count != 1 else "1 client process"


def _folder(options: DemoOptions, text: str) -> Path:
    """The demo's folder, with its task file in it; a folder of another demo is refused."""
    folder = options.store.resolve() if options.store else Path(tempfile.mkdtemp(prefix="fedrho-demo-"))
    task_file = folder / "task.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not task_file.exists():
            task_file.with_suffix(".new").write_text(text, encoding="utf-8")
            task_file.with_suffix(".new").replace(task_file)
        there = task_file.read_bytes()
    except OSError as error:
        raise StoreConflict(f"{folder}: cannot be used as a folder for the demo ({error.strerror})") from error
    if there != text.encode():
        raise StoreConflict(f"{folder}: holds a demo with other options; choose another --store, or repeat them")
    return folder


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """SIGTERM ends the demo as Ctrl-C does; the event stays set where Python drops the exception, as it does in finalizers."""
    told = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        told.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _toml(values: dict[str, Any]) -> str:
    """A task's values as TOML: JSON's strings, integers and lists are TOML's, and Python's floats."""
    plain = [
        f"{key} = {value!r}" if isinstance(value, float) else f"{key} = {json.dumps(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    sections = [f"\n[{key}]\n{_toml(value)}" for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([*plain, *sections])
