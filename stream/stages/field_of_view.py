"""The endoscope's field of view: find it in a picture, crop to it, map probability maps back out of it.

An endoscope's processor sends a picture in which the view itself is a bright disc, octagon or rounded rectangle
beside black borders and side panels with text. What the network sees is the box around that view, so that a polyp
covers as many of the network's pixels as it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.media.pictures import planes_of
from polypstream.media.scaling import Scaler

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


class ViewCropper:
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
            frame.model_input = cv2.merge([red, green, blue])
        return frames
