"""Regions of a frame: the field of view, and findings mapped from the model's input size into the frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Longest side in pixels of the thumbnail in which the field of view is searched. Lines of burnt-in text are then one
# pixel thin.
THUMBNAIL = 128


@dataclass(frozen=True, slots=True)
class FieldOfView:
    """The box of the field of view in pixels of the frame. x and y are even, so that they fall on whole chroma samples.

    Attributes:
        x, y: left and top.
        width, height: size.
    """

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def around(cls, left: int, top: int, right: int, bottom: int) -> FieldOfView:
        """Build the smallest box with even x and y that contains another box.

        Args:
            left, top: the other box's left and top, in pixels.
            right, bottom: its right and bottom, in pixels, exclusive.

        Returns:
            The box.
        """
        x, y = left & ~1, top & ~1
        return cls(x, y, right - x, bottom - y)

    def crop(self, picture: np.ndarray) -> np.ndarray:
        """Crop an image to the box.

        Args:
            picture: [height, width, ...].

        Returns:
            The part inside the box; a view of the same memory, not a copy.
        """
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a frame that contains findings.

    Attributes:
        x, y: left and top of the region, in pixels of the frame.
        probability: uint8 [height, width], 0..255 meaning 0..1.
        mask: uint8 [height, width], 0 or 255.
    """

    x: int
    y: int
    probability: np.ndarray
    mask: np.ndarray

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the region in an array of the full frame, [height, width]."""
        height, width = self.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    def area_of(self, outline: np.ndarray) -> int:
        """Count the pixels of the mask that belong to the finding of an outline. Holes in it do not count.

        Args:
            outline: outline of a blob of the mask, int32 [n, 2], x and y in pixels of the frame.
        """
        points = outline - (self.x, self.y)
        left, top, width, height = cv2.boundingRect(points)
        inside = cv2.fillPoly(np.zeros((height, width), np.uint8), [points], 255, offset=(-left, -top))
        box = cv2.bitwise_and(self.mask[top : top + height, left : left + width], inside)
        area = cv2.countNonZero(box)
        if area == cv2.countNonZero(inside):
            return area
        # In a hole of the finding another one may lie. To label the pixels takes ten times as long as to count them.
        _, labels, stats, _ = cv2.connectedComponentsWithStats(box)
        x, y = points[0]
        return int(stats[labels[y - top, x - left], cv2.CC_STAT_AREA])


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """Compute the size of the thumbnail in which the field of view is searched.

    Args:
        width, height: size of the frame in pixels.

    Returns:
        Width and height of the thumbnail in pixels.
    """
    scale = min(1.0, THUMBNAIL / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def region_above(probability: np.ndarray, view: FieldOfView, threshold: float) -> Region | None:
    """Map a probability map from the model's input size into the frame, only where it reaches the threshold.

    The map is enlarged bilinearly (pixel centres aligned, as by torch's align_corners=False). Then it is compared with
    the threshold. Therefore the outline is smooth at the frame's resolution.

    Args:
        probability: uint8 [h, w] at the model's input size, 0..255 meaning 0..1.
        view: the field of view that the model saw.
        threshold: probability from which a pixel counts as polyp, 0..1.

    Returns:
        A region that contains every pixel at or above the threshold, or None if there is no such pixel. Its x and y are
        even, so that they fall on whole chroma samples.
    """
    level = grey_level(threshold)
    found = cv2.boundingRect(cv2.compare(probability, level, cv2.CMP_GE))
    if found[2] == 0:
        return None
    # A bilinear value lies between its neighbours' values. Therefore no value outside a box that is larger by one map
    # pixel can reach the level.
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
    """Convert a probability threshold to a grey level.

    Args:
        threshold: probability, 0..1.

    Returns:
        The lowest grey level (1..255) that counts as polyp.
    """
    return max(1, min(255, int(np.ceil(threshold * 255))))
