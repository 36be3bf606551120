"""`--data`: every kind of source by its name, stores of the user's own by entry point, and one line for what is neither."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pickle
import re
import sqlite3
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.client.examples import ExampleStore
from fedrho.client.stores.checked import DataFileError
from fedrho.console import BadInput
from fedrho.models import base
from fedrho.sources import GROUP, Digits, Reading, find_source, fitting
from tests.client.fleet import contributions, open_small_run, plan, small_task
from tests.client.serving import serving
from tests.client.stores.shelf import SPEC, STORES, TEXT, X, Y, contents

OWN_DATA = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text(encoding="utf-8")
ALL = Digits(None, 40, 1.0, 0)
MODELS = ["digits-logistic", "digits-mlp"]


def found(data: str | Path, **options: Any) -> dict[str, ExampleStore]:
    """The devices and their examples, as `fedrho join` gets them."""
    return fitting(["digits-logistic"], find_source(str(data), ALL, Reading(**options)))[0]


def said(data: str | Path, **options: Any) -> str:
    with pytest.raises((BadInput, DataFileError)) as refused:
        found(data, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[base.ModelSpec], base.ModelSpec]:
    """Puts a model into the zoo for one test."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    return base.register


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Installs a module with entry points, as pip would leave it; the folder is on the path for this test."""

    def install(module: str, code: str, stores: dict[str, str], package: str = "mine") -> Path:
        site = tmp_path / "site"
        information = site / f"{package}-1.0.dist-info"
        information.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        entries = "\n".join(f"{name} = {value}" for name, value in stores.items())
        (information / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        return site

    return install


def block(language: str, mark: str) -> str:
    """The one block of the page on own data in which `mark` stands."""
    text: str
    (text,) = [text for text in re.findall(rf"^```{language}\n(.*?)^```$", OWN_DATA, re.MULTILINE | re.DOTALL) if mark in text]
    return text


def readings(path: Path) -> None:
    """What the page's store reads: 64 numbers as bytes, and a label, in each row."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE readings (numbers BLOB, label INTEGER)")
        rows = [(row.astype(np.float32).tobytes(), int(label)) for row, label in zip(X, Y, strict=True)]
        database.executemany("INSERT INTO readings VALUES (?, ?)", rows)


def documented_store(installed: Callable[..., Path]) -> Path:
    points = tomllib.loads(block("text", GROUP))["project"]["entry-points"][GROUP]
    return installed("my_package", block("python", "(ShuffledExamples)"), points)


# -- files ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
def test_file_is_one_device_of_its_name(kind: str, tmp_path: Path) -> None:
    expected = STORES[kind](tmp_path)
    (path,) = tmp_path.glob("mine*")
    devices = found(path)
    assert list(devices) == ["mine"]
    assert sorted(contents(devices["mine"])) == sorted(contents(expected))


@pytest.mark.parametrize("suffix", [".NPZ", ".Npz"])
def test_case_of_the_ending_does_not_matter(suffix: str, tmp_path: Path) -> None:
    STORES["npz"](tmp_path)
    (tmp_path / "mine.npz").rename(tmp_path / f"mine{suffix}")
    assert list(found(tmp_path / f"mine{suffix}")) == ["mine"]


def test_folder_is_called_by_its_name_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    STORES["images"](tmp_path)
    monkeypatch.chdir(tmp_path / "mine" / "0")
    assert list(found("..")) == list(found("../../mine/")) == ["mine"]


def test_digits_are_the_devices_of_the_demo() -> None:
    devices, models = fitting(MODELS, find_source("digits", Digits("3-5", 40, 1.0, 0), Reading()))
    assert (list(devices), models) == (["device-003", "device-004", "device-005"], set(MODELS))
    assert list(found("digits")) == [f"device-{number:03d}" for number in range(40)]


