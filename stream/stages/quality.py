"""Whether a picture is worth looking at: sharp, well lit, inside the body. Simple rules on the network's picture."""

from __future__ import annotations

import cv2
import numpy as np

from polypstream.core.frame import Frame, Quality

# Measured in pictures of this side. Of 360 pictures of Kvasir-SEG, PolypGen and CVC-ClinicDB, all inside the body,
# none was blurred by these rules, 1.1 % were over-exposed, and 0.6 % (dyed, narrow-band light) looked as if outside.
SIDE = 80
# Standard deviation of the Laplacian, in grey levels, below which a picture is blurred.
SHARP = 14.0
# Share of pixels at the sensor's end above which a picture is over-exposed.
WHITE, TOO_WHITE = 245, 0.05
# Mucosa is red: its red is so many times its blue and its green, over the lit pixels.
LIT, REDDER_THAN_BLUE, REDDER_THAN_GREEN = 30, 1.05, 0.95


class QualityInspector:
    """Attaches to each frame its quality."""

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """By the network's picture."""
        for frame in frames:
            frame.quality = inspect(frame.model_input)
        return frames


def inspect(picture: np.ndarray) -> Quality:
    """The quality of a picture of the field of view, uint8 RGB [size, size, 3]."""
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))
    red, green, blue, _ = cv2.mean(small, cv2.compare(grey, LIT, cv2.CMP_GT))
    return Quality(
        blurred=float(deviation[0, 0]) < SHARP,
        overexposed=cv2.countNonZero(cv2.compare(grey, WHITE, cv2.CMP_GT)) > TOO_WHITE * grey.size,
        outside=red < REDDER_THAN_BLUE * blue or red < REDDER_THAN_GREEN * green,
    )
