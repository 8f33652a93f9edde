"""The FastAPI application: its pages, its HTTP API, and the description of the API."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from polypstream.core.notice import NOTICE
from polypstream.jobs.report import environment
from polypstream.web.errors import explain_errors
from polypstream.web.guard import Guard
from polypstream.web.page import Page

HERE = Path(str(files("polypstream.web")))
# Largest body of a request that does not upload a file.
MAX_BYTES = 64 * 1024


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def make_app(pages: Sequence[Page], host: str, token: str | None) -> ASGIApp:
    """Build the application. The guard wraps all of it, so it also applies to error responses.

    Args:
        pages: the pages. The first one is also served at `/`.
        host: address to listen on. On loopback, requests must name this machine in their Host header: otherwise a web
            site could reach the application through a host name of its own (DNS rebinding).
        token: which every request must have, see Guard. None: no token is needed.
    """
    app = FastAPI(
        title="polypstream",
        description=NOTICE,
        version=version("polypstream"),
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BYTES,
        separate_input_output_schemas=False,
        # For the description of the API only; the guard checks the token.
        dependencies=[Security(HTTPBearer(auto_error=False))] if token is not None else None,
    )
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    if is_loopback(host):
        own = f"[{host}]" if ":" in host else host
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", own])
    templates = Jinja2Templates(env=environment())
    navigation = [(page.path, page.title) for page in pages] + [("/api", "API")]

    def render(request: Request, template: str, /, **values: Any) -> Response:
        return templates.TemplateResponse(request, template, {"notice": NOTICE, "navigation": navigation, **values})

    explain_errors(app, render)

    def offer(path: str, page: Page) -> None:
        @app.get(path, response_class=HTMLResponse, include_in_schema=False)
        def show(request: Request) -> Response:
            return page.page(request, render)

    offer("/", pages[0])
    for page in pages:
        offer(page.path, page)
        app.include_router(page.router(render))

    @app.get("/api", response_class=HTMLResponse, include_in_schema=False)
    def api(request: Request) -> Response:
        return render(request, "api.html", description=app.openapi())

    @app.get("/healthz", response_class=PlainTextResponse, responses={503: {"description": "One problem per line"}})
    def healthz() -> Response:
        """Report whether everything works: sources deliver frames, inference runs, and no sink has a problem."""
        problems = [problem for page in pages for problem in page.problems()]
        return PlainTextResponse("\n".join(problems) or "ok", 503 if problems else 200)

    return Guard(app, token)
