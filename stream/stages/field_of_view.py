"""Stage `crop`: find the endoscope's field of view, and crop frames to it.

An endoscope's processor sends a frame in which the field of view is a bright disc, octagon or rounded rectangle. Black
borders and side panels with text are beside it. The model sees only the box around the field of view. A polyp then
covers as many input pixels as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.media.pictures import planes_of
from polypstream.media.scaling import Scaler

# Grey level (of 255) from which a pixel is bright. Borders measured in Kvasir-SEG and CVC-ClinicDB stay below 25.
LIT = 32
# A bright region that covers a smaller share of the frame is not the field of view. Then the whole frame is used.
SMALLEST_SHARE = 0.25
# A row or column belongs to the box if the bright region covers this share of it. The edge of a panel covers less.
SMALLEST_LINE = 0.12
# The outline contains the pixels that are bright in at least this share of the frames.
LIT_SHARE = 1 / 3
# Thinner parts, in pixels of the thumbnail, are lines of text that touch the field of view.
OPENING_KERNEL = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))


def find_field_of_view(thumbnails: Iterable[np.ndarray], width: int, height: int) -> FieldOfView:
    """Find the box around the field of view in one or more frames of a recording.

    Args:
        thumbnails: uint8 full-range grey images of `thumbnail_size`. Their maximum is used, so that a dark frame does
            not shrink the box.
        width, height: size of the frames in pixels.

    Returns:
        The box; the whole frame if no plausible box is found.
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
    """Find the outline of the field of view itself, which has round or cut corners. It lies slightly inside.

    A pixel belongs to it if it is bright in at least a third of the frames. Therefore a page of text or a bright moment
    does not enlarge it. A field of view is convex and thick. Text that touches its edge is neither.

    Args:
        thumbnails: uint8 full-range grey images of `thumbnail_size`.
        width, height: size of the frames in pixels.

    Returns:
        A convex polygon, int32 [n, 2], x and y in pixels of the frame; None if no plausible outline is found.
    """
    often = np.mean([thumbnail >= LIT for thumbnail in thumbnails], axis=0) >= LIT_SHARE
    view = _largest_lit(often.astype(np.uint8))
    if view is None:
        return None
    thick = cv2.morphologyEx(_filled(view), cv2.MORPH_OPEN, OPENING_KERNEL)
    if not thick.any():
        return None
    # The outline is moved inwards by one pixel of the thumbnail, except at the border of the frame.
    hull = cv2.erode(_hull(thick), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=255)
    large = cv2.resize(hull, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.convexHull(cv2.findNonZero(cv2.compare(large, 127, cv2.CMP_GT)))[:, 0]


def _filled(view: np.ndarray) -> np.ndarray:
    """Fill a connected region, uint8 [h, w] of 0 and 1: the lumen is dark, but belongs to it."""
    edges, _ = cv2.findContours(view.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(view.shape, np.uint8), edges, -1, 1, cv2.FILLED)


def _hull(region: np.ndarray) -> np.ndarray:
    """Return the convex hull of the nonzero pixels, uint8 [h, w] of 0 and 255."""
    return cv2.fillConvexPoly(np.zeros_like(region), cv2.convexHull(cv2.findNonZero(region)), 255)


def _largest_lit_box(thumbnail: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom (exclusive) of the largest bright region, or None."""
    view = _largest_lit((thumbnail >= LIT).astype(np.uint8))
    if view is None:
        return None
    columns = np.flatnonzero(view.mean(axis=0) >= SMALLEST_LINE)
    rows = np.flatnonzero(view.mean(axis=1) >= SMALLEST_LINE)
    if not len(columns) or not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _largest_lit(lit: np.ndarray) -> np.ndarray | None:
    """Return the largest bright component without thin parts such as text, bool [h, w]; None if it is small."""
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
    """Crops frames to the field of view, and scales them to the model's input.

    Args:
        view: the field of view.
        size: height and width of the model's input in pixels.
    """

    def __init__(self, view: FieldOfView, size: int) -> None:
        self.view = view
        # FFmpeg writes planes in half the time of rgb24, and with smaller rounding errors.
        self._scale = Scaler("gbrp", lambda _: (size, size), (view.x, view.y, view.width, view.height))

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Set `view` and `model_input` of each frame.

        Args:
            frames: frames of one source, in the order of their timestamps.

        Returns:
            The same frames.
        """
        for frame in frames:
            frame.view = self.view
            green, blue, red = planes_of(self._scale(frame.in_memory()))
            frame.model_input = cv2.merge([red, green, blue])
        return frames
