"""What readers of the documentation have already, each the real thing, small: runs, keys, data, models, servers."""

from __future__ import annotations

import asyncio
import csv
import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedrho.models.zoo import lookup
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import ClippedSum, FloatVector
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.release import Attempt
from fedrho.server.storage.store import open_store
from fedrho.server.tasks import Task, parse_task
from tests.docs.running import Runner, there
from tests.server import postgres
from tests.server.operating import site, small_task, visit

CLASSES: Final = ["none", "mild", "severe"]
HERE: Final = ("localhost", "127.0.0.1")
MODEL: Final = "digits-logistic"


# -- tasks and runs ------------------------------------------------------------------------------------------------------------


def task_text(name: str = "digits", rho: float = 10.0, model: str = MODEL, steps: int = 30) -> str:
    """`examples/digits.toml` with another name, budget, model or end."""
    text = Path("examples/digits.toml").read_text(encoding="utf-8")
    for old, new in {
        '"digits"': f'"{name}"',
        '"digits-logistic"': f'"{model}"',
        "rho = 10.0": f"rho = {rho}",
        "steps = 30": f"steps = {steps}",
        "max_times = 10": f"max_times = {min(steps, 10)}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text


def store(folder: str, model: str = MODEL, steps: int = 2) -> None:
    """Of a run that begins with zeros and has ended."""
    size = lookup(model).parameters
    task = parse_task(task_text(rho=0.5, model=model, steps=steps), "digits.toml")
    release(folder, task, steps, lambda: np.zeros(size, np.float32))


def release(folder: str, task: Task, steps: int, start: Callable[[], FloatVector]) -> None:
    """The next steps of a run whose devices give zeros: what the weights get is noise alone."""
    with open_store(Path(folder)) as opened:
        engine = open_run(task, Surroundings(SystemNoise(), opened, lambda: os.urandom(16), []), start, 0.0)
        for _ in range(steps):
            total = ClippedSum(np.zeros(engine.progress.weights.size, np.int64), task.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)


def history(file: Path, folder: Path) -> None:
    """Of a device that took part in a run of a real server, whose own files are in `folder`."""
    file.parent.mkdir()

    async def took_part() -> None:
        async with site(folder, small_task(goal=1)) as place:
            await visit(place.device_address, file)

    asyncio.run(took_part())


# -- files ---------------------------------------------------------------------------------------------------------------------


def handed(keys: Path) -> None:
    """What one device gets of a set of keys."""
    shutil.copytree(keys / "device", "device")
    shutil.copy(keys / "devices" / "0000.token", "0000.token")


def examples(features: int = 64, classes: int = 10) -> None:
    """`mine.npz`, of one device."""
    generator = np.random.default_rng(0)
    np.savez("mine.npz", x=generator.random((25, features), dtype=np.float32), y=generator.integers(0, classes, 25))


def table(file: str, label: str, classes: list[str], features: int = 8, **more: Callable[[int], object]) -> None:
    """A CSV file of numbers and a label, in no order, with further columns."""
    generator = random.Random(0)
    with Path(file).open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow([*(f"x{place}" for place in range(features)), *more, label])
        for row in range(60):
            numbers = [round(generator.random(), 3) for _ in range(features)]
            rows.writerow([*numbers, *(made(row) for made in more.values()), generator.choice(classes)])


def network(file: str) -> None:
    """A saved model of eight numbers and three classes."""
    import keras

    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]).save(file)


def predictions() -> None:
    """`predictions.npz`, of a model that knows nothing."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"{part}_logits": generator.normal(size=(100, 10)) for part in ("train", "test")}
    arrays |= {f"{part}_labels": generator.integers(0, 10, 100) for part in ("train", "test")}
    np.savez("predictions.npz", **arrays)


# -- other people's servers ----------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def mirror(page: Runner) -> None:
    """A web server with the copies of data sets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(page.data)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    for ending in (server.server_close, thread.join, server.shutdown):
        page.stack.callback(ending)
    page.places["https://mirror.example.org/fedrho"] = f"http://127.0.0.1:{server.server_port}"
    page.patch.setenv("no_proxy", "*")


def database(page: Runner) -> None:
    """PostgreSQL where it is installed, and an object store in the server's memory."""
    if there("postgres"):
        page.places["postgresql://fedrho@db.example.org/fedrho"] = f"'{page.stack.enter_context(postgres.server())}'"
    page.places["s3://bucket/population"] = "memory://bucket/population"
