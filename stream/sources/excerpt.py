"""A range of a recording: a source that yields the frames of the range only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from polypstream.core.formatting import clock
from polypstream.core.frame import Frame
from polypstream.core.protocols import Source
from polypstream.core.time_range import TimeRange
from polypstream.errors import SourceError

# Frames before the range are decoded and left out. After this many of them the caller is told that something moves.
REPORT_EVERY = 25


class Excerpt:
    """A Source that yields the frames of a range, numbered from 0. Their times are those of the recording.

    Args:
        source: the recording, whose `frames` may begin before the range and must end with it; `close` closes it too.
        times: the range.
        on_activity: called often with a value that changes, while frames before the range are decoded.

    Attributes:
        times: the range.
        first_pts: pts of the first frame.

    Raises:
        SourceError: there is no frame in the range.
    """

    def __init__(
        self, source: Source, times: TimeRange, on_activity: Callable[[object], None] = lambda _: None
    ) -> None:
        self._source, self.times = source, times
        self.name, self.stem, self.path = source.name, source.stem, source.path
        self.shifts, self.damage, self.notes = source.shifts, source.damage, source.notes
        # While frames are read, the source counts from where it was entered.
        self._all_frames = source.expected_frames
        self._rest = source.frames()
        first = self._first_frame(on_activity)
        if first is None:
            begins = clock(float(source.format.start))
            raise SourceError(f"{self.name}: has no frame {times}; its first frame is at {begins}{self._length()}")
        self._first, self.first_pts = first, first.pts
        self.format = replace(source.format, start=first.pts * first.time_base)

    def _first_frame(self, on_activity: Callable[[object], None]) -> Frame | None:
        since, _ = self.times.pts(self._source.format.time_base)
        for number, frame in enumerate(self._rest):
            if since is None or frame.pts >= since:
                return frame
            if number % REPORT_EVERY == 0:
                on_activity(("before the range", number))
        return None

    def _length(self) -> str:
        """How long the recording lasts, as far as it is known."""
        frames = self._all_frames
        return f", and it lasts {clock(float(frames / self._source.format.rate))}" if frames else ""

    @property
    def expected_frames(self) -> int | None:
        """Number of frames, estimated from the length of the range; None: unknown."""
        frames, rate = self._all_frames, self._source.format.rate
        ends = [] if frames is None else [self._source.format.start + frames / rate]
        ends += [] if self.times.end is None else [self.times.end]
        return max(1, round((min(ends) - self.format.start) * rate)) if ends else None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames of the range. Can be called once."""
        for index, frame in enumerate(chain([self._first], self._rest)):
            frame.index = index
            yield frame

    def thumbnails(self) -> list[np.ndarray]:
        """Thumbnails of the whole recording, since the range has the same field of view."""
        return self._source.thumbnails()

    def close(self) -> None:
        """Close the recording."""
        self._source.close()
