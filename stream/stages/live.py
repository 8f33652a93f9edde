"""NamedStages that only live pictures go through, or that treat them otherwise."""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import cv2
import numpy as np

from polypstream.core.config import Settings
from polypstream.core.formatting import words_of
from polypstream.core.frame import Frame
from polypstream.core.geometry import THUMBNAIL, FieldOfView
from polypstream.core.pipeline import BufferedSink, Channel, Sink, Stage
from polypstream.media.pictures import copy_of
from polypstream.stages.field_of_view import ViewCropper, find_field_of_view

# The field of view is looked for this often, in the pictures of so many looks.
LOOK_EVERY_S, LOOKS = 1.0, 10
# Edges that move by less than this share of the picture are noise: each new box is a new scene to what comes after.
STEADY_VIEW = 0.02
# A session that failed is tried again after so long.
RETRY_S = 5.0
# Delays are told of so many of the latest frames: ten seconds at 60 per second.
REMEMBERED = 600


class LiveViewCropper:
    """A ViewCropper whose field of view follows the source, which may change its pictures at any time."""

    def __init__(self, size: int, settings: Settings) -> None:
        self._size, self._wanted = size, settings.view.field_of_view
        self._pictures: tuple[int, int] | None = None
        self._looked = 0.0
        self._thumbnails: deque[np.ndarray] = deque(maxlen=LOOKS)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """See ViewCropper."""
        for frame in frames:
            pictures = (frame.picture.width, frame.picture.height)
            if pictures != self._pictures:
                self._pictures, self._looked = pictures, 0.0
                self._thumbnails.clear()
                whole = FieldOfView(0, 0, *pictures)
                self._viewer, self._glance = ViewCropper(whole, self._size), ViewCropper(whole, THUMBNAIL)
            if frame.arrived - self._looked >= LOOK_EVERY_S:
                self._look(frame)
            self._viewer([frame])
        return frames

    def _look(self, frame: Frame) -> None:
        self._looked = frame.arrived
        if self._wanted == "auto":
            glance = self._glance([frame])[0].model_input
            self._thumbnails.append(cv2.cvtColor(glance, cv2.COLOR_RGB2GRAY))
            view = find_field_of_view(self._thumbnails, frame.picture.width, frame.picture.height)
        elif self._wanted == "full":
            view = FieldOfView(0, 0, frame.picture.width, frame.picture.height)
        else:
            left, top, width, height = self._wanted
            right, bottom = min(left + width, frame.picture.width), min(top + height, frame.picture.height)
            fits = left < right and top < bottom  # or the source's pictures are smaller than they were
            view = FieldOfView.around(left, top, right, bottom) if fits else FieldOfView.around(0, 0, *_size(frame))
        if _differ(view, self._viewer.view, STEADY_VIEW * max(_size(frame))):
            self._viewer = ViewCropper(view, self._size)


def _differ(one: FieldOfView, other: FieldOfView, most: float) -> bool:
    """Whether any edge of two boxes is farther apart than so many pixels."""
    edges = [(view.x, view.y, view.x + view.width, view.y + view.height) for view in (one, other)]
    return max(abs(a - b) for a, b in zip(*edges, strict=True)) > most


class PerSource:
    """A stage of its own for each source: stages that remember must not mix them."""

    def __init__(self, make: Callable[[], Stage[Frame]]) -> None:
        self._make = make
        self._stages: dict[str, Stage[Frame]] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Each frame through its source's stage."""
        for frame in frames:
            if frame.source not in self._stages:
                self._stages[frame.source] = self._make()
            self._stages[frame.source]([frame])
        return frames


class SkipInvalid:
    """A stage that only the frames go through that the network sees: with a signal, and without a problem."""

    def __init__(self, stage: Stage[Frame]) -> None:
        self._room = stage

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """All of them are handed on."""
        seen = [frame for frame in frames if frame.has_signal and not frame.problem]
        if seen:
            self._room(seen)
        return frames


