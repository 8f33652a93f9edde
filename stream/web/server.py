"""Serves a web application in a background thread."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp

from polypstream.core.addresses import listening_problem, port_problem
from polypstream.core.pipeline import in_background
from polypstream.errors import SettingsError
from polypstream.web.app import is_loopback, make_app
from polypstream.web.guard import HeadTimeoutProtocol
from polypstream.web.page import Page

# Live streams to viewers do not end by themselves, so they are closed this long after the end.
SHUTDOWN_TIMEOUT_S = 1
# Largest message of a viewer in bytes. It only says that a picture was shown.
LARGEST_MESSAGE = 1024


def parse_listen(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`, `PORT` or `:PORT`.

    Returns:
        Host and port. Without a host it is 127.0.0.1.

    Raises:
        SettingsError: the text has none of these forms.
    """
    host, _, port = text.rpartition(":")
    if problem := port_problem(port):
        raise SettingsError(f"--serve {text}: {problem}; write HOST:PORT, for instance 127.0.0.1:8000")
    return host.strip("[]") or "127.0.0.1", int(port)


def token_for(host: str, given: str | None) -> str | None:
    """Return the token that requests need.

    It is the given one, otherwise a new one if other machines can reach the server, otherwise None.
    """
    return given or (None if is_loopback(host) else secrets.token_urlsafe(18))


@contextmanager
def web(pages: Sequence[Page], host: str, port: int, token: str | None) -> Iterator[str]:
    """Serve the application for the duration of a with block.

    Args:
        pages: of the application.
        host, port: where to listen. With port 0 the system chooses one.
        token: which requests need. None: a new one is created if other machines can reach the server.

    Yields:
        The address, with the token if one is needed.

    Raises:
        SettingsError: the server cannot listen on host and port.
    """
    token = token_for(host, token)
    with serving(make_app(pages, host, token), host, port) as bound:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{bound}/" + (f"?token={quote(token)}" if token else "")


@contextmanager
def serving(app: ASGIApp, host: str, port: int) -> Iterator[int]:
    """Serve an ASGI application for the duration of a with block.

    Yields:
        The port, which the system chooses if `port` is 0.

    Raises:
        SettingsError: the server cannot listen on host and port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # from now on clients can connect; they wait until the server has started
    except OSError as error:
        listener.close()
        raise SettingsError(f"{host}:{port}: {listening_problem(error, host, port)}") from error
    config = uvicorn.Config(
        app,
        http=HeadTimeoutProtocol,
        ws="wsproto",
        ws_max_size=LARGEST_MESSAGE,
        ws_per_message_deflate=False,  # video does not get smaller
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    with listener, in_background("web", lambda: server.run(sockets=[listener]), stop):
        yield listener.getsockname()[1]
