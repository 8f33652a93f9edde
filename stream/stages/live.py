"""Stages and sinks that are used only for live sources."""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol, get_args, runtime_checkable

import cv2
import numpy as np

from polypstream.core.config import Settings
from polypstream.core.formatting import words_of
from polypstream.core.frame import Frame, Quality
from polypstream.core.geometry import THUMBNAIL, FieldOfView
from polypstream.core.pipeline import BufferedSink, ByKey, Channel, Sink, Stage
from polypstream.media.pictures import copy_of
from polypstream.stages.field_of_view import ViewCropper, find_field_of_view
from polypstream.stages.marker_motion import move_markers
from polypstream.stages.motion import SmallGrey

# Seconds between two searches for the field of view, and the number of thumbnails that each search uses.
SEARCH_INTERVAL_S, SEARCH_THUMBNAILS = 1.0, 10
# The box is kept if its edges move by less than this share of the frame. A new box starts a new scene.
VIEW_TOLERANCE = 0.02
# Seconds after which a failed inference is tried again.
RETRY_S = 5.0
# Number of latest frames whose latency is stored: ten seconds at 60 frames per second.
REMEMBERED_FRAMES = 600
# Number of latest frames to which markers may belong that are moved to the newest one.
REMEMBERED_GREYS = 120


class LiveViewCropper:
    """A ViewCropper whose field of view follows the source, which may change its format at any time.

    Args:
        size: height and width of the model's input in pixels.
        settings: settings of the run.
    """

    def __init__(self, size: int, settings: Settings) -> None:
        self._size, self._wanted = size, settings.view.field_of_view
        self._frame_size: tuple[int, int] | None = None
        self._searched_at = 0.0
        self._thumbnails: deque[np.ndarray] = deque(maxlen=SEARCH_THUMBNAILS)

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `view` and `model_input` of each frame.

        Args:
            frames: frames of one source, in the order of their timestamps.

        Returns:
            The same frames.
        """
        for frame in frames:
            frame_size = (frame.picture.width, frame.picture.height)
            if frame_size != self._frame_size:
                self._frame_size, self._searched_at = frame_size, 0.0
                self._thumbnails.clear()
                whole = FieldOfView(0, 0, *frame_size)
                self._cropper, self._thumbnail_cropper = ViewCropper(whole, self._size), ViewCropper(whole, THUMBNAIL)
            if frame.arrived - self._searched_at >= SEARCH_INTERVAL_S:
                self._search(frame)
            self._cropper([frame])
        return frames

    def _search(self, frame: Frame) -> None:
        self._searched_at = frame.arrived
        if self._wanted == "auto":
            thumbnail = self._thumbnail_cropper([frame])[0].model_input
            self._thumbnails.append(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY))
            view = find_field_of_view(self._thumbnails, frame.picture.width, frame.picture.height)
        elif self._wanted == "full":
            view = FieldOfView(0, 0, frame.picture.width, frame.picture.height)
        else:
            left, top, width, height = self._wanted
            right, bottom = min(left + width, frame.picture.width), min(top + height, frame.picture.height)
            fits = left < right and top < bottom  # not if the source's frames have become smaller
            view = FieldOfView.around(left, top, right, bottom) if fits else FieldOfView.around(0, 0, *_size(frame))
        if _differ(view, self._cropper.view, VIEW_TOLERANCE * max(_size(frame))):
            self._cropper = ViewCropper(view, self._size)


def _differ(one: FieldOfView, other: FieldOfView, most: float) -> bool:
    """Whether any edges of two boxes are farther apart than `most` pixels."""
    edges = [(view.x, view.y, view.x + view.width, view.y + view.height) for view in (one, other)]
    return max(abs(a - b) for a, b in zip(*edges, strict=True)) > most


class PerSource:
    """A stage with its own instance for each source, because a stage with state must not mix sources.

    Args:
        make: makes an instance.
    """

    def __init__(self, make: Callable[[], Stage[Frame]]) -> None:
        self._make = make
        self._stages: dict[str, Stage[Frame]] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Pass each frame to the instance of its source.

        Args:
            frames: frames of any sources.

        Returns:
            The same frames.
        """
        for frame in frames:
            if frame.source not in self._stages:
                self._stages[frame.source] = self._make()
            self._stages[frame.source]([frame])
        return frames


