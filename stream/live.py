"""`polypstream live`: sources as they come, shown with their markers, recorded, sent on."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stream.config import Settings
from stream.errors import SourceError
from stream.find import Finder, choose_rules
from stream.frame import Frame
from stream.overlay import Overlay
from stream.pipeline import Pipeline, Room, Sink
from stream.segment import Segmenter
from stream.signs import Signs
from stream.sinks.rolling import RollingRecording
from stream.sources.live import LiveSource, open_live, split_name
from stream.view import THUMBNAIL, FieldOfView, Viewer, find_field_of_view

# Nothing waits that need not: one frame of each source before each room.
QUEUE = 1
# The field of view is looked for this often, in the pictures of so many looks.
LOOK_EVERY_S, LOOKS = 1.0, 10
# A session that failed is tried again after so long.
RETRY_S = 5.0
# Delays are told of so many of the latest frames: ten seconds at 60 per second.
REMEMBERED = 600


class LiveViewer:
    """A Viewer whose field of view follows the source, which may change its pictures at any time."""

    def __init__(self, size: int, settings: Settings) -> None:
        self._size, self._wanted = size, settings.view.field_of_view
        self._pictures: tuple[int, int] | None = None
        self._looked = 0.0
        self._thumbnails: deque[np.ndarray] = deque(maxlen=LOOKS)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """See Viewer."""
        for frame in frames:
            pictures = (frame.picture.width, frame.picture.height)
            if pictures != self._pictures:
                self._pictures, self._looked = pictures, 0.0
                self._thumbnails.clear()
                whole = FieldOfView(0, 0, *pictures)
                self._viewer, self._glance = Viewer(whole, self._size), Viewer(whole, THUMBNAIL)
            if frame.arrived - self._looked >= LOOK_EVERY_S:
                self._look(frame)
            self._viewer([frame])
        return frames

    def _look(self, frame: Frame) -> None:
        self._looked = frame.arrived
        if self._wanted == "auto":
            glance = self._glance([frame])[0].network_picture
            self._thumbnails.append(cv2.cvtColor(glance, cv2.COLOR_RGB2GRAY))
            view = find_field_of_view(self._thumbnails, frame.picture.width, frame.picture.height)
        elif self._wanted == "full":
            view = FieldOfView(0, 0, frame.picture.width, frame.picture.height)
        else:
            left, top, width, height = self._wanted
            right, bottom = min(left + width, frame.picture.width), min(top + height, frame.picture.height)
            view = FieldOfView.around(left, top, right, bottom)
        if view != self._viewer.view:
            self._viewer = Viewer(view, self._size)


class EachSource:
    """A room of its own for each source: rooms that remember must not mix them."""

    def __init__(self, make: Callable[[], Room[Frame]]) -> None:
        self._make = make
        self._rooms: dict[str, Room[Frame]] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Each frame through its source's room."""
        for frame in frames:
            if frame.source not in self._rooms:
                self._rooms[frame.source] = self._make()
            self._rooms[frame.source]([frame])
        return frames


class Seen:
    """A room that only the frames go through that the network sees: with a signal, and without a problem."""

    def __init__(self, room: Room[Frame]) -> None:
        self._room = room

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """All of them are handed on."""
        seen = [frame for frame in frames if frame.signal and not frame.problem]
        if seen:
            self._room(seen)
        return frames


