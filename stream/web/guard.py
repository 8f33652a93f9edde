"""Checks of every request (token, origin, timeouts), and the security headers of every response."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

COOKIE = "polypstream-token"
# No content of other sites, no inline scripts, and no embedding in pages of other sites.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SAFE = ("GET", "HEAD", "OPTIONS")
# Seconds for the head of a request, and for each pause of its body.
HEAD_TIMEOUT_S, BODY_TIMEOUT_S = 20.0, 30.0


class Guard:
    """ASGI middleware that refuses requests without the token, from other sites, or with a body that stalls.

    A page of another site can make a browser send a request to this server, although it cannot read the response.
    Browsers name the origin of such a request, in Fetch Metadata or in the Origin header (older browsers). Scripts
    outside a browser name no origin. They are accepted, since another site cannot make them send a request. WebSockets
    are checked like requests that change something, because the page of another site could read what they send.

    Args:
        app: the application.
        token: which every request must have: in the header `Authorization: Bearer`, or in the query `?token=`, which
            sets a cookie for the next requests. None: no token is needed.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        refused = False

        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def in_json(message: Message) -> None:
            """Replace Starlette's plain-text response to a body that is too large by JSON."""
            nonlocal refused
            if message["type"] == "http.response.start" and _is_plain_413(message):
                refused = True
                await JSONResponse({"detail": "the body is too large"}, 413)(scope, receive, with_headers)
            elif not refused:
                await with_headers(message)

        request = HTTPConnection(scope)
        if scope["type"] == "websocket":
            await (self._refusal(request) or self._app)(scope, receive, with_headers)
            return
        response = self._refusal(request) or self._redirect(request)
        await (response or self._app)(scope, _with_timeout(receive), in_json)

    def _refusal(self, request: HTTPConnection) -> Response | None:
        """Return the response to a request that is refused; None: it is accepted."""
        if self._token is not None and not _has_token(request, self._token):
            return PlainTextResponse("This page needs a token: open /?token=…", 401, {"WWW-Authenticate": "Bearer"})
        if request.scope.get("method") not in SAFE and not _is_same_origin(request):
            return PlainTextResponse("Pages of other sites cannot change or watch anything here.", 403)
        return None

    def _redirect(self, request: HTTPConnection) -> Response | None:
        if self._token is None or "token" not in request.query_params:
            return None
        # Move the token from the address bar and the history to a cookie that no script and no other site can use.
        # A path that starts with two slashes would redirect to another site.
        response = RedirectResponse("/" + request.url.path.lstrip("/\\"), 303)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return response


def _has_token(request: HTTPConnection, token: str) -> bool:
    given = (
        request.query_params.get("token"),
        request.cookies.get(COOKIE),
        request.headers.get("Authorization", "").removeprefix("Bearer "),
    )
    return any(hmac.compare_digest(each.encode(), token.encode()) for each in given if each)


def _is_same_origin(request: HTTPConnection) -> bool:
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


def _is_plain_413(start: Message) -> bool:
    return start["status"] == 413 and Headers(raw=start["headers"]).get("Content-Type", "").startswith("text/plain")


def _with_timeout(receive: Receive) -> Receive:
    """Limit the pauses of a body. A client that sends one byte per minute would keep its connection for hours."""
    complete = False

    async def receive_in_time() -> Message:
        nonlocal complete
        if complete:
            return await receive()  # waits without a limit until the client disconnects
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                message = await receive()
        except TimeoutError:
            problem = f"no data was received for {BODY_TIMEOUT_S:g} seconds"
            raise HTTPException(408, problem, {"Connection": "close"}) from None
        complete = not message.get("more_body", False)
        return message

    return receive_in_time


class HeadTimeoutProtocol(H11Protocol):
    """HTTP/1.1 protocol of uvicorn with a timeout for the head of a request, after which the connection is closed.

    uvicorn has no such timeout. A client could open thousands of connections and send a byte now and then.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the head of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Run the timer while a head is incomplete, and while the rest of a body arrives after its response."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._start_timer()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._head_timer is None:
            close: Callable[[], None] = self.transport.close
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
