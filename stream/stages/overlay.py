"""Stage `overlay`: draw findings on a frame's YUV planes.

Frames are not converted. The colour of the markers is converted to YUV once per frame format. Pixels are blended only
in the box around what is drawn. With the style "tint" a frame without findings stays untouched in the decoder's buffer.
"""

from __future__ import annotations

from typing import Literal

import av
import cv2
import numpy as np

from polypstream.core.config import OverlaySettings
from polypstream.core.frame import Frame
from polypstream.core.geometry import Region, region_above
from polypstream.media.color import to_yuv
from polypstream.media.pictures import planes_of

Style = Literal["tint", "heatmap"]
MARKER_RGB = (64, 255, 96)
# The heat map shows probabilities from this one. Lower ones are noise on healthy mucosa and would tint every frame.
HEAT_FROM = 0.1
# Line widths are given for a frame with this number of rows.
REFERENCE_LINES = 1080


class Overlay:
    """Draws the findings of each frame.

    Args:
        style: "tint" draws one colour over the mask; "heatmap" colours by probability.
        opacity: opacity of the tint, 0..1; for the heat map, the opacity where the probability is 1.
        contour: width of the outline in pixels on a frame with 1080 rows, scaled with the height; 0 draws none.

    Attributes:
        style, opacity, contour: as above.
        shown: whether anything is drawn. `shown` and `style` may be set at any time, from any thread.
    """

    def __init__(self, style: Style, opacity: float, contour: float) -> None:
        self.style, self.opacity, self.contour = style, opacity, contour
        self.shown = True
        self._heat_tables: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Draw in place. A frame that the decoder may still need as a reference is copied first.

        Args:
            frames: any frames.

        Returns:
            The same frames.
        """
        for frame in frames if self.shown else ():
            region = frame.region
            if self.style == "heatmap":
                region = region_above(frame.probability, frame.view, HEAT_FROM)
            if region is None:
                continue
            frame.picture.make_writable()
            planes = planes_of(frame.picture)
            if self.style == "heatmap":
                self._draw_heat(frame.picture, planes, region)
            else:
                self._draw_tint(frame.picture, planes, region)
            if self.contour:
                self._draw_outlines(frame.picture, planes, frame.outlines)
        return frames

    def _draw_tint(self, picture: av.VideoFrame, planes: list[np.ndarray], region: Region) -> None:
        for plane, value in zip(planes, to_yuv(MARKER_RGB, picture), strict=True):
            part, mask = _part(plane, region, region.mask, picture)
            tinted = cv2.addWeighted(part, 1 - self.opacity, part, 0, value * self.opacity)
            cv2.copyTo(tinted, mask, part)

    def _draw_heat(self, picture: av.VideoFrame, planes: list[np.ndarray], region: Region) -> None:
        weight, added = self._heat_table(picture)
        for number, plane in enumerate(planes):
            part, heat = _part(plane, region, region.probability, picture)
            part[:] = cv2.add(cv2.multiply(part, cv2.LUT(heat, weight), dtype=cv2.CV_32F), cv2.LUT(heat, added[number]))

    def _heat_table(self, picture: av.VideoFrame) -> tuple[np.ndarray, np.ndarray]:
        """For each of 256 probabilities: the share of the frame that remains, and what is added to Y, U and V."""
        key = (picture.format.name, picture.colorspace, picture.color_range, picture.height)
        if key not in self._heat_tables:
            bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0]
            yuv = np.array([to_yuv((int(r), int(g), int(b)), picture) for b, g, r in bgr], np.float32)
            alpha = np.linspace(0, self.opacity, 256, dtype=np.float32)
            alpha[np.arange(256) < HEAT_FROM * 255] = 0
            # Assigning floats to integers truncates. Adding half a level rounds.
            added = np.ascontiguousarray((yuv * alpha[:, None]).T) + 0.5
            self._heat_tables[key] = (1 - alpha, added)
        return self._heat_tables[key]

    def _draw_outlines(self, picture: av.VideoFrame, planes: list[np.ndarray], outlines: list[np.ndarray]) -> None:
        thickness = line_width(self.contour, picture.height)
        for plane, value in zip(planes, to_yuv(MARKER_RGB, picture), strict=True):
            across, down = _subsampling(plane, picture)
            scaled = outlines if (across, down) == (1, 1) else [outline // (across, down) for outline in outlines]
            cv2.polylines(plane, scaled, True, round(value), max(1, round(thickness / across)))


def draw_findings(image: np.ndarray, region: Region, outlines: list[np.ndarray]) -> None:
    """Draw findings on an RGB image, as the overlay draws them on a video with the default settings.

    Args:
        image: uint8 RGB [H, W, 3]; changed in place.
        region: the region of the findings.
        outlines: int32 [n, 2] each, x and y in pixels.
    """
    defaults = OverlaySettings()
    part = image[region.slices]
    tinted = cv2.addWeighted(part, 1 - defaults.opacity, np.full_like(part, MARKER_RGB), defaults.opacity, 0)
    cv2.copyTo(tinted, region.mask, part)
    cv2.polylines(image, outlines, True, MARKER_RGB, line_width(defaults.contour, image.shape[0]))


def line_width(contour: float, lines: int) -> int:
    """Scale the width of an outline to the height of a frame.

    Args:
        contour: width in pixels on a frame with 1080 rows.
        lines: height of the frame in pixels.

    Returns:
        Width in pixels, at least 1.
    """
    return max(1, round(contour * lines / REFERENCE_LINES))


def _subsampling(plane: np.ndarray, picture: av.VideoFrame) -> tuple[int, int]:
    """Return the luma pixels per sample of a plane, horizontally and vertically: 1 or 2."""
    return -(-picture.width // plane.shape[1]), -(-picture.height // plane.shape[0])


def _part(
    plane: np.ndarray, region: Region, values: np.ndarray, picture: av.VideoFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a plane under a region, and the region's values at the resolution of the plane."""
    across, down = _subsampling(plane, picture)
    rows, columns = region.slices
    part = plane[rows.start // down : -(-rows.stop // down), columns.start // across : -(-columns.stop // across)]
    if (across, down) == (1, 1):
        return part, values
    return part, np.ascontiguousarray(values[::down, ::across])
