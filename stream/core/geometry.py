"""Places in a picture: the field of view, and regions mapped from the network's size into the picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Longest side in pixels of the thumbnail in which the field of view is searched: burnt-in text is then one pixel thin.
THUMBNAIL = 128


@dataclass(frozen=True, slots=True)
class FieldOfView:
    """A box in picture pixels: left, top, width, height. Left and top are even: they fall on whole chroma samples."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def around(cls, left: int, top: int, right: int, bottom: int) -> FieldOfView:
        """The smallest such box around all of a box; right and bottom are exclusive."""
        x, y = left & ~1, top & ~1
        return cls(x, y, right - x, bottom - y)

    def crop(self, picture: np.ndarray) -> np.ndarray:
        """The part of a [height, width, ...] picture inside the box, as a view without a copy."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a full picture in which anything was found.

    Attributes:
        x, y: left and top of the region, in picture pixels.
        probability: uint8 [height, width], 0..255 meaning 0..1.
        mask: uint8 [height, width], 0 or 255.
    """

    x: int
    y: int
    probability: np.ndarray
    mask: np.ndarray

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the region in a full [height, width] picture."""
        height, width = self.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the thumbnail in which the field of view of a picture of this size is looked for."""
    scale = min(1.0, THUMBNAIL / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def region_above(probability: np.ndarray, view: FieldOfView, threshold: float) -> Region | None:
    """Map a probability map from the network's size back into the picture, only where something was found.

    The map is enlarged bilinearly (pixel centres aligned, as torch's align_corners=False) and then compared
    with the threshold, so the outline is smooth at the picture's own size.

    Args:
        probability: uint8 [h, w] at the network's size, 0..255 meaning 0..1.
        view: the field of view that the network saw.
        threshold: probability from which a pixel counts as polyp, 0..1.

    Returns:
        A region holding every pixel at or above the threshold, its left and top even so that it falls on whole
        chroma samples; None where there is no such pixel.
    """
    level = grey_level(threshold)
    found = cv2.boundingRect(cv2.compare(probability, level, cv2.CMP_GE))
    if found[2] == 0:
        return None
    # Bilinear values lie between their neighbours', so nothing outside the box one map pixel wider can reach
    # the level.
    rows, columns = probability.shape
    x0, y0 = max(found[0] - 1, 0), max(found[1] - 1, 0)
    x1, y1 = min(found[0] + found[2] + 1, columns), min(found[1] + found[3] + 1, rows)
    left, right = x0 * view.width // columns & ~1, -(-x1 * view.width // columns)
    top, bottom = y0 * view.height // rows & ~1, -(-y1 * view.height // rows)
    to_map = np.array(
        [
            [columns / view.width, 0, (left + 0.5) * columns / view.width - 0.5],
            [0, rows / view.height, (top + 0.5) * rows / view.height - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (right - left, bottom - top)
    enlarged = cv2.warpAffine(probability, to_map, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.compare(enlarged, level, cv2.CMP_GE)
    if cv2.countNonZero(mask) == 0:
        return None
    return Region(view.x + left, view.y + top, enlarged, mask)


def grey_level(threshold: float) -> int:
    """The lowest grey level (1..255) that counts as polyp at a probability threshold of 0..1."""
    return max(1, min(255, int(np.ceil(threshold * 255))))
