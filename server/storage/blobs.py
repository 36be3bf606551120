"""Objects under names, durable once put: a folder of files, or any fsspec URL (`s3://…`).

blobs/SHA256            weights (float32), optimizer state (float64), vectors of noise that later steps need
published/RUN.STEP      what may have been seen outside, see `published`
population              whose blobs these are, where the database lies elsewhere
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedrho.server.release import StoreConflict
from fedrho.server.storage.databases import is_url, shown

BLOBS = "blobs/"
Answer = TypeVar("Answer")


class Objects(Protocol):
    """Raises OSError where the disk or the service fails."""

    @property
    def shown(self) -> str: ...

    def put(self, key: str, data: bytes) -> None:
        """Whole and durable on return; nothing happens when `key` is there already."""
        ...

    def get(self, key: str) -> bytes | None: ...

    def keys(self, prefix: str) -> set[str]: ...

    def delete(self, key: str) -> None:
        """Nothing happens when `key` is not there."""
        ...


class FolderObjects:
    """Files, fsynced with their directories, so that they survive a loss of power once `put` returned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shown = str(folder)

    def put(self, key: str, data: bytes) -> None:
        path = self._folder / key
        self._make(path.parent)
        if path.exists():
            return sync(path.parent)  # whoever put it may have been killed before it was durable
        temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)

    def get(self, key: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self._folder / key).read_bytes()
        return None

    def keys(self, prefix: str) -> set[str]:
        with suppress(FileNotFoundError):
            return {f"{prefix}{name}" for name in os.listdir(self._folder / prefix)}
        return set()

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._folder / key)

    def _make(self, directory: Path) -> None:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync(directory.parent)


class UrlObjects:
    """An object store through fsspec; its writes are atomic, and durable once they are acknowledged."""

    def __init__(self, url: str) -> None:
        """Raises StoreConflict without fsspec or its driver, or for a URL that is none."""
        self.shown = shown(url)
        if "@" in url.partition("://")[2].partition("/")[0]:  # the database remembers the place
            raise StoreConflict(f"{self.shown}: leave user and password out of the URL; the environment has them")
        try:
            import fsspec

            found: tuple[Any, str] = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            raise StoreConflict(f'{self.shown}: this place needs its driver: pip install "fedrho[cluster]"') from error
        except ValueError as error:
            raise StoreConflict(f"{self.shown}: not a place for blobs; allowed: a folder, or s3://BUCKET/PREFIX") from error
        self._files, self._root = found

    def put(self, key: str, data: bytes) -> None:
        with suppress(FileExistsError):
            self._call(lambda: self._files.pipe_file(self._path(key), data, mode="create"))

    def get(self, key: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(self._call(lambda: self._files.cat_file(self._path(key))))
        return None

    def keys(self, prefix: str) -> set[str]:
        with suppress(FileNotFoundError):
            found: list[str] = self._call(lambda: self._files.ls(self._path(prefix.rstrip("/")), detail=False))
            return {f"{prefix}{path.rpartition('/')[2]}" for path in found}
        return set()

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._call(lambda: self._files.rm_file(self._path(key)))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _call(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except OSError:
            raise
        except Exception as error:  # drivers raise what their services do; to us it is a disk that fails
            raise OSError(f"{self.shown}: {type(error).__name__}: {error}") from error


def open_objects(where: str | Path) -> Objects:
    return UrlObjects(str(where)) if is_url(where) else FolderObjects(Path(where))


def name_of(data: bytes) -> tuple[bytes, str]:
    """The digest of a blob, and the key that it is kept under."""
    digest = hashlib.sha256(data).digest()
    return digest, key_of(digest)


def key_of(digest: bytes) -> str:
    return f"{BLOBS}{digest.hex()}"


def read(objects: Objects, digest: bytes) -> bytes:
    """The blob named `digest`; raises StoreConflict when it is missing or another."""
    data = objects.get(key_of(digest))
    if data is None:
        raise StoreConflict(f"{objects.shown}: blob {digest.hex()[:12]} is missing")
    if hashlib.sha256(data).digest() != digest:
        raise StoreConflict(f"{objects.shown}: blob {digest.hex()[:12]} is damaged")
    return data


def sync(directory: Path) -> None:
    with _opened(directory) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
