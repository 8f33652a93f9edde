"""Formatting of values for the user."""

from __future__ import annotations

import shlex
from pathlib import Path

ELLIPSIS = "..."


def clock(seconds: float, decimals: int = 1) -> str:
    """Format a time as h:mm:ss.s.

    Args:
        seconds: the time in seconds.
        decimals: decimal places of the seconds.

    Returns:
        Text such as `0:01:23.4`.
    """
    whole = round(seconds * 10**decimals) / 10**decimals
    width = 2 + (decimals + 1 if decimals else 0)
    return f"{int(whole // 3600)}:{int(whole % 3600 // 60):02}:{whole % 60:0{width}.{decimals}f}"


def time_span(first: float, last: float) -> str:
    """Format the times of the first and the last frame of something, so that they look different if they are.

    Args:
        first, last: the times in seconds.

    Returns:
        Text such as `0:00:01.3 to 0:00:05.0`, `0:00:01.32 to 0:00:01.36` or, of one frame, `0:00:01.3`.
    """
    for decimals in (1, 2):
        begins, ends = clock(first, decimals), clock(last, decimals)
        if begins != ends:
            return f"{begins} to {ends}"
    return clock(first)


def time_in_view(seconds: float, frames: int) -> str:
    """Format how long something is in view.

    Args:
        seconds: total time in seconds; 0 if it is not known.
        frames: number of frames.

    Returns:
        Text such as `2.1 s, 53 frames`, `0.04 s, 1 frame` or `1 frame`.
    """
    text = f"{seconds:.{2 if seconds < 1 else 1}f} s, "
    return ("" if text == "0.00 s, " else text) + counted(frames, "frame")


def counted(count: int, noun: str) -> str:
    """Format a number of things.

    Args:
        count: the number.
        noun: what is counted, in the singular. Its plural ends in -s.

    Returns:
        Text such as `1 frame` or `2 frames`.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shortened(name: str, longest: int) -> str:
    """Leave out the middle of a name that is too long.

    Args:
        name: the name.
        longest: number of characters that there is room for.

    Returns:
        Text such as `colono...0117.mp4`: terminals without UTF-8 show it, too.
    """
    if len(name) <= longest:
        return name
    begin = max(longest - len(ELLIPSIS), 2) // 2
    return f"{name[:begin]}{ELLIPSIS}{name[-max(longest - len(ELLIPSIS) - begin, 1) :]}"


def quoted(path: Path) -> str:
    """Format a path for a command that the user can copy into a shell.

    Args:
        path: the path.

    Returns:
        The path, in quotes if it has spaces or other special characters.
    """
    return shlex.quote(str(path))


def words_of(error: Exception) -> str:
    """Return an error's message as one line.

    Args:
        error: any error.

    Returns:
        The first line of its message; the name of its class if the message is empty.
    """
    return (str(error) or type(error).__name__).splitlines()[0]
