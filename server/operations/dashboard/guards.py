"""In front of every page: which host was asked for, how large a request may be, what a browser may do with the answer.

A page of somebody else whose name suddenly leads to this machine (DNS rebinding) asks for its own host, and is refused. Errors
are fixed texts; who asks is written nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import structlog
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedrho.server.listen import asked_host

LARGEST_BODY: Final = 4096
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none at all, a browser would not say where a form comes from
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "connection": "close",  # one request each: nobody keeps a place with a second one that never ends
}

log = structlog.get_logger("fedrho.dashboard")


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        """`hosts` are names and addresses without a port: a tunnel may well end at another one."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        guarded = _with_headers(send)
        try:
            await (refusal or self._app)(scope, receive, guarded)
        except Exception as error:
            log.error("internal error", kind=type(error).__name__)  # Starlette has answered already

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
        if _host(values.get(b"host", [])) not in self._hosts:
            return PlainTextResponse("this host is not served here; open the address that the server has announced\n", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("there is nothing to do here but look\n", 405)
        if not _foreseen(scope["method"], values):
            return PlainTextResponse("too large\n", 413)
        if scope["method"] == "POST" and not _same_origin(scope["scheme"], values):
            return PlainTextResponse("this form came from elsewhere\n", 403)
        return None


def _host(values: list[bytes]) -> str:
    """Without the port; empty where it is missing or said twice."""
    return asked_host(values[0].decode("latin-1")) if len(values) == 1 else ""


def _foreseen(method: str, values: dict[bytes, list[bytes]]) -> bool:
    """Whether the body, if there is any, is known to be small."""
    lengths = values.get(b"content-length", [])
    if b"transfer-encoding" in values or len(lengths) > 1:
        return False
    length = int(lengths[0]) if lengths and lengths[0].isdigit() else 0
    return length <= (LARGEST_BODY if method == "POST" else 0)


def _same_origin(scheme: str, values: dict[bytes, list[bytes]]) -> bool:
    """Browsers say where a form comes from; what says nothing is no browser, and has no cookie that it was tricked to bring."""
    origins = values.get(b"origin", [])
    return not origins or origins == [scheme.encode() + b"://" + values[b"host"][0]]


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            known: list[Any] = [pair for pair in message.get("headers", []) if pair[0].decode("latin-1").lower() not in HEADERS]
            message = {**message, "headers": [*known, *((name.encode(), text.encode()) for name, text in HEADERS.items())]}
        await send(message)

    return guarded
