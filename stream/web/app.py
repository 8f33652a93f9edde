"""The pages and the HTTP API of `polypstream live --serve`."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stream.live import Live, Status
from stream.model import NOTICE
from stream.sinks.browser import Browser

HERE = Path(str(files("stream.web")))
COOKIE = "polypstream-token"
BOUNDARY = "frame"
# What changes something must have this header, which no page of another site can make a browser send unasked.
OURS = "X-Polypstream"
# Nothing from elsewhere, no inline script, no page of another's around ours.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Handler = Callable[[Request], Awaitable[Response]]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def make_app(live: Live, browser: Browser, host: str, token: str | None) -> FastAPI:
    """The application.

    Args:
        live: what is shown.
        browser: the sink that keeps its pictures.
        host: on which it listens. On loopback only requests for this machine's own names are answered, so that no page
            elsewhere can reach it by a name of its own.
        token: what every request must know, as `Authorization: Bearer` or, from `/?token=` on, as a cookie; None:
            nothing.
    """
    app = FastAPI(title="polypstream", description=NOTICE, docs_url=None, redoc_url=None)
    templates = Jinja2Templates(HERE / "templates")
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    app.middleware("http")(_guard(token))
    names = [source.name for source in live.sources]

    def known(number: int) -> str:
        if not 0 <= number < len(names):
            raise HTTPException(404, "no such source")
        return names[number]

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> Response:
        """The live page."""
        return templates.TemplateResponse(request, "live.html", {"sources": names, "notice": NOTICE})

    @app.get("/healthz", response_class=PlainTextResponse)
    def healthz() -> Response:
        """Whether every source gives pictures, inference works, and no sink complains: 200 or 503."""
        problems = [f"{each.source}: {each.problem}" for each in live.status() if each.problem] + live.sink_problems()
        return PlainTextResponse("\n".join(problems) or "ok", 503 if problems else 200)

    @app.get("/status.json")
    def status() -> list[dict[str, Any]]:
        """How each source is doing, and its latest findings."""
        return [
            asdict(each)
            | {
                "overlay": live.overlay.shown,
                "sinks": live.sink_problems(),
                "viewers": browser.viewers(each.source),
                "findings": [
                    {"number": found.number, "when": found.when, "probability": found.probability}
                    for found in browser.findings(each.source)
                ],
            }
            for each in live.status()
        ]

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        """The same for Prometheus."""
        return exposition(live.status())

    @app.put("/overlay/{state}", status_code=204, response_class=Response)
    def overlay(state: Literal["on", "off"]) -> None:
        """Switch the markers of every source on or off; the pictures flow on."""
        live.overlay.shown = state == "on"

    @app.get("/live/{number}/stream")
    async def pictures(number: int) -> Response:
        """The live picture as JPEG after JPEG (multipart/x-mixed-replace)."""
        parts = _parts(browser.pictures(known(number)))
        return StreamingResponse(parts, media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    @app.get("/live/{number}/snapshot.jpg")
    def snapshot(number: int) -> Response:
        """The newest picture, all of its pixels."""
        jpeg = browser.snapshot(known(number))
        if jpeg is None:
            raise HTTPException(404, "there was no picture yet")
        return Response(jpeg, media_type="image/jpeg")

    @app.get("/live/{number}/findings/{finding}.jpg")
    def finding_picture(number: int, finding: int) -> Response:
        """What a finding looked like when it began."""
        for each in browser.findings(known(number)):
            if each.number == finding:
                return Response(each.jpeg, media_type="image/jpeg")
        raise HTTPException(404, "no such finding, or no longer kept")

    return app


def _guard(token: str | None) -> Callable[[Request, Handler], Awaitable[Response]]:
    """Middleware that lets in who knows the token, and sends our headers with every answer."""

    async def guard(request: Request, handle: Handler) -> Response:
        if token is not None and not _knows(request, token):
            return PlainTextResponse("This page asks for a token: open /?token=…", 401)
        if request.method not in ("GET", "HEAD") and OURS not in request.headers:
            return PlainTextResponse(f"What changes something must have the header {OURS}.", 403)
        if token is not None and "token" in request.query_params:
            # Out of the address bar and its history, into a cookie that no script and no other site can use.
            response: Response = RedirectResponse(request.url.remove_query_params("token").path, 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        else:
            response = await handle(request)
        response.headers.update(HEADERS)
        return response

    return guard


def _knows(request: Request, token: str) -> bool:
    given = (
        request.query_params.get("token"),
        request.cookies.get(COOKIE),
        request.headers.get("Authorization", "").removeprefix("Bearer "),
    )
    return any(hmac.compare_digest(each.encode(), token.encode()) for each in given if each)


async def _parts(pictures: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for jpeg in pictures:
        yield (
            f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg + b"\r\n"
        )


def exposition(statuses: Sequence[Status]) -> str:
    """Metrics in Prometheus's text format, version 0.0.4."""
    lines = []
    for name, kind, help_, values in (
        ("signal", "gauge", "Whether pictures are coming.", lambda each: {"": int(each.signal)}),
        ("losses_total", "counter", "How often the source went away.", lambda each: {"": each.losses}),
        ("frames_in_total", "counter", "Frames that came in.", lambda each: {"": each.frames_in}),
        ("frames_shown_total", "counter", "Frames that were shown.", lambda each: {"": each.shown}),
        ("frames_dropped_total", "counter", "Frames that were not shown.", _dropped),
        ("delay_seconds", "gauge", "From a frame's arrival to its showing, latest frames.", _delays),
    ):
        lines += [f"# HELP polypstream_{name} {help_}", f"# TYPE polypstream_{name} {kind}"]
        for each in statuses:
            source = each.source.replace("\\", r"\\").replace('"', r"\"")
            for label, value in values(each).items():
                lines.append(f'polypstream_{name}{{source="{source}"{label}}} {value:g}')
    return "\n".join(lines) + "\n"


def _dropped(status: Status) -> dict[str, float]:
    return {f',reason="{reason}"': count for reason, count in status.dropped.items()}


def _delays(status: Status) -> dict[str, float]:
    quantiles = ("0.5", "0.95", "0.99", "1")
    return {
        f',quantile="{quantile}"': delay / 1000
        for quantile, delay in zip(quantiles, status.delay_ms or (), strict=False)
    }
