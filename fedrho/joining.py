"""The command that makes devices of this machine: `join`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import completions, console
from fedrho.console import BadInput
from fedrho.output_options import JsonAtEnd, Quiet
from fedrho.places import check_folder
from fedrho.progress import StepProgress
from fedrho.saved_models import add_models
from fedrho.sources import Digits, Reading, Source, find_source, fitting
from fedrho.waiting import WAIT_SECONDS, population_of

if TYPE_CHECKING:
    from fedrho.client.app import Owner, Server
    from fedrho.client.conditions import Conditions
    from fedrho.client.examples import ExampleStore
    from fedrho.client.participant import Prove
    from fedrho.client.service import Held
    from fedrho.client.transport import ClientTls

DEFAULT_HISTORY = Path(typer.get_app_dir("fedrho")) / "devices"


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="`digits`, or for one device: .npz, .csv, .parquet, .jsonl, .txt, .sqlite, folder of images, NAME:ARGUMENT.",
            autocompletion=completions.of(("digits",)),
        ),
    ],
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="With .csv, .parquet, .jsonl: where the label is.", show_default="label")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The names of the model's classes, one a line.", show_default="numbers")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="NAME", help="With .jsonl: where the text is.", show_default="text")] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NUMBER", help="With .jsonl: public words, one a line, or how many hashed.", show_default="none"
        ),
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="FIRST-LAST", help="With digits: which devices to be.", show_default="all")
    ] = None,
    of: Annotated[int, typer.Option(min=1, help="With digits: how many devices share the data.")] = 40,
    alpha: Annotated[float, typer.Option(min=0.01, max=1000.0, help="With digits: Dirichlet concentration of the split.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="With digits: seed of the split.")] = 0,
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A saved Keras model that the server may name. Repeatable.", show_default="none"),
    ] = None,
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
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server to answer at first.")] = WAIT_SECONDS,
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds a server may be away later.")] = 120.0,
    when: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Take part only while this holds, such as idle. Repeatable.",
            show_default="always",
            autocompletion=completions.of(completions.CONDITIONS),
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The owner's limits: privacy terms that are good enough.", show_default="none"),
    ] = None,
    training_memory: Annotated[
        int,
        typer.Option(min=256, max=1 << 20, metavar="MIB", help="Memory of training, 700 MiB of TensorFlow included."),
    ] = 4096,
    training_seconds: Annotated[float, typer.Option(min=1.0, max=86_400.0, help="Time that one training may take.")] = 900.0,
    forever: Annotated[
        bool, typer.Option("--forever", help="Be a service: wait for servers, conditions and further runs, until told to stop.")
    ] = False,
    quiet: Quiet = False,
    json: JsonAtEnd = False,
) -> None:
    """Be one or more devices: check in, train locally, upload clipped updates, until the run has ended.

    Example: fedrho join 127.0.0.1:7070 --data digits --devices 0-19
    """
    from fedrho.client.app import recorded, run_devices
    from fedrho.client.participant import Outcome, Result
    from fedrho.client.service import WHY
    from fedrho.protos.messages import LaterReason

    check_folder("--history", history)
    add_models(model or [])
    source = find_source(data, Digits(devices, of, alpha, seed), Reading(label, classes, text, vocabulary))
    server = _server(address, tls, population_key)
    owner = _owner(limits, when or (), training_memory, training_seconds)
    if tokens is not None and not tokens.exists():
        raise BadInput(f"--tokens {tokens}: no such file or folder; `fedrho keys` makes tokens")
    if forever and json:
        raise BadInput("--json: there is no end at which --forever could print it; leave one of them out")
    if forever:
        _serve(server, source, history, owner, tokens)
        return
    asyncio.run(owner.conditions.hold(lambda why: _say("fedrho", f"waits, {why}")))
    with recorded(history):
        spec = asyncio.run(population_of(server, wait))
    if spec.wants_proof and tokens is None:
        raise BadInput(
            f"--tokens: the server at {address} lets in only devices that show a token of its set; name the file of this one"
        )
    examples, models = fitting((task.model for task in spec.tasks), source)
    prove = _provers(tokens, list(examples))
    steps = sum(task.steps for task in spec.tasks if task.model in models)
    budget = sum(task.terms.rho_budget for task in spec.tasks if task.model in models)
    with StepProgress(steps) as progress:
        said = set[LaterReason]()

        def show(name: str, outcome: Outcome) -> None:
            progress.show(outcome.released, f"{name} {outcome.result.value}, budget rho {budget:g}")
            if outcome.reason in WHY and outcome.reason not in said:
                said.add(outcome.reason)
                progress.note(f"{name}: later, because {WHY[outcome.reason]}")
            if outcome.failure:
                progress.note(f"{name}: {outcome.failure}; zeros were sent instead of an update")

        def waits(name: str, why: str) -> None:
            progress.note(f"{name}: waits, {why}")

        results = asyncio.run(run_devices(server, examples, models, history, patience, show, prove, owner, waits))
    visits = {result.value: count for result, count in sorted(results.items(), key=lambda item: item[0].value)}
    if json:
        console.print_json(joined_values(examples, visits, history))
    elif not quiet:
        summary = ", ".join(f"{count} {result}" for result, count in visits.items())
        console.out.print(f"{len(examples)} device{'s' if len(examples) > 1 else ''}: {summary}", highlight=False)
    if not results[Result.COUNTED]:
        _hint(f"nothing was given; fedrho device ledger --history {history} says what the devices have against it, if anything")


def joined_values(devices: Collection[str], visits: Mapping[str, int], history: Path) -> dict[str, object]:
    return {"devices": len(devices), "visits": visits, "history": str(history)}


def _serve(server: Server, source: Source, history: Path, owner: Owner, tokens: Path | None) -> None:
    """Visits until someone says stop, and says a line about each."""
    from fedrho.client.service import first_contact, run_service, told_at_once, until_told

    with suppress(KeyboardInterrupt):
        spec = asyncio.run(until_told(first_contact(server, history, owner.conditions, _say)))
        with told_at_once(), console.working("loading"):
            examples, _ = fitting((task.model for task in spec.tasks), source)
            held, prove = _held(source, tuple(examples)), _provers(tokens, list(examples))
        _say("fedrho", f"{len(examples)} device{'s' if len(examples) > 1 else ''} at {server.address}")
        asyncio.run(until_told(run_service(server, held, history, owner, _say, prove)))
    _say("fedrho", "stopped; the same command goes on")


def _hint(line: str) -> None:
    if console.said():
        console.err.print(line, highlight=False, markup=False, soft_wrap=True)


def _say(name: str, line: str) -> None:
    _hint(f"{datetime.now():%Y-%m-%d %H:%M:%S} {name}: {line}")


def _held(source: Source, names: tuple[str, ...]) -> Held:
    """What the devices have for a model is found out when a run first asks for it: the next run may train another."""
    from fedrho.client.service import Held
    from fedrho.client.stores.checked import DataFileError
    from fedrho.models.zoo import UnknownModel, lookup

    found: dict[str, dict[str, ExampleStore]] = {}
    told: set[str] = set()

    def fits(model: str) -> bool:
        """Asked again as long as it does not: data that cannot be read now may be there tomorrow."""
        if model not in found:
            try:
                found[model] = source(lookup(model))
            except (BadInput, DataFileError, UnknownModel) as error:
                if model not in told:
                    _say("fedrho", f"no part in runs of {model!r}: {error}")
                told.add(model)
        return model in found

    return Held(names, fits, lambda name, model: found[model][name])


def _owner(limits: Path | None, when: Sequence[str], training_memory: int, training_seconds: float) -> Owner:
    from fedrho.client.app import Owner
    from fedrho.client.limits import NO_LIMITS, LimitsError, parse_limits
    from fedrho.client.training import TrainingLimits

    try:
        allowed = NO_LIMITS if limits is None else parse_limits(limits.read_text(encoding="utf-8"), f"--limits {limits}")
    except (LimitsError, OSError, UnicodeError) as error:
        raise BadInput(str(error) if isinstance(error, LimitsError) else f"--limits {limits}: cannot be read as text") from error
    return Owner(allowed, _conditions(when), TrainingLimits(memory_bytes=training_memory << 20, wall_seconds=training_seconds))


def _conditions(asked: Sequence[str]) -> Conditions:
    from fedrho.client.conditions import BadCondition, Conditions, condition

    try:
        return Conditions([condition(text) for text in asked])
    except BadCondition as error:
        raise BadInput(f"--when {error}") from error


def _server(address: str, tls: Path | None, population_key: str | None) -> Server:
    from fedrho.client.app import Server
    from fedrho.keys import population_key as read_key

    _check_address(address)
    return Server(address, _client_tls(tls), None if population_key is None else read_key(population_key))


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
