"""A sweep: its points as processes side by side, each in its own folder, and what comes of them in one table and one picture."""

from __future__ import annotations

import io
import json as json_text
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from fedrho import console, mlflow_runs, processes, study_running
from fedrho.console import Stopped
from fedrho.progress import Bar
from fedrho.server.tasks import explain
from fedrho.simulations import files
from fedrho.simulations import folder as folders
from fedrho.simulations.claim import NO_GUARANTEE
from fedrho.simulations.folder import FolderError, StudyFolder
from fedrho.simulations.records import MARK
from fedrho.simulations.study import Study, StudyError, SweepSection, make_study, read_values
from fedrho.simulations.sweep import WARNING, Point, points
from fedrho.simulations.toml_text import toml_text
from fedrho.study_running import How, StudyFailed


@dataclass(frozen=True)
class Done:
    """A point that is finished, and how it ended."""

    point: Point
    summary: Mapping[str, Any]


def is_sweep(study: Path | None, settings: Sequence[str], resume: Path | None) -> bool:
    values = read_values(study, settings) if study is not None else folders.stored_values(resume) if resume is not None else {}
    return "sweep" in values


def run_sweep(
    study: Path | None,
    settings: Sequence[str],
    output: Path | None,
    resume: Path | None,
    how: How,
    jobs: int | None,
    json: bool,
) -> None:
    """Every point, and the table. Raises StudyError before any is run, FolderError, StudyFailed, Stopped."""
    if resume is not None:
        values = folders.stored_values(resume)
        if study is not None:
            folders.check_same(resume, _values(study, settings))
        source = str(resume / "study.toml")
    else:
        assert study is not None
        values, source = _values(study, settings), str(study)
    every = _checked(values, source, Path(source).parent, how)
    if how.engine is None and every[0][1].file.engine.kind == "auto":
        how = replace(how, engine="serial")  # a point a core, instead of all cores for one after another
    path = resume or _new_folder(values, output)
    with folders.held(path):
        if not (path / "study.toml").exists():
            files.write_whole(path / "study.toml", (toml_text(values) + "\n").encode())
        with mlflow_runs.followed_sweep(how.mlflow, path, [path / "points" / point.name for point, _ in every]):
            done = _run_points(path, every, how, jobs)
            rows = [_row(one) for one in done]
            _write_table(path, rows, values)
    _tell(path, rows, json, how)


