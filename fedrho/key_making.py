"""Making what `fedrho keys` makes: a whole set or nothing of it, and later further tokens. What each file is, `keys.py` says."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from fedrho.certificates import FOR_CLIENTS, FOR_SERVERS, Authority, Pair, name_of
from fedrho.console import BadInput
from fedrho.keys import DEVICE, OFFLINE, OPERATOR, SERVER, SHARD, SHARD_NAME, TOKEN_VERSION, TOKENS, signing_key
from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.protos.signing import SigningKey, issue

HOLDERS: Final = (SERVER, DEVICE, SHARD, OPERATOR, OFFLINE, TOKENS)
FLAT: Final = ("ca.key", "server.key", "device.key")
THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")
DAY_SECONDS: Final = 86400


def make_keys(
    folder: Path, hosts: Sequence[str] = THIS_MACHINE, days: int = 365, devices: int = 0, progress: Progress = unwatched
) -> None:
    """Writes a new set into `folder`, all of it or nothing; raises BadInput where there is one, or a host cannot be named."""
    names = [name_of(host) for host in hosts or THIS_MACHINE]
    there = _found(folder)
    if there:
        raise BadInput(f"{folder}: holds {there[0]} already; choose another folder, or remove the old set first")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
        try:
            _fill(making, names, datetime.now(UTC) + timedelta(days=days))
            _add_tokens(making, devices, days, progress)
            for holder in HOLDERS:
                (making / holder).rename(folder / holder)  # fails where a rival was first, at the first of them
        finally:
            shutil.rmtree(making)


def holds_set(folder: Path) -> bool:
    return bool(_found(folder))


def add_devices(folder: Path, count: int, days: int, progress: Progress = unwatched) -> None:
    """Writes tokens for `count` more devices into a set, and touches nothing else; raises BadInput."""
    with _writing(folder):
        _add_tokens(folder, count, days, progress)


def _fill(folder: Path, names: Sequence[x509.GeneralName], until: datetime) -> None:
    """The set without its tokens."""
    for holder in HOLDERS:
        (folder / holder).mkdir(mode=0o700)
    inside = list(dict.fromkeys((*names, *map(name_of, THIS_MACHINE))))  # through a tunnel, or on the machine itself

    devices = _authority(folder, "ca", "fedrho authority", until, (DEVICE, SERVER))
    _write_pair(folder / SERVER, "server", devices.certify("fedrho server", FOR_SERVERS, names))
    _write_pair(folder / DEVICE, "device", devices.certify("fedrho device", FOR_CLIENTS))

    operators = _authority(folder, "operator-ca", "fedrho operator authority", until, (OPERATOR, SERVER))
    _write_pair(folder / SERVER, "operator-server", operators.certify("fedrho operator server", FOR_SERVERS, inside))
    _write_pair(folder / OPERATOR, "operator", operators.certify("fedrho operator", FOR_CLIENTS))

    shards = _authority(folder, "shard-ca", "fedrho shard authority", until, (SHARD, SERVER))
    _write_pair(folder / SERVER, "coordinator", shards.certify("fedrho coordinator", FOR_CLIENTS))
    _write_pair(folder / SHARD, "shard", shards.certify("fedrho shard", FOR_SERVERS, [*inside, name_of(SHARD_NAME)]))

    _write_signing_key(folder, SERVER, "population", (SERVER, DEVICE))
    _write_signing_key(folder, OFFLINE, "issuer", (OFFLINE, SERVER))


def _authority(folder: Path, name: str, subject: str, until: datetime, holders: Sequence[str]) -> Authority:
    authority = Authority(subject, until)
    pair = authority.pair()
    write_secret(folder / OFFLINE / f"{name}.key", pair.key)
    for holder in holders:
        (folder / holder / f"{name}.crt").write_bytes(pair.certificate)
    return authority


def _write_pair(folder: Path, name: str, pair: Pair) -> None:
    write_secret(folder / f"{name}.key", pair.key)
    (folder / f"{name}.crt").write_bytes(pair.certificate)


def _write_signing_key(folder: Path, owner: str, name: str, holders: Sequence[str]) -> None:
    key = SigningKey.generate()
    write_secret(folder / owner / f"{name}.key", key.to_pem())
    for holder in holders:
        (folder / holder / f"{name}.pub").write_text(f"{key.public.hex()}\n")


def _add_tokens(folder: Path, count: int, days: int, progress: Progress) -> None:
    if not count:
        return
    issuer = signing_key(folder / OFFLINE / "issuer.key")
    expires_at = int(time.time()) + days * DAY_SECONDS
    tokens = folder / TOKENS
    tokens.mkdir(mode=0o700, exist_ok=True)
    numbers = _free_numbers(tokens)
    for _ in watched(range(count), "token", progress, "making tokens for devices"):
        key = SigningKey.generate()
        token = {
            "fedrho_token": TOKEN_VERSION,
            "private_key": key.to_pem().decode(),
            "credential": issue(issuer, key.public, expires_at).hex(),
        }
        _write_token(tokens, numbers, json.dumps(token, indent=2).encode() + b"\n")


def _free_numbers(tokens: Path) -> Iterator[int]:
    taken = [int(path.stem) for path in tokens.glob("*.token") if path.stem.isdecimal()]
    number = max(taken, default=-1)
    while True:
        number += 1
        yield number


def _write_token(tokens: Path, numbers: Iterator[int], data: bytes) -> None:
    """Under the next free number, whoever else is writing; a token is there whole or not at all."""
    descriptor, making = tempfile.mkstemp(prefix=".making-", dir=tokens)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        for number in numbers:
            with suppress(FileExistsError):
                return os.link(making, tokens / f"{number:04d}.token")
    finally:
        os.unlink(making)


def write_secret(path: Path, data: bytes) -> None:
    """Never readable by others, not even for an instant."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _found(folder: Path) -> list[str]:
    return [name for name in (*FLAT, *HOLDERS) if os.path.exists(folder / name)]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror})") from error
