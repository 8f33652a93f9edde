"""Stage `smooth`: smooth the probability over time along the motion of the image.

A polyp stays at its place on the mucosa, but moves in the image with the camera. Therefore the previous probability map
is first moved along the dense optical flow. Then it is averaged with the current map. Where the two frames do not
match (a cut, a reflection, something new), only the current map counts. Therefore the result is not blurred by motion.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np

from polypstream.core.frame import Frame, Motion
from polypstream.core.geometry import FieldOfView

# Time constant tau of the past's weight, exp(-dt / tau), in seconds.
TIME_CONSTANT_S = 0.05
# The past's contribution is truncated to multiples of this grey level. So it becomes exactly zero within a second.
QUANTUM = np.float32(1 / 64)
# After a longer gap between two frames, smoothing starts again.
LONGEST_GAP_S = 0.5
# Motion is estimated in grey images of this side length. If the grey level of a pixel differs by d after motion
# compensation, its similarity is exp(-(d / SIMILARITY_SCALE)^2). If the mean similarity is lower than MIN_SIMILARITY, a
# new scene starts.
SIDE, SIMILARITY_SCALE = 64, 12.0
MIN_SIMILARITY = 0.5
# If no probability reached the grey level FAINT for IDLE_AFTER_S seconds, there is nothing to smooth. Then the motion
# is not estimated, which saves most of the work.
FAINT, IDLE_AFTER_S = 25, 2.0


@dataclass(slots=True)
class SmootherState:
    """The state of a TemporalSmoother after a frame. It determines all later results.

    Attributes:
        before: timestamp of the frame in seconds; None if there was none.
        view: field of view of the frame.
        grey: uint8 [SIDE, SIDE], the frame.
        smooth: float32 [h, w], its smoothed probability, 0..255. It is empty if a scene began that the model has not
            seen yet.
        seen: timestamp of the last frame whose probability reached the grey level FAINT, in seconds.
    """

    before: float | None = None
    view: FieldOfView | None = None
    grey: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE), np.uint8))
    smooth: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    seen: float = float("-inf")


class TemporalSmoother:
    """Sets the motion and the smoothed probability of each frame of one source.

    The optical flow is dense inverse search: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.

    Attributes:
        state: the state after the latest frame. Another smoother that is given this state continues in the same way.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.state = SmootherState()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `motion` and `smoothed` of each frame, and `probability` of those that are not segmented.

        Args:
            frames: frames of one source, in the order of their timestamps.

        Returns:
            The same frames.
        """
        for frame in frames:
            self._smooth(frame)
        return frames

    def _smooth(self, frame: Frame) -> None:
        small = cv2.resize(frame.model_input, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        grey, state = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), self.state
        if frame.segmented and frame.probability.max() >= FAINT:
            state.seen = frame.seconds
        elapsed = 0.0 if state.before is None else frame.seconds - state.before
        frame.motion = None
        idle = frame.seconds - state.seen > IDLE_AFTER_S
        known = state.smooth.size > 0 and state.view == frame.view
        if known and 0 < elapsed <= LONGEST_GAP_S and not idle:
            frame.motion = self._find_motion(grey, state.smooth.shape)
        past = None if frame.motion is None else frame.motion.warp(state.smooth)
        if frame.segmented:
            smooth = _average(frame, past, elapsed)
        elif past is not None:
            smooth = past
        else:
            smooth = np.zeros(state.smooth.shape if idle else (0, 0), np.float32)
        self.state = SmootherState(frame.seconds, frame.view, grey, smooth, state.seen)
        frame.smoothed = cv2.convertScaleAbs(smooth) if smooth.size else np.zeros(frame.model_input.shape[:2], np.uint8)
        if not frame.segmented:
            frame.probability = frame.smoothed

    def _find_motion(self, grey: np.ndarray, shape: tuple[int, ...]) -> Motion | None:
        """Estimate the motion since the previous frame; None if a new scene starts."""
        flow = self._flow.calc(grey, self.state.grey, None)
        # A pixel that came into view has no origin. The border value makes it as different as possible.
        origin = flow + _grid(SIDE, SIDE)
        difference = cv2.absdiff(grey, cv2.remap(self.state.grey, origin, None, cv2.INTER_LINEAR, borderValue=255))
        difference = cv2.blur(difference, (3, 3)).astype(np.float32) / SIMILARITY_SCALE
        similarity = np.exp(-difference * difference)
        if similarity.mean() < MIN_SIMILARITY:
            return None
        height, width = shape
        # The flow is scaled to pixels of the map before it is enlarged, because it then has fewer values.
        larger = cv2.resize(flow * np.array([width / SIDE, height / SIDE], np.float32), (width, height))
        return Motion(cv2.add(larger, _grid(height, width)), cv2.resize(similarity, (width, height)))


def _average(frame: Frame, past: np.ndarray | None, elapsed: float) -> np.ndarray:
    """Average the probability of a frame with that of the past, float32 [h, w]; None: there is no past."""
    now = frame.probability
    if past is not None and frame.motion is not None:
        weight = np.float32(np.exp(-elapsed / TIME_CONSTANT_S))
        now = now + np.trunc(weight * frame.motion.similarity * (past - now) / QUANTUM) * QUANTUM
    return now.astype(np.float32)


@functools.cache
def _grid(height: int, width: int) -> np.ndarray:
    """Return the x and y of each pixel, float32 [height, width, 2]."""
    return np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
