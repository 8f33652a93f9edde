"""Addresses of live sources and of the places that pictures are sent to: their names, and what may be shown of them."""

from __future__ import annotations

import re

from av.error import ExitError, FFmpegError

from polypstream.errors import PolypstreamError

# What a source may be called: nothing that an address begins with.
NAME = re.compile(r"[A-Za-z0-9_-]+")
# The wait before the first attempt to connect again; it doubles with each that is in vain.
FIRST_WAIT_S = 0.2


def split_name(text: str) -> tuple[str, str]:
    """Name and address of `room1=rtsp://…`; a source without a name is called by its address, without credentials."""
    name, equals, uri = text.partition("=")
    if equals and NAME.fullmatch(name):
        return name, uri
    return redacted(text), text


def redacted(uri: str) -> str:
    """An address without user, password and query, which may hold keys; also where it is written wrongly."""
    # A password may hold any of the characters that mean something elsewhere: all up to the last @ goes first.
    return re.split(r"[?#]", re.sub(r"^([^/]*/+)?.*@", r"\1", uri), maxsplit=1)[0]


def back_off(attempts: int, longest: float) -> float:
    """Seconds to wait after so many vain attempts to connect."""
    return min(FIRST_WAIT_S * 2.0 ** min(attempts, 32), longest)


def reason(error: Exception) -> str:
    """What FFmpeg says, without the address, in which there may be a password."""
    if isinstance(error, ExitError):
        return "no picture came in time"
    if isinstance(error, FFmpegError):
        return str(error.strerror)
    return str(error) if isinstance(error, PolypstreamError) else f"{type(error).__name__}: {error}"
