"""One file from the network: to a temporary name, whole, compared with its checksum, then to its place in one rename.

NAME.part     what has come so far; the next try goes on from there
NAME.wrong    what came whole, but with another checksum: kept aside to be looked at
NAME.lock     held while one process fetches, so that the others wait and then find the file
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedrho.simulations.data.base import DataError

Progress = Callable[[str, int, int], None]
"""Told the file's name, the bytes that are there, and how many there will be (0: unknown)."""

CHUNK = 2**20
TRIES = 3
"""Of one address, where the connection breaks; each goes on where the last one ended."""
TIMEOUT_SECONDS = 30.0
PAUSE_SECONDS = 0.2
LARGEST_ARCHIVE = 16 * 2**30
"""Bytes, where nobody says how large a download is."""
MIRROR = "FEDRHO_MIRROR"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: where it lies in the data folder, what it must be, and where it comes from.

    `sha256` is that of the file as it is kept; None where its authors publish none. `content_sha256` is that of what `content`
    makes of a file: it lets a file in that was packed differently. `made_from` turns what was downloaded into what is kept.
    """

    name: str
    sha256: str | None
    size: int
    urls: tuple[str, ...]
    content: Callable[[Path], str] | None = None
    content_sha256: str | None = None
    made_from: Callable[[Path, Path], None] | None = None

    @property
    def most(self) -> int:
        """Bytes that a server may send: a file may be packed differently, and an archive has any size."""
        return LARGEST_ARCHIVE if self.made_from is not None or not self.size else 2 * self.size + 2**20


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpacked_sha256(path: Path) -> str:
    """Of what a .gz file holds."""
    with gzip.open(path) as file:
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def packed(source: Path, target: Path) -> None:
    """The same bytes at any time, as .gz."""
    with source.open("rb") as plain, target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for chunk in iter(lambda: plain.read(CHUNK), b""):
            file.write(chunk)


def check(file: RemoteFile, path: Path) -> None:
    """Raises DataError where the file is not what it must be."""
    found = _failing(file, path)
    if found:
        raise DataError(f"{path}: sha256 {found[1]}, expected {found[0]}; remove the file to have it fetched anew")


def fetch(file: RemoteFile, folder: Path, progress: Progress | None = None) -> Path:
    """The file in its place, checked; of several processes one fetches. Raises DataError with every address that was tried."""
    target = folder / file.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            if not target.exists():
                _fetch(file, target, progress or (lambda name, done, total: None))
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Between processes; the file stays, because removing it would let two in."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(file: RemoteFile, target: Path, progress: Progress) -> None:
    reasons = []
    for url in addresses(file):
        try:
            _whole(url, file, target, progress)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            reasons.append(f"{url} ({_said(error)})")
        else:
            return
    raise DataError(f"{file.name}: cannot be fetched from {', '.join(reasons)}; without a network, put the file at {target}")


def addresses(file: RemoteFile) -> tuple[str, ...]:
    """A mirror of one's own comes first: a folder on a web server, laid out like the data folder."""
    own = os.environ.get(MIRROR)
    return (f"{own.rstrip('/')}/{file.name}", *file.urls) if own else file.urls


def _whole(url: str, file: RemoteFile, target: Path, progress: Progress) -> None:
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists() and part.stat().st_size > 0
    wrong = _kept(file, part, target) if resumed and part.stat().st_size == file.size else ("", "")
    if wrong:
        _downloaded(url, file, part, progress)
        wrong = _kept(file, part, target)
    if wrong and resumed:  # what was there before may have been of another file
        part.unlink(missing_ok=True)
        _downloaded(url, file, part, progress)
        wrong = _kept(file, part, target)
    if wrong:
        aside = target.with_name(f"{target.name}.wrong")
        part.replace(aside)
        raise ValueError(f"sha256 {wrong[1]}, expected {wrong[0]}; kept as {aside.name}")


def _kept(file: RemoteFile, part: Path, target: Path) -> tuple[str, str] | None:
    """Puts a file that is right into its place; otherwise the checksum that was expected and the one found."""
    made = part
    if file.made_from is not None and _failing(file, part):
        made = target.with_name(f"{target.name}.new")
        try:
            file.made_from(part, made)
        except (OSError, EOFError, ValueError) as error:
            made.unlink(missing_ok=True)
            raise ValueError(f"cannot be unpacked: {_said(error)}") from error
    wrong = _failing(file, made)
    if wrong is None:
        with made.open("rb") as done:
            os.fsync(done.fileno())
        made.replace(target)
    if made != part:
        made.unlink(missing_ok=True)
        if wrong is None:
            part.unlink(missing_ok=True)
    return wrong


def _failing(file: RemoteFile, path: Path) -> tuple[str, str] | None:
    """None where the file is right; otherwise the checksum that was expected and the one found."""
    expected, found = file.sha256, sha256_of(path)
    if expected in (None, found) and file.content is None:
        return None
    if expected == found:
        return None
    if file.content is not None and file.content_sha256 is not None:
        try:
            expected, found = file.content_sha256, file.content(path)
        except (OSError, EOFError, ValueError, KeyError) as error:
            return file.content_sha256, f"none, because it cannot be read ({_said(error)})"
    return None if expected == found else (str(expected), found)


def _downloaded(url: str, file: RemoteFile, part: Path, progress: Progress) -> None:
    """All of it in `part`; raises what the last try raised."""
    for attempt in range(TRIES):
        try:
            if _went_on(url, file, part, progress):
                return
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError):
            if attempt == TRIES - 1 or not (part.exists() and part.stat().st_size):
                raise
        time.sleep(PAUSE_SECONDS)
    raise ConnectionError(f"the connection ended early {TRIES} times; the next try goes on from {part.stat().st_size} bytes")


def _went_on(url: str, file: RemoteFile, part: Path, progress: Progress) -> bool:
    """Adds to what is there what the server has more of; whether that is all."""
    there = part.stat().st_size if part.exists() else 0
    with _opened(url, there) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            there = 0
        total = there + int(response.headers.get("Content-Length") or 0)
        if total == there:
            total = 0
        with part.open("ab" if there else "wb") as out:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                there += len(chunk)
                if there > file.most:
                    part.unlink()
                    raise ValueError(f"it sends more than the {file.most} bytes that the file may have")
                progress(file.name, there, total)
    return there >= total


def _opened(url: str, there: int) -> http.client.HTTPResponse:
    if not url.startswith(("http://", "https://")):
        raise ValueError("not an address that begins with http:// or https://")
    request = urllib.request.Request(url, headers={"User-Agent": "fedrho", **({"Range": f"bytes={there}-"} if there else {})})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        return _opened(url, 0)  # there is as much as the server has, or more: begin anew
    return response


def _said(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", None) or error
    text = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    return str(text).splitlines()[0]
