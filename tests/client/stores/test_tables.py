"""CSV and Parquet: the columns that the model takes, or one line that says what is wrong and where, but shows no example."""

from __future__ import annotations

import builtins
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedrho.client.stores import checked, tables
from fedrho.client.stores.checked import DataFileError, class_names
from fedrho.client.stores.tables import csv_examples, parquet_examples
from fedrho.models.base import ModelSpec
from tests.client.fleet import plan
from tests.client.stores.shelf import SPEC, STORES, TEXT, X, Y, columns, contents, csv_text, tried

SMALL = ModelSpec("small", "", (2, 2), 3, SPEC.build)


def csv_said(folder: Path, text: str | bytes, spec: ModelSpec = SPEC, **options: Any) -> str:
    path = folder / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = tried(lambda: csv_examples(path, spec, **options))
    return said.removeprefix(f"{path}: ") if said else said


def parquet_said(folder: Path, table: dict[str, Any], spec: ModelSpec = SPEC, **options: Any) -> str:
    path = folder / "mine.parquet"
    parquet.write_table(pyarrow.table(table), path)
    said = tried(lambda: parquet_examples(path, spec, **options))
    return said.removeprefix(f"{path}: ") if said else said


HEADER = "a,b,label,c,d\n"

BAD_CSV: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "has no columns named 'label'; --label says which one is the label"),
    "only a header": (HEADER, "not examples of one device"),
    "no header": ("1,2,0,3,4\n", "has no columns named 'label'"),
    "two labels": ("a,label,label,c,d\n1,1,1,1,1\n", "has 2 columns named 'label'"),
    "too few columns": ("a,b,label\n1,2,0\n", "needs 4 columns of features besides 'label' for model 'small', has 2"),
    "too many columns": ("a,b,c,d,e,label\n1,2,3,4,5,0\n", "has 5"),
    "short row": (HEADER + "1,2,0,3,4\n1,2,0,3\n", "line 3: has 4 columns, not 5"),
    "long row": (HEADER + "1,2,0,3,4,5\n", "line 2: has 6 columns, not 5"),
    "cut row": (HEADER + "1,2,0,3,4\n1,2", "line 3: has 2 columns"),
    "word": (HEADER + "1,secret,0,3,4\n", "line 2: a feature is missing or not a number"),
    "missing": (HEADER + "1,,0,3,4\n", "line 2: a feature is missing or not a number"),
    "NaN": (HEADER + "1,nan,0,3,4\n", "features hold NaN or infinite values"),
    "infinite": (HEADER + "1,-inf,0,3,4\n", "features hold NaN or infinite values"),
    "beyond float32": (HEADER + "1,1e300,0,3,4\n", "values beyond float32"),
    "label of text": (
        HEADER + "1,2,secret,3,4\n",
        "line 2: column 'label' is not a whole number; classes that have names need a file",
    ),
    "label of a fraction": (HEADER + "1,2,1.0,3,4\n", "line 2: column 'label' is not a whole number"),
    "no label": (HEADER + "1,2,,3,4\n", "line 2: column 'label' is not a whole number"),
    "label below": (HEADER + "1,2,-1,3,4\n", "labels must lie between 0 and 2 for model 'small'"),
    "label above": (HEADER + "1,2,3,3,4\n", "labels must lie between 0 and 2 for model 'small'"),
    "label beyond 64 bits": (HEADER + "1,2,9999999999999999999,3,4\n", "line 2: column 'label'"),
    "open quote": (HEADER + '1,2,0,3,"4\n', "line 2: "),
    "no text": (HEADER.encode() + b"1,2,0,3,\xff\xfe\n", "not text in UTF-8"),
    "nul": (HEADER + "1,2,0,3,\0\n", "line 2: "),
    "a field of a megabyte": (HEADER + "1,2,0,3," + "4" * 2**20, "line 2: field larger than field limit"),
    "binary": (bytes(range(256)) * 10, ""),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_one_line_that_shows_no_example(case: str, tmp_path: Path) -> None:
    text, expected = BAD_CSV[case]
    said = csv_said(tmp_path, text, SMALL)
    assert said
    assert expected in said
    assert "secret" not in said


