"""Responses to requests that fail: a page for a browser, JSON for a program."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException

from polypstream.errors import PolypstreamError, SourceError, TooLarge
from polypstream.web.accept import quality
from polypstream.web.invalid import BODIES, explain_invalid
from polypstream.web.page import DISK_PROBLEM, JSON_TYPE, Render

# Title of a page, if the name of the status is hard to understand.
TITLES = {422: "The request is not valid"}
# What a browser and a program get where the error itself gives no reason.
REASONS = {
    404: "There is no page at this address. It may have been deleted, or the address may be incomplete.",
    405: "This address is for programs. A browser cannot open it.",
    500: "The server made an error. Its terminal shows the details.",
}
JSON_REASONS = {
    404: "there is nothing at this address; /api lists all addresses",
    405: "this address does not take this method; the header Allow lists those that it takes",
}


def explain_errors(app: FastAPI, render: Render) -> None:
    """Let an application explain its errors.

    Args:
        app: the application.
        render: renders the page for browsers.
    """

    def answer(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
        phrase = HTTPStatus(status).phrase
        if not _wants_page(request):
            text = JSON_REASONS.get(status, phrase) if detail == phrase else detail
            return JSONResponse({"detail": text}, status, headers)
        title, text = TITLES.get(status, phrase.capitalize()), REASONS.get(status, phrase)
        response = render(request, "error.html", title=title, text=text if detail == phrase else detail)
        response.status_code = status
        response.headers.update(headers or {})
        return response

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _methods_of(request)
        return answer(request, error.status_code, BODIES.get(error.detail, error.detail), headers)

    @app.exception_handler(PolypstreamError)
    async def explain_failure(request: Request, error: PolypstreamError) -> Response:
        """Messages with paths of the server go to the log instead."""
        if isinstance(error, SourceError):
            return answer(request, 413 if isinstance(error, TooLarge) else 415, str(error))
        logging.getLogger("uvicorn.error").error("%s", error)
        return answer(request, 507, DISK_PROBLEM)

    @app.exception_handler(RequestValidationError)
    async def explain_request(request: Request, error: RequestValidationError) -> Response:
        return answer(request, 422, explain_invalid(error.errors()))

    @app.exception_handler(Exception)
    async def explain_defect(request: Request, _: Exception) -> Response:
        """The server prints the error itself."""
        phrase = HTTPStatus.INTERNAL_SERVER_ERROR.phrase
        return answer(request, 500, phrase) if _wants_page(request) else PlainTextResponse(phrase, 500)


def _wants_page(request: Request) -> bool:
    """Return whether a request prefers a page. Browsers do; the default of programs is `*/*`."""
    accept = request.headers.get("Accept", "*/*")
    return quality(accept, "text/html") > quality(accept, JSON_TYPE)


def _methods_of(request: Request) -> str:
    """List all methods of a path. Starlette lists those of one route only. A path without a route is a static file."""
    path = getattr(request.scope.get("route"), "path_format", "")
    same = [route for route in iter_route_contexts(request.app.routes) if route.path_format == path]
    allowed = sorted(method for route in same for method in route.methods or ())
    return ", ".join(allowed or ("GET", "HEAD"))
