"""A short sound for each new finding."""

from __future__ import annotations

import sys

from polypstream.core.frame import Frame

BELL = "\a"


class NewFindings:
    """Detects the first frame of each new finding, per source."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def __call__(self, frame: Frame) -> bool:
        """Whether a frame shows a track that no earlier frame of its source showed.

        Tracks are numbered in the order in which they are first shown.
        """
        newest, last = max(frame.tracks, default=0), self._last.get(frame.source, 0)
        self._last[frame.source] = max(newest, last)
        return newest > last


class Bell:
    """A sink that sounds the terminal bell when a finding begins."""

    def __init__(self) -> None:
        self._begins = NewFindings()

    def write(self, frame: Frame) -> None:
        """Sound the bell if a finding begins with the frame."""
        if self._begins(frame):
            sys.stderr.write(BELL)
            sys.stderr.flush()

    def close(self) -> None:
        """Do nothing: there is nothing to finish."""
