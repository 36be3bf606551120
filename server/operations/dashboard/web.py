"""The dashboard's addresses, and who may open which: without a session there is the login, and the style sheet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from importlib import resources
from typing import Final
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fedrho.server.operations.dashboard.guards import LARGEST_BODY, Guard
from fedrho.server.operations.dashboard.pages import NoSuchPage, Pages
from fedrho.server.operations.dashboard.sessions import Session, Sessions, TooManyGuesses
from fedrho.server.operations.dashboard.sources import Source

STATIC: Final = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
BODY_SECONDS: Final = 5.0
FIELDS: Final = 8
WRONG: Final = "This is not the token of this server. Each start of a server makes a new one."
TOO_MANY: Final = "Too many wrong tokens have been shown here. Wait some seconds, and try again."

Handler = Callable[[Request], Awaitable[Response]]
Opened = Callable[[Request, Session], Awaitable[Response]]


class Web:
    """`worker` has one thread, on which everything slow happens in turn."""

    def __init__(self, source: Source, sessions: Sessions, pages: Pages, worker: Executor, secure: bool, port: int) -> None:
        self._source, self._sessions, self._pages, self._worker = source, sessions, pages, worker
        self._secure = secure
        self._cookie = f"fedrho-{port}"  # cookies do not tell ports of one machine apart
        folder = resources.files(__package__) / "static"
        self._static = {name: (folder / name).read_bytes() for name in STATIC}

    def app(self, hosts: Iterable[str]) -> ASGIApp:
        routes = [
            Route("/", self._for_operators(self._overview)),
            Route("/runs/{name}", self._for_operators(self._run)),
            Route("/runs/{name}/history", self._for_operators(self._history)),
            Route("/runs/{name}/statement.json", self._for_operators(self._statement)),
            Route("/login", self._login_page, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._for_operators(self._logout), methods=["POST"]),
            Route("/static/{name}", self._file),
        ]
        return Guard(Starlette(routes=routes, exception_handlers={404: self._nothing}), hosts)

    # -- pages -----------------------------------------------------------------------------------------------------------

    async def _overview(self, request: Request, session: Session) -> Response:
        now = self._source.look()
        return HTMLResponse(await self._slowly(lambda: self._pages.overview(now, session.form)))

    async def _run(self, request: Request, session: Session) -> Response:
        now, name = self._source.look(), request.path_params["name"]
        return HTMLResponse(await self._slowly(lambda: self._pages.run(now, name, session.form)))

    async def _history(self, request: Request, session: Session) -> Response:
        now, name, number = self._source.look(), request.path_params["name"], request.query_params.get("page", "1")
        if not (number.isascii() and number.isdigit() and len(number) < 7):
            raise NoSuchPage(name)
        return HTMLResponse(await self._slowly(lambda: self._pages.history(now, name, int(number), session.form)))

    async def _statement(self, request: Request, session: Session) -> Response:
        now, name = self._source.look(), request.path_params["name"]
        text = await self._slowly(lambda: self._pages.statement(now, name))
        named = {"content-disposition": f'attachment; filename="{name}-statement.json"'}
        return Response(text, media_type="application/json", headers=named)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            return await self._nothing(request)
        return Response(self._static[name], media_type=STATIC[name])

    async def _nothing(self, request: Request, error: Exception | None = None) -> Response:
        """The same for everybody, so that nobody learns names by asking."""
        return HTMLResponse(self._pages.problem("Nothing here", "There is no such page, or no such run."), 404)

    # -- who is let in ---------------------------------------------------------------------------------------------------

    async def _login_page(self, request: Request) -> Response:
        return HTMLResponse(self._pages.login(""))

    async def _login(self, request: Request) -> Response:
        try:
            name = self._sessions.login(await _field(request, "token"))
        except TooManyGuesses:
            return HTMLResponse(self._pages.login(TOO_MANY), 429)
        if name is None:
            return HTMLResponse(self._pages.login(WRONG), 403)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, name, httponly=True, samesite="strict", secure=self._secure)
        return answer

    async def _logout(self, request: Request, session: Session) -> Response:
        if await _field(request, "form") != session.form:
            return PlainTextResponse("this form came from elsewhere\n", 403)
        self._sessions.logout(request.cookies[self._cookie])
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._cookie, httponly=True, samesite="strict", secure=self._secure)
        return answer

    def _for_operators(self, handler: Opened) -> Handler:
        async def handle(request: Request) -> Response:
            session = self._sessions.known(request.cookies.get(self._cookie, ""))
            if session is None:
                return RedirectResponse("/login", 303)
            try:
                return await handler(request, session)
            except NoSuchPage:
                return await self._nothing(request)

        return handle

    async def _slowly(self, make: Callable[[], str]) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._worker, make)


async def _field(request: Request, name: str) -> str:
    """Of a form; empty where it is missing, said twice, among too many, or does not come in time."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
        values = parse_qs(body[:LARGEST_BODY].decode("utf-8", "replace"), max_num_fields=FIELDS).get(name, [])
    except (TimeoutError, ClientDisconnect, ValueError):
        return ""
    return values[0] if len(values) == 1 else ""
