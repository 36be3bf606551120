"""What a simulated round costs beside bare loops over the same local steps; start-up, memory, populations, two workers.

    python benchmarks/simulation.py [cnn] [digits] [start] [population] [processes] [--passes N]

Prints; asserts nothing. All sides of a ratio are measured in this run, in passes that take turns, on one TensorFlow thread; a
ratio is that of the best passes, and the median of those of passes that follow one another. Figures of other frameworks come
from `peers.toml`: they were measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS: dict[str, Any] = tomllib.loads((HERE / "peers.toml").read_text())
POPULATIONS = (10**2, 10**3, 10**4, 10**5, 10**6)
Work = Callable[[], object]


def timed(work: Work) -> tuple[float, float]:
    """Seconds of CPU and of the wall clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def in_turns(sides: dict[str, Work], passes: int, warm: int = 2) -> dict[str, list[tuple[float, float]]]:
    """Every side in every pass, in another order in every second one."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(warm):
        for work in sides.values():
            work()
    for number in range(passes):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            found[name].append(timed(sides[name]))
    return found


def show(title: str, found: dict[str, list[tuple[float, float]]], unit: str, scale: float) -> None:
    """CPU and wall time, and what the first row is of each: by the best passes, and by the median of passes that follow."""
    print(f"== {title}")
    print(f"   {'':<46} {'CPU ' + unit:>8} {'best':>8} {'wall':>8}   first row / this: best (median), CPU; wall")
    first = next(iter(found.values()))
    for name, passes in found.items():
        cpu, wall = ([one[kind] * scale for one in passes] for kind in (0, 1))
        best = min(one[0] for one in first) * scale / min(cpu)
        by_cpu, by_wall = (
            statistics.median(one[kind] / other[kind] for one, other in zip(first, passes, strict=True)) for kind in (0, 1)
        )
        print(
            f"   {name:<46} {statistics.median(cpu):>8.2f} {min(cpu):>8.2f} {statistics.median(wall):>8.2f}   "
            f"{best:.2f} ({by_cpu:.2f}); {by_wall:.2f}"
        )


def show_peers(name: str) -> None:
    peers = PEERS[name]
    print(f"   measured elsewhere, {peers['unit']} ({PEERS['versions']}):")
    for peer, (least, most) in peers["round"].items():
        memory, start = (peers.get(key, {}).get(peer) for key in ("peak_gb", "start_s"))
        more = f"{memory:g} GB, first round after {start} s" if memory else ""
        print(f"     {peer:<44} {f'{least:g} - {most:g}':<14} {more}")
    print()


def measure_cnn(passes: int) -> None:
    """50 of 500 clients with 100 made-up examples each, batches of 20, one epoch; clip, grid, noise of a tree."""
    from _simulated import bare_loop, simulation, start_of

    with cnn() as (task, work, dataset):
        from fedrho.simulations.engines.serial import Serial

        engine = Serial(work, dataset)
        whole = simulation(task, engine, work.plan.size)
        weights, devices = start_of(work.plan.size), list(range(50))
        sides: dict[str, Work] = {
            "a simulated round: 50 clients, DP-FTRL": whole.step,
            "  its local training, clip and sum alone": lambda: engine.train(1, weights, devices),
            "bare loop: a compiled step a batch, no DP": bare_loop(work, dataset, devices),
        }
        show("CNN of 1.2 million weights, a round of 50 clients", in_turns(sides, passes, warm=1), "s", 1.0)
        show_peers("cnn")


@contextmanager
def cnn() -> Iterator[Any]:
    from _simulated import cnn_in, task_of, workload

    from fedrho.models.saved import add_saved
    from fedrho.simulations.data.base import DataSource
    from fedrho.simulations.data.catalogue import open_data

    with tempfile.TemporaryDirectory() as folder:
        path = cnn_in(Path(folder))
        task = task_of(add_saved(path).name, population=500, goal=50, batch=20)
        source = DataSource.of({"name": "made-up", "shape": [28, 28, 1], "classes": 62, "devices": 500, "examples": 100})
        work = workload(task, source, path)
        yield task, work, open_data(source)


def measure_digits(passes: int) -> None:
    """All 100 clients of scikit-learn's digits, Dirichlet(1), batches of 10, one epoch."""
    from _simulated import bare_loop, bare_numpy, numpy_loop, simulation, start_of

    task, work, dataset = digits()
    from fedrho.simulations.engines.serial import Serial

    engine = Serial(work, dataset)
    whole = simulation(task, engine, 650)
    weights, devices = start_of(650), list(range(100))
    sides: dict[str, Work] = {
        "a simulated round: 100 clients, DP-FTRL": whole.step,
        "  its local training, clip and sum alone": lambda: engine.train(1, weights, devices),
        "bare loop: a compiled step a batch, no DP": bare_loop(work, dataset, devices),
        "bare numpy, client after client, no DP": numpy_loop(work, dataset, devices),
        "bare numpy, vectorised over clients, no DP": bare_numpy(work, dataset, devices),
    }
    show("logistic regression on digits, a round of 100 clients", in_turns(sides, 6 * passes, warm=4), "ms", 1000.0)
    show_peers("digits")


