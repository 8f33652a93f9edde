"""Stage `overlay`: draw findings on a frame's YUV planes.

Frames are not converted. The colour of the markers is converted to YUV once per frame format. Pixels are blended only
in the box around what is drawn. A frame without findings stays untouched in the decoder's buffer, except with the
style "heatmap".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import av
import cv2
import numpy as np

from polypstream.core.config import OverlaySettings
from polypstream.core.frame import DrawnMarkers, Frame
from polypstream.core.geometry import Region, region_above
from polypstream.media.color import to_yuv
from polypstream.media.pictures import copy_of, planes_of

Style = Literal["tint", "outline", "box", "heatmap", "none"]
Labels = Literal["none", "number", "all"]
# The heat map shows probabilities from this one. Lower ones are noise on healthy mucosa and would tint every frame.
HEAT_FROM = 0.1
# Its opacity is this factor times that of a tint: its colours are those of mucosa, and it is faint where the
# probability is low.
HEAT_OPACITY = 2
# Line widths are given for a frame with this number of rows.
REFERENCE_LINES = 1080
# Size, line width and border of labels, for such a frame, and the gap between a label and its outline in pixels.
FONT, TEXT_SCALE, TEXT_LINE, BORDER, GAP = cv2.FONT_HERSHEY_SIMPLEX, 1.4, 2, 3, 6
# A label stands above the middle of the upper part of its outline, of this share of its height.
UPPER_PART = 0.2
# The smallest size at which digits can be read, in any frame; 12 pixels high. And the share of a pixel that a letter
# must cover: at this size its lines are thinner than a pixel.
SMALLEST_TEXT, COVERED = 0.55, 0.35


class Overlay:
    """Draws the findings of each frame.

    Args:
        settings: style, colour, opacity and width of the outline.
        labels: text beside each finding: "none", "number" (of its track), or "all" (number and highest probability, as
            in findings.json).
        keeps_unmarked: set `drawn` of each frame with markers, except with the style "heatmap".

    Attributes:
        shown: whether anything is drawn. `shown` and `style` may be set at any time, from any thread.
        style: as in the settings.
    """

    def __init__(self, settings: OverlaySettings, labels: Labels, keeps_unmarked: bool = False) -> None:
        self.style, self.opacity, self.contour = settings.style, settings.opacity, settings.contour
        self.colour, self.labels, self.shown = settings.rgb, labels, True
        self._web_colour, self._keeps_unmarked = settings.colour, keeps_unmarked
        self._heat_tables: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, frames: list[Frame]) -> list[Frame]:
        """Draw in place. A frame that the decoder may still need as a reference is copied first.

        Args:
            frames: any frames.

        Returns:
            The same frames.
        """
        for frame in frames if self.shown else ():
            self._draw(frame, self.style)
        return frames

    def _draw(self, frame: Frame, style: Style) -> None:
        region = region_above(frame.probability, frame.view, HEAT_FROM) if style == "heatmap" else frame.region
        if region is None or style == "none":
            return
        polygons = [_box(outline) for outline in frame.outlines] if style == "box" else frame.outlines
        labels = self._labels_of(frame)
        picture = frame.in_memory()
        if self._keeps_unmarked and style != "heatmap":
            opacity, width = (self.opacity if style == "tint" else 0.0), self._line_width(picture)
            frame.drawn = DrawnMarkers(picture, self._web_colour, opacity, width, polygons, labels)
            frame.picture = picture = copy_of(picture)
        picture.make_writable()
        frame.as_recorded = False
        planes = planes_of(picture)
        if style == "heatmap":
            self._draw_heat(picture, planes, region)
        elif style == "tint":
            self._draw_tint(picture, planes, region)
        self._draw_lines(picture, planes, polygons)
        for outline, label in zip(frame.outlines, labels, strict=True):
            if label:
                self._draw_label(frame, planes, outline, label)

    def _labels_of(self, frame: Frame) -> list[str]:
        """Text beside each finding."""
        if self.labels == "none":
            return [""] * len(frame.outlines)
        if self.labels == "number":
            return [f"{track}" for track in frame.tracks]
        # A frame that does not show a finding has no probability of it.
        return [
            f"{track}" if carried else f"{track} {peak / 255:.2f}"
            for track, peak, carried in zip(frame.tracks, frame.peaks, frame.carried, strict=True)
        ]

    def _line_width(self, picture: av.VideoFrame) -> int:
        """Width of outlines in pixels of a picture; 0: there are none."""
        return line_width(self.contour, picture.height) if self.contour else 0

    def _draw_tint(self, picture: av.VideoFrame, planes: list[np.ndarray], region: Region) -> None:
        for plane, value in zip(planes, to_yuv(self.colour, picture), strict=True):
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
            alpha = np.linspace(0, min(1, HEAT_OPACITY * self.opacity), 256, dtype=np.float32)
            alpha[np.arange(256) < HEAT_FROM * 255] = 0
            # Assigning floats to integers truncates. Adding half a level rounds.
            added = np.ascontiguousarray((yuv * alpha[:, None]).T) + 0.5
            self._heat_tables[key] = (1 - alpha, added)
        return self._heat_tables[key]

    def _draw_lines(self, picture: av.VideoFrame, planes: list[np.ndarray], polygons: list[np.ndarray]) -> None:
        thickness = self._line_width(picture)
        if not thickness:
            return
        for plane, value in zip(planes, to_yuv(self.colour, picture), strict=True):
            across, down = _subsampling(plane, picture)
            scaled = polygons if (across, down) == (1, 1) else [polygon // (across, down) for polygon in polygons]
            cv2.polylines(plane, scaled, True, round(value), max(1, round(thickness / across)))

    def _draw_label(self, frame: Frame, planes: list[np.ndarray], outline: np.ndarray, text: str) -> None:
        """Write a track's number, and its probability if asked for, beside its outline, upright when displayed."""
        scale = frame.picture.height / REFERENCE_LINES
        size, thickness = max(SMALLEST_TEXT, TEXT_SCALE * scale), max(1, round(TEXT_LINE * scale))
        letters, ground = text_masks(text, size, thickness, max(1, round(BORDER * scale)))
        turn = frame.orientation
        x, y = _label_place(turn.stored(letters).shape, outline, frame)
        for plane, letter, dark in zip(
            planes, to_yuv(self.colour, frame.in_memory()), to_yuv((0, 0, 0), frame.in_memory()), strict=True
        ):
            across, down = _subsampling(plane, frame.in_memory())
            for mask, value in ((ground, dark), (letters, letter)):
                small = np.ascontiguousarray(turn.stored(mask)[::down, ::across])
                paint(plane, small, x // across, y // down, round(value))


def draw_findings(image: np.ndarray, region: Region, outlines: list[np.ndarray]) -> None:
    """Draw findings on an RGB image, as the overlay draws them on a video with the default settings.

    Args:
        image: uint8 RGB [H, W, 3]; changed in place.
        region: the region of the findings.
        outlines: int32 [n, 2] each, x and y in pixels.
    """
    defaults = OverlaySettings()
    part = image[region.slices]
    tinted = cv2.addWeighted(part, 1 - defaults.opacity, np.full_like(part, defaults.rgb), defaults.opacity, 0)
    cv2.copyTo(tinted, region.mask, part)
    cv2.polylines(image, outlines, True, defaults.rgb, line_width(defaults.contour, image.shape[0]))


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


def _box(outline: np.ndarray) -> np.ndarray:
    """Corners of an outline's bounding box, int32 [4, 2]."""
    x, y, width, height = cv2.boundingRect(outline)
    right, bottom = x + width - 1, y + height - 1
    return np.array([(x, y), (right, y), (right, bottom), (x, bottom)], np.int32)


@lru_cache(maxsize=256)
def text_masks(text: str, size: float, thickness: int, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a text with a border, which is readable on any ground.

    Args:
        text: one line.
        size: OpenCV's font scale.
        thickness: of the lines of its letters, in pixels.
        border: width of the border in pixels.

    Returns:
        uint8 [h, w] with 255 on the letters, and the same with 255 on the letters and a border around them.
    """
    (width, height), below = cv2.getTextSize(text, FONT, size, thickness)
    letters = np.zeros((height + below + 2 * border, width + 2 * border), np.uint8)
    cv2.putText(letters, text, (border, height + border), FONT, size, 255, thickness)
    cv2.threshold(
        letters, 255 * COVERED, 255, cv2.THRESH_BINARY, letters
    )  # OpenCV 5 smooths letters whatever it is told
    # Sizes are rough: the mask is cut to the letters and their border.
    ground = cv2.dilate(letters, np.ones((2 * border + 1, 2 * border + 1), np.uint8))
    x, y, width, height = cv2.boundingRect(ground)
    box = np.s_[y : y + height, x : x + width]
    return letters[box], ground[box]


def paint(plane: np.ndarray, mask: np.ndarray, x: int, y: int, value: int | tuple[int, ...]) -> None:
    """Set the pixels under a mask. The plane may end within the mask.

    Args:
        plane: [H, W] or [H, W, 3]; changed in place.
        mask: uint8 [h, w]; nonzero where pixels are set.
        x, y: place of its left top corner in the plane.
        value: of the pixels.
    """
    part = plane[y : y + mask.shape[0], x : x + mask.shape[1]]
    part[mask[: part.shape[0], : part.shape[1]] > 0] = value


def _label_place(label: tuple[int, ...], outline: np.ndarray, frame: Frame) -> tuple[int, int]:
    """Choose where a label stands: above the top of the outline as displayed, inside the frame, at even coordinates.

    Args:
        label: height and width of the label as stored.
        outline: int32 [n, 2].
        frame: the frame.

    Returns:
        x and y of the label's left top corner in the stored frame.
    """
    turn, gap = frame.orientation, max(2, round(GAP * frame.picture.height / REFERENCE_LINES))
    # The coordinate that runs down, or up, when displayed, and the other one.
    down, across = (0, 1) if turn.swapped else (1, 0)
    size = label[::-1]
    low, high = int(outline[:, down].min()), int(outline[:, down].max())
    # Above the middle of the upper part: its highest point alone would move from frame to frame.
    part = round(UPPER_PART * (high - low))
    upper = outline[:, down] >= high - part if turn.upside_down else outline[:, down] <= low + part
    place = [0, 0]
    place[down] = high + gap if turn.upside_down else low - size[down] - gap
    place[across] = int(outline[upper, across].min() + outline[upper, across].max() - size[across]) // 2
    x = min(max(place[0], 0), max(0, frame.picture.width - size[0]))
    y = min(max(place[1], 0), max(0, frame.picture.height - size[1]))
    return x & ~1, y & ~1