def _values(study: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Of a sweep, with the paths of saved models and of starting weights as they can be found from anywhere."""
    values = read_values(study, settings)
    values.setdefault("name", values.get("task", {}).get("name", "sweep"))
    model = values.get("task", {}).get("model")
    if isinstance(model, str) and model.endswith(".keras"):
        values["task"]["model"] = str((study.parent / model).resolve())
    start = values.get("task", {}).get("start")
    if isinstance(start, str):
        values["task"]["start"] = str((study.parent / start).resolve())
    return values


def _checked(values: dict[str, Any], source: str, folder: Path, how: How) -> list[tuple[Point, Study]]:
    """Every point with its study; all of them are checked before the first is run."""
    try:
        section = SweepSection.model_validate(values["sweep"])
        every = points(values, section)
    except StudyError as error:
        raise StudyError(f"{source}: {error}") from error
    except ValidationError as error:
        raise StudyError(f"{source}: sweep.{explain(error, SweepSection, 'sweep')}") from error
    studies, known = [], None
    for point in every:
        study, dataset = make_study(dict(point.values), f"{source}: point {point.name} ({_described(point)})", folder, known)
        known = study.data, dataset
        study_running.checked(study, how)
        studies.append((point, study))
    return studies


def _described(point: Point) -> str:
    return ", ".join([*(f"{key}={value}" for key, value in point.settings.items()), f"seed={point.seed}"])


def _new_folder(values: Mapping[str, Any], output: Path | None) -> Path:
    if output is None:
        return folders.fresh(str(values["name"]), Path())
    folders.check_new(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{output}: cannot be written ({error.strerror or error})") from error
    return output


def _run_points(path: Path, every: Sequence[tuple[Point, Study]], how: How, jobs: int | None) -> list[Done]:
    """In processes, `jobs` at a time; those that are finished are not run again."""
    waiting = [(point, study) for point, study in every if not (path / "points" / point.name / "summary.json").exists()]
    for point, study in waiting:
        with StudyFolder(path / "points" / point.name, study):
            pass  # it is there now, and can be gone on with
    with _children() as children, Bar("point", len(every), quiet=how.quiet) as bar:
        bar.skip_to(len(every) - len(waiting))
        running = _Running(bar, len(every) - len(waiting))
        with ThreadPoolExecutor(jobs or _side_by_side(how)) as pool:
            failed = [why for why in pool.map(lambda one: _run_point(path, one[0], how, children, running), waiting) if why]
        if children.told.is_set():
            raise Stopped(f"stopped; {study_running.going_on(path, how)}")
    if failed:
        raise StudyFailed(f"{len(failed)} of {len(every)} points failed, first {failed[0]}; {study_running.going_on(path, how)}")
    return [Done(point, _read(path / "points" / point.name / "summary.json")) for point, _ in every]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json_text.loads(path.read_bytes())
    return content


def _side_by_side(how: How) -> int:
    cores = os.cpu_count() or 1
    return max(1, cores // (how.workers or cores)) if how.engine == "processes" else cores


class _Children:
    """The processes of a sweep: none is started after somebody said stop."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self._lock = threading.Lock()
        self._running: list[Any] = []

    def start(self, arguments: Sequence[str], log: Path) -> Any:
        with self._lock:
            if self.told.is_set():
                return None
            self._running.append(processes.start(arguments, log))
            return self._running[-1]

    def stop(self) -> None:
        with self._lock:
            self.told.set()
            for child in self._running:
                if child.poll() is None:
                    child.terminate()


@contextmanager
def _children() -> Iterator[_Children]:
    """Ctrl-C and SIGTERM let every point end its step and write a checkpoint."""
    import signal

    children = _Children()
    before = {number: signal.signal(number, lambda *_: children.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield children
    finally:
        children.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_point(path: Path, point: Point, how: How, children: _Children, running: _Running) -> str | None:
    """Why it failed, if it did."""
    log = path / "machine" / f"{point.name}.log"
    arguments = ["simulate", "run", "--resume", str(path / "points" / point.name), "--quiet"]
    arguments += ["--engine", how.engine] if how.engine else []
    arguments += ["--workers", str(how.workers)] if how.workers else []
    child = children.start(arguments, log)
    if child is None:
        return None
    with running.point(point):
        code = child.wait()
    child.stdin.close()
    if code == 0 or children.told.is_set():
        return None
    said = log.read_text(errors="replace").strip().splitlines()
    return f"{point.name} ({_described(point)}): {said[-1].removeprefix('fedrho: ') if said else f'exit code {code}'}"


class _Running:
    """Which points run just now, and how many have ended, on the bar; of several threads."""

    def __init__(self, bar: Bar, done: int) -> None:
        self._bar = bar
        self._done = done
        self._now: list[str] = []
        self._lock = threading.Lock()

    @contextmanager
    def point(self, point: Point) -> Iterator[None]:
        self._moved(0, [*self._now, point.name])
        try:
            yield
        finally:
            self._moved(1, [name for name in self._now if name != point.name])

    def _moved(self, ended: int, now: list[str]) -> None:
        with self._lock:
            self._done, self._now = self._done + ended, now
            self._bar.reach(self._done, f"running {', '.join(now)}" if now else "")


def _row(one: Done) -> dict[str, Any]:
    summary = one.summary
    deployed = summary["if_deployed"] or {}
    return {
        "point": one.point.name,
        **{f"set.{key}": value for key, value in one.point.settings.items()},
        "seed": one.point.seed,
        "steps": summary["steps"],
        "accuracy": summary["accuracy"],
        "loss": summary["loss"],
        "measured_on": summary["measured_on"],
        "rho": deployed.get("rho"),
        "epsilon": deployed.get("epsilon"),
        "delta": deployed.get("delta"),
        **{f"{MARK}.{key}": value for key, value in summary[MARK].items()},
    }


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    from fedrho import study_plots

    lines = b"".join(json_text.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)
    columns = {name: [_plain(row[name]) for row in rows] for name in rows[0]}
    marked = {name: {MARK: "true" if name.startswith(f"{MARK}.") else "false"} for name in columns}
    arrays = {name: pa.array(column) for name, column in columns.items()}
    fields = [pa.field(name, array.type, metadata=marked[name]) for name, array in arrays.items()]
    schema = pa.schema(fields, metadata={"sweep": str(values["name"]), "warning": WARNING})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_arrays(list(arrays.values()), schema=schema), buffer)
    try:
        (path / "plots").mkdir(exist_ok=True)
        files.write_whole(path / "sweep.jsonl", lines)
        files.write_whole(path / "sweep.parquet", buffer.getvalue())
        files.write_whole(path / "sweep.txt", "\n".join(_text(rows)).encode() + b"\n")
        for kind, picture in study_plots.sweep(str(values["name"]), rows).items():
            files.write_whole(path / "plots" / f"sweep.{kind}", picture)
    except OSError as error:
        raise StudyFailed(f"{path}: cannot be written any more ({error.strerror or error}); all points are done") from error


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else json_text.dumps(value)


def _shown_columns(row: Mapping[str, Any]) -> list[str]:
    return ["point", *(name for name in row if name.startswith("set.")), "seed", "accuracy", "epsilon", f"{MARK}.training_loss"]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = _shown_columns(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [*table, "", f"accuracy on {rows[0]['measured_on']}; {'; '.join(_prices(rows))}", WARNING]


def _prices(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the column of epsilon means; a sweep may hold points of several deltas, and points without privacy."""
    deltas = sorted({row["delta"] for row in rows} - {None})
    said = [f"epsilon, if deployed, at delta = {' or '.join(map(repr, deltas))}"] if deltas else []
    without = [row["point"] for row in rows if row["delta"] is None]
    if not without:
        return said
    return [*said, f"points {', '.join(without)}: {NO_GUARANTEE}" if deltas else NO_GUARANTEE]


def _tell(path: Path, rows: Sequence[Mapping[str, Any]], json: bool, how: How) -> None:
    if json:
        console.print_json({"folder": str(path), "points": list(rows), "warning": WARNING})
        return
    if how.quiet:
        return
    names = _shown_columns(rows[0])
    table = Table(*(name.removeprefix("set.").replace(f"{MARK}.", "simulation only: ") for name in names), box=None)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    console.out.print(table, highlight=False)
    console.out.print("\n".join(_text(rows)[-2:]), highlight=False, soft_wrap=True)
    console.out.print(f"results: {path}", highlight=False, soft_wrap=True)