class SkipInvalid:
    """Passes only those frames to a stage that have a signal and no problem.

    Args:
        stage: the stage.
        only: names of the sources whose frames are passed; None: all.
    """

    def __init__(self, stage: Stage[Frame], only: Collection[str] | None = None) -> None:
        self._stage, self._only = stage, only

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Process the valid frames.

        Args:
            frames: any frames.

        Returns:
            All frames, including the invalid ones.
        """
        valid = [
            frame
            for frame in frames
            if frame.has_signal and not frame.problem and (self._only is None or frame.source in self._only)
        ]
        if valid:
            self._stage(valid)
        return frames


class FailSafe:
    """Continues without markers if inference fails, so that the video is never lost because of the model.

    Args:
        segmenter: stage `segment`.

    Attributes:
        problem: why there are no markers now, or an empty string.
    """

    def __init__(self, segmenter: Stage[Frame]) -> None:
        self._segmenter, self._failed = segmenter, float("-inf")
        self.problem = ""

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Run inference, or set `problem` of each frame. After a failure, inference is tried again after RETRY_S.

        Args:
            frames: frames with `model_input`.

        Returns:
            The same frames.
        """
        if not self.problem or time.monotonic() - self._failed > RETRY_S:
            try:
                self._segmenter(frames)
                self.problem = ""
            except Exception as error:  # a provider's library may raise anything; the video continues
                self.problem = f"inference fails: {words_of(error)}"
                self._failed = time.monotonic()
        for frame in frames:
            frame.problem = self.problem
        return frames


class StalenessFilter:
    """Drops frames that are too old to be shown as current.

    Args:
        most: the maximum age in seconds.

    Attributes:
        dropped: number of dropped frames by source, without placeholders.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self.dropped: Counter[str] = Counter()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Drop frames by the time since they arrived.

        Args:
            frames: any frames.

        Returns:
            The frames that are not too old.
        """
        oldest = time.monotonic() - self._most
        self.dropped.update(frame.source for frame in frames if frame.has_signal and frame.arrived < oldest)
        return [frame for frame in frames if frame.arrived >= oldest]


class LatestMarkers:
    """In pass-through mode: sets the newest markers, which belong to an earlier frame, on each frame.

    They are moved along the motion of the image since then (`polypstream.stages.marker_motion`).

    It is also the sink of the inference pipeline that finds the markers.

    Args:
        most: the maximum age of markers in seconds. Older ones are not drawn.

    Attributes:
        unmarked: the newest frame of each source as it arrived, for inference.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._newest: dict[str, Frame] = {}
        self._ended: dict[str, float] = {}  # when the last source of a name ended
        self._grey_of = SmallGrey()
        self._greys: dict[str, dict[int, np.ndarray]] = {}
        self.unmarked: dict[str, Frame] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set the newest markers and their age on each frame, or `problem` if there are none.

        Args:
            frames: frames of any sources.

        Returns:
            The same frames.
        """
        for frame in frames:
            self.unmarked[frame.source] = copy.copy(frame)
            frame.picture = copy_of(
                frame.in_memory()
            )  # the overlay draws on the copy, and inference reads the original
            marked, grey = self._newest.get(frame.source), self._grey_of(frame.in_memory())
            greys = self._greys.setdefault(frame.source, {})
            greys[frame.index] = grey
            if len(greys) > REMEMBERED_GREYS:
                del greys[min(greys)]
            if marked is None or (marked.picture.width, marked.picture.height) != _size(frame):
                frame.problem = "waiting for the first ones"
                continue
            frame.markers_age = time.monotonic() - marked.arrived
            if frame.markers_age > self._most:
                frame.problem = f"the newest are {frame.markers_age:.1f} s old"
            elif marked.problem:
                frame.problem = marked.problem
            else:
                frame.view, frame.probability, frame.quality = marked.view, marked.probability, marked.quality
                frame.region, frame.outlines = marked.region, marked.outlines
                frame.tracks, frame.peaks, frame.carried = marked.tracks, marked.peaks, marked.carried
                self._greys[frame.source] = {index: each for index, each in greys.items() if index >= marked.index}
                if marked.index in greys:
                    move_markers(frame, greys[marked.index], grey)
        return frames

    def write(self, frame: Frame) -> None:
        """Store the markers of a frame.

        Args:
            frame: a frame that has passed the inference pipeline.
        """
        if frame.arrived > self._ended.get(frame.source, 0.0):
            self._newest[frame.source] = frame

    def forget(self, source: str) -> None:
        """Release what is kept of a source that has ended. Its frames may still be in the inference pipeline.

        Args:
            source: its name, which a source that begins later may have, too.
        """
        self._ended[source] = time.monotonic()
        for kept in (self._newest, self._greys, self.unmarked):
            kept.pop(source, None)

    def close(self) -> None:
        """Do nothing: there is nothing to finish."""


