"""What a page takes for granted: files and servers that its reader has already, each the real thing, small."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from fedrho.key_making import make_keys
from fedrho.models.zoo import lookup
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import ClippedSum, FloatVector
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.release import Attempt
from fedrho.server.storage.store import open_store
from fedrho.server.tasks import Task, load_task, parse_task
from tests.docs.pages import blocks_of
from tests.docs.running import Runner, run, there
from tests.server import postgres
from tests.server.operating import site, small_task, visit
from tests.test_operate import Running

DIGITS: Final = "digits-logistic"
CLASSES: Final = ["none", "mild", "severe"]
HERE: Final = ("localhost", "127.0.0.1")


def task_text(name: str = "digits", rho: float = 10.0, model: str = DIGITS, steps: int = 30) -> str:
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


def store(folder: str, model: str = DIGITS, steps: int = 2) -> None:
    """Of a run that begins with zeros and has ended."""
    size = lookup(model).parameters
    release(
        folder, parse_task(task_text(rho=0.5, model=model, steps=steps), "digits.toml"), steps, lambda: np.zeros(size, np.float32)
    )


def release(folder: str, task: Task, steps: int, start: Callable[[], FloatVector]) -> None:
    """The next steps of a run whose devices give zeros: what the weights get is noise alone."""
    with open_store(Path(folder)) as opened:
        engine = open_run(task, Surroundings(SystemNoise(), opened, lambda: os.urandom(16), []), start, 0.0)
        for _ in range(steps):
            total = ClippedSum(np.zeros(engine.progress.weights.size, np.int64), task.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)


def others_finish_a_step() -> None:
    """The population of docs/own-model.md, which is larger than the page."""

    def no_start() -> FloatVector:
        raise AssertionError("the run has begun")

    release("my-run", load_task(Path("mine.toml")), 1, no_start)


def table(file: str, label: str, classes: list[str], rows: int = 60, **more: Callable[[int], object]) -> None:
    """A CSV file of eight numbers and a label in no order, with further columns."""
    generator = random.Random(0)
    heading = [*(f"x{place}" for place in range(8)), *more, label]
    lines = [
        ",".join(
            map(
                str,
                [
                    *(round(generator.random(), 3) for _ in range(8)),
                    *(made(row) for made in more.values()),
                    generator.choice(classes),
                ],
            )
        )
        for row in range(rows)
    ]
    Path(file).write_text("\n".join([",".join(heading), *lines]) + "\n", encoding="utf-8")


def network(file: str) -> None:
    """A saved model of eight numbers and three classes."""
    import keras

    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]).save(file)


def history(file: str, folder: Path) -> None:
    """Of a device that took part in a run of a real server."""
    Path(file).parent.mkdir()

    async def took_part() -> None:
        async with site(folder, small_task(goal=1)) as place:
            await visit(place.device_address, Path(file))

    asyncio.run(took_part())


def examples(file: str = "mine.npz") -> None:
    """Of one device, such as `digits-logistic` takes."""
    generator = np.random.default_rng(0)
    np.savez(file, x=generator.random((25, 64), dtype=np.float32), y=generator.integers(0, 10, 25))


def handed(keys: Path) -> None:
    """What one device gets of a set of keys."""
    shutil.copytree(keys / "device", "device")
    shutil.copy(keys / "devices" / "0000.token", "0000.token")


def mirror(page: Runner) -> None:
    """A web server with the copies of data sets."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(page.folder / "data")))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    page.stack.callback(server.server_close)
    page.stack.callback(thread.join)
    page.stack.callback(server.shutdown)
    page.places["https://mirror.example.org/fedrho"] = f"http://127.0.0.1:{server.server_port}"
    page.patch.setenv("no_proxy", "*")


def database(page: Runner) -> None:
    """PostgreSQL where it is installed, and an object store in the server's memory."""
    if there("postgres"):
        page.places["postgresql://fedrho@db.example.org/fedrho"] = f"'{page.stack.enter_context(postgres.server())}'"
    page.places["s3://bucket/population"] = "memory://bucket/population"


# -- by page -----------------------------------------------------------------------------------------------------------------


def device_page(page: Runner) -> None:
    history("mine/laptop.sqlite", page.folder)
    examples()
    make_keys(page.folder / "keys", HERE, 30, devices=1)
    handed(page.folder / "keys")


