"""The Accept header of requests (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re

# A quality value (RFC 9110, 12.4.2).
QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def quality(accept: str, offered: str) -> float:
    """Return the quality value of a type. A more specific range of the header takes precedence.

    Args:
        accept: the header.
        offered: the type, such as `image/png`.

    Returns:
        0 (not accepted) to 1 (preferred).
    """
    ranges = _ranges(accept)
    for kind in (offered, offered.split("/")[0] + "/*", "*/*"):
        if kind in ranges:
            return ranges[kind]
    return 0.0


def _ranges(accept: str) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        value = next((each[2:].strip() for each in parameters if each.startswith("q=")), "1")
        ranges[kind] = float(value) if QUALITY.fullmatch(value) else 0.0
    return ranges
