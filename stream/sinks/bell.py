"""A short sound at each new finding."""

from __future__ import annotations

import sys

from stream.frame import Frame

# A finding that was gone for so long is a new one.
GONE_S = 2.0
BELL = "\a"


class NewFindings:
    """Tells with which frame of a source a finding begins."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, frame: Frame) -> bool:
        """Whether something is found that was not there a moment before."""
        if frame.region is None:
            return False
        before, self._last[frame.source] = self._last.get(frame.source, float("-inf")), frame.arrived
        return frame.arrived - before > GONE_S


class Bell:
    """A sink that rings the terminal's bell."""

    def __init__(self) -> None:
        self._begins = NewFindings()

    def write(self, frame: Frame) -> None:
        """Ring if a finding begins."""
        if self._begins(frame):
            sys.stderr.write(BELL)
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing is to be finished."""