def test_options_reach_the_stores(tmp_path: Path, register: Callable[[base.ModelSpec], base.ModelSpec]) -> None:
    register(TEXT)
    (tmp_path / "names.txt").write_text("no\nperhaps\nyes\n")
    lines = [{"body": "where is it", "kind": "yes"}, {"body": "here", "kind": "no"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    reading = Reading("kind", tmp_path / "names.txt", "body", "50")
    devices, models = fitting(["digits-logistic", "reader"], find_source(str(tmp_path / "mine.jsonl"), ALL, reading))
    assert models == {"reader"}
    (batch,) = devices["mine"].batches(plan(model="reader"))
    assert sorted(batch.labels.tolist()) == [0, 2]
    assert batch.features.dtype == np.int32


def test_each_model_gets_the_examples_in_its_own_shape(
    tmp_path: Path, register: Callable[[base.ModelSpec], base.ModelSpec]
) -> None:
    register(base.ModelSpec("images", "", (8, 8, 1), 10, SPEC.build))
    STORES["csv"](tmp_path)
    devices, models = fitting([*MODELS, "images", "images"], find_source(str(tmp_path / "mine.csv"), ALL, Reading()))
    assert models == {*MODELS, "images"}
    store = pickle.loads(pickle.dumps(devices["mine"]))
    shapes = {model: next(store.batches(plan(model=model, batch_size=7))).features.shape for model in models}
    assert shapes == {"digits-logistic": (7, 64), "digits-mlp": (7, 64), "images": (7, 8, 8, 1)}


@pytest.mark.parametrize("data", ["mine.doc", "mine", "", "mine.npz", "nowhere:mine", "mine.csv:label", "a b:c", "digits:", "/"])
def test_what_is_no_source_is_told_all_that_is_allowed(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.doc").touch()
    text = said(data)
    assert text.startswith(f"--data {data}: ")
    if data != "/":
        assert (
            "allowed: digits, a file .npz, .csv, .parquet, .jsonl, .txt or .sqlite, a folder of images, or NAME:ARGUMENT" in text
        )
    assert ("stores installed here: none" in text) == (":" in data)


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        ("mine.npz", {"label": "kind"}, "--label: has no meaning for --data mine.npz; it is for .csv, .parquet, .jsonl"),
        ("mine.csv", {"text": "body"}, "--text: has no meaning for --data mine.csv; it is for .jsonl"),
        ("mine.csv", {"vocabulary": "50"}, "--vocabulary: has no meaning"),
        ("digits", {"classes": Path("names.txt")}, "--classes: has no meaning for --data digits; it is for .csv"),
        ("mine.jsonl", {"text": "body"}, "--text: needs --vocabulary"),
        ("mine.csv", {"classes": Path("gone.txt")}, "gone.txt: no such file"),
    ],
)
def test_option_that_would_go_unheard_is_refused(
    data: str, options: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("npz", "csv", "json lines"):
        STORES[kind](tmp_path)
    assert expected in said(data, **options)


def test_devices_belong_to_digits_alone(tmp_path: Path) -> None:
    STORES["npz"](tmp_path)
    with pytest.raises(BadInput, match="--devices: has no meaning"):
        find_source(str(tmp_path / "mine.npz"), Digits("0-3", 40, 1.0, 0), Reading())


# -- stores of the user's own ---------------------------------------------------------------------------------------------------


def test_the_documented_store_is_ten_lines_and_gives_its_examples(installed: Callable[..., Path], tmp_path: Path) -> None:
    _, _, written = block("python", "(ShuffledExamples)").partition("\n\n\n")
    assert written.startswith("class ")
    assert len([line for line in written.splitlines() if line.strip()]) <= 10
    documented_store(installed)
    readings(tmp_path / "readings.db")
    devices = found(f"readings:{tmp_path / 'readings.db'}")
    assert list(devices) == ["readings"]
    store = pickle.loads(pickle.dumps(devices["readings"]))
    assert sorted(contents(store, epochs=2)) == sorted(
        2 * [(label, tuple(row)) for label, row in zip(Y, X.tolist(), strict=True)]
    )
    (tmp_path / "readings.db").write_bytes(b"")
    with pytest.raises(sqlite3.OperationalError):
        contents(store)
    assert re.fullmatch(r"--data readings: OperationalError \(\w+\.py:\d+\)", said(f"readings:{tmp_path / 'readings.db'}"))


def test_everything_after_the_first_colon_is_the_argument(installed: Callable[..., Path]) -> None:
    code = """
    from pathlib import Path
    def make(argument):
        assert argument == "postgres://me@there:5432/x?y=1", argument
        from fedrho.client.examples import ArrayExamples
        import numpy as np
        return ArrayExamples(np.zeros((3, 64)), np.arange(3))
    """
    installed("makes", textwrap.dedent(code), {"sql": "makes:make"})
    assert list(found("sql:postgres://me@there:5432/x?y=1")) == ["sql"]


OWN = """
import threading
import numpy as np
from fedrho.client.examples import Batch

class Mine:
    def __init__(self, argument):
        self.argument = argument
        if argument == "fails":
            raise KeyError("no such ward")
        if argument == "unpicklable":
            self.open = threading.Lock()

    def batches(self, plan):
        good, labels = np.zeros((1, 64), dtype=np.float32), np.zeros(1, dtype=np.int32)
        kinds = {
            "good": lambda: [Batch(good, labels)],
            "float64": lambda: [Batch(good.astype(float), labels)],
            "nothing": lambda: [],
            "shape": lambda: [Batch(good[:, 1:], labels)],
            "nan": lambda: [Batch(good * np.nan, labels)],
            "label": lambda: [Batch(good, labels + 10)],
            "labels of floats": lambda: [Batch(good, labels.astype(float))],
            "uneven": lambda: [Batch(good, np.zeros(2, dtype=np.int32))],
            "many": lambda: [Batch(np.zeros((2, 64)), np.zeros(2, dtype=np.int32))],
            "none": lambda: [Batch(good[:0], labels[:0])],
            "pair": lambda: [(good, labels)],
            "text": lambda: [Batch("secret", labels)],
            "raises": lambda: 1 / 0,
            "converts": lambda: float("secret"),
            "later": lambda: [Batch(good, labels), Batch(good + np.inf, labels)],
            "NoneType": lambda: None,
        }
        return iter(kinds[self.argument]())

class Nothing:
    def __init__(self, argument): pass

broken = 3
"""


@pytest.mark.parametrize("argument", ["good", "float64", "nothing"])
def test_own_store_without_a_base_is_taken(argument: str, installed: Callable[..., Path]) -> None:
    installed("own", OWN, {"mine": "own:Mine"})
    batches = list(found(f"mine:{argument}")["mine"].batches(plan()))
    assert [(batch.features.dtype, batch.features.shape) for batch in batches] == [(np.dtype(np.float32), (1, 64))] * (
        argument != "nothing"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("mine:shape", "--data mine: features must be numbers of shape ('examples', 64) for model 'digits-logistic'"),
        ("mine:nan", "--data mine: features hold NaN"),
        ("mine:label", "--data mine: labels must lie between 0 and 9"),
        ("mine:labels of floats", "--data mine: labels must be integers"),
        ("mine:uneven", "--data mine: a batch has 1 features and 2 labels"),
        ("mine:many", "--data mine: a batch has 2 features and 2 labels, where the plan asks for at most 1"),
        ("mine:none", "--data mine: a batch has 0 features"),
        ("mine:pair", "--data mine: 'tuple' object has no attribute 'features'"),
        ("mine:text", "--data mine: features must be numbers"),
        ("mine:raises", "--data mine: ZeroDivisionError (own.py:"),
        ("mine:converts", "--data mine: ValueError (own.py:"),
        ("mine:NoneType", "--data mine: TypeError (own.py:"),
        ("mine:fails", "--data mine: own:Mine cannot be made of 'fails': KeyError: 'no such ward'"),
        ("mine:unpicklable", "a store is pickled for the process that trains, and this one cannot be: keep paths in it"),
        ("nothing:", "makes a Nothing, which has no method batches(plan)"),
        ("broken:", "own:broken cannot be made of '': TypeError"),
        ("absent:", "absent:Absent cannot be made of '': ModuleNotFoundError"),
        ("missing:", "own:Missing cannot be made of '': AttributeError"),
        ("unknown:x", "no such file; allowed: digits"),
        ("unknown:x", "stores installed here: absent, broken, mine, missing, nothing"),
    ],
)
def test_own_store_that_cannot_be_used_is_one_line(data: str, expected: str, installed: Callable[..., Path]) -> None:
    stores = {"mine": "own:Mine", "nothing": "own:Nothing", "broken": "own:broken"}
    installed("own", OWN, stores | {"absent": "absent:Absent", "missing": "own:Missing"})
    text = said(data)
    assert expected in text
    assert "secret" not in text


def test_own_store_is_checked_in_training_too(installed: Callable[..., Path]) -> None:
    installed("own", OWN, {"mine": "own:Mine"})
    batches = found("mine:later")["mine"].batches(plan())
    next(batches)
    with pytest.raises(DataFileError, match="--data mine: features hold NaN"):
        next(batches)


def test_two_packages_with_a_store_of_one_name_are_not_guessed_between(installed: Callable[..., Path]) -> None:
    installed("own", OWN, {"mine": "own:Mine"})
    assert list(found("mine:good")) == ["mine"]
    (site,) = [Path(folder) for folder in sys.path if folder.endswith("/site")]
    other = site / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(f"[{GROUP}]\nmine = other:Mine\n")
    importlib.invalidate_caches()
    assert said("mine:good") == "--data mine: several packages have a store of that name: other:Mine, own:Mine; keep one"


def test_name_of_a_store_cannot_lead_out_of_the_folder_of_histories(installed: Callable[..., Path]) -> None:
    installed("own", OWN, {"../mine": "own:Mine"})
    assert "no such file" in said("../mine:good")


def test_code_that_is_not_installed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Mine: pass\n")
    monkeypatch.chdir(tmp_path)
    for data in ("evil:Mine", "evil.py:Mine", "./evil.py"):
        assert "allowed: digits" in said(data)
    assert not (tmp_path / "ran").exists()


# -- the whole way --------------------------------------------------------------------------------------------------------------


def joined(folder: Path, data: str, site: Path | None = None) -> tuple[int, str, list[tuple[bytes, int]]]:
    """`fedrho join` in a process of its own against a real server; what it said, and what the device remembers."""
    engine = open_small_run(small_task(steps=2, goal=1), now=time.monotonic())
    path = os.pathsep.join(filter(None, [str(site) if site else "", os.environ.get("PYTHONPATH", "")]))

    async def run() -> tuple[int, str]:
        async with serving(engine) as address:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fedrho", "join", address, "--data", data, "--history", "history"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, "HOME": str(folder)},
            )
            out, _ = await asyncio.wait_for(process.communicate(), 120)
            return process.returncode or 0, out.decode()

    code, out = asyncio.run(run())
    histories = list((folder / "history").glob("*.sqlite"))
    return code, out, [given for history in histories for given in contributions(history)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "images", "cache"])
