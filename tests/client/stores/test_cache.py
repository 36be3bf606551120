"""The training cache: what is too old is not read, and not in the file; apps write while devices read."""

from __future__ import annotations

import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrho.client.stores.cache import CachedExamples, TrainingCache, cached_examples
from fedrho.client.stores.checked import DataFileError, Inputs
from fedrho.models.base import ModelSpec
from tests.client.fleet import plan
from tests.client.stores.shelf import SPEC, TEXT, contents, tried

PAIR = ModelSpec("pair", "", (2,), 10, SPEC.build)
HOUR = timedelta(hours=1)
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@dataclass
class Clock:
    now: float = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


def opened(folder: Path, clock: Clock, keep: timedelta = HOUR) -> TrainingCache:
    return TrainingCache(folder / "mine.sqlite", (2,), keep, clock=clock)


def read(folder: Path, clock: Clock, **changes: Any) -> list[int]:
    """The labels that training sees."""
    return sorted(label for label, _ in contents(CachedExamples(folder / "mine.sqlite", Inputs.of(PAIR), clock), **changes))


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def mark(number: float) -> np.ndarray:
    """Features whose bytes can be looked for."""
    return np.array([number, 1.2345678e-30], dtype=np.float32)


def held(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "mine.sqlite")) as database:
        count: int = database.execute("SELECT count(*) FROM examples").fetchone()[0]
        return count


def test_example_is_read_until_its_time_is_over_to_the_second(tmp_path: Path) -> None:
    clock = Clock()
    opened(tmp_path, clock).put([1, 2], 3)
    for seconds, expected in ((0, [3]), (3599, [3]), (3600, []), (1, [])):
        clock.now = NOON.timestamp() + seconds
        assert read(tmp_path, clock) == expected


@pytest.mark.parametrize("by", ["reading", "putting", "forgetting", "opening", "sending to training"])
def test_what_is_too_old_leaves_no_bytes_in_the_file(by: str, tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock)
    for number in range(150):
        cache.put(mark(number), number % 10)
    device = CachedExamples(tmp_path / "mine.sqlite", Inputs.of(PAIR), clock)
    assert mark(7).tobytes() in bytes_of(tmp_path)
    clock.now += 3600
    if by == "reading":
        read(tmp_path, clock)
    elif by == "putting":
        cache.put([0, 0], 0)
    elif by == "forgetting":
        assert cache.forget(NOON + timedelta(seconds=1)) == 150
    elif by == "sending to training":
        pickle.dumps(device)
    else:
        CachedExamples(tmp_path / "mine.sqlite", Inputs.of(PAIR), clock)
    found = bytes_of(tmp_path)
    assert [number for number in range(150) if mark(number).tobytes() in found] == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine.sqlite"]


def test_large_examples_leave_no_bytes_either(tmp_path: Path) -> None:
    """They lie on pages of their own, which are freed as a whole."""
    clock = Clock()
    cache = TrainingCache(tmp_path / "mine.sqlite", (20_000,), HOUR, clock=clock)
    for number in range(1, 6):
        cache.put(np.full(20_000, number * 1.1, dtype=np.float32), number)
    assert cache.forget(NOON + timedelta(seconds=1)) == 5
    found = bytes_of(tmp_path)
    assert [number for number in range(1, 6) if np.full(4, number * 1.1, dtype=np.float32).tobytes() in found] == []


