"""The rows of a simulation as events for TensorBoard, by its own record writer. Times are virtual: equal runs, equal bytes."""

from __future__ import annotations

import io

from fedrho.simulations.records import COLUMNS, Row, flat

FILE = "events.out.tfevents.0.fedrho"
"""The name that TensorBoard looks for, without the time and the host that are usual in it."""
ABOUT_A_STEP = ("step", "virtual_seconds")
GROUPS = {
    "rho": "privacy",
    "epsilon": "privacy",
    "node_stddev": "noise",
    "sum_stddev": "noise",
    "mean_norm": "noise",
}


def tag(name: str) -> str:
    """What TensorBoard calls a column: `group/name`."""
    return name.replace(".", "/") if "." in name else f"{GROUPS.get(name, 'round')}/{name}"


def beginning() -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _record(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())


def of_row(row: Row) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = flat(row)
    shown = [
        Summary.Value(tag=tag(column.name), simple_value=values[column.name])
        for column in COLUMNS
        if values[column.name] is not None and column.name not in ABOUT_A_STEP
    ]
    event = Event(wall_time=values["virtual_seconds"] or 0.0, step=values["step"], summary=Summary(value=shown))
    return _record(event.SerializeToString(deterministic=True))


def _record(data: bytes) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(data)
    return buffer.getvalue()
