"""Examples from tables: CSV, and Parquet. One column is the label, all others are features, in their order."""

from __future__ import annotations

import array
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrho.client.stores.checked import MOST_BYTES, Array, DataFileError, FileExamples, Inputs, bounded, label_number, reason
from fedrho.models.base import ModelSpec

LABEL = "label"
ROWS_AT_ONCE = 4096
NUMERIC = ("halffloat", "float", "double", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
LISTS = ("list", "large_list", "fixed_size_list")


@dataclass(frozen=True)
class Table(FileExamples):
    """`label` names the label's column; `classes` are the names that stand there instead of numbers, in the model's order."""

    label: str = LABEL
    classes: tuple[str, ...] | None = None

    def split(self, columns: Sequence[str]) -> int:
        """The place of the label's column; raises ValueError where the columns are not those that the model takes."""
        count = list(columns).count(self.label)
        if count != 1:
            raise ValueError(f"has {count or 'no'} columns named {self.label!r}; --label says which one is the label")
        if len(columns) - 1 != self.inputs.size:
            needed = f"{self.inputs.size} columns of features besides {self.label!r} for model {self.inputs.model!r}"
            raise ValueError(f"needs {needed}, has {len(columns) - 1}")
        return list(columns).index(self.label)


class CsvExamples(Table):
    """Comma-separated text in UTF-8; the first line names the columns."""

    def read(self) -> tuple[Array, Array]:
        features, labels = array.array("i" if self.inputs.tokens else "f"), array.array("q")
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(bounded(file), strict=True)
            try:
                columns = next(rows, [])
                place = self.split([name.strip() for name in columns])
                for row in rows:
                    if row:
                        self._add(row, len(columns), place, features, labels)
                        self.inputs.check_bytes(len(labels))
            except UnicodeDecodeError as error:
                raise ValueError("not text in UTF-8") from error
            except (csv.Error, ValueError, OverflowError) as error:
                where = f"line {rows.line_num}: " if rows.line_num > 1 else ""
                raise ValueError(f"{where}{reason(error)}") from error
        return np.asarray(features).reshape(-1, *self.inputs.shape), np.asarray(labels)

    def _add(self, row: list[str], columns: int, place: int, features: Any, labels: Any) -> None:
        if len(row) != columns:
            raise ValueError(f"has {len(row)} columns, not {columns}")
        try:
            labels.append(label_number(row.pop(place), self.classes))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"column {self.label!r} {reason(error)}") from error
        try:
            features.extend(map(int if self.inputs.tokens else float, row))
        except (ValueError, OverflowError) as error:
            raise ValueError("a feature is missing or not a number") from error


class ParquetExamples(Table):
    """Columns of numbers, or one column of lists of numbers. Needs pyarrow, the extra `data`."""

    def read(self) -> tuple[Array, Array]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise DataFileError(f"{self.path}: Parquet needs pyarrow; install it with `pip install 'fedrho[data]'`") from error
        try:
            with parquet.ParquetFile(self.path) as file:
                parts = list(self._parts(file))
        except pyarrow.ArrowException as error:
            raise ValueError(f"not a Parquet file that can be read: {reason(error)}") from error
        features, labels = zip(*parts, strict=True) if parts else ([np.empty((0, self.inputs.size))], [np.empty(0, int)])
        return np.concatenate(features).reshape(-1, *self.inputs.shape), np.concatenate(labels)

    def _parts(self, file: Any) -> Iterator[tuple[Array, Array]]:
        """Features of shape (rows, size) and labels, some rows at a time; what is too much is refused before it is unpacked."""
        schema, metadata = file.schema_arrow, file.metadata
        lists = len(schema.names) == 2 and schema.names.count(self.label) == 1 and _has_lists(schema.types)
        place = schema.names.index(self.label) if lists else self.split(schema.names)
        for name, kind in zip(schema.names, schema.types, strict=True):
            if not _numeric(kind) and not (name == self.label and self.classes) and not (lists and name != self.label):
                raise ValueError(f"column {name!r} holds {kind}, not numbers")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        values = sum(group.num_rows for group in groups) * metadata.num_columns
        if lists:  # asked for there alone: over what is damaged in a column's metadata, pyarrow ends the process
            values = sum(group.column(column).num_values for group in groups for column in range(metadata.num_columns))
        if 8 * values > MOST_BYTES:
            raise ValueError(f"unpacks to more than {MOST_BYTES >> 20} MiB")
        for rows in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
            columns = list(rows.columns)
            labels = self._labels(columns.pop(place))
            features = [self._listed(column) if lists else _numbers(column)[:, np.newaxis] for column in columns]
            yield np.concatenate(features, axis=1), labels

    def _listed(self, column: Any) -> Array:
        size = self.inputs.size
        if column.null_count or any(len(one) != size for one in column):
            raise ValueError(f"the column of features needs lists of {size} numbers for model {self.inputs.model!r}")
        return _numbers(column.flatten()).reshape(-1, size)

    def _labels(self, column: Any) -> Array:
        if self.classes is None:
            return _numbers(column)
        try:
            return np.array([label_number(str(value), self.classes) for value in column.to_pylist()])
        except ValueError as error:
            raise ValueError(f"column {self.label!r} {reason(error)}") from error


def _has_lists(types: list[Any]) -> bool:
    """Whether one of two columns holds lists of numbers."""
    return any(hasattr(kind, "value_type") and _numeric(kind.value_type) and str(kind).startswith(LISTS) for kind in types)


def _numeric(kind: Any) -> bool:
    return str(kind) in NUMERIC


def _numbers(column: Any) -> Array:
    if column.null_count:
        raise ValueError("has missing values")
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def csv_examples(path: Path, spec: ModelSpec, label: str = LABEL, classes: tuple[str, ...] | None = None) -> CsvExamples:
    """The examples of one device; raises DataFileError."""
    return CsvExamples(path, Inputs.of(spec), label, classes)


def parquet_examples(path: Path, spec: ModelSpec, label: str = LABEL, classes: tuple[str, ...] | None = None) -> ParquetExamples:
    """The examples of one device; raises DataFileError, also where pyarrow is missing."""
    return ParquetExamples(path, Inputs.of(spec), label, classes)
