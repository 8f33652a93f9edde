"""Live pictures for browsers: JPEGs made once for all viewers, and only while there is one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction

from polypstream.core.frame import Frame
from polypstream.media.jpeg import Jpeg, snapshot
from polypstream.media.pictures import black_picture
from polypstream.sinks.bell import NewFindings
from polypstream.stages.status_overlay import StatusOverlay

# Pictures for a page are no wider than this; a snapshot has all of its pixels.
PAGE_WIDTH = 1280
# The JPEG encoder's quantiser, 2 (best) to 31: a viewer sees no blocks, and a 720p picture takes about 50 kB.
PAGE_QUANTISER = 4
REMEMBERED_FINDINGS = 20
# Where nothing new comes, a viewer gets the last picture again after so long, in seconds.
AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class LiveFinding:
    """When something was found, and what it looked like.

    Attributes:
        number: of the source's findings, from 1.
        when: seconds since 1970.
        probability: the highest in the picture, 0..1.
        jpeg: the picture with its markers.
    """

    number: int
    when: float
    probability: float
    jpeg: bytes


@dataclass(slots=True)
class _Watched:
    """One source as browsers see it."""

    frame: Frame | None = None
    jpeg: bytes = b""
    viewers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=set)
    findings: deque[LiveFinding] = field(default_factory=lambda: deque(maxlen=REMEMBERED_FINDINGS))
    found: int = 0


class Browser:
    """A sink that keeps the newest picture of each source for any number of viewers.

    A viewer that is slow gets fewer pictures and keeps nobody waiting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[str, _Watched] = {}
        self._encoders: dict[str, Jpeg] = {}
        self._begins = NewFindings()

    def write(self, frame: Frame) -> None:
        """Keep a frame; encode it if somebody is looking, or if it is the first one of a finding."""
        with self._lock:
            watched = self._sources.setdefault(frame.source, _Watched())
            watched.frame, viewers = frame, list(watched.viewers)
        begins = self._begins(frame)
        if not viewers and not begins:
            return
        encoder = self._encoders.setdefault(frame.source, Jpeg(PAGE_WIDTH, PAGE_QUANTISER))
        jpeg = encoder(frame.picture, frame.orientation)
        with self._lock:
            watched.jpeg = jpeg
            if begins:
                watched.found += 1
                highest = int(frame.probability.max()) / 255
                watched.findings.append(LiveFinding(watched.found, time.time(), highest, jpeg))
        for loop, event in viewers:
            loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """Let every viewer go."""
        with self._lock:
            viewers = [viewer for watched in self._sources.values() for viewer in watched.viewers]
            self._sources.clear()
        for loop, event in viewers:
            loop.call_soon_threadsafe(event.set)

    async def pictures(self, source: str) -> AsyncIterator[bytes]:
        """JPEGs of a source for one viewer, each the newest there is; ends when the sink is closed.

        Where nothing new comes, for want of a signal for instance, the last one comes again: browsers show a picture
        when the next one begins.
        """
        event = asyncio.Event()
        viewer = (asyncio.get_running_loop(), event)
        with self._lock:
            watched = self._sources.setdefault(source, _Watched())
            watched.viewers.add(viewer)
        try:
            if watched.frame is not None:
                yield await asyncio.to_thread(self._newest_jpeg, watched)
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), AGAIN_S)
                event.clear()
                with self._lock:
                    if self._sources.get(source) is not watched:
                        return
                    jpeg = watched.jpeg
                yield jpeg or await asyncio.to_thread(self._newest_jpeg, watched)
        finally:
            with self._lock:
                watched.viewers.discard(viewer)

    def _newest_jpeg(self, watched: _Watched) -> bytes:
        """For a viewer that has just come; also where there was no picture yet, or none was encoded lately."""
        with self._lock:
            frame = watched.frame
        shown = frame or _no_signal()
        jpeg = Jpeg(PAGE_WIDTH, PAGE_QUANTISER)(shown.picture, shown.orientation)
        with self._lock:
            if watched.frame is frame:
                watched.jpeg = jpeg
        return jpeg

    def viewers(self, source: str) -> int:
        """How many look at a source."""
        with self._lock:
            watched = self._sources.get(source)
            return len(watched.viewers) if watched else 0

    def snapshot(self, source: str) -> bytes | None:
        """The newest picture of a source at its own size; None if there is none."""
        with self._lock:
            watched = self._sources.get(source)
            frame = watched.frame if watched else None
        return None if frame is None else snapshot(frame)

    def findings(self, source: str) -> list[LiveFinding]:
        """The latest findings of a source, the newest first."""
        with self._lock:
            watched = self._sources.get(source)
            return list(reversed(watched.findings)) if watched else []


def _no_signal() -> Frame:
    """Shown before the first frame has come."""
    picture = black_picture(PAGE_WIDTH, PAGE_WIDTH * 9 // 16)
    (frame,) = StatusOverlay()([Frame(0, picture, 0, Fraction(1), has_signal=False)])
    return frame
