"""Stage `smooth`: smooth the probability over time along the motion of the image.

A polyp stays at its place on the mucosa, but moves in the image with the camera. Therefore the previous probability map
is first moved along the dense optical flow. Then it is averaged with the current map. Where the two frames do not
match (a cut, a reflection, something new), only the current map counts. Therefore the result is not blurred by motion.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.stages.motion import MotionEstimator, MotionState

# Time constant tau of the past's weight, exp(-dt / tau), in seconds.
TIME_CONSTANT_S = 0.05
# The past's contribution is truncated to multiples of this grey level. So it becomes exactly zero within a second.
QUANTUM = np.float32(1 / 64)
# If no probability reached the grey level FAINT for IDLE_AFTER_S seconds, there is nothing to smooth. Then the motion
# is not estimated, which saves most of the work.
FAINT, IDLE_AFTER_S = 25, 2.0


@dataclass(slots=True)
class SmootherState(MotionState):
    """The state of a TemporalSmoother after a frame. It determines all later results.

    Attributes:
        smooth: float32 [h, w], the frame's smoothed probability, 0..255.
        seen: timestamp of the last frame whose probability reached the grey level FAINT, in seconds.
    """

    smooth: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    seen: float = float("-inf")


class TemporalSmoother:
    """Sets the smoothed probability of each frame of one source.

    Args:
        estimate: estimate the motion, too. False: the frames come with it, as those of EveryNth.
        workers: see MotionEstimator.

    Attributes:
        state: the state after the latest frame. Another smoother that is given this state continues in the same way.
    """

    def __init__(self, estimate: bool = True, workers: Executor | None = None) -> None:
        self._estimate = MotionEstimator(workers) if estimate else None
        self.state = SmootherState()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `smoothed` and `motion` of each frame, and `probability` of those that are not segmented.

        Args:
            frames: frames of one source, in the order of their timestamps.

        Returns:
            The same frames.
        """
        seen = list(self._last_seen(frames))
        idle = [frame.seconds - last > IDLE_AFTER_S for frame, last in zip(frames, seen, strict=True)]
        greys = [self.state.grey] * len(frames)
        if self._estimate is not None:
            # It does not depend on what is smoothed, so it may be done for all of them at the same time.
            greys = [each.grey for each in self._estimate(frames, self.state, [not each for each in idle])]
        for frame, grey, last, is_idle in zip(frames, greys, seen, idle, strict=True):
            smooth = self._smooth(frame, is_idle)
            self.state = SmootherState(frame.seconds, frame.view, grey, smooth, last)
            frame.smoothed = cv2.convertScaleAbs(smooth)
            if not frame.segmented:
                frame.probability = frame.smoothed
        return frames

    def _last_seen(self, frames: list[Frame]) -> Iterator[float]:
        """For each frame, yield the `seen` of the state after it."""
        seen = self.state.seen
        for frame in frames:
            if frame.segmented and frame.probability.max() >= FAINT:
                seen = frame.seconds
            yield seen

    def _smooth(self, frame: Frame, is_idle: bool) -> np.ndarray:
        """The smoothed probability of the next frame, float32 [h, w], 0..255."""
        state = self.state
        past = None if frame.motion is None or is_idle else frame.motion.warp(state.smooth)
        if frame.segmented:
            return _average(frame, past, frame.seconds - (state.before or 0.0))
        return np.zeros_like(state.smooth) if past is None else past


def _average(frame: Frame, past: np.ndarray | None, elapsed: float) -> np.ndarray:
    """Average the probability of a frame with that of the past, float32 [h, w].

    Args:
        frame: the frame.
        past: smoothed probability of the previous frame, moved to this frame, which is overwritten; None: there is no
            past.
        elapsed: seconds since the previous frame.
    """
    now = frame.probability
    if past is None or frame.motion is None:
        return now.astype(np.float32)
    weight = np.float32(np.exp(-elapsed / TIME_CONSTANT_S))
    smooth = np.subtract(past, now, out=past)
    smooth *= frame.motion.similarity
    smooth *= weight / QUANTUM
    np.trunc(smooth, out=smooth)
    smooth *= QUANTUM
    smooth += now
    return smooth
