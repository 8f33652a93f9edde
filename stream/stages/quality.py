"""Stage `quality`: detect blurred, overexposed and outside frames with simple rules on the model's input."""

from __future__ import annotations

import cv2
import numpy as np

from polypstream.core.frame import Frame, Quality

# Images are rated at this side length. The rules were tested on 360 images of Kvasir-SEG, PolypGen and CVC-ClinicDB,
# all inside the body. None was rated as blurred, 1.1 % as overexposed, and 0.6 % (dyed, narrow-band light) as outside.
SIDE = 80
# A frame is blurred if the standard deviation of its Laplacian, in grey levels, is lower.
SHARP = 14.0
# A pixel above this grey level is at the end of the sensor's range. A larger share of such pixels means overexposed.
WHITE, TOO_WHITE = 245, 0.05
# Mucosa is red. The mean red of its bright pixels is at least this multiple of the mean blue and of the mean green.
LIT, REDDER_THAN_BLUE, REDDER_THAN_GREEN = 30, 1.05, 0.95


class QualityInspector:
    """Sets the quality of each frame."""

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `quality` of each frame, from its model input.

        Args:
            frames: any frames.

        Returns:
            The same frames.
        """
        for frame in frames:
            frame.quality = inspect(frame.model_input)
        return frames


def inspect(picture: np.ndarray) -> Quality:
    """Rate the quality of a frame.

    Args:
        picture: uint8 RGB [size, size, 3], the field of view.

    Returns:
        The quality.
    """
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))
    red, green, blue, _ = cv2.mean(small, cv2.compare(grey, LIT, cv2.CMP_GT))
    return Quality(
        blurred=float(deviation[0, 0]) < SHARP,
        overexposed=cv2.countNonZero(cv2.compare(grey, WHITE, cv2.CMP_GT)) > TOO_WHITE * grey.size,
        outside=red < REDDER_THAN_BLUE * blue or red < REDDER_THAN_GREEN * green,
    )
