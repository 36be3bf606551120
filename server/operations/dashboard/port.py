"""The dashboard's port: bound when it is made, and everything behind it loaded when the first caller comes.

It lies beside the operator port, because gRPC's cannot speak HTTP/1. Without certificates it listens on this machine alone; with
those of the operators, whoever calls needs one of them and the token.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from fedrho.server.listen import LOOPBACK, ExposedAddress, PortBusy, ServerTls, check_exposure
from fedrho.server.operations.dashboard.sources import Source

if TYPE_CHECKING:
    import uvicorn

CONNECTIONS: Final = 64
SILENT_SECONDS: Final = 10.0
"""For whoever connects and asks for nothing."""
STOP_SECONDS: Final = 1


class DashboardPort:
    """Make it before anything is written; then use `serving`."""

    def __init__(self, host: str, port: int, tls: ServerTls | None) -> None:
        """Raises PortBusy, or ExposedAddress."""
        if tls is None:
            _check_loopback(host)
        self._host, self._tls = host, tls
        self._socket = _bound(host, port)
        self._port = int(self._socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{'http' if tls is None else 'https'}://{shown}:{self._port}"

    @asynccontextmanager
    async def serving(self, source: Source, token: str, live: bool = True) -> AsyncIterator[None]:
        """Pages about `source` for whoever has the token, until the end of the block."""
        self._socket.listen(CONNECTIONS)
        worker = ThreadPoolExecutor(1, "fedrho-dashboard")
        job = asyncio.create_task(self._serve(source, token, live, worker))
        try:
            yield
        finally:
            await _stopped(job)
            worker.shutdown(wait=False, cancel_futures=True)
            self._socket.close()

    def close(self) -> None:
        """For a port that never served."""
        self._socket.close()

    async def _serve(self, source: Source, token: str, live: bool, worker: ThreadPoolExecutor) -> None:
        await _called(self._socket)
        server = await asyncio.get_running_loop().run_in_executor(worker, self._loaded, source, token, live, worker)
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise

    def _loaded(self, source: Source, token: str, live: bool, worker: ThreadPoolExecutor) -> uvicorn.Server:
        """Takes a second, so it is no work for the event loop."""
        from fedrho.server.operations.dashboard.pages import Pages
        from fedrho.server.operations.dashboard.sessions import Sessions
        from fedrho.server.operations.dashboard.web import Web

        web = Web(source, Sessions(token, time.monotonic), Pages(source, live), worker, self._tls is not None, self._port)
        return _server(web.app((self._host, *LOOPBACK, *_names(self._tls))), self._tls)


async def _called(listening: socket.socket) -> None:
    """Waits for the first caller, who waits in the queue of the port."""
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listening, called.set)
    try:
        await called.wait()
    finally:
        loop.remove_reader(listening)


async def _stopped(job: asyncio.Task[None]) -> None:
    """Raises what had ended it before, if anything did."""
    job.cancel()
    with suppress(asyncio.CancelledError):
        await job


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortBusy(f"cannot listen on {host}:{port}: the address is not ours") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise PortBusy(
            f"cannot listen on {host}:{port}: the port is in use (0 takes a free one), or the address is not ours"
        ) from error
    return made


def _check_loopback(host: str) -> None:
    try:
        check_exposure(host, insecure=False)
    except ExposedAddress:
        raise ExposedAddress(
            f"{host} can be reached from other machines; a dashboard there needs certificates, which `fedrho keys` makes"
        ) from None


# -- certificates ----------------------------------------------------------------------------------------------------------------


def _context(tls: ServerTls) -> ssl.SSLContext:
    """Lets in nobody without a certificate, where there is an authority to check it with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory(prefix="fedrho-") as folder:  # for its owner alone; Python's ssl reads keys from files only
        pair = Path(folder) / "pair.pem"
        pair.touch(0o600)
        pair.write_bytes(tls.key + b"\n" + tls.certificate)
        context.load_cert_chain(pair)
    if tls.root is not None:
        context.load_verify_locations(cadata=tls.root.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _names(tls: ServerTls | None) -> list[str]:
    """What the certificate says this server is called."""
    if tls is None:
        return []
    try:
        extension = x509.load_pem_x509_certificate(tls.certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return [*extension.value.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)]


# -- uvicorn ---------------------------------------------------------------------------------------------------------------------


def _server(app: Any, tls: ServerTls | None) -> uvicorn.Server:
    """uvicorn in somebody else's event loop: signals stay ours, and who calls is not written down."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Closes on callers beyond the limit, and on those that say nothing."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > CONNECTIONS:
                transport.abort()
            else:
                self._waiting = self.loop.call_later(SILENT_SECONDS, self._hurry)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.loop.call_later(SILENT_SECONDS, self.transport.abort)  # who does not take the answer

        def _hurry(self) -> None:
            if getattr(self, "cycle", None) is None:  # no request has begun
                self.transport.abort()

    class Guest(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,  # warnings are about what callers send, who could fill a log with them
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=16 * 1024,
    )
    config.load()
    if tls is not None:
        config.ssl = _context(tls)
    return Guest(config)