def test_csv_may_have_spaces_blank_lines_a_mark_and_another_label(tmp_path: Path) -> None:
    text = "\ufeffa, b ,kind,c,d\r\n 1 , 2 , 0 ,3,4\r\n\r\n5,6,2,7,8\r\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8", newline="")
    store = csv_examples(tmp_path / "mine.csv", SMALL, label="kind")
    assert sorted(contents(store)) == [(0, (1, 2, 3, 4)), (2, (5, 6, 7, 8))]
    (batch,) = store.batches(plan())
    assert batch.features.shape == (2, 2, 2)


def test_names_of_classes_mean_their_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("no\nperhaps\nyes\n")
    classes = class_names(tmp_path / "names.txt", SMALL)
    (tmp_path / "mine.csv").write_text(HEADER + "1,2,yes,3,4\n5,6,no,7,8\n")
    assert sorted(contents(csv_examples(tmp_path / "mine.csv", SMALL, classes=classes)))[1][0] == 2
    assert "line 2: column 'label' is none of the names" in csv_said(
        tmp_path, HEADER + "1,2,secret,3,4\n", SMALL, classes=classes
    )
    table = {"label": ["yes", "no"]} | {name: [1.0, 2.0] for name in "abcd"}
    assert parquet_said(tmp_path, table, SMALL, classes=classes) == ""
    assert [label for label, _ in sorted(contents(parquet_examples(tmp_path / "mine.parquet", SMALL, classes=classes)))] == [0, 2]
    assert parquet_said(tmp_path, table, SMALL) == "column 'label' holds string, not numbers"


@pytest.mark.parametrize("text", ["", "no\nyes\n", "no\nno\nyes\n", "no\n\nyes\n", "no\nyes\nperhaps\nmore\n"])
def test_names_of_classes_are_as_many_as_the_model_has(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataFileError, match=r"names\.txt: needs 3 different lines"):
        class_names(tmp_path / "names.txt", SMALL)


def test_token_ids_in_a_table_are_int32_and_within_the_vocabulary(tmp_path: Path) -> None:
    ids = np.array([[1, 2, 3, 0], [49, 0, 0, 0]])
    assert csv_said(tmp_path, csv_text(ids, [0, 2]), TEXT) == ""
    (batch,) = csv_examples(tmp_path / "mine.csv", TEXT).batches(plan())
    assert batch.features.dtype == np.int32
    assert csv_said(tmp_path, csv_text(ids + 1, [0, 2]), TEXT) == (
        "features must lie between 0 and 49, the vocabulary of model 'reader'"
    )
    assert "not a number" in csv_said(tmp_path, csv_text(ids + 0.5, [0, 2]), TEXT)
    assert "not a number" in csv_said(tmp_path, csv_text(ids + 2**40, [0, 2]), TEXT)


@pytest.mark.parametrize("limit", [200, 2000])
def test_file_beyond_the_limit_is_not_read(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "MOST_BYTES", limit)
    assert csv_said(tmp_path, csv_text()) == f"has {len(csv_text())} bytes; allowed: {limit}, a device's share"


@pytest.mark.parametrize("kind", ["csv", "json lines"])
def test_line_without_an_end_is_not_read_whole(kind: str, tmp_path: Path) -> None:
    store: Any = STORES[kind](tmp_path)
    with store.path.open("ab") as file:
        file.truncate(checked.MOST_LINE * 8)  # zeros that take no disk
    tracemalloc.start()
    try:
        assert tried(lambda: contents(store)).endswith(f"a line is longer than {checked.MOST_LINE} characters")
        assert tracemalloc.get_traced_memory()[1] < checked.MOST_LINE * 5
    finally:
        tracemalloc.stop()


def good_table() -> dict[str, Any]:
    return {"label": Y} | {name: X[:, place] for place, name in enumerate(columns())}