def digits(devices: int = 100, name: str = "digits", **options: object) -> tuple[Any, Any, Any]:
    from _simulated import task_of, workload

    from fedrho.simulations.data.base import DataSource
    from fedrho.simulations.data.catalogue import open_data

    source = DataSource.of({"name": name, "devices": devices, **options})
    task = task_of("digits-logistic", devices, 100, batch=10)
    return task, workload(task, source), open_data(source)


def measure_start(_passes: int) -> None:
    """From the start of a process to its first release, and what it then holds at most."""
    print("== start-up, to the end of the first round, in a process of its own")
    for name in ("cnn", "digits"):
        found = in_a_process("first", name)
        print(f"   {name:<46} {found['wall']:>8.1f} s wall, {found['cpu']:.1f} s CPU, {found['peak']:.0f} MiB at its peak")
    print()


def measure_population(_passes: int) -> None:
    """100 of so many devices a round, with 20 drawn digits each."""
    print("== 100 of N virtual devices a round, 20 drawn digits each")
    print(f"   {'N':>10} {'CPU ms a round':>16} {'MiB at its peak':>16} {'s to the first release':>24}")
    for population in POPULATIONS:
        found = in_a_process("grown", str(population))
        print(f"   {population:>10,} {found['round']:>16.2f} {found['peak']:>16.0f} {found['wall']:>24.1f}")
    print()


def in_a_process(*arguments: str) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, str(HERE / "simulation.py"), "--child", *arguments]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    found.setdefault("wall", time.perf_counter() - began)
    return dict(found)


def child(kind: str, value: str) -> None:
    """One of `in_a_process`: its figures as a line of JSON."""
    began = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    if kind == "first" and value == "cnn":
        with cnn() as parts:
            figures = first_rounds(*parts, rounds=0)
    elif kind == "first":
        figures = first_rounds(*digits(), rounds=0)
    else:
        figures = first_rounds(*digits(int(value), "digits-drawn", examples=20), rounds=40)
    figures["wall"] -= began
    print(json.dumps(figures))


def first_rounds(task: Any, work: Any, dataset: Any, rounds: int) -> dict[str, float]:
    from _simulated import simulation

    from fedrho.simulations.engines.serial import Serial

    whole = simulation(task, Serial(work, dataset), work.plan.size)
    whole.step()
    found = {"wall": float(Path("/proc/uptime").read_text().split()[0]), "cpu": time.process_time()}
    passes = [timed(whole.step)[0] for _ in range(rounds)]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {**found, "round": 1000 * statistics.median(passes or [0.0]), "peak": int(status["VmHWM"].split()[0]) / 1024}


def measure_processes(passes: int) -> None:
    """Rounds a second of the CNN on two worker processes and on one."""
    from _simulated import simulation

    from fedrho.simulations.engines.choose import start_engine

    with cnn() as (task, work, _):
        engines = {workers: start_engine("processes", work, workers) for workers in (2, 1)}
        try:
            sides: dict[str, Work] = {
                f"{workers} worker process{'es' * (workers > 1)}": simulation(task, engine, work.plan.size).step
                for workers, engine in engines.items()
            }
            found = in_turns(sides, passes, warm=1)
        finally:
            for engine in engines.values():
                engine.close()
    wall = {name: [one[1] for one in passes] for name, passes in found.items()}
    two, one = wall.values()
    print("== CNN, a round of 50 clients in worker processes, wall clock")
    for name, seconds in wall.items():
        print(f"   {name:<46} {statistics.median(seconds):>8.2f} s")
    print(f"   rounds a second, two against one: {statistics.median(b / a for a, b in zip(two, one, strict=True)):.2f}\n")


PARTS: dict[str, Callable[[int], None]] = {
    "digits": measure_digits,
    "cnn": measure_cnn,
    "start": measure_start,
    "population": measure_population,
    "processes": measure_processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part")
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    from fedrho.models.backend import one_thread

    one_thread()
    if options.child:
        return child(*options.child)
    began = time.monotonic()
    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}\n")
    for name in options.parts or PARTS:
        PARTS[name](options.passes)
        sys.stdout.flush()
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
