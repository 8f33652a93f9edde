"""Addresses of live sources and of push targets: names, redaction, and waits between connection attempts."""

from __future__ import annotations

import re

from av.error import ExitError, FFmpegError

from polypstream.errors import PolypstreamError

# A valid name of a source. It cannot be mistaken for the beginning of an address.
NAME = re.compile(r"[A-Za-z0-9_-]+")
# Seconds before the first attempt to reconnect. The wait doubles with each failed attempt.
FIRST_WAIT_S = 0.2


def split_name(text: str) -> tuple[str, str]:
    """Split `room1=rtsp://…` into name and address.

    Args:
        text: an address, with or without `name=` before it.

    Returns:
        Name and address. A source without a name is named after its redacted address.
    """
    name, equals, uri = text.partition("=")
    if equals and NAME.fullmatch(name):
        return name, uri
    return redacted(text), text


def redacted(uri: str) -> str:
    """Remove user, password and query from an address, because they may contain keys.

    Args:
        uri: an address; it may be malformed.

    Returns:
        The address without user, password, query and fragment.
    """
    # A password may contain ?, # and /. Therefore everything up to the last @ is removed first.
    return re.split(r"[?#]", re.sub(r"^([^/]*/+)?.*@", r"\1", uri), maxsplit=1)[0]


def back_off(attempts: int, longest: float) -> float:
    """Compute the wait before the next connection attempt (exponential backoff).

    Args:
        attempts: failed attempts in a row so far.
        longest: the upper limit in seconds.

    Returns:
        Seconds to wait.
    """
    return min(FIRST_WAIT_S * 2.0 ** min(attempts, 32), longest)


def reason(error: Exception) -> str:
    """Describe an error without the address, because the address may contain a password.

    Args:
        error: an error of FFmpeg, of polypstream, or any other.

    Returns:
        A short text for the user.
    """
    if isinstance(error, ExitError):
        return "no answer in time"
    if isinstance(error, FFmpegError):
        return str(error.strerror)
    return str(error) if isinstance(error, PolypstreamError) else f"{type(error).__name__}: {error}"
