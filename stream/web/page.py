"""The interface of the application's pages."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

# Descriptions of responses by status, for the description of the API.
Described = dict[int | str, dict[str, Any]]
JSON_TYPE = "application/json"
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
# The message for clients if a file cannot be written. Its path is for the log only.
DISK_PROBLEM = "the server cannot store the file: its disk is full or not writable"
# Bytes that a multipart form may have in addition to its file.
MULTIPART_EXTRA = 64 * 1024


class Problem(BaseModel):
    """The reason why a request was refused."""

    detail: str


def refusal(why: str) -> dict[str, Any]:
    """Return the description of a response that refuses a request."""
    return {"model": Problem, "description": why}


# Response to a request with a value that is missing or not valid.
INVALID: Described = {422: refusal("A value in the address or in the body is missing or not valid")}
# Responses to requests that have a body.
BODY: Described = INVALID | {
    400: refusal("The body does not match its content type"),
    408: refusal("The body stalled for too long"),
}


class Render(Protocol):
    """Renders a template to an HTML response."""

    def __call__(self, request: Request, template: str, /, **values: Any) -> Response: ...


class Page(Protocol):
    """One page of the application and its HTTP API.

    Attributes:
        title: text of its link in the navigation.
        path: URL path.
    """

    title: str
    path: str

    def page(self, request: Request, render: Render, /) -> Response: ...

    def router(self, render: Render, /) -> APIRouter: ...

    def problems(self) -> list[str]:
        """Return what keeps the page from working, one line each, for /healthz."""
        ...
