"""What a page of the application is."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

# Of responses, by their status, as FastAPI takes them for the API's description.
Described = dict[int | str, dict[str, Any]]
JSON_TYPE = "application/json"
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
# What a multipart form has around its file, at most.
MULTIPART_EXTRA = 64 * 1024


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def refusal(why: str) -> dict[str, Any]:
    """The description of a response that says why a request was refused."""
    return {"model": Problem, "description": why}


# Of calls that have a body.
BODY: Described = {
    400: refusal("The body is not what its type says"),
    408: refusal("The body paused for too long"),
}


class Render(Protocol):
    """Makes an HTML answer of a template."""

    def __call__(self, request: Request, template: str, /, **values: Any) -> Response: ...


class Page(Protocol):
    """One page of the application and the HTTP API behind it.

    Attributes:
        title: in the navigation.
        path: where it is.
    """

    title: str
    path: str

    def page(self, request: Request, render: Render, /) -> Response: ...

    def router(self, render: Render, /) -> APIRouter: ...

    def problems(self) -> list[str]:
        """What keeps it from working, for /healthz, one line each."""
        ...
