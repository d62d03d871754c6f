"""A page beside a run, over HTTP: on this machine, or to others over TLS and by a token that lets read and no more.

A thread of its own, with an event loop of its own, serves whatever the run's thread does. What has changed is sent to
all who watch as one server-sent event, at most once a second and so seldom that the thread takes no more than
`SHARE` of a core.

Every request is checked in this order: the name by which it came (a page of another site that points its own name at
this machine gets nothing), the token, the method. Answers say that they may not be kept, framed or guessed at.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.responses import StreamingResponse as Streaming
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutlayer.page.live import Live
from cutlayer.report.json_lines import to_json
from cutlayer.transport.address import host_of

SHARE = 0.006
"""Share of a core that the thread may take: the more a look at changes costs, the longer the pause after it."""
EVERY_SECONDS, SELDOM_SECONDS = 1.0, 30.0
"""Seconds between two looks, at least and at most."""
MOST_WATCHERS = 32
MOST_CONNECTIONS = 128
MOST_UNREAD = 16
"""Events that somebody may be behind; then the connection ends, and a browser comes again for the whole."""
BEAT_SECONDS = 15.0
"""Seconds after which something is said to whoever watches, so that nobody between takes the connection for dead."""
END_SECONDS = 5.0
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, repr=False)
class Secured:
    """The TLS files and the token of a page that others can reach. Its repr does not show the token.

    Attributes:
      certificate, key: of the server, PEM files.
      token: who has it may read.
    """

    certificate: Path
    key: Path
    token: str


class Doorkeeper:
    """Lets in who came by a name of this server and, where there is a token, who has it.

    Args:
      app: what is behind it.
      hosts: names and addresses by which it may be asked, without ports.
      token: empty where everybody may read.
      port: names the cookie: a machine has one set of them for all of its ports.
    """

    def __init__(self, app: ASGIApp, hosts: Set[str], token: str, port: int) -> None:
        self._app, self._hosts, self._token = app, frozenset(host.lower() for host in hosts), token
        self._cookie = f"cutlayer-page-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(scope) if scope["type"] == "http" else PlainTextResponse("", 404)
        await (answer or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """An answer for who may not read, or has to come again with a cookie; None for who may."""
        headers = Headers(scope=scope)
        if host_of(headers.get("host", "")).lower() not in self._hosts:
            return PlainTextResponse("This server has another name: open the address that it printed.\n", 421)
        if not self._token or self._proved(headers):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return PlainTextResponse("Open the whole address that the server printed, with its token.\n", 401)
        answer = RedirectResponse("/", 303)  # so that no history and no picture of the screen has the token
        answer.set_cookie(self._cookie, self._proof(), secure=True, httponly=True, samesite="lax")
        return answer

    def _proved(self, headers: Headers) -> bool:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        shown = cookies[self._cookie].value if self._cookie in cookies else ""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        by_cookie = hmac.compare_digest(shown.encode(), self._proof().encode())
        return by_cookie or hmac.compare_digest(bearer.encode(), self._token.encode())

    def _proof(self) -> str:
        """The value of the cookie: it comes of the token, but is not the token."""
        return hmac.new(self._token.encode(), b"cutlayer page", hashlib.sha256).hexdigest()


class PageServer:
    """Serves the page of a run that goes, from `start` to `close`.

    Args:
      live: the run.
      listening: the socket.
      hosts: see `Doorkeeper`.
      secured: TLS and the token; None on this machine alone.
      every_seconds: between two looks at what has changed, at least.

    Attributes:
      busy_seconds: processor time that the thread has taken.
    """

    def __init__(
        self,
        live: Live,
        listening: socket.socket,
        hosts: Set[str],
        secured: Secured | None = None,
        *,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._live, self._socket, self._every = live, listening, every_seconds
        self.busy_seconds = 0.0
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._whole: bytes | None = None
        self._ending = threading.Event()
        self._wake: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        routes = [Route("/", self._page), Route("/events", self._events), Route("/history", self._history)]
        token = "" if secured is None else secured.token
        port = listening.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                Doorkeeper(Starlette(routes=routes), hosts, token, port),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=2,
                ssl_certfile=None if secured is None else str(secured.certificate),
                ssl_keyfile=None if secured is None else str(secured.key),
            )
        )
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def close(self) -> None:
        """Sends what has changed to whoever watches, then ends."""
        self._ending.set()
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
        self._thread.join(END_SECONDS)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        with self._socket:
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._wake, self._loop = asyncio.Event(), asyncio.get_running_loop()
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self._publish(self._wake)
        self._server.should_exit = True
        await serving

    async def _publish(self, wake: asyncio.Event) -> None:
        before = time.thread_time()
        pause = self._every
        while not self._ending.is_set():
            try:
                async with asyncio.timeout(pause):
                    await wake.wait()
            except TimeoutError:
                self._look()
            self.busy_seconds = time.thread_time()
            cost, before = self.busy_seconds - before, self.busy_seconds
            pause = min(max(self._every, cost / SHARE), SELDOM_SECONDS)
        self._look()
        for watcher in self._watchers:
            put(watcher, None)

    def _look(self) -> None:
        """Takes in what the run has told, and sends what has changed to whoever watches."""
        self._live.drain()
        self._whole = None
        if self._watchers:
            event = _event(self._live.news())
            for watcher in list(self._watchers):
                if not put(watcher, event):
                    self._watchers.discard(watcher)

    async def _page(self, request: Request) -> Response:  # noqa: ARG002
        return HTMLResponse(self._live.page())

    async def _history(self, request: Request) -> Response:
        found = self._live.history(request.query_params.get("device", ""))
        return JSONResponse(found) if found is not None else PlainTextResponse("No such device.\n", 404)

    async def _events(self, request: Request) -> Response:  # noqa: ARG002
        if len(self._watchers) >= MOST_WATCHERS:
            return PlainTextResponse("Too many watch already.\n", 503)
        return Streaming(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        """Events for one who watches: everything, then what changes."""
        watcher: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_UNREAD)
        if not self._watchers:
            self._live.news()  # of which nobody has had the earlier ones
        if self._whole is None or self._ending.is_set():
            self._whole = _event(self._live.whole())
        watcher.put_nowait(self._whole)
        if self._ending.is_set():  # who comes at the last moment
            watcher.put_nowait(None)
        self._watchers.add(watcher)
        try:
            while True:
                try:
                    async with asyncio.timeout(BEAT_SECONDS):
                        event = await watcher.get()
                except TimeoutError:
                    event = b": still here\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._watchers.discard(watcher)


def _event(piece: object) -> bytes:
    try:
        text = json.dumps(piece, allow_nan=False, separators=(",", ":"))
    except ValueError:  # something is not finite: seldom, and looking for it costs more than all the rest
        text = to_json(piece)
    return f"data: {text}\n\n".encode()


def put(watcher: asyncio.Queue[bytes | None], event: bytes | None) -> bool:
    """Whether there was room; where there was none, the next thing that it is given is the end."""
    if watcher.full():
        while not watcher.empty():
            watcher.get_nowait()
        event = None
    watcher.put_nowait(event)
    return event is not None
