"""The endoscope's field of view: find it in a picture, crop to it, map probability maps back out of it.

An endoscope's processor sends a picture in which the view itself is a bright disc, octagon or rounded rectangle
beside black borders and side panels with text. What the network sees is the box around that view, so that a polyp
covers as many of the network's pixels as it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.media.pictures import planes_of
from polypstream.media.scaling import Scaler

# The view is looked for in a thumbnail: burnt-in text is then a pixel thin and does not survive the opening.
THUMBNAIL = 128
# Grey levels (of 255) above which a pixel is lit. Borders measured in Kvasir-SEG and CVC-ClinicDB stay below 25.
LIT = 32
# A lit region smaller than this share of the picture is not believed to be the view: the whole picture is used.
SMALLEST_SHARE = 0.25
# A line of pixels belongs to the view when the view lights this share of it; a stray panel edge does not.
SMALLEST_LINE = 0.12
# The outline of the view holds what is lit in so many of the pictures.
LIT_SHARE = 1 / 3
# What is thinner than this, in pixels of the thumbnail, is not the view but a line of text that touches it.
THICK = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))


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


def find_field_of_view(thumbnails: Iterable[np.ndarray], width: int, height: int) -> FieldOfView:
    """Find the box around the field of view in one or more pictures of one recording.

    Args:
        thumbnails: uint8 full-range grey pictures of `thumbnail_size`. Several are united, so that a dark moment
            in one does not shrink the box.
        width, height: of the pictures themselves, in pixels.

    Returns:
        The box; the whole picture where nothing credible is found.
    """
    brightest = np.maximum.reduce(list(thumbnails))
    box = _largest_lit_box(brightest)
    if box is None:
        return FieldOfView(0, 0, width, height)
    left, top, right, bottom = box
    rows, columns = brightest.shape
    return FieldOfView.around(
        left * width // columns, top * height // rows, -(-right * width // columns), -(-bottom * height // rows)
    )


def lit_outline(thumbnails: Sequence[np.ndarray], width: int, height: int) -> np.ndarray | None:
    """The outline of the field of view itself, rounded or with cut corners, a little inside it.

    A place belongs to it if it is lit in a third of the pictures at least, so that a page of text or a bright moment
    in between does not widen it. A view is convex and thick, text that touches its edge is neither.

    Args:
        thumbnails: uint8 full-range grey pictures of `thumbnail_size`.
        width, height: of the pictures themselves, in pixels.

    Returns:
        A convex polygon, int32 [n, 2], x and y in picture pixels; None where nothing credible is found.
    """
    often = np.mean([thumbnail >= LIT for thumbnail in thumbnails], axis=0) >= LIT_SHARE
    view = _largest_lit(often.astype(np.uint8))
    if view is None:
        return None
    thick = cv2.morphologyEx(_filled(view), cv2.MORPH_OPEN, THICK)
    if not thick.any():
        return None
    # One pixel of the thumbnail inwards, where the view does not end with the picture.
    hull = cv2.erode(_hull(thick), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=255)
    large = cv2.resize(hull, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.convexHull(cv2.findNonZero(cv2.compare(large, 127, cv2.CMP_GT)))[:, 0]


def _filled(view: np.ndarray) -> np.ndarray:
    """uint8 [h, w], 1 inside the outer edge of a connected region: the lumen is dark, but belongs to it."""
    edges, _ = cv2.findContours(view.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(view.shape, np.uint8), edges, -1, 1, cv2.FILLED)


def _hull(region: np.ndarray) -> np.ndarray:
    """uint8 [h, w], 255 in the convex hull of what is not 0."""
    return cv2.fillConvexPoly(np.zeros_like(region), cv2.convexHull(cv2.findNonZero(region)), 255)


def _largest_lit_box(thumbnail: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) of the largest lit region, or None."""
    view = _largest_lit((thumbnail >= LIT).astype(np.uint8))
    if view is None:
        return None
    columns = np.flatnonzero(view.mean(axis=0) >= SMALLEST_LINE)
    rows = np.flatnonzero(view.mean(axis=1) >= SMALLEST_LINE)
    if not len(columns) or not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _largest_lit(lit: np.ndarray) -> np.ndarray | None:
    """bool [h, w], the largest connected part of what is lit, without thin things such as text; None if it is small."""
    lit = cv2.morphologyEx(lit, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(lit)
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[largest, cv2.CC_STAT_AREA] < SMALLEST_SHARE * lit.size:
        return None
    found: np.ndarray = labels == largest
    return found


class Viewer:
    """Crops each frame to the field of view and scales it to the network's RGB picture."""

    def __init__(self, view: FieldOfView, size: int) -> None:
        self.view = view
        # FFmpeg writes planes in half the time that it takes for rgb24, and rounds colours less on the way.
        self._scale = Scaler("gbrp", lambda _: (size, size), (view.x, view.y, view.width, view.height))

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Attach to each frame the view and its network picture, uint8 RGB [size, size, 3]."""
        for frame in frames:
            frame.view = self.view
            green, blue, red = planes_of(self._scale(frame.picture))
            frame.network_picture = cv2.merge([red, green, blue])
        return frames


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
