"""The command that makes a whole population of this machine, for tests and load: `fleet`."""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console
from fedrho.output_options import JsonAtEnd, Quiet
from fedrho.places import check_folder
from fedrho.progress import StepProgress
from fedrho.waiting import WAIT_SECONDS, population_of

if TYPE_CHECKING:
    from fedrho.client.fleet import Counts, Fleet, Ledgers
    from fedrho.protos.messages import PopulationSpec
    from fedrho.simulations.population import DrawnDevices

IN_MEMORY = Path("/dev/shm")
SHOW_SECONDS = 1.0


class UpdateKind(Enum):
    trained = "trained"
    random = "random"


def fleet(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    devices: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices to be.")] = 2000,
    examples: Annotated[int, typer.Option(min=1, max=100_000, help="Examples of each device.")] = 20,
    alpha: Annotated[float, typer.Option(min=0.01, max=1000.0, help="Dirichlet concentration of each device's classes.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the examples and of the devices' habits.")] = 0,
    spread: Annotated[float, typer.Option(min=0.0, max=86_400.0, help="Seconds over which the first visits are spread.")] = 10.0,
    day: Annotated[
        float,
        typer.Option(
            min=0.0, max=86_400.0, help="Seconds of a day; devices are there at night alone.", show_default="always there"
        ),
    ] = 0.0,
    drop_out: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of visits that end silently before upload.")] = 0.0,
    slow: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of devices with a slow link.")] = 0.0,
    link: Annotated[float, typer.Option(min=1.0, help="Bytes a second of a slow link.")] = 4096.0,
    update: Annotated[UpdateKind, typer.Option(help="`random` trains nothing: for load alone.")] = UpdateKind.trained,
    connections: Annotated[int, typer.Option(min=1, max=1024, help="Connections that the devices share.")] = 32,
    history: Annotated[
        Path | None, typer.Option(help="Folder for the devices' histories.", show_default="a temporary one, in memory")
    ] = None,
    tls: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Encrypt, with a folder that has at least ca.crt.", show_default="none")
    ] = None,
    population_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Whom to believe: 64 hex digits, or a file with them.", show_default="the first"),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder with a token for each device.", show_default="none")
    ] = None,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server to answer at first.")] = WAIT_SECONDS,
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds a server may be away later.")] = 60.0,
    quiet: Quiet = False,
    json: JsonAtEnd = False,
) -> None:
    """Be a whole population in one process: real clients that train on digits, against a real server.

    Example: fedrho fleet 127.0.0.1:7070 --devices 2000 --day 120 --drop-out 0.1
    """
    from fedrho.client.fleet import Fleet, Habits, name
    from fedrho.client.fleet_training import fleet_training
    from fedrho.client.labels import answering
    from fedrho.joining import _provers, _server

    if history is not None:
        check_folder("--history", history)
    server = _server(address, tls, population_key)
    spec = asyncio.run(population_of(server, wait))
    models = {task.model for task in spec.tasks}
    pools = {model: _pool(model, examples, alpha, seed) for model in models}
    habits = Habits(spread, day, drop_out, slow, link)
    prove = _provers(tokens, [name(number) for number in range(devices)])
    began, cpu = time.monotonic(), time.process_time()
    with (
        _histories(history) as folder,
        fleet_training(
            lambda number, model: pools[model].device(number),
            _random(update),
            lambda number: answering(folder / f"{name(number)}.sqlite"),
        ) as on,
    ):
        whole = Fleet(server, devices, models, on, folder, habits, connections, seed, prove)
        asyncio.run(_run(whole, spec, patience))
        ledgers = whole.ledgers()
    result = _fleet_json(devices, whole.counts, ledgers, time.monotonic() - began, time.process_time() - cpu)
    if json:
        console.print_json(result)
    elif not quiet:
        _print(result)
    if ledgers.lost:
        raise FleetFailed(f"{ledgers.lost} contributions were counted, but are in no history")


class FleetFailed(RuntimeError):
    """A promise was broken that the fleet is there to watch."""


async def _run(fleet: Fleet, spec: PopulationSpec, patience: float) -> None:
    """Shows how far the runs are, and what the devices do, while they do it."""
    steps = sum(task.steps for task in spec.tasks)
    with StepProgress(steps) as progress:
        task = asyncio.create_task(fleet.run(patience))
        before = 0
        while not (await asyncio.wait({task}, timeout=SHOW_SECONDS))[0]:
            counted = fleet.counts.visits["counted"]
            progress.show(fleet.counts.released, f"{_figures(fleet.counts)}, {(counted - before) / SHOW_SECONDS:.0f} uploads/s")
            before = counted
        progress.show(fleet.counts.released, _figures(fleet.counts))
        task.result()


def _figures(counts: Counts) -> str:
    came_of = ", ".join(f"{number} {what}" for what, number in sorted(counts.visits.items()))
    return f"{came_of or 'no visit yet'}; {counts.open} under way"


def _fleet_json(devices: int, counts: Counts, ledgers: Ledgers, seconds: float, cpu: float) -> dict[str, object]:
    return {
        "devices": devices,
        "released": counts.released,
        "steps": counts.steps,
        "visits": dict(sorted(counts.visits.items())),
        "in_ledgers": ledgers.held,
        "lost": ledgers.lost,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _print(result: dict[str, object]) -> None:
    visits = result["visits"]
    assert isinstance(visits, dict)
    came_of = ", ".join(f"{number} {what}" for what, number in visits.items())
    lines = (
        f"{result['devices']} devices: {came_of}",
        f"{result['in_ledgers']} contributions are in the ledgers; {result['lost']} were counted and are in none",
        f"{result['released']} of {result['steps']} steps released in {result['seconds']} s; "
        f"{result['cpu_seconds']} s of CPU and {result['peak_mib']} MiB here",
    )
    for line in lines:
        console.out.print(line, highlight=False, soft_wrap=True)


def _pool(model: str, examples: int, alpha: float, seed: int) -> DrawnDevices:
    """Digits, for the models that take them; made-up examples for any other."""
    from fedrho.models.digits import INPUT_SHAPE
    from fedrho.models.zoo import lookup
    from fedrho.simulations.population import drawn_digits, made_up

    spec = lookup(model)
    if spec.input_shape == INPUT_SHAPE:
        return drawn_digits(examples, alpha, seed)
    return made_up(spec.input_shape, spec.classes, examples, alpha, seed)


@contextmanager
def _histories(named: Path | None) -> Iterator[Path]:
    """The folder named, or one that is gone with the fleet: in memory, because there is nothing to keep on a disk."""
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="fedrho-fleet-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def _random(update: UpdateKind) -> bool:
    return update is UpdateKind.random
