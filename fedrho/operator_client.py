"""An operator's end of the operator port. Errors are one line each, and say what to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np

from fedrho.client.transport import ClientTls
from fedrho.console import BadInput
from fedrho.privacy.vectors import FloatVector
from fedrho.protos.codec import MalformedMessage
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.operator_port import OperatorAccess

CALL_SECONDS: Final = 10.0
EXPORT_SECONDS: Final = 600.0
LARGEST_EXPORT: Final = 2**31
"""Coordinates: more than any model of the zoo has, and less than what would exhaust a machine by mistake."""
OPTIONS: Final = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 * 1024 * 1024)]


class ServerGone(BadInput):
    """Nobody answers there, or whoever did is going."""


@dataclass(frozen=True, eq=False)
class Exported:
    """Released weights, and what may be claimed about them."""

    weights: FloatVector = field(repr=False)
    statement: dict[str, Any]


class OperatorClient:
    """Use as a context manager."""

    def __init__(self, access: OperatorAccess, tls: ClientTls | None = None) -> None:
        """Raises BadInput where the port is encrypted and there is nothing to check its certificate with."""
        if access.tls and tls is None:
            raise BadInput(f"the operator port at {access.address} is encrypted; add --tls FOLDER, with what `fedrho keys` made")
        self.address = access.address
        self._metadata = wire.bearer(access.token)
        if tls is None:
            self._channel = grpc.insecure_channel(access.address, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(access.address, tls.credentials(), options=OPTIONS)

    def __enter__(self) -> OperatorClient:
        return self

    def __exit__(self, *details: object) -> None:
        self._channel.close()

    def listing(self) -> wire.Listing:
        return wire.decode_listing(self._unary("ListRuns", b""))

    def watch(self) -> Iterator[wire.Listing]:
        """Now, and whenever something has changed; raises ServerGone when the server goes."""
        with self._translated():
            for data in self._channel.unary_stream(wire.path("WatchRuns"))(b"", metadata=self._metadata):
                yield wire.decode_watched(data)

    def pause(self, run: bytes) -> None:
        self._unary("PauseRun", wire.encode_run("PauseRun", run))

    def resume(self, run: bytes) -> None:
        self._unary("ResumeRun", wire.encode_run("ResumeRun", run))

    def cancel(self, run: bytes) -> None:
        self._unary("CancelRun", wire.encode_run("CancelRun", run))

    def export(self, run: bytes) -> Exported:
        """The latest release."""
        call = self._channel.unary_stream(wire.path("ExportModel"))
        with self._translated():
            parts = call(wire.encode_run("ExportModel", run), timeout=EXPORT_SECONDS, metadata=self._metadata)
            return _assembled(wire.decode_part(data) for data in parts)

    def _unary(self, method: str, request: bytes) -> bytes:
        with self._translated():
            answer: bytes = self._channel.unary_unary(wire.path(method))(request, timeout=CALL_SECONDS, metadata=self._metadata)
            return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise _said(self.address, error) from error
        except MalformedMessage as error:
            raise BadInput(f"{self.address}: does not answer as this version of fedrho expects ({error})") from error


def _assembled(parts: Iterator[wire.Header | bytes]) -> Exported:
    header = next(parts, None)
    if not isinstance(header, wire.Header) or not 0 < header.size <= LARGEST_EXPORT:
        raise MalformedMessage("an export without a header")
    held = bytearray()
    for part in parts:
        if not isinstance(part, bytes) or len(held) + len(part) > 4 * header.size:
            raise MalformedMessage("an export that is not what its header says")
        held += part
    if len(held) != 4 * header.size or hashlib.sha256(held).digest() != header.sha256:
        raise MalformedMessage("an export that ends too soon, or is damaged")
    return Exported(np.frombuffer(held, dtype="<f4").astype(np.float32), _statement(header.statement_json))


def _statement(text: str) -> dict[str, Any]:
    try:
        statement = json.loads(text)
    except (ValueError, RecursionError):
        statement = None
    if not isinstance(statement, dict) or not {"model", "step", "rho"} <= statement.keys():
        raise MalformedMessage("an export without a statement")
    return statement


def _said(address: str, error: grpc.RpcError) -> BadInput:
    code, text = error.code(), error.details()
    meaning: dict[Any, Callable[[], BadInput]] = {
        grpc.StatusCode.UNAVAILABLE: lambda: ServerGone(_gone(address, text)),
        grpc.StatusCode.CANCELLED: lambda: ServerGone(_gone(address, text)),
        grpc.StatusCode.DEADLINE_EXCEEDED: lambda: ServerGone(f"{address}: no answer in time; is it an operator port?"),
        grpc.StatusCode.UNAUTHENTICATED: lambda: BadInput(f"{address}: {text}; each start of a server makes a new one"),
        grpc.StatusCode.UNIMPLEMENTED: lambda: BadInput(f"{address}: not an operator port of this version of fedrho"),
    }
    return meaning.get(code, lambda: BadInput(f"{address}: {text}"))()


def _gone(address: str, text: str) -> str:
    if text == "the server is stopping":
        return f"{address}: {text}"
    return f"no operator port answers at {address}; is `fedrho serve` running there, and with the same certificates?"
