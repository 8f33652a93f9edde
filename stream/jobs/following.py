"""Carries an outline that a reader drew along the motion of the image to the frames around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.jobs.frame_reader import FrameReader
from polypstream.jobs.results import SAME_TIME_S
from polypstream.sinks.findings import OUTLINE_TOLERANCE_PX
from polypstream.stages.motion import (
    LONGEST_GAP_S,
    MIN_SIMILARITY,
    MotionEstimator,
    SmallGrey,
    grid,
    similarity_along,
)

# An outline is carried over at most this many seconds in each direction, if nobody asks for less.
LONGEST_S = 2.0
# It is not carried on if the mean similarity inside it falls below the first number, or if its area becomes this many
# times as large or as small.
FITS, AREA_CHANGE = 0.5, 3.0
# Regions of a carried outline that are smaller than this share of it are left out.
SMALLEST_PIECE = 0.05


def follow(
    reader: FrameReader, frame: int, polygons: Sequence[np.ndarray], seconds: float = LONGEST_S
) -> dict[int, list[np.ndarray]]:
    """Carry an outline to the frames around it, as far as it fits.

    Args:
        reader: reads the recording of the run.
        frame: number of the frame in which it was drawn.
        polygons: int32 [n, 2] each, x and y in pixels of the stored frame.
        seconds: the longest time in each direction.

    Returns:
        Polygons by number of the frame, without the frame itself.

    Raises:
        DataError: it is not the recording of this run.
        SourceError: the recording cannot be read.
    """
    run = reader.run
    times = run.frames["pts_s"]
    near = np.flatnonzero(np.abs(times - times[frame]) <= seconds + SAME_TIME_S)
    first, last = int(near[0]), int(near[-1])
    grey_of = SmallGrey()
    greys = [grey_of(each.in_memory()) for each in _until(reader.frames_from(first), last)]
    width, height = run.picture_size
    mask = cv2.fillPoly(np.zeros((height, width), np.uint8), list(polygons), 255)
    here, found = frame - first, dict[int, list[np.ndarray]]()
    for step in (1, -1):
        order = list(range(here, len(greys) if step > 0 else -1, step))
        unbroken = _unbroken(times[[first + place for place in order]])
        carried = _carried(mask, [greys[place] for place in order[:unbroken]])
        found |= {first + place: outline for place, outline in zip(order[1:], carried, strict=False)}
    return found


def _until(frames: Iterator[Frame], last: int) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        if frame.index >= last:
            return


def _unbroken(times: np.ndarray) -> int:
    """Number of frames before the first gap in the recording."""
    gaps = np.flatnonzero(np.abs(np.diff(times)) > LONGEST_GAP_S)
    return int(gaps[0]) + 1 if len(gaps) else len(times)


def _carried(mask: np.ndarray, greys: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Carry a mask from the first image to the others, until it does not fit.

    Each image is compared with the first one, beginning with the motion so far, so that errors do not add up.

    Args:
        mask: in the first image, uint8 [height, width].
        greys: uint8 [h, w] each.

    Yields:
        Polygons in each of the other images.
    """
    motion = MotionEstimator()
    area, size = cv2.countNonZero(mask), greys[0].shape[::-1]
    flow = np.zeros((*greys[0].shape, 2), np.float32)
    for before, grey in pairwise(greys):
        step = motion.flow(grey, before)
        if similarity_along(step, grey, before).mean() < MIN_SIMILARITY:
            return  # another scene
        flow = step + cv2.remap(flow, step + grid(*grey.shape), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        flow = _better(flow, motion.flow(grey, greys[0], flow), mask, grey, greys[0])
        carried = _warped(mask, flow)
        small = cv2.resize(carried, size, interpolation=cv2.INTER_AREA) > 127
        fits = small.any() and similarity_along(flow, grey, greys[0])[small].mean() >= FITS
        if not fits or not area / AREA_CHANGE <= cv2.countNonZero(carried) <= area * AREA_CHANGE:
            return
        yield _outlines_of(carried)


def _better(flow: np.ndarray, other: np.ndarray, mask: np.ndarray, grey: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The flow along which the inside of a mask is more similar."""

    def similarity(each: np.ndarray) -> float:
        small = cv2.resize(_warped(mask, each), grey.shape[::-1], interpolation=cv2.INTER_AREA) > 127
        return float(similarity_along(each, grey, first)[small].mean()) if small.any() else 0.0

    return other if similarity(other) >= similarity(flow) else flow


def _warped(mask: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A mask moved along a flow, uint8 [height, width], 0 or 255."""
    (height, width), (rows, columns) = mask.shape, flow.shape[:2]
    larger = cv2.resize(flow * np.array([width / columns, height / rows], np.float32), (width, height))
    moved = cv2.remap(mask, larger + grid(height, width), None, cv2.INTER_LINEAR, borderValue=0)
    return cv2.threshold(moved, 127, 255, cv2.THRESH_BINARY)[1]


def _outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons of a mask, simplified as those of findings.json."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(each) for each in found]
    kept = [each for each, area in zip(found, areas, strict=True) if area > SMALLEST_PIECE * sum(areas)]
    return [cv2.approxPolyDP(each, OUTLINE_TOLERANCE_PX, True)[:, 0] for each in kept]
