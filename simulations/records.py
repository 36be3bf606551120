"""What a simulation records of each step: one row, as a line of JSON, a row of a Parquet table, and events for TensorBoard.

A number that no real deployment could see carries the mark `simulation_only` in its name, wherever it is written.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrho.simulations.state import StepRecord

MARK = "simulation_only"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One number of a row: its name in the flat forms, its kind, its unit, and what it means."""

    name: str
    kind: type
    unit: str
    meaning: str

    @property
    def simulation_only(self) -> bool:
        return self.name.startswith(f"{MARK}.")


COLUMNS = (
    Column("step", int, "steps", "releases so far"),
    Column("attempt", int, "attempts", "the attempt of this step that was released"),
    Column("virtual_seconds", float, "virtual seconds", "when it was released, since the start"),
    Column("counted", int, "devices", "whose updates are in the sum"),
    Column("seats", int, "devices", "that had a seat in the attempt that was released"),
    Column("dropped", int, "devices", "that had their chance and did not come"),
    Column("abandoned", int, "attempts", "of this step that missed their deadline"),
    Column("rho", float, "zCDP", "price of everything released so far, if this were deployed; none under Poisson sampling"),
    Column("epsilon", float, "at the task's delta", "the same as epsilon; under Poisson sampling where accuracy is measured"),
    Column("node_stddev", float, "weights", "standard deviation of one node's noise in the mean"),
    Column("sum_stddev", float, "weights", "standard deviation of the noise in the sum of all means so far"),
    Column("mean_norm", float, "weights, L2", "of the mean that was released"),
    Column("held_out.accuracy", float, "share", "of the labels of examples of no device that are guessed; of those that count"),
    Column("held_out.loss", float, "nats", "mean cross-entropy of these labels"),
    Column("held_out.examples", int, "examples", "of no device, which these two are measured on"),
    Column("simulation_only.training_loss", float, "nats", "mean over devices of their loss in local training"),
    Column("simulation_only.update_norm_median", float, "weights, L2", "of the updates before clipping"),
    Column("simulation_only.update_norm_largest", float, "weights, L2", "of the updates before clipping"),
    Column("simulation_only.clipped_share", float, "share", "of the updates that were clipped"),
    Column("simulation_only.failed", int, "devices", "whose training failed, as by a loss that is not finite; they sent zeros"),
    Column("simulation_only.examples", int, "examples", "that the counted devices hold"),
    Column("simulation_only.client_accuracy_mean", float, "share", "over some devices, of each one's own examples recognised"),
    Column("simulation_only.client_accuracy_lowest_tenth", float, "share", "a tenth of these devices is at or below it"),
    Column("simulation_only.client_accuracy_highest_tenth", float, "share", "a tenth of these devices is at or above it"),
)


@dataclass(frozen=True)
class Measured:
    """The weights of a step on examples of no device."""

    accuracy: float
    loss: float
    examples: int


@dataclass(frozen=True)
class Clients:
    """The weights of a step on the examples that some devices hold: what no server can know."""

    mean: float
    lowest_tenth: float
    highest_tenth: float


def row(record: StepRecord, epsilon: float | None, measured: Measured | None = None, clients: Clients | None = None) -> Row:
    """A step in nested form; numbers that are not there are None."""
    only = record.simulation_only
    return {
        "step": record.step,
        "attempt": record.attempt,
        "virtual_seconds": _known(record.seconds),
        "counted": record.counted,
        "seats": record.seats,
        "dropped": record.dropped,
        "abandoned": record.abandoned,
        "rho": _known(record.rho),
        "epsilon": _known(epsilon),
        "node_stddev": record.node_stddev,
        "sum_stddev": record.sum_stddev,
        "mean_norm": record.mean_norm,
        "held_out": dataclasses.asdict(measured) if measured else None,
        MARK: {
            "training_loss": _known(only.loss),
            "update_norm_median": _known(only.median_norm),
            "update_norm_largest": _known(only.largest_norm),
            "clipped_share": _known(only.clipped_share),
            "failed": only.failed,
            "examples": only.examples,
            **({f"client_accuracy_{name}": value for name, value in dataclasses.asdict(clients).items()} if clients else {}),
        },
    }


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def line(values: Row) -> bytes:
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def rows(content: bytes) -> list[Row]:
    """Of the whole lines in `content`; raises ValueError for what is no row."""
    end = content.rfind(b"\n") + 1
    return [json.loads(text) for text in content[:end].splitlines()]


def flat(values: Row) -> dict[str, Any]:
    """By the names of COLUMNS, every one of them; None where a step has none."""
    return {column.name: _inside(values, column.name.split(".")) for column in COLUMNS}


def _inside(values: Any, names: Sequence[str]) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def parquet(steps: Iterable[Row], about: Mapping[str, str]) -> bytes:
    """A table of all steps; each column's metadata say its unit, its meaning, and whether it exists in simulations only."""
    import io

    import pyarrow as pa
    import pyarrow.parquet

    flattened = [flat(values) for values in steps]
    kinds = {int: pa.int64(), float: pa.float64()}
    fields = [
        pa.field(
            column.name,
            kinds[column.kind],
            metadata={"unit": column.unit, "meaning": column.meaning, MARK: "true" if column.simulation_only else "false"},
        )
        for column in COLUMNS
    ]
    schema = pa.schema(fields, metadata=dict(about))
    arrays = [pa.array([values[column.name] for values in flattened], kinds[column.kind]) for column in COLUMNS]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer)
    return buffer.getvalue()
