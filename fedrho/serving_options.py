"""The options that `serve` and `shard` share, and what they come to."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho.console import BadInput

if TYPE_CHECKING:
    from fedrho.server.listen import ServerTls
    from fedrho.server.operations.observer import Observer

LEAST_MEMORY = 8
"""MiB for updates on their way."""
MIB = 1024 * 1024

# Panels of the help, of few options each, so that the longest name is whole at 80 columns.
keys_option = partial(typer.Option, rich_help_panel="Encryption and keys")
operators_option = partial(typer.Option, rich_help_panel="Operators and dashboard")
looking_on_option = partial(typer.Option, rich_help_panel="Metrics, traces, logs")
TlsFolder = Annotated[
    Path | None,
    keys_option(metavar="FOLDER", help="Encrypt, with the set that `fedrho keys` made.", show_default="none"),
]
Insecure = Annotated[
    bool,
    keys_option("--insecure", help="Allow an address that other machines can reach, without encryption."),
]
DeviceCertificate = Annotated[
    bool,
    keys_option("--require-device-certificate", help="With --tls: only devices with a certificate of the set."),
]
Memory = Annotated[int, typer.Option(min=LEAST_MEMORY, metavar="MIB", help="Memory for updates on their way, in MiB.")]

Connections = Annotated[
    int, typer.Option("--max-connections", min=1, max=65536, metavar="N", help="Connections of devices that are open at a time.")
]


class Format(Enum):
    text = "text"
    json = "json"


MetricsHost = Annotated[str, looking_on_option(help="Address at which metrics are published.")]
MetricsPort = Annotated[
    int | None,
    looking_on_option(
        metavar="PORT",
        min=0,
        max=65535,
        help="Port for Prometheus; 0 takes a free one.",
        show_default="none",
    ),
]
TracesUrl = Annotated[
    str | None,
    looking_on_option(
        "--traces",
        metavar="URL",
        help="Send traces there, by OTLP over HTTP: fedrho\\[traces].",
        show_default="none",
    ),
]
LogFormat = Annotated[
    Format | None,
    looking_on_option(help="Say in log lines what happens.", show_default="warnings alone, as text"),
]
LogFile = Annotated[
    Path | None,
    looking_on_option(metavar="FILE", help="Where log lines go, for its owner alone.", show_default="standard error"),
]


def log(form: Format | None, path: Path | None, quiet: bool) -> None:
    """Warnings alone, unless a format or a file asks for more; a bar on a terminal says the rest."""
    from fedrho.server.operations import logs

    usual = logging.ERROR if quiet else logging.WARNING
    level = usual if form is None and path is None else logging.INFO
    try:
        logs.configure(logs.LogFormat((form or Format.text).value), path, level)
    except OSError as error:
        raise BadInput(f"--log-file {path}: cannot be written ({error.strerror})") from error


def observer(traces: str | None) -> AbstractContextManager[Observer]:
    """Who is told beside the metrics; raises BadInput for traces that could not be sent."""
    from fedrho.server.operations.observer import Observer

    if traces is None:
        return nullcontext(Observer())
    try:
        from fedrho.server.operations.traces import BadUrl, sent_to

        return sent_to(traces)
    except ImportError as error:
        raise BadInput('--traces: needs OpenTelemetry; install it with `pip install "fedrho[traces]"`') from error
    except BadUrl as error:
        raise BadInput(f"--traces {traces}: {error}") from error


def server_tls(folder: Path | None, require_device_certificate: bool, insecure: bool) -> ServerTls | None:
    if folder is None:
        if require_device_certificate:
            raise BadInput("--require-device-certificate: needs --tls; add it, or leave it out")
        return None
    if insecure:
        raise BadInput("--insecure: contradicts --tls; leave one of them out")
    from fedrho.keys import server_tls

    return server_tls(folder, require_device_certificate)


def check_heard(name: str, address: str) -> None:
    """Where a coordinator and its shard hear each other: HOST:PORT, or unix:PATH."""
    host, _, port = address.rpartition(":")
    if not address.startswith("unix:") and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise BadInput(f"{name} {address}: not HOST:PORT, for example 127.0.0.1:7171, nor unix:PATH")
