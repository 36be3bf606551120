"""The command that makes devices of this machine: `join`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console
from fedrho.console import BadInput

if TYPE_CHECKING:
    from fedrho.client.app import Server
    from fedrho.client.examples import ExampleStore
    from fedrho.client.participant import Prove
    from fedrho.client.transport import ClientTls
    from fedrho.models.base import ModelSpec
    from fedrho.protos.messages import PopulationSpec

DEFAULT_HISTORY = Path(typer.get_app_dir("fedrho")) / "devices"

Source = Callable[["ModelSpec"], "dict[str, ExampleStore]"]


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    data: Annotated[
        str,
        typer.Option(help="`digits` for the demo's data, or an .npz file with arrays x and y for one device of your own."),
    ],
    devices: Annotated[
        str | None, typer.Option(metavar="FIRST-LAST", help="With digits: which devices to be.", show_default="all")
    ] = None,
    of: Annotated[int, typer.Option(min=1, help="With digits: how many devices share the data.")] = 40,
    alpha: Annotated[float, typer.Option(min=0.01, max=1000.0, help="With digits: Dirichlet concentration of the split.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="With digits: seed of the split.")] = 0,
    history: Annotated[
        Path, typer.Option(help="Folder in which each device remembers what it took part in.", show_default="in your home folder")
    ] = DEFAULT_HISTORY,
    tls: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Encrypt, with a folder that has at least ca.crt.", show_default="none")
    ] = None,
    population_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Whom to believe: 64 hex digits, or a file with them.", show_default="the first"),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The device's token, or a folder with one for each.", show_default="none"),
    ] = None,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server to answer at first.")] = 10.0,
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds a server may be away later.")] = 120.0,
) -> None:
    """Be one or more devices: check in, train locally, upload clipped updates, until the run has ended.

    Example: fedrho join 127.0.0.1:7070 --data digits --devices 0-19
    """
    from fedrho.client.app import read_population, run_devices
    from fedrho.client.participant import Outcome

    source = _source(data, devices, of, alpha, seed)
    server = _server(address, tls, population_key)
    spec = asyncio.run(read_population(server, wait))
    examples, models = _fitting(spec, source)
    prove = _provers(tokens, list(examples))
    steps = sum(task.steps for task in spec.tasks if task.model in models)
    with console.StepProgress(steps) as progress:

        def show(name: str, outcome: Outcome) -> None:
            progress.show(outcome.released, f"{name} {outcome.result.value}")

        results = asyncio.run(run_devices(server, examples, models, history, patience, show, prove))
    summary = ", ".join(f"{count} {result.value}" for result, count in sorted(results.items(), key=lambda item: item[0].value))
    console.out.print(f"{len(examples)} devices: {summary}", highlight=False)


def _server(address: str, tls: Path | None, population_key: str | None) -> Server:
    from fedrho.client.app import Server
    from fedrho.keys import population_key as read_key

    _check_address(address)
    return Server(address, _client_tls(tls), None if population_key is None else read_key(population_key))


def _fitting(spec: PopulationSpec, source: Source) -> tuple[dict[str, ExampleStore], set[str]]:
    """Every device's examples, and the models that they fit; raises what the first one raises where they fit none."""
    from fedrho.client.files import DataFileError
    from fedrho.models.zoo import lookup

    examples: dict[str, ExampleStore] = {}
    models: set[str] = set()
    failure: Exception | None = None
    for model in dict.fromkeys(task.model for task in spec.tasks):
        try:
            examples = source(lookup(model))
            models.add(model)
        except (BadInput, DataFileError) as error:
            failure = failure or error
    if failure is not None and not models:
        raise failure
    return examples, models


def _provers(tokens: Path | None, names: list[str]) -> Mapping[str, Prove]:
    """What each device shows to who wants to know it: a token of its own, in the order of the names."""
    if tokens is None:
        return {}
    from fedrho.client.app import prover
    from fedrho.keys import device_token

    files = sorted(tokens.glob("*.token")) if tokens.is_dir() else [tokens]
    if len(files) < len(names):
        raise BadInput(f"--tokens {tokens}: holds {len(files)} tokens, not one for each of {len(names)} devices")
    held = [device_token(path) for path in files[: len(names)]]
    return {name: prover(token.key, token.credential) for name, token in zip(names, held, strict=True)}


def _client_tls(folder: Path | None) -> ClientTls | None:
    if folder is None:
        return None
    from fedrho.keys import client_tls

    return client_tls(folder)


def _check_address(address: str) -> None:
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:]+\]|[^:\s/]+):(\d{1,5})", address)
    if not match or not 0 < int(match[1]) < 65536:
        raise BadInput(f"{address!r} is not HOST:PORT, for example 127.0.0.1:7070")


def _source(data: str, devices: str | None, of: int, alpha: float, seed: int) -> Source:
    """How to get every device's examples once the model is known; what can be refused before is refused here."""
    if data == "digits":
        first, last = _range(devices or f"0-{of - 1}", of)
        return lambda spec: _digits(spec, first, last, of, alpha, seed)
    path = Path(data)
    if not path.is_file():
        raise BadInput(f"--data {data}: no such file; allowed: digits, or an .npz file with arrays x and y")
    return lambda spec: {path.stem: _own_file(path, spec)}


def _digits(spec: ModelSpec, first: int, last: int, of: int, alpha: float, seed: int) -> dict[str, ExampleStore]:
    from fedrho.models.digits import INPUT_SHAPE
    from fedrho.simulations.population import digits

    if spec.input_shape != INPUT_SHAPE:
        raise BadInput(
            f"--data digits: the server trains {spec.name!r}, which takes inputs of shape {spec.input_shape}, not {INPUT_SHAPE}"
        )
    try:
        shares = digits(of, alpha, seed).devices
    except ValueError as error:
        raise BadInput(f"--of: {error}") from error
    return {f"device-{number:03d}": shares[number] for number in range(first, last + 1)}


def _range(text: str, of: int) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < of:
            return first, last
    raise BadInput(f"--devices {text!r}: allowed: FIRST-LAST with 0 <= FIRST <= LAST < {of}")


def _own_file(path: Path, spec: ModelSpec) -> ExampleStore:
    from fedrho.client.files import load_npz

    return load_npz(path, spec)
