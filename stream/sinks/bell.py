"""A short sound at each new finding."""

from __future__ import annotations

import sys

from polypstream.core.frame import Frame

BELL = "\a"


class NewFindings:
    """Tells with which frame of a source a finding begins."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def __call__(self, frame: Frame) -> bool:
        """Whether the frame shows a track that none before it did; tracks are numbered as they are first shown."""
        newest, last = max(frame.tracks, default=0), self._last.get(frame.source, 0)
        self._last[frame.source] = max(newest, last)
        return newest > last


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