class Guard:
    """Goes on without markers where the session fails: the video is never lost because of the model.

    Attributes:
        problem: why there are no markers now, or nothing.
    """

    def __init__(self, segmenter: Room[Frame]) -> None:
        self._segmenter, self._failed = segmenter, float("-inf")
        self.problem = ""

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Segment, or say on each frame why not; a session that failed is tried again after a while."""
        if not self.problem or time.monotonic() - self._failed > RETRY_S:
            try:
                self._segmenter(frames)
                self.problem = ""
            except Exception as error:  # whatever a provider's library raises, the picture goes on
                self.problem = f"inference fails: {(str(error) or type(error).__name__).splitlines()[0]}"
                self._failed = time.monotonic()
        for frame in frames:
            frame.problem = self.problem
        return frames


class Fresh:
    """Lets no frame through that is too old to be shown as current.

    Attributes:
        dropped: how many were, by source.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self.dropped: Counter[str] = Counter()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Those that arrived at most so many seconds ago."""
        oldest = time.monotonic() - self._most
        self.dropped.update(frame.source for frame in frames if frame.arrived < oldest)
        return [frame for frame in frames if frame.arrived >= oldest]


@dataclass(frozen=True, slots=True)
class Status:
    """How a source is doing.

    Attributes:
        source: its name.
        signal: pictures are coming; else `problem` says why not.
        problem: of the source or of inference, for people; or nothing.
        losses: how often the source went away.
        frames_in, shown: counted since the start.
        dropped: frames not shown, by reason; once nothing is on its way, frames_in is the sum of these and `shown`.
        delay_ms: of the latest frames, from arrival to the sinks: median, 95th and 99th percentile, longest.
        shown_per_second: of the latest frames.
    """

    source: str
    signal: bool
    problem: str
    losses: int
    frames_in: int
    shown: int
    dropped: dict[str, int]
    delay_ms: tuple[float, float, float, float] | None
    shown_per_second: float


class Meter:
    """The last room: notes when each frame goes out to the sinks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out: dict[str, deque[tuple[float, float]]] = {}
        self.shown: Counter[str] = Counter()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Note the frames."""
        now = time.monotonic()
        with self._lock:
            for frame in frames:
                self.shown[frame.source] += 1
                self._out.setdefault(frame.source, deque(maxlen=REMEMBERED)).append((now, now - frame.arrived))
        return frames

    def latest(self, source: str) -> list[tuple[float, float]]:
        """When the latest frames came out, and how long they had been on their way, in seconds."""
        with self._lock:
            return list(self._out.get(source, ()))


def describe(status: Status) -> str:
    """One line for people."""
    drops = ", ".join(f"{count} {reason}" for reason, count in status.dropped.items() if count)
    delay = "" if status.delay_ms is None else f", delay {status.delay_ms[0]:.0f} ms (99 %: {status.delay_ms[2]:.0f})"
    return (
        f"{status.source}: {'signal' if status.signal else 'no signal'}"
        + (f" ({status.problem})" if status.problem else "")
        + f", {status.frames_in} frames in, {status.shown} shown at {status.shown_per_second:.1f} per second"
        + (f", dropped: {drops}" if drops else "")
        + delay
        + (f", lost {status.losses} times" if status.losses else "")
    )


def open_sources(texts: Sequence[str], settings: Settings) -> list[LiveSource]:
    """The sources that a user names, each `ADDRESS` or `NAME=ADDRESS`.

    Raises:
        SourceError: one cannot be opened, or two are called the same.
    """
    sources: dict[str, LiveSource] = {}
    for text in texts:
        name, uri = split_name(text)
        if name in sources:
            raise SourceError(f"{name}: two sources are called the same; write NAME=ADDRESS")
        sources[name] = open_live(name, uri, settings.live.timeout)
    return list(sources.values())


def recordings_of(path: Path, sources: Sequence[LiveSource], settings: Settings) -> list[tuple[str, Sink[Frame]]]:
    """A sink for each source that records it: in `path`, or if there are several in files with their names.

    Raises:
        OutputError: a file exists already.
    """
    sinks: list[tuple[str, Sink[Frame]]] = []
    for source in sources:
        own = path if len(sources) == 1 else path.with_stem(f"{path.stem}-{source.name}")
        sinks.append((f"record {source.name}", RollingRecording(own, source, settings.output)))
    return sinks


class Live:
    """Sources, rooms and sinks at work.

    Args:
        sources: each with a name of its own.
        segmenter: shared by them.
        settings: of the run.
        sinks: name and sink of each.
    """

    def __init__(
        self,
        sources: Sequence[LiveSource],
        segmenter: Segmenter,
        settings: Settings,
        sinks: Sequence[tuple[str, Sink[Frame]]],
    ) -> None:
        self.sources = sources
        card, overlay = segmenter.card, settings.overlay
        self._guard, self._fresh, self._meter = Guard(segmenter), Fresh(settings.live.max_staleness), Meter()
        rooms: list[tuple[str, Room[Frame], int]] = [
            ("view", Seen(EachSource(lambda: LiveViewer(segmenter.size, settings))), 1),
            ("segment", Seen(self._guard), max(segmenter.batch_size, len(sources))),
            ("find", Seen(Finder(choose_rules(settings.findings, card.threshold, card.peak))), 1),
            ("overlay", Seen(Overlay(overlay.style, overlay.opacity, overlay.contour)), 1),
            ("signs", Signs(), 1),
            ("fresh", self._fresh, 1),
            ("meter", self._meter, 1),
        ]
        self.pipeline = Pipeline(
            [(source.name, source.frames()) for source in sources],
            rooms,
            sinks,
            QUEUE,
            newest=lambda frame: frame.source,
        )

    def run(self, poll: Callable[[], None]) -> None:
        """Until every source has ended or `poll` raises; KeyboardInterrupt is how a user ends it."""
        self.pipeline.run(poll)

    def close(self) -> None:
        """Let the sources end."""
        for source in self.sources:
            source.close()

    def status(self) -> list[Status]:
        """How each source is doing."""
        return [self._status_of(source) for source in self.sources]

    def _status_of(self, source: LiveSource) -> Status:
        latest = self._meter.latest(source.name)
        delays = np.percentile([1000 * delay for _, delay in latest], (50, 95, 99, 100)) if latest else None
        passed = latest[-1][0] - latest[0][0] if len(latest) > 1 else 0.0
        return Status(
            source=source.name,
            signal=source.signal.there,
            problem="; ".join(filter(None, (source.signal.problem, self._guard.problem))),
            losses=source.signal.losses,
            frames_in=self.pipeline.work[source.name].items,
            shown=self._meter.shown[source.name],
            dropped={"newer": self.pipeline.dropped[source.name], "stale": self._fresh.dropped[source.name]},
            delay_ms=None if delays is None else tuple(float(delay) for delay in delays),  # type: ignore[arg-type]
            shown_per_second=(len(latest) - 1) / passed if passed else 0.0,
        )
