"""A real PostgreSQL server in a temporary folder, on a unix socket alone, for as long as a block lasts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"
"""PostgreSQL refuses to run as root; Debian's package brings this user."""


def binaries() -> Path | None:
    """The newest of Debian's folders of them, or where the PATH has them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def server() -> Iterator[str]:
    """The URL of a database in it."""
    place = binaries()
    assert place is not None
    folder = Path(tempfile.mkdtemp(prefix="fedrho-pg-", dir="/tmp"))  # short, as names of sockets have to be
    if os.getuid() == 0:
        shutil.chown(folder, USER)
    _run([place / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "-N", "--locale=C", "-E", "UTF8"])
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "shared_buffers=16MB"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        _as_user([place / "postgres", "-D", folder / "data", *options, "-c", "max_connections=60"]),
        stdout=log,
        stderr=log,
        cwd=folder,
    )
    try:
        _wait(place, folder, process)
        yield f"postgresql://{USER}@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # without waiting for clients to leave
        process.wait(30)
        log.close()
        shutil.rmtree(folder)


def new_database(url: str, name: str) -> str:
    """An empty database in the server of `url`."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return url.replace("/postgres?", f"/{name}?")


def _wait(place: Path, folder: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        ready = subprocess.run([place / "pg_isready", "-q", "-h", folder], check=False)
        if ready.returncode == 0:
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError((folder / "log").read_text())


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(_as_user(command), capture_output=True, text=True, check=False, cwd="/tmp", timeout=120)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def _as_user(command: list[str | Path]) -> list[str | Path]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command] if os.getuid() == 0 else command
