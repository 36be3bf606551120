"""Decoded arrays: once, whole, shared, and made anew when anything about them is wrong."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fedrho.simulations.data.base import DataError
from fedrho.simulations.data.cache import Arrays, Cache, data_folder
from fedrho.simulations.data.download import RemoteFile

CONTENT = b"1 2 3"
FILE = RemoteFile("set/numbers.txt", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), ("http://127.0.0.1:9/",))


class Decoder:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, paths: Mapping[str, Path]) -> Arrays:
        self.times += 1
        return {"numbers": np.array(paths["numbers.txt"].read_text().split(), dtype=np.int64)}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    folder = tmp_path / "mine"
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "numbers.txt").write_bytes(CONTENT)
    return Cache(folder)


def numbers(cache: Cache, decoder: Decoder) -> list[int]:
    array = cache.arrays("set", 1, (FILE,), decoder)["numbers"]
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    values: list[int] = array.tolist()
    return values


def npy(cache: Cache) -> Path:
    (found,) = (cache.folder / ".decoded").rglob("numbers.npy")
    return found


def test_decoding_happens_once(cache: Cache) -> None:
    decoder = Decoder()
    assert numbers(cache, decoder) == numbers(cache, decoder) == [1, 2, 3]
    assert decoder.times == 1
    assert {path.name for path in npy(cache).parent.iterdir()} == {"numbers.npy", "manifest.json"}


def test_of_threads_that_come_at_once_one_decodes(cache: Cache) -> None:
    decoder = Decoder()
    threads = [threading.Thread(target=numbers, args=(cache, decoder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoder.times == 1


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone", "no manifest", "empty manifest"])
def test_damaged_arrays_are_decoded_anew(damage: str, cache: Cache) -> None:
    decoder = Decoder()
    numbers(cache, decoder)
    path = npy(cache)
    raw = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(raw[:-3])
        case "changed":
            raw[-1] ^= 1
            path.write_bytes(raw)
        case "gone":
            path.unlink()
        case "no manifest":
            path.with_name("manifest.json").unlink()
        case _:
            path.with_name("manifest.json").write_text("")
    assert numbers(cache, decoder) == [1, 2, 3]
    assert decoder.times == 2


def test_what_a_killed_process_left_is_removed(cache: Cache) -> None:
    decoder = Decoder()
    numbers(cache, decoder)
    folder = npy(cache).parent
    left = folder.with_name(f"{folder.name}.half-written")
    left.mkdir()
    (left / "numbers.npy").write_bytes(b"half")
    (folder / "numbers.npy").unlink()
    assert numbers(cache, decoder) == [1, 2, 3]
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_arrays_serve_without_the_file_that_they_came_from(cache: Cache) -> None:
    decoder = Decoder()
    numbers(cache, decoder)
    (cache.folder / FILE.name).unlink()
    assert numbers(cache, decoder) == [1, 2, 3]
    assert decoder.times == 1


def test_a_file_that_changes_after_it_was_decoded_is_noticed(cache: Cache) -> None:
    numbers(cache, Decoder())
    (cache.folder / FILE.name).write_bytes(b"1 2 4")
    with pytest.raises(DataError, match=f"sha256 .*, expected {FILE.sha256}"):
        numbers(cache, Decoder())


def test_a_file_that_changes_while_it_is_read_is_not_kept(cache: Cache) -> None:
    def decode(paths: Mapping[str, Path]) -> Arrays:
        paths["numbers.txt"].write_bytes(b"4 5 6 7")
        return {"numbers": np.array([4, 5, 6, 7])}

    with pytest.raises(DataError, match=r"numbers\.txt: changed while it was read"):
        cache.arrays("set", 1, (FILE,), decode)
    assert list((cache.folder / ".decoded").rglob("*.npy")) == []


def test_another_version_of_the_decoder_decodes_anew(cache: Cache) -> None:
    decoder = Decoder()
    numbers(cache, decoder)
    cache.arrays("set", 2, (FILE,), decoder)
    assert decoder.times == 2


def test_a_read_only_folder_serves_and_stays_as_it_is(cache: Cache, tmp_path: Path) -> None:
    os.chmod(cache.folder, 0o555)
    try:
        assert numbers(cache, Decoder()) == [1, 2, 3]
        assert {path.name for path in cache.folder.iterdir()} == {"set"}
    finally:
        os.chmod(cache.folder, 0o755)
    assert list((tmp_path / "cache" / "fedrho" / ".decoded").rglob("numbers.npy"))


def test_where_nothing_can_be_written_arrays_are_in_memory(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    os.chmod(cache.folder, 0o555)
    os.chmod(closed, 0o555)
    try:
        assert cache.arrays("set", 1, (FILE,), Decoder())["numbers"].tolist() == [1, 2, 3]
    finally:
        os.chmod(cache.folder, 0o755)
        os.chmod(closed, 0o755)
    assert list(closed.iterdir()) == []


def test_what_cannot_be_decoded_is_told_with_the_file_and_leaves_nothing(cache: Cache) -> None:
    def failing(paths: Mapping[str, Path]) -> Arrays:
        raise ValueError("not what it should be\nat all")

    with pytest.raises(DataError) as refused:
        cache.arrays("set", 1, (FILE,), failing)
    assert str(refused.value) == f"{cache.folder / FILE.name}: not what it should be"
    assert list((cache.folder / ".decoded").rglob("*.npy")) == []


def test_the_data_folder_is_the_one_named_or_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRHO_DATA", str(tmp_path / "here"))
    assert data_folder() == tmp_path / "here"
    monkeypatch.delenv("FEDRHO_DATA")
    assert data_folder() == tmp_path / "cache" / "fedrho"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "fedrho"
