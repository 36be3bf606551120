"""The same examples in every ready store, and what a user sees of a bad file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from fedrho.client.examples import ExampleStore
from fedrho.client.stores.cache import TrainingCache, cached_examples
from fedrho.client.stores.checked import DataFileError
from fedrho.client.stores.images import image_examples
from fedrho.client.stores.json_lines import json_lines_examples
from fedrho.client.stores.npz import npz_examples
from fedrho.client.stores.tables import csv_examples, parquet_examples
from fedrho.models.base import ModelSpec
from fedrho.models.zoo import lookup
from tests.client.fleet import plan

SPEC = lookup("digits-logistic")
TEXT = ModelSpec("reader", "texts of four words", (4,), 3, SPEC.build, "int32", 50)
LEVELS = np.random.default_rng(5).integers(0, 256, (7, 64), dtype=np.uint8)
X, Y = (LEVELS / np.float32(255)).astype(np.float32), np.array([0, 9, 1, 8, 2, 7, 9])


def columns(count: int = 64) -> list[str]:
    return [f"pixel {number}" for number in range(count)]


def csv_text(x: Any = X, y: Any = Y, header: list[str] | None = None) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(header or ["label", *columns(len(x[0]))])
    writer.writerows([label, *row] for row, label in zip(np.asarray(x).tolist(), np.asarray(y).tolist(), strict=True))
    return file.getvalue()


def npz_store(folder: Path) -> ExampleStore:
    np.savez(folder / "mine.npz", x=X, y=Y)
    return npz_examples(folder / "mine.npz", SPEC)


def csv_store(folder: Path) -> ExampleStore:
    (folder / "mine.csv").write_text(csv_text())
    return csv_examples(folder / "mine.csv", SPEC)


def parquet_store(folder: Path) -> ExampleStore:
    table = {name: X[:, place] for place, name in enumerate(columns())} | {"label": Y}
    parquet.write_table(pyarrow.table(table), folder / "mine.parquet")
    return parquet_examples(folder / "mine.parquet", SPEC)


def parquet_list_store(folder: Path) -> ExampleStore:
    parquet.write_table(pyarrow.table({"label": Y, "pixels": X.tolist()}), folder / "mine.parquet", row_group_size=3)
    return parquet_examples(folder / "mine.parquet", SPEC)


def json_lines_store(folder: Path) -> ExampleStore:
    lines = [json.dumps({"features": x, "label": y}) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return json_lines_examples(folder / "mine.jsonl", SPEC)


def image_store(folder: Path) -> ExampleStore:
    for number, (levels, label) in enumerate(zip(LEVELS, Y, strict=True)):
        (folder / "mine" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels.reshape(8, 8)).save(folder / "mine" / str(label) / f"{number}.png")
    return image_examples(folder / "mine", SPEC)


def cache_store(folder: Path) -> ExampleStore:
    cache = TrainingCache(folder / "mine.sqlite", (64,), timedelta(days=1))
    for features, label in zip(X, Y, strict=True):
        cache.put(features, int(label))
    return cached_examples(folder / "mine.sqlite", SPEC)


STORES: dict[str, Callable[[Path], ExampleStore]] = {
    "npz": npz_store,
    "csv": csv_store,
    "parquet": parquet_store,
    "parquet with lists": parquet_list_store,
    "json lines": json_lines_store,
    "images": image_store,
    "cache": cache_store,
}


def contents(store: ExampleStore, **changes: Any) -> list[tuple[int, tuple[float, ...]]]:
    """Label and features of every example, in the order in which training sees them."""
    found: list[tuple[int, tuple[float, ...]]] = []
    for batch in store.batches(plan(**changes)):
        assert batch.labels.dtype == np.int32
        flat = batch.features.reshape(len(batch.labels), -1).astype(np.float64).tolist()
        found += [(label, tuple(row)) for label, row in zip(batch.labels.tolist(), flat, strict=True)]
    return found


def tried(make: Callable[[], object]) -> str:
    """What a user sees: the one line of a DataFileError, or nothing."""
    said = ""
    try:
        make()
    except DataFileError as error:
        said = str(error)
    assert "\n" not in said
    return said
