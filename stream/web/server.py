"""Serves a web application beside a pipeline."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp

from polypstream.core.pipeline import in_background
from polypstream.errors import SettingsError
from polypstream.web.app import is_loopback, make_app
from polypstream.web.guard import PromptProtocol
from polypstream.web.page import Page

# Viewers of a live picture never leave by themselves: this long after the end they are left alone.
GOODBYE_S = 1


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `PORT` or `:PORT`, on loopback if no host is given.

    Raises:
        SettingsError: it is none of these.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"--serve {text}: write HOST:PORT, for instance 127.0.0.1:8000")
    return host.strip("[]") or "127.0.0.1", int(port)


def token_for(host: str, given: str | None) -> str | None:
    """The token that requests must know: the one given; a new one if other machines can reach us; else none."""
    return given or (None if is_loopback(host) else secrets.token_urlsafe(18))


@contextmanager
def web(pages: Sequence[Page], host: str, port: int, token: str | None) -> Iterator[str]:
    """Serve the application beside a block; yields its address, with the token where one is needed.

    Args:
        pages: what it offers.
        host, port: where to listen; 0 lets the system choose the port.
        token: to ask for; None: one is made up if other machines can reach us.

    Raises:
        SettingsError: it cannot be listened there.
    """
    token = token_for(host, token)
    with serving(make_app(pages, host, token), host, port) as bound:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{bound}/" + (f"?token={quote(token)}" if token else "")


@contextmanager
def serving(app: ASGIApp, host: str, port: int) -> Iterator[int]:
    """Serve beside a block; yields the port, which the system chooses where 0 was asked for.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # from here on who comes waits until the server is up
    except OSError as error:
        listener.close()
        raise SettingsError(f"{host}:{port}: cannot be listened on ({error.strerror})") from error
    config = uvicorn.Config(
        app,
        http=PromptProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GOODBYE_S,
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    with listener, in_background("web", lambda: server.run(sockets=[listener]), stop):
        yield listener.getsockname()[1]
