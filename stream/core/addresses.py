"""Network addresses: names, redaction, wrong ports, reasons of failures, and waits between connection attempts."""

from __future__ import annotations

import errno
import re
import socket
from urllib.parse import urlsplit

from av.error import ExitError, FFmpegError

from polypstream.errors import PolypstreamError

# A valid name of a source. It cannot be mistaken for the beginning of an address.
NAME = re.compile(r"[A-Za-z0-9_-]+")
# Seconds before the first attempt to reconnect. The wait doubles with each failed attempt.
FIRST_WAIT_S = 0.2
LARGEST_PORT = 65535
# Schemes of addresses that FFmpeg cannot use without a port.
WITH_PORT = ("rtp", "srt", "tcp", "udp")


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


def reason(error: Exception, url: str = "") -> str:
    """Describe an error without the address, because the address may contain a password.

    Args:
        error: an error of FFmpeg, of polypstream, or any other.
        url: address that was to be opened; for FFmpeg, a host name that is not known is an input/output error.

    Returns:
        A short text for the user.
    """
    if isinstance(error, ExitError):
        return "no answer in time"
    if isinstance(error, FFmpegError):
        if error.errno == errno.EIO and (host := _unknown_host(url)):
            return f"the host name {host} is not known"
        if error.errno == errno.EADDRINUSE:
            return "another program on this machine uses this port already; choose another port"
        return str(error.strerror)
    return str(error) if isinstance(error, PolypstreamError) else f"{type(error).__name__}: {error}"


def _unknown_host(url: str) -> str:
    """Return the host of a URL if the system does not know it, otherwise an empty text."""
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError):
        return host
    return ""


def port_problem(port: str) -> str:
    """Say why a text is not the number of a port.

    Args:
        port: the text.

    Returns:
        Text for the user; empty if it is one.
    """
    if not (port.isascii() and port.isdecimal()):
        return f"the port `{port}` is not a number"
    return f"the port {port} is too large; the largest one is {LARGEST_PORT}" if int(port) > LARGEST_PORT else ""


def url_problem(url: str) -> str:
    """Say what is wrong with host and port of a URL.

    Args:
        url: the URL. It may contain credentials, which are not repeated.

    Returns:
        Text for the user; empty if nothing is wrong.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the host is not valid; write an IPv6 address in brackets, such as [::1]"
    place = parts.netloc.rpartition("@")[2]
    _, colon, port = place[place.rfind("]") + 1 :].rpartition(":")
    if colon:
        return port_problem(port)
    return f"the port is missing; write {parts.scheme}://{place or 'HOST'}:PORT" if parts.scheme in WITH_PORT else ""


def listening_problem(error: OSError, host: str, port: int) -> str:
    """Say why a server cannot listen, and what to do.

    Args:
        error: the error of the system.
        host, port: where it should listen.

    Returns:
        Text for the user.
    """
    if isinstance(error, socket.gaierror):
        return f"no address is known for the name {host}; write an IP address, for instance 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return f"another program uses port {port} already; choose another port, or 0 to let the system choose"
    if error.errno == errno.EACCES:
        return f"you are not allowed to use port {port}; choose a port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; 127.0.0.1 is this machine only, 0.0.0.0 is all its addresses"
    return f"cannot listen there ({error.strerror})"
