"""Moves markers of an earlier frame to where the polyp is now, for pass-through."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from polypstream.core.frame import Frame
from polypstream.core.geometry import Region
from polypstream.stages.motion import SMALL_WIDTH, MotionEstimator

# In pixels of the small grey images: how far a polyp may have moved, and the margin of wall around it that must look
# alike.
FARTHEST, MARGIN = 32, 6
# Normalised correlation from which the place counts as found.
FOUND = 0.6
# Side of the square in which the rest of the motion is estimated, after the shift.
SIDE = 64


def move_markers(frame: Frame, before: np.ndarray, now: np.ndarray) -> bool:
    """Move region and outlines of a frame, which belong to an earlier one, along the motion of the image.

    The place is found by normalised cross-correlation. Then an affine motion is fitted to the optical flow in the
    region, since polyps grow as the camera comes nearer.

    Args:
        frame: the frame, with region and outlines of the earlier one; changed in place.
        before: the earlier frame, from SmallGrey.
        now: the frame itself.

    Returns:
        Whether they were moved. They stay where they are if the place is not found.
    """
    if frame.region is None or before.shape != now.shape:
        return False
    motion = affine_motion(frame.region, before, now, frame.picture.width)
    if motion is None:
        return False
    region = _moved(frame.region, motion, frame.picture.width, frame.picture.height)
    if region is None:
        return False
    frame.region = region
    limit = (frame.picture.width - 1, frame.picture.height - 1)
    frame.outlines = [
        np.clip(np.rint(cv2.transform(outline[None].astype(np.float64), motion)[0]), 0, limit).astype(np.int32)
        for outline in frame.outlines
    ]
    return True


def affine_motion(region: Region, before: np.ndarray, now: np.ndarray, width: int) -> np.ndarray | None:
    """Find how the image inside a region moved between two frames.

    Args:
        region: the region in the earlier frame.
        before, now: the frames, from SmallGrey.
        width: width of the frames in pixels.

    Returns:
        float64 [2, 3]: where a pixel (x, y) of the earlier frame is now, in pixels of the frame; None if unknown.
    """
    scale = width / SMALL_WIDTH
    height, across = region.mask.shape
    left, top = int(region.x / scale) - MARGIN, int(region.y / scale) - MARGIN
    right, bottom = int((region.x + across) / scale) + MARGIN + 1, int((region.y + height) / scale) + MARGIN + 1
    shift = _shift(before, now, (max(0, left), max(0, top), min(SMALL_WIDTH, right), min(before.shape[0], bottom)))
    if shift is None:
        return None
    box = np.array([left, top], float), np.array([SIDE / (right - left), SIDE / (bottom - top)])
    patches = [_patch(image, box[0] + offset, box[1]) for image, offset in ((before, 0), (now, shift))]
    inside = _patch_of_mask(region, box, scale) > 127
    flow = MotionEstimator().flow(*patches)[inside]
    points = np.argwhere(inside)[:, ::-1].astype(float)
    if len(points) < 3:
        return None
    # In the patch: where a pixel of the earlier frame is now. Then from the patch to the frame.
    fitted, *_ = np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), points + flow, rcond=None)
    linear = (fitted[:2].T * box[1][None, :]) / box[1][:, None]
    offset = fitted[2] / box[1] + box[0] + shift - linear @ box[0]
    return np.column_stack([linear, offset * scale])


def _shift(before: np.ndarray, now: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """How far a box (left, top, right, bottom) of an image has moved, (x, y) in pixels; None if it is not found."""
    left, top, right, bottom = box
    # A part of it may have left the image.
    around = cv2.copyMakeBorder(now, FARTHEST, FARTHEST, FARTHEST, FARTHEST, cv2.BORDER_REPLICATE)
    searched = around[top : bottom + 2 * FARTHEST, left : right + 2 * FARTHEST]
    score = cv2.matchTemplate(searched, before[top:bottom, left:right], cv2.TM_CCOEFF_NORMED)
    _, best, _, place = cv2.minMaxLoc(score)
    return np.array(place, float) - FARTHEST if best >= FOUND else None


def _patch(image: np.ndarray, corner: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A part of an image, uint8 [SIDE, SIDE]; beyond the border the last pixels are repeated."""
    matrix = np.column_stack([np.diag(scale), -corner * scale])
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)


def _patch_of_mask(region: Region, box: tuple[np.ndarray, np.ndarray], scale: float) -> np.ndarray:
    """The mask of a region in the square of `_patch`, uint8 [SIDE, SIDE]."""
    to_patch = box[1] / scale
    offset = (np.array([region.x, region.y]) / scale - box[0]) * box[1]
    return cv2.warpAffine(region.mask, np.column_stack([np.diag(to_patch), offset]), (SIDE, SIDE))


def _moved(region: Region, motion: np.ndarray, width: int, height: int) -> Region | None:
    """A region moved along a motion, cut to the frame; None if nothing of it is left."""
    rows, columns = region.mask.shape
    corner = np.array([region.x, region.y], float)
    corners = corner + np.array([[(0, 0), (columns, 0), (0, rows), (columns, rows)]], float)
    moved = cv2.transform(corners, motion)[0]
    left, top = np.maximum(0, np.floor(moved.min(axis=0))).astype(int) & ~1
    right, bottom = np.minimum((width, height), np.ceil(moved.max(axis=0))).astype(int)
    if right - left < 2 or bottom - top < 2:
        return None
    here = motion.copy()
    here[:, 2] += motion[:, :2] @ corner - (left, top)
    size = (int(right - left), int(bottom - top))
    mask = cv2.threshold(cv2.warpAffine(region.mask, here, size), 127, 255, cv2.THRESH_BINARY)[1]
    return replace(
        region, x=int(left), y=int(top), mask=mask, probability=cv2.warpAffine(region.probability, here, size)
    )
