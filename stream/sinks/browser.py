"""Live video for browsers: H.264 or JPEGs, encoded once for all viewers, and only if there is a viewer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction

from polypstream.core.frame import Frame
from polypstream.media.jpeg import Jpeg, snapshot
from polypstream.media.pictures import black_picture
from polypstream.sinks.bell import NewFindings
from polypstream.sinks.viewers import Viewer, Viewers
from polypstream.stages.status_overlay import StatusOverlay

# Largest width of video and JPEGs for the page, in pixels. A snapshot has the full size.
PAGE_WIDTH = 1280
# The JPEG encoder's quantiser, 2 (best) to 31. No blocks are visible at 4, and a 720p frame takes about 50 kB.
PAGE_QUANTISER = 4
MAX_FINDINGS = 20
# Seconds without a new frame after which a viewer is sent the last JPEG again.
REPEAT_S = 0.5


@dataclass(frozen=True, slots=True)
class LiveFinding:
    """A finding in live video.

    Attributes:
        number: number of the finding in its source, from 1.
        when: time of its first frame, in seconds since 1970.
        probability: highest probability in that frame, 0..1.
        jpeg: that frame with its markers.
    """

    number: int
    when: float
    probability: float
    jpeg: bytes


@dataclass(slots=True)
class _SourceState:
    """The newest frame, viewers and findings of a source. `viewers` are those of JPEGs, `video` those of H.264."""

    frame: Frame | None = None
    jpeg: bytes = b""
    viewers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=set)
    video: Viewers = field(default_factory=lambda: Viewers(PAGE_WIDTH))
    findings: deque[LiveFinding] = field(default_factory=lambda: deque(maxlen=MAX_FINDINGS))
    found: int = 0


class Browser:
    """A sink that keeps the newest frame of each source for any number of viewers.

    A slow viewer gets fewer frames. It does not delay the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[str, _SourceState] = {}
        self._encoders: dict[str, Jpeg] = {}
        self._begins = NewFindings()

    def write(self, frame: Frame) -> None:
        """Keep a frame. It is encoded if the source has a viewer, or if a finding begins with it."""
        with self._lock:
            state = self._sources.setdefault(frame.source, _SourceState())
            state.frame, viewers = frame, list(state.viewers)
        state.video.write(frame)
        begins = self._begins(frame)
        if not viewers and not begins:
            return
        encoder = self._encoders.setdefault(frame.source, Jpeg(PAGE_WIDTH, PAGE_QUANTISER))
        jpeg = encoder(frame.in_memory(), frame.orientation)
        with self._lock:
            state.jpeg = jpeg
            if begins:
                state.found += 1
                highest = int(frame.probability.max()) / 255
                state.findings.append(LiveFinding(state.found, time.time(), highest, jpeg))
        for loop, event in viewers:
            loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End the streams of all viewers."""
        for source in list(self._sources):
            self.forget(source)

    def forget(self, source: str) -> None:
        """End the streams of a source that was removed.

        Args:
            source: its name. No frame of it comes any more.
        """
        with self._lock:
            state = self._sources.pop(source, None)
        if state is not None:
            state.video.end()
            for loop, event in list(state.viewers):
                loop.call_soon_threadsafe(event.set)

    @asynccontextmanager
    async def video(self, source: str) -> AsyncIterator[Viewer]:
        """Watch the H.264 video of a source, for the duration of an async with block.

        Args:
            source: name of the source.

        Yields:
            The viewer, which gets the pictures until the sink is closed. The first one shows the newest frame.
        """
        viewer = Viewer()
        with self._lock:
            state = self._sources.setdefault(source, _SourceState())
        try:
            await asyncio.to_thread(state.video.join, viewer, lambda: self._newest(state) or _no_signal())
            yield viewer
        finally:
            state.video.leave(viewer)

    def _newest(self, state: _SourceState) -> Frame | None:
        with self._lock:
            return state.frame

    async def pictures(self, source: str) -> AsyncIterator[bytes]:
        """Stream the JPEGs of a source to one viewer, until the sink is closed. Each is the newest at that time.

        If no new frame arrives, for example without a signal, the last JPEG is sent again: browsers show a JPEG only
        when the next one begins.

        Args:
            source: name of the source.
        """
        event = asyncio.Event()
        viewer = (asyncio.get_running_loop(), event)
        with self._lock:
            state = self._sources.setdefault(source, _SourceState())
            state.viewers.add(viewer)
        try:
            if state.frame is not None:
                yield await asyncio.to_thread(self._newest_jpeg, state)
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), REPEAT_S)
                event.clear()
                with self._lock:
                    if self._sources.get(source) is not state:
                        return
                    jpeg = state.jpeg
                yield jpeg or await asyncio.to_thread(self._newest_jpeg, state)
        finally:
            with self._lock:
                state.viewers.discard(viewer)

    def _newest_jpeg(self, state: _SourceState) -> bytes:
        """Encode the newest frame for a new viewer, also if no frame has arrived or none was encoded recently."""
        frame = self._newest(state)
        shown = frame or _no_signal()
        jpeg = Jpeg(PAGE_WIDTH, PAGE_QUANTISER)(shown.in_memory(), shown.orientation)
        with self._lock:
            if state.frame is frame:
                state.jpeg = jpeg
        return jpeg

    def viewers(self, source: str) -> int:
        """Number of viewers of a source.

        Args:
            source: name of the source.
        """
        with self._lock:
            state = self._sources.get(source)
            return len(state.viewers) + len(state.video) if state else 0

    def snapshot(self, source: str) -> bytes | None:
        """Encode the newest frame of a source at full size.

        Args:
            source: name of the source.

        Returns:
            A JPEG; None if no frame has arrived.
        """
        with self._lock:
            state = self._sources.get(source)
            frame = state.frame if state else None
        return None if frame is None else snapshot(frame)

    def findings(self, source: str) -> list[LiveFinding]:
        """The latest findings of a source, the newest first.

        Args:
            source: name of the source.
        """
        with self._lock:
            state = self._sources.get(source)
            return list(reversed(state.findings)) if state else []


def _no_signal() -> Frame:
    """The placeholder shown before the first frame."""
    picture = black_picture(PAGE_WIDTH, PAGE_WIDTH * 9 // 16)
    (frame,) = StatusOverlay()([Frame(0, picture, 0, Fraction(1), has_signal=False)])
    return frame
