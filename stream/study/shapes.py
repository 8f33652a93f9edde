"""Polyps of a ground truth, frame by frame, whatever format they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

# x and y of the left top corner, width and height, in pixels of the stored frame.
Box = tuple[float, float, float, float]


class TruePolyp(NamedTuple):
    """A polyp of the ground truth in one frame.

    Attributes:
        name: name of the polyp, the same in all frames.
        box: box around it.
        mask: its pixels, uint8 [height, width], nonzero inside; None: only the box is known.
    """

    name: str
    box: Box
    mask: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth of a recording.

    Attributes:
        path: file or folder that it was read from.
        has_masks: the pixels of each polyp are known, and not only boxes.
        frames: the polyps of each frame of the run, in order. Can be read once.
    """

    path: Path
    has_masks: bool
    frames: Iterable[list[TruePolyp]]


class Shape(NamedTuple):
    """A polyp in one frame of an annotation file.

    Attributes:
        name: name of the polyp; empty: the file does not say which polyp it is.
        box: box around it.
        polygons: its outlines, float [n, 2] each, where the centre of a pixel is at half a pixel; empty: only the box
            is known.
    """

    name: str
    box: Box
    polygons: Sequence[np.ndarray] = ()


def box_around(polygons: Sequence[np.ndarray]) -> Box:
    """Compute the box around polygons.

    Args:
        polygons: float [n, 2] each, x and y in pixels.
    """
    points = np.concatenate(polygons)
    (x, y), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(x), float(y), float(right - x), float(bottom - y)


def truth_of_shapes(path: Path, frames: Sequence[Sequence[Shape]], size: tuple[int, int]) -> Truth:
    """Make a ground truth of the shapes of an annotation file.

    Args:
        path: the file.
        frames: shapes of each frame.
        size: width and height of the frames in pixels.
    """
    has_masks = all(shape.polygons for shapes in frames for shape in shapes)
    return Truth(path, has_masks, _polyps_of(frames, size, has_masks))


def _polyps_of(frames: Sequence[Sequence[Shape]], size: tuple[int, int], has_masks: bool) -> Iterator[list[TruePolyp]]:
    for shapes in named_by_stretch(frames):
        by_name: dict[str, list[Shape]] = {}
        for shape in shapes:
            by_name.setdefault(shape.name, []).append(shape)
        yield [polyp for name, parts in by_name.items() for polyp in _joined(name, parts, size, has_masks)]


def _joined(name: str, parts: Sequence[Shape], size: tuple[int, int], has_masks: bool) -> list[TruePolyp]:
    """The parts of one polyp in a frame: one mask, or one box for each part."""
    if not has_masks:
        return [TruePolyp(name, part.box) for part in parts]
    polygons = [polygon for part in parts for polygon in part.polygons]
    mask = cv2.fillPoly(np.zeros(size[::-1], np.uint8), [_through_pixels(polygon) for polygon in polygons], 255)
    return [TruePolyp(name, box_around(polygons), mask)]


def _through_pixels(polygon: np.ndarray) -> np.ndarray:
    """A polygon through the centres of its outermost pixels, int32 [n, 2], as OpenCV fills it.

    Edges between two pixels are moved to the inner one. Otherwise a square of 20 pixels would become one of 21.
    """
    centres = polygon - 0.5
    inwards = np.where(centres > centres.mean(axis=0), np.ceil(centres - 0.5), np.floor(centres + 0.5))
    return inwards.astype(np.int32)


def named_by_stretch(frames: Iterable[Sequence[Shape]]) -> Iterator[list[Shape]]:
    """Name polyps that have no name: each stretch of frames with such polyps counts as one polyp.

    Args:
        frames: shapes of each frame.

    Yields:
        The shapes of each frame, all with names.
    """
    stretch, before = 0, False
    for shapes in frames:
        unnamed = any(not shape.name for shape in shapes)
        stretch += unnamed and not before
        before = unnamed
        yield [shape if shape.name else shape._replace(name=f"stretch {stretch}") for shape in shapes]
