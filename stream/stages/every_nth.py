"""Stage `segment` for `inference.every`: run the model on every Nth frame only."""

from __future__ import annotations

from concurrent.futures import Executor

from polypstream.core.frame import Frame, Motion
from polypstream.core.pipeline import Stage
from polypstream.stages.motion import MotionEstimator, MotionState

# A finding is moved along a motion that explains the frame this well: its mean similarity. docs/performance.md has the
# measurement.
RELIABLE = 0.7


class EveryNth:
    """Passes every Nth frame of one source to a stage, and marks the others as not segmented.

    The stages `smooth` and `findings` move what they know along the motion of the image to the frames between. Where
    the motion is not known, as after a cut, or not reliable, frames are passed, too.

    Args:
        stage: sets the probability of frames.
        every: N; at most N - 1 frames in a row are not passed.
        workers: see MotionEstimator.
    """

    def __init__(self, stage: Stage[Frame], every: int, workers: Executor | None = None) -> None:
        self._stage, self._every = stage, every
        self._estimate, self._state = MotionEstimator(workers), MotionState()
        self._left_out = 0

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `motion` and `segmented` of all frames, and the probability map of those that are passed.

        Args:
            frames: frames of one source with `model_input`, in the order of their timestamps.

        Returns:
            The same frames.
        """
        *_, self._state = self._estimate(frames, self._state, [True] * len(frames))
        for frame in frames:
            frame.segmented = not _is_reliable(frame.motion) or self._left_out == self._every - 1
            self._left_out = 0 if frame.segmented else self._left_out + 1
        chosen = [frame for frame in frames if frame.segmented]
        if chosen:
            self._stage(chosen)
        return frames


def _is_reliable(motion: Motion | None) -> bool:
    return motion is not None and float(motion.similarity.mean()) >= RELIABLE