class BackgroundInferenceFeed:
    """In pass-through mode: the last sink, which passes frames to the inference pipeline.

    It is the last sink, so that a frame is displayed before inference occupies the CPU cores.

    Args:
        inference: the input queue of the inference pipeline.
        markers: stores the frames as they arrived.
    """

    def __init__(self, inference: Channel[Frame], markers: LatestMarkers) -> None:
        self._inference, self._markers = inference, markers

    def write(self, frame: Frame) -> None:
        """Pass the newest frame of the source to inference, if it was not passed before.

        Args:
            frame: a frame of the source.
        """
        unmarked = self._markers.unmarked.pop(frame.source, None)
        if unmarked is not None:
            self._inference.put(unmarked)

    def close(self) -> None:
        """Do nothing: the inference pipeline ends with the program."""


class CleanKeeper:
    """Keeps the pictures of some sources without markers and texts: what follows draws on a copy.

    Args:
        only: names of the sources.
    """

    def __init__(self, only: Collection[str]) -> None:
        self._only = only

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `clean` of the frames of these sources.

        Args:
            frames: frames on which nothing is drawn yet.

        Returns:
            The same frames.
        """
        for frame in frames:
            if frame.source in self._only:
                frame.clean = frame.in_memory()
                frame.picture = copy_of(frame.clean)
        return frames


def fill_unseen(frame: Frame) -> None:
    """Set what tables need of a frame that the model did not see, such as a placeholder without a signal.

    Args:
        frame: a frame that has passed all stages; changed in place.
    """
    frame.segmented = frame.has_signal and not frame.problem and not frame.markers_age
    if frame.has_signal and not frame.problem:
        return
    if not frame.has_signal or not hasattr(frame, "quality"):
        frame.quality = Quality(blurred=not frame.has_signal, overexposed=False, outside=False)  # it is dark
    frame.probability = np.zeros((1, 1), np.uint8)
    frame.clear_findings()


def _size(frame: Frame) -> tuple[int, int]:
    return frame.picture.width, frame.picture.height


# Time at which a frame left the last stage, its latency, and the age of its markers or None; in seconds.
FrameTiming = tuple[float, float, float | None]
# The frame in which the model found what a shown frame is marked with.
Origin = Literal["own", "earlier", "none"]


class LatencyMeter:
    """The last stage: records when each frame goes to the sinks. Placeholders, which no source sent, are left out.

    Attributes:
        shown: number of frames by source and by origin of their findings: the frame's own, those of an earlier frame,
            or none, because the model has no current ones.
        newest: time of the newest frame of each source, in seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out: dict[str, deque[FrameTiming]] = {}
        self.shown: Counter[tuple[str, Origin]] = Counter()
        self.newest: dict[str, float] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Record the frames.

        Args:
            frames: frames of any sources.

        Returns:
            The same frames.
        """
        now = time.monotonic()
        with self._lock:
            for frame in frames:
                self.newest[frame.source] = frame.seconds
                if not frame.has_signal:
                    continue
                origin: Origin = "none" if frame.problem else "earlier" if frame.markers_age else "own"
                self.shown[frame.source, origin] += 1
                age = None if frame.problem else frame.markers_age or now - frame.arrived
                timing = (now, now - frame.arrived, age)
                self._out.setdefault(frame.source, deque(maxlen=REMEMBERED_FRAMES)).append(timing)
        return frames

    def shown_by_origin(self, source: str) -> dict[str, int]:
        """Return the number of frames by origin of their findings.

        Args:
            source: name of the source.
        """
        return {origin: self.shown[source, origin] for origin in get_args(Origin)}

    def latest(self, source: str) -> list[FrameTiming]:
        """Return the timing of the latest frames.

        Args:
            source: name of the source.

        Returns:
            The timing of at most REMEMBERED_FRAMES frames, the oldest first.
        """
        with self._lock:
            return list(self._out.get(source, ()))


@runtime_checkable
class KeepingSink(Sink[Frame], Protocol):
    """A sink that takes all sources, and keeps something of each."""

    def forget(self, source: str) -> None:
        """Release what is kept of a source.

        Args:
            source: its name.
        """


class IsolatedSink:
    """A sink whose errors do not stop the other sinks.

    Args:
        sink: the sink.

    Attributes:
        sink: the sink itself.
        queue_size: the sink's own queue size, or 1.
        problem: what failed, as text for the user; or an empty string.
    """

    def __init__(self, sink: Sink[Frame]) -> None:
        self.sink = sink
        self.queue_size = sink.queue_size if isinstance(sink, BufferedSink) else 1
        self.problem = ""
        self._lock = threading.Lock()
        self._forgotten: set[str] = set()

    def write(self, frame: Frame) -> None:
        """Pass a frame to the sink, until the sink fails.

        Args:
            frame: the frame.
        """
        self._pass([frame], self._write_in_turn)

    def _write_in_turn(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            self.sink.write(frame)
        return frames

    def _pass(self, frames: Sequence[Frame], write: Stage[Frame]) -> None:
        with self._lock:
            wanted = [frame for frame in frames if frame.source not in self._forgotten]
            if self.problem or not wanted:
                return
            try:
                write(wanted)
            except Exception as error:  # a library may raise anything; the other sinks continue
                self.problem = words_of(error)

    def forget(self, source: str) -> None:
        """Let the sink release what it keeps of a source that was removed. Frames of it that still come are ignored.

        Args:
            source: its name.
        """
        with self._lock:
            self._forgotten.add(source)
            if isinstance(self.sink, KeepingSink):
                self.sink.forget(source)

    def expect(self, source: str) -> None:
        """Pass frames of a source again that was forgotten.

        Args:
            source: its name.
        """
        with self._lock:
            self._forgotten.discard(source)

    def close(self) -> None:
        """Close the sink."""
        try:
            self.sink.close()
        except Exception as error:  # as above
            self.problem = self.problem or words_of(error)


class ParallelSink(IsolatedSink):
    """An isolated sink that gets frames of different sources at the same time.

    Args:
        sink: the sink. Threads may write frames of different sources to it at once.
        most: the largest number of frames that it gets at once.

    Attributes:
        most: the same.
    """

    def __init__(self, sink: Sink[Frame], most: int) -> None:
        super().__init__(sink)
        self.most = most
        self._workers = ThreadPoolExecutor(most)
        self._write_by_source = ByKey(self._write_in_turn, lambda frame: frame.source, self._workers)

    def write_group(self, frames: Sequence[Frame]) -> None:
        """Pass frames to the sink, until the sink fails.

        Args:
            frames: the frames.
        """
        self._pass(frames, self._write_by_source)

    def close(self) -> None:
        """Close the sink."""
        self._workers.shutdown()
        super().close()