BAD_PARQUET: dict[str, tuple[dict[str, Any], str]] = {
    "no label": (dict.fromkeys(columns(), X[:, 0]), "has no columns named 'label'"),
    "too few columns": ({"label": Y, "a": X[:, 0], "b": X[:, 1]}, "needs 64 columns of features besides 'label'"),
    "text": (good_table() | {"pixel 3": ["secret"] * 7}, "column 'pixel 3' holds string, not numbers"),
    "truth values": (good_table() | {"pixel 3": [True] * 7}, "column 'pixel 3' holds bool, not numbers"),
    "missing": (good_table() | {"pixel 3": [None, *[1.0] * 6]}, "has missing values"),
    "missing label": (good_table() | {"label": [None, *[1] * 6]}, "has missing values"),
    "NaN": (good_table() | {"pixel 3": [float("nan")] * 7}, "NaN or infinite"),
    "beyond float32": (good_table() | {"pixel 3": [1e300] * 7}, "beyond float32"),
    "label of a fraction": (good_table() | {"label": Y + 0.5}, "labels must be integers"),
    "label above": (good_table() | {"label": Y + 1}, "labels must lie between 0 and 9"),
    "no rows": ({name: column[:0] for name, column in good_table().items()}, "not examples of one device"),
    "lists of other lengths": ({"label": Y, "x": [[1.0] * (60 + row) for row in range(7)]}, "needs lists of 64 numbers"),
    "missing lists": ({"label": Y, "x": [None, *X[1:].tolist()]}, "needs lists of 64 numbers"),
    "missing numbers in lists": ({"label": Y, "x": [[None] * 64, *X[1:].tolist()]}, "has missing values"),
    "lists of text": ({"label": Y, "x": [["secret"] * 64] * 7}, "needs 64 columns"),
    "lists beside a column": ({"label": Y, "x": X.tolist(), "z": Y}, "needs 64 columns"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet_is_one_line_that_shows_no_example(case: str, tmp_path: Path) -> None:
    table, expected = BAD_PARQUET[case]
    said = parquet_said(tmp_path, table)
    assert expected in said
    assert "secret" not in said


def test_small_parquet_that_unpacks_to_a_large_table_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal rows take next to nothing in the file."""
    rows = 100_000
    table = {name: np.zeros(rows) for name in columns()} | {"label": np.zeros(rows, dtype=np.int64)}
    path = tmp_path / "mine.parquet"
    parquet.write_table(pyarrow.table(table), path)
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(tables, "MOST_BYTES", 2**25)
    before = pyarrow.total_allocated_bytes()
    assert tried(lambda: parquet_examples(path, SPEC)) == f"{path}: unpacks to more than 32 MiB"
    assert pyarrow.total_allocated_bytes() - before < 2**20


def test_parquet_whose_schema_contradicts_its_columns_is_refused_and_does_not_end_the_process(tmp_path: Path) -> None:
    """One changed byte: a column with a place for nulls is said to have none."""
    store: Any = STORES["parquet"](tmp_path)
    whole = store.path.read_bytes()
    nulls, none = (b"\x25" + kind + b"\x18\x07pixel 1" for kind in (b"\x02", b"\x00"))
    assert whole.count(nulls) == 1
    store.path.write_bytes(whole.replace(nulls, none))
    assert tried(lambda: contents(store)).startswith(f"{store.path}: ")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(pyarrow.table(good_table()), tmp_path / "mine.parquet")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    said = tried(lambda: parquet_examples(tmp_path / "mine.parquet", SPEC))
    assert said.endswith("mine.parquet: Parquet needs pyarrow; install it with `pip install 'fedrho[data]'`")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet", "json lines", "cache"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_is_examples_or_a_data_file_error(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    for old in tmp_path.glob("mine.*"):
        old.unlink()
    store: Any = STORES[kind](tmp_path)
    whole = bytearray(store.path.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    for place in data.draw(st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=3)):
        whole[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
    store.path.write_bytes(whole)
    said = tried(lambda: contents(store))
    assert said.startswith(f"{store.path}: ") or not said
