"""Which key a server has shown, and which epoch: remembered once, on the disk, and held against it ever after."""

from __future__ import annotations

import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from fedrho.client.history import SCHEMA_VERSION, DeviceHistory, HistoryError, ServerChanged
from fedrho.protos.messages import PrivacyTerms
from fedrho.protos.signing import BadKey
from tests.client.fleet import contributions, opened

SERVER, OTHER_SERVER = "fl.example.org:7070", "fl.example.org:7071"
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
RUN, OTHER_RUN = bytes(16), bytes([1]) * 16
TERMS = PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, max_participations=3, min_separation=4, min_period_seconds=0.0)
VERSION_1 = Path(__file__).parent / "data" / "history-1.sqlite"
"""Written by the first schema: RUN at steps 3 and 7, OTHER_RUN at step 2, and a tag of RUN."""


@pytest.fixture
def history(tmp_path: Path) -> DeviceHistory:
    return opened(tmp_path / "device.sqlite")


def pins(path: Path) -> tuple[list[tuple[str, bytes]], list[tuple[bytes, bytes]]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        keys = database.execute("SELECT server, key FROM pins ORDER BY server").fetchall()
        return keys, database.execute("SELECT key, epoch FROM epochs ORDER BY key").fetchall()


def trusts(history: DeviceHistory, server: str, key: bytes, epoch: int) -> bool:
    try:
        history.trust(server, key, epoch)
    except ServerChanged:
        return False
    return True


def test_first_key_of_a_server_is_the_only_one(history: DeviceHistory) -> None:
    assert trusts(history, SERVER, KEY, 1)
    assert trusts(history, SERVER, KEY, 1)
    assert not trusts(history, SERVER, OTHER_KEY, 2)
    assert not trusts(history, SERVER.upper(), OTHER_KEY, 2)
    assert trusts(history, OTHER_SERVER, OTHER_KEY, 1)
    assert trusts(history, SERVER, KEY, 2)


@pytest.mark.parametrize("highest", [1, 255, 256, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_epochs_never_fall_up_to_the_largest(history: DeviceHistory, highest: int) -> None:
    assert trusts(history, SERVER, KEY, 0)
    assert trusts(history, SERVER, KEY, highest)
    assert not any(trusts(history, SERVER, KEY, lower) for lower in {0, 1, highest // 2, highest - 1} - {highest})
    assert trusts(history, SERVER, KEY, highest)


def test_epochs_are_of_the_key_whatever_address_shows_it(history: DeviceHistory) -> None:
    assert trusts(history, SERVER, KEY, 5)
    assert not trusts(history, OTHER_SERVER, KEY, 4)
    assert trusts(history, OTHER_SERVER, KEY, 6)
    assert not trusts(history, SERVER, KEY, 5)


def test_a_refusal_remembers_nothing(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    history = opened(path)
    history.trust(SERVER, KEY, 5)
    before = pins(path)
    for server, key, epoch in ((SERVER, OTHER_KEY, 9), (SERVER, KEY, 4), (OTHER_SERVER, KEY, 4)):
        assert not trusts(history, server, key, epoch)
        assert pins(path) == before
    assert history.record(RUN, 1, TERMS)


def test_the_refusal_says_what_to_do(history: DeviceHistory) -> None:
    history.trust(SERVER, KEY, 5)
    with pytest.raises(ServerChanged, match=rf"^fl\.example\.org:7070: shows another .*{OTHER_KEY.hex()}; ask its operator"):
        history.trust(SERVER, OTHER_KEY, 5)
    with pytest.raises(ServerChanged, match=r"went back to epoch 4 .* after 5; take part again when"):
        history.trust(SERVER, KEY, 4)


def test_a_key_that_a_person_names_takes_the_place_of_the_first(history: DeviceHistory) -> None:
    history.trust(SERVER, KEY, 5)
    history.pin(SERVER, OTHER_KEY)
    assert trusts(history, SERVER, OTHER_KEY, 1)
    assert not trusts(history, SERVER, KEY, 6)
    history.pin(OTHER_SERVER, KEY)
    assert not trusts(history, OTHER_SERVER, KEY, 4)  # its epochs are not forgotten
    assert not trusts(history, OTHER_SERVER, OTHER_KEY, 9)


@pytest.mark.parametrize("key", [b"", KEY[:31], KEY + b"\0", bytes(32)])
def test_what_is_no_key_is_not_remembered(tmp_path: Path, key: bytes) -> None:
    history = opened(tmp_path / "device.sqlite")
    with pytest.raises(BadKey):
        history.trust(SERVER, key, 1)
    with pytest.raises(BadKey):
        history.pin(SERVER, key)
    assert pins(tmp_path / "device.sqlite") == ([], [])


@pytest.mark.parametrize("epoch", [-1, 2**64])
def test_an_epoch_that_the_wire_cannot_carry_is_an_error(tmp_path: Path, epoch: int) -> None:
    with pytest.raises(OverflowError):
        opened(tmp_path / "device.sqlite").trust(SERVER, KEY, epoch)
    assert pins(tmp_path / "device.sqlite") == ([], [])


def test_trust_outlives_the_process(tmp_path: Path) -> None:
    first = opened(tmp_path / "device.sqlite")
    first.trust(SERVER, KEY, 5)
    first.close()
    again = opened(tmp_path / "device.sqlite")
    assert not trusts(again, SERVER, OTHER_KEY, 5)
    assert not trusts(again, SERVER, KEY, 4)


@pytest.mark.parametrize("lock", ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_new_file_that_a_rival_holds_is_waited_for(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "device.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as rival, ThreadPoolExecutor() as pool:
        rival.execute(lock)
        rival.execute("SELECT * FROM sqlite_schema").fetchall()
        opening = pool.submit(opened, path)
        time.sleep(0.3)
        assert not opening.done()
        rival.execute("ROLLBACK")
        opening.result(30).trust(SERVER, KEY, 1)


def test_file_of_the_first_schema_keeps_what_it_remembers(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    shutil.copyfile(VERSION_1, path)
    history = opened(path)
    assert contributions(path) == [(OTHER_RUN, 2), (RUN, 3), (RUN, 7)]
    assert history.tag(RUN) == bytes(range(16))
    assert not history.allows(RUN, 10, TERMS)
    assert history.record(RUN, 11, TERMS)
    assert history.exhausted(RUN, TERMS)
    assert trusts(history, SERVER, KEY, 1)
    history.close()
    assert not trusts(opened(path), SERVER, OTHER_KEY, 1)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


@pytest.mark.parametrize("table", ["contributions", "examples"])
@pytest.mark.parametrize("version", [-1, 0, 1, SCHEMA_VERSION])
def test_foreign_database_is_left_as_it_was(tmp_path: Path, version: int, table: str) -> None:
    """The training cache of a device `mine` is `mine.sqlite`, and so is its history."""
    path = tmp_path / "device.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE {table} (something TEXT)")
        database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(HistoryError):
        opened(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_schema").fetchall() == [(table,)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",) or version > 0
        assert database.execute("PRAGMA user_version").fetchone() == (version,)
