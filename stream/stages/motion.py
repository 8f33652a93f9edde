"""Motion of the image between two consecutive frames, as dense optical flow."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import cv2
import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from polypstream.core.frame import Frame, Motion
from polypstream.core.geometry import FieldOfView

# After a longer gap between two frames, their motion is not known.
LONGEST_GAP_S = 0.5
# Motion is estimated in grey images of this side length. If the grey level of a pixel differs by d after motion
# compensation, its similarity is exp(-(d / SIMILARITY_SCALE)^2). If the mean similarity is lower than MIN_SIMILARITY, a
# new scene starts.
SIDE, SIMILARITY_SCALE = 64, 12.0
MIN_SIMILARITY = 0.5
# Frames that one thread takes at once.
PART = 2
# Width in pixels of the grey images of SmallGrey.
SMALL_WIDTH = 320


T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class MotionState:
    """What is kept of a frame to estimate the motion to the next one.

    Attributes:
        before: timestamp of the frame in seconds; None if there was none.
        view: field of view of the frame.
        grey: uint8 [SIDE, SIDE], the frame.
    """

    before: float | None = None
    view: FieldOfView | None = None
    grey: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE), np.uint8))


class MotionEstimator:
    """Estimates the motion between frames.

    The optical flow is dense inverse search: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.

    Args:
        workers: runs the estimation for several frames at the same time; None: for one after the other.
    """

    def __init__(self, workers: Executor | None = None) -> None:
        self._map = map if workers is None else workers.map
        # An object of DISOpticalFlow has buffers of its own, so each thread has one.
        self._of_thread = threading.local()

    def __call__(self, frames: Sequence[Frame], state: MotionState, wanted: Sequence[bool]) -> list[MotionState]:
        """Set `motion` of frames: since the frame before, or None if there is none, or if a new scene starts.

        Args:
            frames: frames of one source with `model_input`, in the order of their timestamps.
            state: what was kept of the frame before the first one.
            wanted: for each frame, whether its motion is wanted; otherwise it is None.

        Returns:
            What is kept of each frame.
        """
        greys = self._of_each(grey_of, frames)
        states = [MotionState(frame.seconds, frame.view, grey) for frame, grey in zip(frames, greys, strict=True)]
        motions = self._of_each(self._motion, [*zip(frames, states, [state, *states], wanted, strict=False)])
        for frame, motion in zip(frames, motions, strict=True):
            frame.motion = motion
        return states

    def _of_each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Call a function for each item. A thread takes several at once, so that threads wake each other less often."""
        parts = [items[start : start + PART] for start in range(0, len(items), PART)]
        return list(chain.from_iterable(self._map(lambda part: list(map(function, part)), parts)))

    def _motion(self, step: tuple[Frame, MotionState, MotionState, bool]) -> Motion | None:
        """The motion to a frame, given what is kept of it and of the frame before, and whether it is wanted."""
        frame, now, before, wanted = step
        if not wanted or before.before is None or before.view != now.view:
            return None
        if not 0 < frame.seconds - before.before <= LONGEST_GAP_S:
            return None
        flow = self.flow(now.grey, before.grey)
        similarity = similarity_along(flow, now.grey, before.grey)
        if similarity.mean() < MIN_SIMILARITY:
            return None
        height, width = frame.model_input.shape[:2]
        # The flow is scaled to pixels of the map before it is enlarged, because it then has fewer values.
        larger = cv2.resize(flow * np.array([width / SIDE, height / SIDE], np.float32), (width, height))
        return Motion(cv2.add(larger, grid(height, width), larger), cv2.resize(similarity, (width, height)))

    def flow(self, grey: np.ndarray, before: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """Estimate where each pixel was in an earlier image.

        Args:
            grey, before: the image and the earlier one, uint8 [h, w].
            start: an estimate to begin with, as returned; None: there is none.

        Returns:
            float32 [h, w, 2]: what must be added to x and y of a pixel.
        """
        if not hasattr(self._of_thread, "estimator"):
            self._of_thread.estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        flow: np.ndarray = self._of_thread.estimator.calc(grey, before, None if start is None else start.copy())
        return flow


def similarity_along(flow: np.ndarray, grey: np.ndarray, before: np.ndarray) -> np.ndarray:
    """How similar each pixel is to its origin in an earlier image, float32 [h, w], 0..1.

    Args:
        flow: from `MotionEstimator.flow`.
        grey, before: the image and the earlier one, uint8 [h, w].
    """
    # A pixel that came into view has no origin. The border value makes it as different as possible.
    origin = flow + grid(*grey.shape)
    difference = cv2.absdiff(grey, cv2.remap(before, origin, None, cv2.INTER_LINEAR, borderValue=255))
    difference = cv2.blur(difference, (3, 3)).astype(np.float32) / SIMILARITY_SCALE
    similarity: np.ndarray = np.exp(-difference * difference)
    return similarity


def grey_of(frame: Frame) -> np.ndarray:
    """The image of a frame for motion estimation, uint8 [SIDE, SIDE].

    Args:
        frame: the frame, with `model_input`.
    """
    return cv2.cvtColor(cv2.resize(frame.model_input, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


class SmallGrey:
    """Makes small grey images of frames, in which markers are followed in pixels of the frame.

    FFmpeg's scaler is kept: to make one for each frame takes longer than to scale.
    """

    def __init__(self) -> None:
        self._scale = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> np.ndarray:
        """Return a frame in grey, uint8 [h, SMALL_WIDTH].

        Args:
            picture: the frame.
        """
        height = max(16, round(picture.height * SMALL_WIDTH / picture.width))
        return self._scale.reformat(picture, SMALL_WIDTH, height, "gray", interpolation="AREA").to_ndarray()


@functools.cache
def grid(height: int, width: int) -> np.ndarray:
    """The x and y of each pixel, float32 [height, width, 2].

    Args:
        height, width: size in pixels.
    """
    return np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
