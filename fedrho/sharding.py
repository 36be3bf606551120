"""Processes that take uploads: the command `shard`, and those that `serve --shards` starts beside itself."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console, processes
from fedrho.metrics_ports import MetricsPorts
from fedrho.output_options import Quiet
from fedrho.serving_options import (
    LEAST_MEMORY,
    MIB,
    Connections,
    DeviceCertificate,
    Insecure,
    LogFile,
    LogFormat,
    Memory,
    MetricsHost,
    MetricsPort,
    TlsFolder,
    TracesUrl,
    check_heard,
    log,
    observer,
    server_tls,
)

if TYPE_CHECKING:
    import subprocess

RESTART_SECONDS = 0.5


def shard(
    control: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator is heard; also unix:PATH.")],
    host: Annotated[str, typer.Option(help="Address to listen on for devices.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="Port for devices; 0 takes a free one.")] = 0,
    announce: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where devices reach this shard.", show_default="its port, on the server's host"),
    ] = None,
    tls: TlsFolder = None,
    require_device_certificate: DeviceCertificate = False,
    insecure: Insecure = False,
    upload_memory: Memory = 512,
    max_connections: Connections = 2048,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = None,
    traces: TracesUrl = None,
    log_format: LogFormat = None,
    log_file: LogFile = None,
    quiet: Quiet = False,
) -> None:
    """Take uploads for a server elsewhere: `fedrho serve TASK.toml --shard HOST:PORT`. Holds sums in memory alone.

    Example: fedrho shard 127.0.0.1:7171 --port 7170
    """
    from fedrho.server.allocator import trimmed
    from fedrho.server.hardening import forbid_core_dumps
    from fedrho.server.listen import check_exposure
    from fedrho.server.shard_process import ShardPlace, run_shard

    forbid_core_dumps()
    check_heard("HOST:PORT", control)
    log(log_format, log_file, quiet)
    certificates = server_tls(tls, require_device_certificate, insecure)
    control_tls = None
    if tls is not None and not control.startswith("unix:"):
        from fedrho.keys import shard_tls

        control_tls = shard_tls(tls)
    if certificates is None:
        check_exposure(host, insecure)
        if not control.startswith("unix:"):
            check_exposure(control.rpartition(":")[0], insecure)

    def listening(address: str) -> None:
        if not quiet:
            console.err.print(f"listening on {address} for devices, on {control} for the coordinator", highlight=False)

    def publishing(address: str) -> None:
        if not quiet:
            console.err.print(MetricsPorts(metrics_host, metrics_port or 0).said(address), highlight=False)

    with observer(traces) as told, trimmed():
        place = ShardPlace(
            host=host,
            port=port,
            control=control,
            announce=announce,
            memory=upload_memory * MIB,
            tls=certificates,
            control_tls=control_tls,
            connections=max_connections,
            metrics=None if metrics_port is None else (metrics_host, metrics_port),
            observer=told,
        )
        asyncio.run(run_shard(place, listening, publishing))


def child_options(host: str, tls: Path | None, insecure: bool, certificate: bool, memory: int) -> list[str]:
    """What a shard of this machine is told of what the server was told."""
    options = ["--host", host, "--upload-memory", str(max(LEAST_MEMORY, memory))]
    options += ["--tls", str(tls.resolve())] if tls else ["--insecure"] if insecure else []
    return [*options, "--require-device-certificate"] if certificate else options


@contextmanager
def children(count: int, options: Sequence[str], published: MetricsPorts | None) -> Iterator[list[str]]:
    """Shard processes on this machine while the block runs, each started again when it dies; where they are heard."""
    if count == 0:
        yield []
        return
    folder = Path(tempfile.mkdtemp(prefix="fedrho-"))  # for its owner alone; the path of a socket must be short
    targets = [f"unix:{folder / f'{number}.sock'}" for number in range(count)]

    def start(number: int) -> subprocess.Popen[bytes]:
        own = published.options(number) if published is not None else []
        return processes.start(["shard", targets[number], *options, *own], folder / f"{number}.log")

    over, started = threading.Event(), [start(number) for number in range(count)]

    def mend() -> None:
        while not over.wait(RESTART_SECONDS):
            for number, child in enumerate(started):
                if child.poll() is not None:
                    started[number] = start(number)

    mender = threading.Thread(target=mend, daemon=True)
    mender.start()
    try:
        yield targets
    finally:
        over.set()
        mender.join()
        processes.stop(started)
        shutil.rmtree(folder, ignore_errors=True)