def test_forgetting_takes_what_arose_before_and_keeps_the_rest(tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock)
    for minutes in (30, 20, 10):
        cache.put([minutes, 0], minutes // 10, NOON - timedelta(minutes=minutes))
    assert cache.forget(NOON - timedelta(minutes=20)) == 1
    assert read(tmp_path, clock) == [1, 2]
    assert len(cache) == 2
    assert cache.forget(NOON) == 2
    assert read(tmp_path, clock) == []


def test_example_that_was_too_old_before_it_came_is_not_kept(tmp_path: Path) -> None:
    clock = Clock()
    opened(tmp_path, clock).put(mark(1), 1, NOON - HOUR)
    assert held(tmp_path) == 0


def test_clock_that_went_back_reads_nothing_from_the_future(tmp_path: Path) -> None:
    clock = Clock()
    opened(tmp_path, clock).put([1, 2], 3)
    clock.now -= 365 * 86400
    assert read(tmp_path, clock) == []
    clock.now += 365 * 86400
    assert read(tmp_path, clock) == [3]


def test_shorter_time_to_keep_holds_for_what_is_there(tmp_path: Path) -> None:
    clock = Clock()
    opened(tmp_path, clock).put([1, 2], 3, NOON - timedelta(minutes=30))
    opened(tmp_path, clock, timedelta(minutes=30))
    assert read(tmp_path, clock) == []


def test_example_forgotten_during_training_is_not_in_a_later_batch(tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock)
    for number in range(10):
        cache.put([number, 0], number, NOON - timedelta(minutes=number))
    batches = CachedExamples(tmp_path / "mine.sqlite", Inputs.of(PAIR), clock).batches(plan(batch_size=2))
    first = next(batches).labels.tolist()
    cache.forget(NOON - timedelta(minutes=4))
    rest = [label for batch in batches for label in batch.labels.tolist()]
    assert sorted(rest) == [label for label in range(5) if label not in first]


def test_example_that_expires_during_training_is_not_in_a_later_batch(tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock)
    for number in range(4):
        cache.put([number, 0], number)
    batches = CachedExamples(tmp_path / "mine.sqlite", Inputs.of(PAIR), clock).batches(plan(batch_size=2))
    assert len(next(batches).labels) == 2
    clock.now += 3600
    assert list(batches) == []


def test_empty_cache_is_no_error(tmp_path: Path) -> None:
    opened(tmp_path, Clock())
    assert contents(cached_examples(tmp_path / "mine.sqlite", PAIR)) == []


def test_reader_that_may_not_write_still_reads_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    opened(tmp_path, clock).put([1, 2], 3)
    opened(tmp_path, clock).put([1, 2], 4, NOON - timedelta(minutes=30))
    store = CachedExamples(tmp_path / "mine.sqlite", Inputs.of(PAIR), clock)

    def fail(store: CachedExamples) -> None:
        raise DataFileError("attempt to write a readonly database")

    monkeypatch.setattr(CachedExamples, "_forget_expired", fail)
    clock.now += 1800
    assert [label for label, _ in contents(store)] == [3]
    assert held(tmp_path) == 2


def test_many_examples_are_read_where_no_file_may_be_written(tmp_path: Path) -> None:
    """As in the process that trains: SQLite would sort so many in a temporary file."""
    path = tmp_path / "mine.sqlite"
    TrainingCache(path, (2,), HOUR)
    with closing(sqlite3.connect(path)) as database:
        rows = ((time.time() - 60, bytes(8), 3) for _ in range(200_000))
        database.executemany("INSERT INTO examples (at, features, label) VALUES (?, ?, ?)", rows)
        database.commit()
    reading = (
        "import pickle, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
        "store, plan = pickle.load(sys.stdin.buffer); print(len(next(store.batches(plan)).labels))"
    )
    sent = pickle.dumps((cached_examples(path, PAIR), plan(batch_size=10, max_examples=10)))
    done = subprocess.run([sys.executable, "-c", reading], input=sent, capture_output=True, timeout=60)
    assert (done.stdout, done.returncode) == (b"10\n", 0), done.stderr.decode()


def test_other_database_keeps_its_journal_mode(tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE examples (at, features, label)")
    with pytest.raises(DataFileError, match="some other SQLite file"):
        cached_examples(path, PAIR)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_token_ids_go_in_and_out(tmp_path: Path) -> None:
    cache = TrainingCache(tmp_path / "mine.sqlite", (4,), HOUR, dtype="int32")
    cache.put([1, 2, 49, 0], 2)
    (batch,) = cached_examples(tmp_path / "mine.sqlite", TEXT).batches(plan())
    assert (batch.features.tolist(), batch.features.dtype) == ([[1, 2, 49, 0]], np.dtype(np.int32))
    cache.put([1, 2, 50, 0], 2)
    with pytest.raises(DataFileError, match="features must lie between 0 and 49"):
        contents(cached_examples(tmp_path / "mine.sqlite", TEXT))


def test_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    opened(tmp_path, Clock())
    assert stat.S_IMODE((tmp_path / "mine.sqlite").stat().st_mode) == 0o600


BAD_PUTS: dict[str, tuple[Any, Any, datetime | None]] = {
    "other shape": ([1, 2, 3], 0, None),
    "a number": (1, 0, None),
    "text": (["a", "b"], 0, None),
    "NaN": ([1, float("nan")], 0, None),
    "beyond float32": ([1, 1e300], 0, None),
    "truth values": ([True, False], 0, None),
    "label below": ([1, 2], -1, None),
    "label beyond int32": ([1, 2], 2**31, None),
    "label of a fraction": ([1, 2], 1.5, None),
    "label of a truth value": ([1, 2], True, None),
    "label of NaN": ([1, 2], float("nan"), None),
    "from the future": ([1, 2], 0, NOON + timedelta(seconds=1)),
    "without a time zone": ([1, 2], 0, datetime(2030, 6, 1, 11)),
}


@pytest.mark.parametrize("case", BAD_PUTS)
def test_what_is_no_example_is_not_kept(case: str, tmp_path: Path) -> None:
    features, label, at = BAD_PUTS[case]
    cache = opened(tmp_path, Clock())
    with pytest.raises(ValueError, match=r"features|label|future|time zone|NaN"):
        cache.put(features, label, at)
    assert held(tmp_path) == 0


@pytest.mark.parametrize(
    ("shape", "keep", "dtype"),
    [((0,), HOUR, "float32"), ((2.0,), HOUR, "float32"), ((2,), HOUR, "float64"), ((2,), 0 * HOUR, "int32")],
)
def test_cache_of_nothing_is_refused(shape: tuple[Any, ...], keep: timedelta, dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a cache needs"):
        TrainingCache(tmp_path / "mine.sqlite", shape, keep, dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", ["no database", "another database", "empty file", "cut", "settings gone", "settings damaged", "folder"]
)
def test_file_that_is_no_cache_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    if kind in ("cut", "settings gone", "settings damaged"):
        opened(tmp_path, Clock()).put([1, 2], 3)
    if kind == "no database":
        path.write_bytes(b"not a database at all" * 100)
    elif kind == "another database":
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE examples (at, features, label)")
    elif kind == "empty file":
        path.touch()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "folder":
        path.mkdir()
    else:
        with closing(sqlite3.connect(path)) as database:
            change = "DELETE FROM settings" if kind == "settings gone" else "UPDATE settings SET shape = 'secret'"
            database.execute(change)
            database.commit()
    said = tried(lambda: contents(cached_examples(path, PAIR)))
    assert said.startswith(f"{path}: not a training cache that can be used: ")
    if kind != "empty file":
        assert tried(lambda: opened(tmp_path, Clock())).startswith(f"{path}: ")


def test_missing_file_is_not_made_by_a_device(tmp_path: Path) -> None:
    assert "mine.sqlite" in tried(lambda: cached_examples(tmp_path / "mine.sqlite", PAIR))
    assert list(tmp_path.iterdir()) == []


def test_cache_of_other_examples_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, Clock())
    assert "holds float32 of shape (2,); model 'reader' takes int32" in tried(
        lambda: cached_examples(tmp_path / "mine.sqlite", TEXT)
    )
    with pytest.raises(DataFileError, match=r"holds float32 of shape \(2,\), not float32 of shape \(3,\)"):
        TrainingCache(tmp_path / "mine.sqlite", (3,), HOUR)


def test_features_cut_short_in_the_file_are_noticed(tmp_path: Path) -> None:
    clock = Clock()
    opened(tmp_path, clock).put([1, 2], 3)
    with closing(sqlite3.connect(tmp_path / "mine.sqlite")) as database:
        database.execute("UPDATE examples SET features = x'0000'")
        database.commit()
    with pytest.raises(DataFileError, match=r"mine\.sqlite: "):
        read(tmp_path, clock)


def test_app_writes_while_devices_read(tmp_path: Path) -> None:
    """Two apps put, one forgets, one device reads: every batch is whole, nothing is lost, nobody fails."""
    failures: list[BaseException] = []
    stop = threading.Event()

    def app(first: int) -> None:
        cache = TrainingCache(tmp_path / "mine.sqlite", (2,), HOUR)
        for number in range(first, first + 60):
            cache.put([number, -number], number % 10)

    def forgetful() -> None:
        cache = TrainingCache(tmp_path / "mine.sqlite", (2,), HOUR)
        while not stop.is_set():
            cache.forget(datetime.now(UTC) - HOUR)

    def device() -> None:
        store = cached_examples(tmp_path / "mine.sqlite", PAIR)
        while not stop.is_set():
            for batch in store.batches(plan(step=1)):
                assert (batch.features[:, 0] == -batch.features[:, 1]).all()
                assert (batch.features[:, 0] % 10 == batch.labels).all()

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)

    TrainingCache(tmp_path / "mine.sqlite", (2,), HOUR)
    apps = [threading.Thread(target=guarded, args=(app, first)) for first in (0, 1000)]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (forgetful, device)]
    for thread in (*apps, *others):
        thread.start()
    for thread in apps:
        thread.join(60)
    stop.set()
    for thread in others:
        thread.join(60)
    assert failures == []
    assert held(tmp_path) == 120


