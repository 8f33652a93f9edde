"""What stands before every page and every call: who may, from where, how slowly; and our headers on every answer."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

COOKIE = "polypstream-token"
# Nothing from elsewhere, no inline script, no page of another's around ours.
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
# Seconds in which the head of a request must be here, and for which its body may pause.
HEAD_S, PAUSE_S = 20.0, 30.0


class Guard:
    """Lets in who knows the token and does not come from another site; the body must keep coming.

    Another site's page can make a browser send a request here, though not read the answer. Browsers say where such a
    request comes from (Fetch Metadata, or the Origin header of older ones), and a script, which says nothing, cannot
    be made to send one.

    Args:
        app: what is guarded.
        token: what every request must know, as `Authorization: Bearer` or, from `/?token=` on, as a cookie; None:
            nothing.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        refused = False

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def in_json(message: Message) -> None:
            """Starlette, where a body says that it is too large, says so in plain text."""
            nonlocal refused
            if message["type"] == "http.response.start" and _is_plain_413(message):
                refused = True
                await JSONResponse({"detail": "more bytes than may be"}, 413)(scope, receive, with_headers)
            elif not refused:
                await with_headers(message)

        answer = self._answer(Request(scope))
        await (answer or self._app)(scope, _without_pauses(receive), in_json)

    def _answer(self, request: Request) -> Response | None:
        """What is to be said instead of what was asked for; None: nothing."""
        if self._token is not None and not _knows(request, self._token):
            return PlainTextResponse("This page asks for a token: open /?token=…", 401, {"WWW-Authenticate": "Bearer"})
        if request.method not in SAFE and not _is_from_here(request):
            return PlainTextResponse("Another site's page may change nothing here.", 403)
        if self._token is None or "token" not in request.query_params:
            return None
        # Out of the address bar and its history, into a cookie that no script and no other site can use.
        # Two slashes at its beginning would name another site.
        response = RedirectResponse("/" + request.url.path.lstrip("/\\"), 303)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return response


def _knows(request: Request, token: str) -> bool:
    given = (
        request.query_params.get("token"),
        request.cookies.get(COOKIE),
        request.headers.get("Authorization", "").removeprefix("Bearer "),
    )
    return any(hmac.compare_digest(each.encode(), token.encode()) for each in given if each)


def _is_from_here(request: Request) -> bool:
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


def _is_plain_413(start: Message) -> bool:
    return start["status"] == 413 and Headers(raw=start["headers"]).get("Content-Type", "").startswith("text/plain")


def _without_pauses(receive: Receive) -> Receive:
    """A body that pauses for too long is not waited for: whoever sends a byte a minute holds a place for hours."""
    whole = False

    async def prompt() -> Message:
        nonlocal whole
        if whole:
            return await receive()  # waits for the client to leave, however long that takes
        try:
            async with asyncio.timeout(PAUSE_S):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing came for {PAUSE_S:g} seconds", {"Connection": "close"}) from None
        whole = not message.get("more_body", False)
        return message

    return prompt


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, for clients that finish the head of a request in time; others are hung up on.

    uvicorn itself waits for ever, and so for whoever opens thousands of connections and sends a byte now and then.
    """

    _hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The head of the first request must come."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """A head that has begun must come, and so must the rest of a body that was answered before its end."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._expect_head()
        else:
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._forget()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._hurry is None:
            hang_up: Callable[[], None] = self.transport.close
            self._hurry = self.loop.call_later(HEAD_S, hang_up)

    def _forget(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None
