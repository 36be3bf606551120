"""The rows of a simulation as events for TensorBoard, by its own record writer. Times are virtual: equal runs, equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

from fedrho.simulations.records import COLUMNS, Row, flat

FILE = "events.out.tfevents.0.fedrho"
"""The name that TensorBoard looks for, without the time and the host that are usual in it."""
TEXTS = "events.out.tfevents.1.fedrho"
"""Read after it: what a finished study says in words."""
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


def of_texts(step: int, texts: Mapping[str, str]) -> bytes:
    """Texts by their tags, as of a step; shown as Markdown, so they stand as code, line for line."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    shown = [
        Summary.Value(
            tag=f"{name}/text_summary",
            metadata=kind,
            tensor=TensorProto(dtype=DT_STRING, string_val=[f"```\n{text}```".encode()]),
        )
        for name, text in texts.items()
    ]
    event = Event(wall_time=0.0, step=step, summary=Summary(value=shown))
    return beginning() + _record(event.SerializeToString(deterministic=True))


def _record(data: bytes) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(data)
    return buffer.getvalue()