def test_two_processes_that_create_one_cache_share_it(tmp_path: Path) -> None:
    line = (
        "import sys; from datetime import timedelta; from pathlib import Path\n"
        "from fedrho.client.stores.cache import TrainingCache\n"
        "TrainingCache(Path(sys.argv[1]), (2,), timedelta(hours=1)).put([1, 2], 3)"
    )
    started = [subprocess.Popen([sys.executable, "-c", line, str(tmp_path / "mine.sqlite")]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert held(tmp_path) == 3


def test_app_killed_at_any_moment_leaves_a_whole_cache(tmp_path: Path) -> None:
    line = (
        "import itertools, sys; from datetime import timedelta; from pathlib import Path\n"
        "from fedrho.client.stores.cache import TrainingCache\n"
        "cache = TrainingCache(Path(sys.argv[1]), (2,), timedelta(seconds=0.05))\n"
        "for number in itertools.count():\n"
        "    cache.put([number, -number], number % 10)\n"
        "    if not number: print('writing', flush=True)\n"
    )
    TrainingCache(tmp_path / "mine.sqlite", (2,), HOUR)
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", line, str(tmp_path / "mine.sqlite")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        contents(cached_examples(tmp_path / "mine.sqlite", PAIR))
        with closing(sqlite3.connect(tmp_path / "mine.sqlite")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ages=st.lists(st.integers(0, 7200), max_size=8), waits=st.lists(st.integers(-4000, 4000), min_size=1, max_size=4))
def test_nothing_is_ever_read_beyond_its_time(ages: list[int], waits: list[int], tmp_path: Path) -> None:
    """Whatever is put, and however the clock moves: what is read is younger than an hour, and what was deleted stays so."""
    (tmp_path / "mine.sqlite").unlink(missing_ok=True)
    clock, gone = Clock(), set()
    cache = opened(tmp_path, clock)
    for number, age in enumerate(ages):
        cache.put([number, 0], 0, NOON - timedelta(seconds=age))
    for wait in (0, *waits):
        clock.now += wait
        offset = clock.now - NOON.timestamp()
        store = pickle.loads(pickle.dumps(CachedExamples(tmp_path / "mine.sqlite", Inputs.of(PAIR), clock)))
        gone |= {number for number, age in enumerate(ages) if age + offset >= 3600 or age >= 3600}
        young = {number for number, age in enumerate(ages) if 0 <= age + offset < 3600} - gone
        assert {int(features[0]) for _, features in contents(store, batch_size=2)} == young
        assert held(tmp_path) == len(ages) - len(gone)
