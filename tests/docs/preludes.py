"""What each page takes for granted before its first block, and what happens beside what its reader does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from PIL import Image

from fedrho.key_making import make_keys
from fedrho.privacy.vectors import FloatVector
from fedrho.server.tasks import load_task
from tests.docs.making import (
    CLASSES,
    HERE,
    database,
    examples,
    handed,
    history,
    mirror,
    network,
    predictions,
    release,
    store,
    table,
    task_text,
)
from tests.docs.pages import blocks_of
from tests.docs.running import Runner, run
from tests.server.operating import small_task
from tests.test_operate import Running


def readme(_: Runner) -> None:
    store("my-run", "spanish-cifg", steps=1)


def accounting(_: Runner) -> None:
    Path("docs/images").mkdir(parents=True)
    store("first-run", steps=6)
    store("second-run")


def command_line(page: Runner) -> None:
    """Of every kind something: the page shows forms, and is no story."""
    Path("my-task.toml").write_text(task_text(steps=40), encoding="utf-8")
    stages = Path("examples/labels/digits.toml").read_text(encoding="utf-8")
    Path("my-stages.toml").write_text(
        stages.replace("seeds = 10", "seeds = 1").replace("steps = 500", "steps = 20"), encoding="utf-8"
    )
    for name in ("one", "two"):
        Path(f"{name}.toml").write_text(task_text(name, rho=1.0), encoding="utf-8")
    make_keys(Path("certificates"), HERE, 30, devices=1)
    handed(Path("certificates"))
    mirror(page)
    store("fedrho-run")
    store("first-run")
    store("second-run")
    examples()
    table("mine.csv", "digit", [*"0123456789"], features=64)
    for file, model in {
        "spanish.npz": "spanish-cifg",
        "quixote.keras": "characters-small-lstm",
        "mnist.keras": "mnist-cnn",
    }.items():
        run(["models", "export", model, "--out", file])
    Image.new("L", (28, 28)).save("seven.png")
    network("mine.keras")
    network("mlp.keras")
    table("data.csv", "disease", CLASSES)
    table("visits.csv", "disease", CLASSES, p0=lambda _: 0.5, p1=lambda _: 0.3, p2=lambda _: 0.2, patient=lambda row: row)
    table("patients.csv", "diagnosis", CLASSES)
    Path("classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    Path("matrix.csv").write_text("0.5,0.25,0.25\n0.25,0.5,0.25\n0.25,0.25,0.5\n", encoding="utf-8")
    predictions()


def connect_devices(_: Runner) -> None:
    Path("task.toml").write_text(task_text(rho=1.0), encoding="utf-8")
    (limits,) = blocks_of("connect-devices.md", "ini")
    Path("owner.toml").write_text(limits.text, encoding="utf-8")


def dashboard(page: Runner) -> None:
    make_keys(page.folder / "keys", HERE, 30)
    shutil.copytree(page.folder / "keys" / "operator", "operator")


def deploy(page: Runner) -> None:
    """Files with what only their owner knows, besides a task and a database."""
    Path("task.toml").write_text(task_text(), encoding="utf-8")
    database(page)
    for name in ("password", "tls.crt", "tls.key", "ca.crt", "access-key", "secret-key"):
        Path(name).write_text("secret", encoding="utf-8")


def device(page: Runner) -> None:
    history(Path("mine/laptop.sqlite"), page.folder)
    examples()
    make_keys(page.folder / "keys", HERE, 30, devices=1)
    handed(page.folder / "keys")


def fleet(_: Runner) -> None:
    Path("my-task.toml").write_text(task_text(steps=2), encoding="utf-8")


def label_privacy(_: Runner) -> None:
    table("data.csv", "disease", CLASSES)
    table("patients.csv", "diagnosis", CLASSES)
    network("mlp.keras")


def models(_: Runner) -> None:
    """`trained.npz`, such as `fedrho export` writes; its weights are those that a run begins with."""
    run(["models", "export", "spanish-cifg", "--out", "trained.npz"])


def operating(page: Runner) -> None:
    page.stack.enter_context(Running(Path("fedrho-run"), small_task()))
    Path("task.toml").write_text(task_text(), encoding="utf-8")


def own_model(_: Runner) -> None:
    examples(features=8, classes=3)


def read_a_statement(_: Runner) -> None:
    store("fedrho-run")


PRELUDES: Final[dict[str, Callable[[Runner], None]]] = {
    "README.md": readme,
    "accounting.md": accounting,
    "cli.md": command_line,
    "connect-devices.md": connect_devices,
    "dashboard.md": dashboard,
    "deploy.md": deploy,
    "device.md": device,
    "fleet.md": fleet,
    "label-privacy.md": label_privacy,
    "models.md": models,
    "operating.md": operating,
    "own-model.md": own_model,
    "read-a-statement.md": read_a_statement,
}


def others_finish_a_step() -> None:
    """The population of docs/own-model.md, which is larger than the page."""

    def no_start() -> FloatVector:
        raise AssertionError("the run has begun")

    release("my-run", load_task(Path("mine.toml")), 1, no_start)


MEANWHILE: Final = {"others finish a step": others_finish_a_step}
"""By the mark that says when."""