def dashboard(page: Runner) -> None:
    make_keys(page.folder / "keys", HERE, 30)
    shutil.copytree(page.folder / "keys" / "operator", "operator")


def command_line(page: Runner) -> None:
    Path("my-task.toml").write_text(task_text(steps=200), encoding="utf-8")
    for name in ("one", "two"):
        Path(f"{name}.toml").write_text(task_text(name, rho=1.0), encoding="utf-8")
    make_keys(Path("certificates"), HERE, 30, devices=1)
    handed(Path("certificates"))
    database(page)
    mirror(page)
    examples()
    pixels = np.random.default_rng(0).random((12, 64)).round(3)
    rows = [",".join([*map(str, row), str(number % 10)]) for number, row in enumerate(pixels)]
    Path("mine.csv").write_text("\n".join([",".join([*(f"x{place}" for place in range(64)), "digit"]), *rows]), encoding="utf-8")
    for file, model in {"spanish.npz": "spanish-cifg", "quixote.keras": "characters", "mnist.keras": "mnist-cnn"}.items():
        run(["models", "export", model, "--out", file])
    Image.new("L", (28, 28)).save("seven.png")
    for file in ("mine.keras", "mlp.keras"):
        network(file)
    table("data.csv", "disease", CLASSES)
    table("visits.csv", "disease", CLASSES, p0=lambda _: 0.5, p1=lambda _: 0.3, p2=lambda _: 0.2, patient=lambda row: row)
    Path("classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    table("patients.csv", "diagnosis", CLASSES)
    Path("matrix.csv").write_text("0.5,0.25,0.25\n0.25,0.5,0.25\n0.25,0.25,0.5\n", encoding="utf-8")
    store("first-run")
    store("second-run")
    generator = np.random.default_rng(0)
    scores = {f"{part}_logits": generator.normal(size=(100, 10)) for part in ("train", "test")}
    labels = {f"{part}_labels": generator.integers(0, 10, 100) for part in ("train", "test")}
    np.savez("predictions.npz", **scores, **labels)


def connect_devices(_: Runner) -> None:
    Path("task.toml").write_text(task_text(rho=1.0), encoding="utf-8")
    (limits,) = blocks_of("connect-devices.md", "ini")
    Path("owner.toml").write_text(limits.text, encoding="utf-8")


def deploy(page: Runner) -> None:
    """A task, a database, and files with what only their owner knows."""
    Path("task.toml").write_text(task_text(), encoding="utf-8")
    database(page)
    for name in ("password", "tls.crt", "tls.key", "ca.crt", "access-key", "secret-key"):
        Path(name).write_text("secret", encoding="utf-8")


def own_model(_: Runner) -> None:
    generator = np.random.default_rng(0)
    np.savez("mine.npz", x=generator.random((25, 8), dtype=np.float32), y=generator.integers(0, 3, 25))


def label_privacy(_: Runner) -> None:
    table("data.csv", "disease", CLASSES)
    table("patients.csv", "diagnosis", CLASSES)
    network("mlp.keras")


def operating(page: Runner) -> None:
    page.stack.enter_context(Running(Path("fedrho-run"), small_task()))
    Path("task.toml").write_text(task_text(), encoding="utf-8")


def trained_model(_: Runner) -> None:
    """`trained.npz`, such as `fedrho export` writes; its weights are those that a run begins with."""
    run(["models", "export", "spanish-cifg", "--out", "trained.npz"])


PRELUDES: Final[dict[str, Callable[[Runner], None]]] = {
    "accounting.md": lambda _: (Path("docs/images").mkdir(parents=True), store("first-run"), store("second-run")),
    "README.md": lambda _: store("my-run", "spanish-cifg", steps=1),
    "cli.md": command_line,
    "connect-devices.md": connect_devices,
    "dashboard.md": dashboard,
    "deploy.md": deploy,
    "device.md": device_page,
    "fleet.md": lambda _: (Path("my-task.toml").write_text(task_text(steps=2), encoding="utf-8"), None)[1],
    "label-privacy.md": label_privacy,
    "models.md": trained_model,
    "operating.md": operating,
    "own-model.md": own_model,
    "read-a-statement.md": lambda _: store("fedrho-run"),
}
MEANWHILE: Final = {"others finish a step": others_finish_a_step}
"""What happens on a page beside what its reader does, by the mark that says when."""