def test_device_with_a_file_takes_part(kind: str, tmp_path: Path) -> None:
    STORES[kind](tmp_path)
    (path,) = tmp_path.glob("mine*")
    path = path.rename(path.with_stem(":b: [bold]"))  # printed as it is
    code, out, given = joined(tmp_path, path.name)
    assert (code, [step for _, step in given]) == (0, [1, 2]), out
    assert "1 device: 2 counted, 1 finished" in out
    assert "step 1/2 :b: [bold] counted" in out or "step 0/2 :b: [bold] counted" in out


@pytest.mark.slow
def test_device_with_the_documented_store_takes_part(installed: Callable[..., Path], tmp_path: Path) -> None:
    site = documented_store(installed)
    readings(tmp_path / "readings.db")
    (line,) = block("sh", "readings:").splitlines()
    code, out, given = joined(tmp_path, line.split()[-1].replace("/var/lib/", ""), site)
    assert (code, [step for _, step in given]) == (0, [1, 2]), out


@pytest.mark.slow
def test_device_whose_data_do_not_fit_leaves_no_history(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a,label\n1,2\n")
    code, out, given = joined(tmp_path, "mine.csv")
    assert (code, given) == (2, [])
    (line,) = out.strip().splitlines()
    assert line == "fedrho: mine.csv: needs 64 columns of features besides 'label' for model 'digits-logistic', has 1"
