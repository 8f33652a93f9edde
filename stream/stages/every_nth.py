"""Stage `segment` for `inference.every`: run the model on every Nth frame only."""

from __future__ import annotations

from polypstream.core.frame import Frame
from polypstream.core.pipeline import Stage


class EveryNth:
    """Passes every Nth frame of a source to a stage. The others are marked as not segmented.

    The stages `smooth` and `findings` move what they know along the motion of the image to these frames.

    Args:
        stage: sets the probability of frames.
        every: N; the first frame, and every Nth after it, are passed.
    """

    def __init__(self, stage: Stage[Frame], every: int) -> None:
        self._stage, self._every = stage, every

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set the probability map of every Nth frame, and `segmented` of all frames.

        Args:
            frames: frames with `model_input`.

        Returns:
            The same frames.
        """
        for frame in frames:
            frame.segmented = frame.index % self._every == 0
        chosen = [frame for frame in frames if frame.segmented]
        if chosen:
            self._stage(chosen)
        return frames
