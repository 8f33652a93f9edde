"""What a page of the application is."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Request, Response


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
