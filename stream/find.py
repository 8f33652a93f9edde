"""From a probability map to findings: where in the picture it reaches the threshold, and the outline of each blob."""

from __future__ import annotations

import cv2

from stream.frame import Frame
from stream.view import FieldOfView, region_above


class Finder:
    """Attaches to each frame its region and outlines.

    Args:
        view: the field of view that the network saw.
        threshold: probability from which a pixel counts as polyp, 0..1.
    """

    def __init__(self, view: FieldOfView, threshold: float) -> None:
        self.view, self.threshold = view, threshold

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """One outline for each 8-connected blob of the mask."""
        for frame in frames:
            frame.region = region_above(frame.probability, self.view, self.threshold)
            if frame.region is not None:
                offset = (frame.region.x, frame.region.y)
                outlines, _ = cv2.findContours(
                    frame.region.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=offset
                )
                frame.outlines = [outline[:, 0] for outline in outlines]
        return frames
