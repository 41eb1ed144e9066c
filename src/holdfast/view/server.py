"""The server of the pages: it listens on this machine alone, and answers nobody without the token.

A first visit brings the token in its address; it becomes a cookie that no script can read, and the
browser is sent to the same address without it. So no link that people pass on holds it.
"""

from __future__ import annotations

import errno
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import chain
from typing import Any
from urllib.parse import quote, urlencode

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.errors import HoldfastError, InputError
from holdfast.memory import give_back_freed
from holdfast.view import compare, run, runs, sample, samples
from holdfast.view.site import Missing, Query, Site, static

HOST = "127.0.0.1"
LOOK = 1.0  # seconds between two looks for what has changed
Page = Callable[[Site, str, Query], str]
PAGES: dict[str, Page] = {"run": run.page, "samples": samples.page, "sample": sample.page}
PAGES |= {"compare": compare.page, "tradeoff": compare.tradeoff}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NO_TOKEN = (
    "This page is for the one who started holdfast view. Open the link that it printed: it holds a "
    "token, which this browser has not shown."
)


def application(
    site: Site, token: str, port: int, ends: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """The pages, behind the checks of `Guard`; `ends`: whether the server is about to end."""
    lock = threading.Lock()  # pages are drawn one at a time: matplotlib is not for threads

    def listed(request: Request) -> Response:
        return _drawn(site, lambda: runs.page(site, request.query_params), lock)

    def of_run(page: Page) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            name = request.path_params["name"]
            return _drawn(site, lambda: page(site, name, request.query_params), lock)

        return answer

    def csv(request: Request) -> Response:
        rows = samples.csv(site, request.path_params["name"], request.query_params)

        def answer() -> Response:
            first = next(rows)  # what is wrong is said before the file begins
            return StreamingResponse(chain([first], rows), media_type="text/csv")

        return _answered(site, answer, lock)

    async def events(request: Request) -> Response:
        return StreamingResponse(_changes(site, ends), media_type="text/event-stream")

    routes = [
        Route("/", listed),
        Route("/events", events),
        Route("/csv/{name:path}", csv),
        Route("/static/{name}", _static),
        *(Route(f"/{kind}/{{name:path}}", of_run(page)) for kind, page in PAGES.items()),
    ]
    return Guard(Starlette(routes=routes), token, port)


async def _changes(site: Site, ends: Callable[[], bool]) -> AsyncIterator[str]:
    """An event each time that a run has come, gone or gone on, until the server ends."""
    seen = await run_in_threadpool(site.index.state)
    while not ends():
        await anyio.sleep(LOOK)
        now = await run_in_threadpool(site.index.state)
        # a comment, which browsers leave out, finds out whether one still listens
        yield ": nothing new\n\n" if now == seen else "data: changed\n\n"
        seen = now


def _drawn(site: Site, make: Callable[[], str], lock: threading.Lock) -> Response:
    return _answered(site, lambda: HTMLResponse(make()), lock)


def _answered(site: Site, make: Callable[[], Response], lock: threading.Lock) -> Response:
    try:
        with lock:
            return make()
    except Missing as error:
        return HTMLResponse(site.draw("fault.html.j2", fault=str(error)), 404)
    except HoldfastError as error:
        return HTMLResponse(site.draw("fault.html.j2", fault=str(error)), 422)


def _static(request: Request) -> Response:
    try:
        content, kind = static(request.path_params["name"])
    except Missing as error:
        return PlainTextResponse(str(error), 404)
    return Response(content, media_type=kind)


class Guard:
    """What every request has to show before a page is drawn: that it only reads, that it asks for
    this machine by its name, and that it knows the token."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.token = app, token
        names = (HOST, "localhost")
        self.hosts = {f"{name}:{port}" for name in names} | set(names if port == 80 else ())
        self.cookie = f"holdfast-view-{port}"  # cookies know no ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = self._refusal(Request(scope))
        await (refused or self.app)(scope, receive, sent)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that does not go on to a page."""
        if request.method != "GET":
            text = "This server only shows; it takes GET alone."
            return PlainTextResponse(text, 405, {"Allow": "GET"})
        # another name of this machine may be one that someone else made (DNS rebinding)
        if request.headers.get("host", "") not in self.hosts:
            return PlainTextResponse("This server answers by the address 127.0.0.1 alone.", 421)
        if self._known(request.query_params.get("token", "")):
            rest = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
            # with one / at its start, for two are that of another host
            path = "/" + quote(request.scope["path"].lstrip("/"))
            answer = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return answer
        if not self._known(request.cookies.get(self.cookie, "")):
            return PlainTextResponse(NO_TOKEN, 403)
        return None

    def _known(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self.token.encode())


def bound(port: int) -> socket.socket:
    """A socket of this machine at a port; 0: one that is free.

    Raises:
        InputError: the port is taken, or may not be used.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port))
        held.listen()  # so that a browser may be faster than the server
    except OSError as error:
        held.close()
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else error.strerror
        raise InputError(
            f"port {port} {why}; give another one with --port, or leave it out and a free one is "
            "found."
        ) from error
    return held


def serve(site: Site, held: socket.socket, token: str) -> None:
    """Answer until Ctrl-C."""
    give_back_freed()
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False}
    app = application(site, token, held.getsockname()[1], lambda: server.should_exit)
    config = uvicorn.Config(
        app, lifespan="off", server_header=False, timeout_graceful_shutdown=3, **settings
    )
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):  # the usual end
        server.run(sockets=[held])
