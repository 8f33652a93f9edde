"""A range of time of a recording, as the user writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from polypstream.core.formatting import clock
from polypstream.errors import SettingsError

TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)", re.ASCII)
# frames.csv rounds times to microseconds. A time that is copied from there means the frame of its row.
ROUNDING_S = Fraction(1, 2_000_000)


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A range of presentation times, as in frames.csv.

    Attributes:
        start: the range begins with the first frame at or after this time in seconds; None: at the first frame.
        end: it ends with the last frame before this time in seconds; None: at the last frame.

    Raises:
        SettingsError: the end is not after the start.
    """

    start: Fraction | None = None
    end: Fraction | None = None

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= (self.start or 0):
            raise SettingsError(f"{self}: holds no time; the end must be later than the start")

    def __str__(self) -> str:
        begins = "" if self.start is None else f"from {clock(float(self.start))}"
        ends = "" if self.end is None else f"to {clock(float(self.end))}"
        return " ".join(filter(None, (begins, ends)))

    def pts(self, time_base: Fraction) -> tuple[int | None, int | None]:
        """The range in units of a time base.

        Args:
            time_base: seconds per unit.

        Returns:
            The lowest pts of the range, and the lowest pts behind it.
        """
        first, behind = (
            None if time is None else math.ceil((time - ROUNDING_S) / time_base) for time in (self.start, self.end)
        )
        return first, behind

    def as_json(self) -> list[float | None]:
        """Start and end in seconds, for summary.json and findings.json."""
        return [None if time is None else float(time) for time in (self.start, self.end)]


def range_of(start: str | float | None, end: str | float | None) -> TimeRange | None:
    """Make a range of what the user gave.

    Args:
        start, end: seconds, or text such as `90`, `90.5`, `12:30` or `1:02:03.5`; None: not given.

    Returns:
        The range; None: the whole recording.

    Raises:
        SettingsError: one is no time, or the end is not after the start.
    """
    if start is None and end is None:
        return None
    return TimeRange(_seconds_of(start, "from"), _seconds_of(end, "to"))


def range_in(about: dict[str, Any]) -> TimeRange | None:
    """The range of a run.

    Args:
        about: head of its findings.json.

    Returns:
        The range; None: the whole recording.

    Raises:
        SettingsError: it is not valid.
    """
    return range_of(*about.get("range", (None, None)))


def _seconds_of(time: str | float | None, what: str) -> Fraction | None:
    if time is None:
        return None
    match = TIME.fullmatch(time.strip() if isinstance(time, str) else f"{time:.6f}")
    hours, minutes, seconds = (Fraction(group or 0) for group in match.groups()) if match else (0, 0, Fraction(-1))
    if seconds < 0 or (match and match[2] and seconds >= 60) or (hours and minutes >= 60):
        raise SettingsError(f"{what} {time}: is no time; write seconds such as 90.5, or 12:30, or 1:02:03.5")
    return hours * 3600 + minutes * 60 + seconds