class FailSafe:
    """Goes on without markers where the session fails: the video is never lost because of the model.

    Attributes:
        problem: why there are no markers now, or nothing.
    """

    def __init__(self, segmenter: Stage[Frame]) -> None:
        self._segmenter, self._failed = segmenter, float("-inf")
        self.problem = ""

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Segment, or say on each frame why not; a session that failed is tried again after a while."""
        if not self.problem or time.monotonic() - self._failed > RETRY_S:
            try:
                self._segmenter(frames)
                self.problem = ""
            except Exception as error:  # whatever a provider's library raises, the picture goes on
                self.problem = f"inference fails: {words_of(error)}"
                self._failed = time.monotonic()
        for frame in frames:
            frame.problem = self.problem
        return frames


class StalenessFilter:
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


class LatestMarkers:
    """In pass-through: puts the newest markers on each picture, found in an earlier one.

    It is also the sink at the end of the inference that finds them.

    Args:
        most: seconds after which markers are too old to be drawn.

    Attributes:
        unmarked: of each source the newest frame as it came, for inference.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._newest: dict[str, Frame] = {}
        self.unmarked: dict[str, Frame] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Mark each frame, and say how old its markers are."""
        for frame in frames:
            self.unmarked[frame.source] = copy.copy(frame)
            frame.picture = copy_of(frame.picture)  # to be drawn on, while the network is shown the other
            marked = self._newest.get(frame.source)
            if marked is None or (marked.picture.width, marked.picture.height) != _size(frame):
                frame.problem = "waiting for the first ones"
                continue
            frame.markers_age = time.monotonic() - marked.arrived
            if frame.markers_age > self._most:
                frame.problem = f"the newest are {frame.markers_age:.1f} s old"
            elif marked.problem:
                frame.problem = marked.problem
            else:
                frame.view, frame.probability = marked.view, marked.probability
                frame.region, frame.outlines, frame.tracks = marked.region, marked.outlines, marked.tracks
        return frames

    def write(self, frame: Frame) -> None:
        """Keep what was found in a frame."""
        self._newest[frame.source] = frame

    def close(self) -> None:
        """Nothing is to be finished."""


class BackgroundInferenceFeed:
    """In pass-through: the last sink, which hands frames to the inference aside.

    Last, so that a picture is out before the session takes the cores.

    Args:
        inference: where it takes its frames from.
        markers: keeps the frames as they came.
    """

    def __init__(self, inference: Channel[Frame], markers: LatestMarkers) -> None:
        self._inference, self._markers = inference, markers

    def write(self, frame: Frame) -> None:
        """Hand on the newest frame of the source, if it was not handed on before."""
        unmarked = self._markers.unmarked.pop(frame.source, None)
        if unmarked is not None:
            self._inference.put(unmarked)

    def close(self) -> None:
        """The inference ends with the program."""


def _size(frame: Frame) -> tuple[int, int]:
    return frame.picture.width, frame.picture.height


# When a frame came out, how long it had been on its way, and the age of its markers, if it could have any; in seconds.
Passed = tuple[float, float, float | None]


class LatencyMeter:
    """The last stage: notes when each frame goes out to the sinks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out: dict[str, deque[Passed]] = {}
        self.shown: Counter[str] = Counter()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Note the frames."""
        now = time.monotonic()
        with self._lock:
            for frame in frames:
                self.shown[frame.source] += 1
                age = (frame.markers_age or now - frame.arrived) if frame.has_signal and not frame.problem else None
                passed = (now, now - frame.arrived, age)
                self._out.setdefault(frame.source, deque(maxlen=REMEMBERED)).append(passed)
        return frames

    def latest(self, source: str) -> list[Passed]:
        """The latest frames."""
        with self._lock:
            return list(self._out.get(source, ()))


class IsolatedSink:
    """A sink that fails alone: the others go on, and what went wrong is told.

    Attributes:
        sink: itself.
        queue_size: the sink's own, or 1.
        problem: what went wrong, for people; or nothing.
    """

    def __init__(self, sink: Sink[Frame]) -> None:
        self.sink = sink
        self.queue_size = sink.queue_size if isinstance(sink, BufferedSink) else 1
        self.problem = ""

    def write(self, frame: Frame) -> None:
        """Hand a frame on, until that fails."""
        if not self.problem:
            try:
                self.sink.write(frame)
            except Exception as error:  # whatever a library raises, the picture goes on elsewhere
                self.problem = words_of(error)

    def close(self) -> None:
        """Close the sink."""
        try:
            self.sink.close()
        except Exception as error:  # as above
            self.problem = self.problem or words_of(error)
