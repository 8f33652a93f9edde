"""Live pictures for browsers: JPEGs made once for all viewers, and only while there is one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction

import av
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext

from stream.colour import is_full_range, matrix_name
from stream.frame import Frame

# Pictures for a page are no wider than this; a snapshot has all of its pixels.
PAGE_WIDTH = 1280
# The JPEG encoder's quantiser, 2 (best) to 31: a viewer sees no blocks, and a 720p picture takes about 50 kB.
PAGE_QUANTISER, SNAPSHOT_QUANTISER = 4, 2
REMEMBERED_FINDINGS = 20
# A finding that was gone for so long is a new one.
GONE_S = 2.0


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
    number: int = 0
    viewers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=set)
    last_found: float = float("-inf")
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

    def write(self, frame: Frame) -> None:
        """Keep a frame; encode it if somebody is looking, or if it is the first one of a finding."""
        with self._lock:
            watched = self._sources.setdefault(frame.source, _Watched())
            watched.frame, viewers = frame, list(watched.viewers)
        begins = frame.region is not None and time.monotonic() - watched.last_found > GONE_S
        if frame.region is not None:
            watched.last_found = time.monotonic()
        if not viewers and not begins:
            return
        encoder = self._encoders.setdefault(frame.source, Jpeg(PAGE_WIDTH, PAGE_QUANTISER))
        jpeg = encoder(frame.picture)
        with self._lock:
            watched.jpeg, watched.number = jpeg, watched.number + 1
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
        """JPEGs of a source for one viewer, each the newest there is; ends when the sink is closed."""
        event = asyncio.Event()
        viewer = (asyncio.get_running_loop(), event)
        with self._lock:
            watched = self._sources.setdefault(source, _Watched())
            watched.viewers.add(viewer)
        try:
            last = watched.number
            while True:
                await event.wait()
                event.clear()
                with self._lock:
                    if self._sources.get(source) is not watched:
                        return
                    number, jpeg = watched.number, watched.jpeg
                if number != last:
                    last = number
                    yield jpeg
        finally:
            with self._lock:
                watched.viewers.discard(viewer)

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
        return None if frame is None else Jpeg(frame.picture.width, SNAPSHOT_QUANTISER)(frame.picture)

    def findings(self, source: str) -> list[LiveFinding]:
        """The latest findings of a source, the newest first."""
        with self._lock:
            watched = self._sources.get(source)
            return list(reversed(watched.findings)) if watched else []


class Jpeg:
    """Encodes pictures as JPEG, scaled and brought to full range in one pass over their planes.

    Args:
        width: the widest that a picture may be.
        quantiser: of FFmpeg's MJPEG encoder, 2 (best) to 31.
    """

    def __init__(self, width: int, quantiser: int) -> None:
        self._width, self._quantiser = width, quantiser
        self._made_for: tuple[object, ...] = ()

    def __call__(self, picture: av.VideoFrame) -> bytes:
        """One picture as a JPEG file."""
        made_for = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        if made_for != self._made_for:
            self._made_for = made_for
            self._build(picture)
        self._graph.vpush(picture)
        scaled = self._graph.vpull()
        scaled.pts = self._count
        self._count += 1
        return b"".join(bytes(packet) for packet in self._encoder.encode(scaled))

    def _build(self, picture: av.VideoFrame) -> None:
        width = min(self._width, picture.width) & ~1
        height = max(2, round(picture.height * width / picture.width) & ~1)
        self._graph = Graph()
        self._graph.threads = 1
        colours = f"in_color_matrix={matrix_name(picture)}:in_range={'full' if is_full_range(picture) else 'limited'}"
        nodes = [
            self._graph.add(
                "buffer",
                f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base=1/1000:"
                f"colorspace={int(picture.colorspace)}:range={int(picture.color_range)}",
            ),
            # JPEG is BT.601 at full range (JFIF).
            self._graph.add(
                "scale", f"{width}:{height}:flags=bilinear:{colours}:out_color_matrix=bt601:out_range=full"
            ),
            self._graph.add("format", "pix_fmts=yuvj420p"),
            self._graph.add("buffersink"),
        ]
        self._graph.link_nodes(*nodes).configure()
        self._encoder = VideoCodecContext.create("mjpeg", "w")
        self._encoder.width, self._encoder.height, self._encoder.pix_fmt = width, height, "yuvj420p"
        self._encoder.time_base = Fraction(1, 1000)
        # With threads the encoder would hand out a picture only when the next ones have come.
        self._encoder.thread_count = 1
        self._encoder.options = {"qmin": str(self._quantiser), "qmax": str(self._quantiser)}
        self._count = 0
