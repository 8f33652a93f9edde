"""Probability over time: follows the picture's own motion and smooths along it.

A polyp that stays where it is on the wall moves in the picture with the camera. So what was found a moment before is
first moved to where that place is now, by dense optical flow, and then averaged with what is found now; where the two
pictures do not match (a cut, a light, something new) only the present counts. Nothing smears.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np

from polypstream.core.frame import Frame, Motion
from polypstream.core.geometry import FieldOfView

# Seconds in which the past loses two thirds of its weight.
TIME_CONSTANT_S = 0.05
# What the past still adds counts in such parts of a grey level: so it is forgotten within a second, to the last bit.
FINEST = np.float32(1 / 64)
# A source that was away for longer begins anew.
LONGEST_GAP_S = 0.5
# Motion is looked for in grey pictures of this side. A place whose grey differs by ALIKE after it was followed has
# lost two thirds of its weight; where the whole picture has lost more than it may, it is another scene.
SIDE, ALIKE = 64, 12.0
SAME_SCENE = 0.5
# Where nothing as probable as this was seen for so long, there is nothing to follow, and most of the work is left out.
FAINT, QUIET_S = 25, 2.0


@dataclass(slots=True)
class SmootherState:
    """What a steadier knows when a picture is done: all that decides how it goes on.

    Attributes:
        before: time of the picture in seconds; None: there was none.
        view: of the picture.
        grey: uint8 [SIDE, SIDE], the picture.
        smooth: float32 [h, w], its smoothed probability, 0..255.
        seen: when something FAINT at least was last seen, in seconds.
    """

    before: float | None = None
    view: FieldOfView | None = None
    grey: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE), np.uint8))
    smooth: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    seen: float = float("-inf")


class TemporalSmoother:
    """Attaches to each frame how it moved, and its probability smoothed along that motion; for one source.

    Attributes:
        state: between two pictures; another steadier that is given it goes on in the same way.

    Flow is dense inverse search: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.state = SmootherState()

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Frames in the order of their times."""
        for frame in frames:
            self._smooth(frame)
        return frames

    def _smooth(self, frame: Frame) -> None:
        small = cv2.resize(frame.model_input, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        grey, now = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), frame.probability
        state = self.state
        if now.max() >= FAINT:
            state.seen = frame.seconds
        passed = 0.0 if state.before is None else frame.seconds - state.before
        frame.motion = None
        quiet = frame.seconds - state.seen > QUIET_S
        if state.view == frame.view and 0 < passed <= LONGEST_GAP_S and not quiet:
            frame.motion = self._find_motion(grey, now.shape)
        if frame.motion is not None:
            past, weight = frame.motion.warp(state.smooth), np.float32(np.exp(-passed / TIME_CONSTANT_S))
            now = now + np.trunc(weight * frame.motion.similarity * (past - now) / FINEST) * FINEST
        smooth = now.astype(np.float32)
        self.state = SmootherState(frame.seconds, frame.view, grey, smooth, state.seen)
        frame.smoothed = cv2.convertScaleAbs(smooth)

    def _find_motion(self, grey: np.ndarray, shape: tuple[int, ...]) -> Motion | None:
        """None where this is another scene."""
        flow = self._flow.calc(grey, self.state.grey, None)
        # What came into view has no origin, and differs from the border's value as much as anything can.
        origin = flow + _grid(SIDE, SIDE)
        difference = cv2.absdiff(grey, cv2.remap(self.state.grey, origin, None, cv2.INTER_LINEAR, borderValue=255))
        difference = cv2.blur(difference, (3, 3)).astype(np.float32) / ALIKE
        trust = np.exp(-difference * difference)
        if trust.mean() < SAME_SCENE:
            return None
        height, width = shape
        # In pixels of the map before it is enlarged, where there are fewer places to do it at.
        larger = cv2.resize(flow * np.array([width / SIDE, height / SIDE], np.float32), (width, height))
        return Motion(cv2.add(larger, _grid(height, width)), cv2.resize(trust, (width, height)))


@functools.cache
def _grid(height: int, width: int) -> np.ndarray:
    """float32 [height, width, 2]: each place's own x and y."""
    return np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
