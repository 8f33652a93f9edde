"""Polyps painted over with wall of the same image, for training: whole frames without a polyp. Never imports torch.

Data sets have few frames of healthy bowel. A model that has seen a polyp in nearly each frame expects one. Painting
leaves traces, from which a model could learn what was painted. Therefore wall is painted over in the same way in frames
that keep their polyp.

Source: Pérez, Gangnet and Blake, "Poisson Image Editing", SIGGRAPH 2003 (OpenCV's seamlessClone).
"""

from __future__ import annotations

import cv2
import numpy as np

from polypstream.stages.field_of_view import LIT

# The painted region reaches beyond the mask of a polyp by this fraction of the side of the image, so that the polyp's
# edge and shadow vanish as well.
MARGIN = 0.03
# Larger polyps have no wall of their size beside them. Fraction of the image.
LARGEST = 0.2
# Side of the image in which free wall is searched for.
SEARCH_SIDE = 128
# Pixels between a painted region and the border of the image, which OpenCV needs.
BORDER = 2


def paint_over(
    image: np.ndarray, mask: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Replace all polyps of an image by wall.

    Args:
        image: uint8 RGB [S, S, 3].
        mask: uint8 [S, S] of 0 and 255.
        random: source of the random numbers.

    Returns:
        A new image and an empty mask; None if there is no polyp, or not enough wall, or if a polyp reaches the border
        of the image: the colours at the edge of the painted region would be its own.
    """
    region = _region_of(mask)
    if region is None or not np.array_equal(region, _without_border(region)):
        return None
    donor = _choose_place(region, _wall(image, region), random)
    return None if donor is None else (_cloned(image, region, donor), np.zeros_like(mask))


def paint_wall(
    image: np.ndarray, mask: np.ndarray, shape: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Replace wall of an image by other wall, and leave its polyps as they are.

    Args:
        image: uint8 RGB [S, S, 3].
        mask: uint8 [S, S] of 0 and 255.
        shape: uint8 [S, S], the mask of another image. The painted region gets its shape.
        random: source of the random numbers.

    Returns:
        A new image, and the same mask; None if there is not enough wall.
    """
    region = _region_of(shape)
    if region is None:
        return None
    wall = _wall(image, _widened(cv2.compare(mask, 127, cv2.CMP_GT)))
    target = _choose_place(region, wall, random)
    if target is None:
        return None
    region = _moved(region, target)
    donor = _choose_place(region, cv2.bitwise_and(wall, cv2.bitwise_not(region)), random)
    return None if donor is None else (_cloned(image, region, donor), mask)


def _region_of(mask: np.ndarray) -> np.ndarray | None:
    """Return the region to paint for the polyps of a mask; None if there are none, or if they are too large."""
    polyp = cv2.compare(mask, 127, cv2.CMP_GT)
    return _widened(polyp) if 0 < cv2.countNonZero(polyp) <= LARGEST * polyp.size else None


def _widened(polyp: np.ndarray) -> np.ndarray:
    side = 2 * round(MARGIN * polyp.shape[0]) + 1
    return cv2.dilate(polyp, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def _without_border(region: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(
        region[BORDER:-BORDER, BORDER:-BORDER], BORDER, BORDER, BORDER, BORDER, cv2.BORDER_CONSTANT, value=0
    )


def _wall(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return where there is wall: lit, and outside a region. uint8 [S, S] of 0 and 255."""
    return cv2.bitwise_and(cv2.compare(image.max(axis=2), LIT, cv2.CMP_GT), cv2.bitwise_not(region))


def _choose_place(region: np.ndarray, wall: np.ndarray, random: np.random.Generator) -> tuple[int, int] | None:
    """Choose a random displacement (x, y) in pixels that puts a whole region onto wall; None if there is none."""
    scale, small = SEARCH_SIDE / region.shape[0], (SEARCH_SIDE, SEARCH_SIDE)
    # A cell that is a part of the region only partly is needed, and one that is wall only partly is blocked.
    needed = (cv2.resize(region, small, interpolation=cv2.INTER_AREA) > 0).astype(np.float32)
    blocked = (cv2.resize(wall, small, interpolation=cv2.INTER_AREA) < 255).astype(np.float32)
    blocked[[0, -1]], blocked[:, [0, -1]] = 1, 1
    x, y, width, height = cv2.boundingRect(needed.astype(np.uint8))
    conflicts = cv2.matchTemplate(blocked, needed[y : y + height, x : x + width], cv2.TM_CCORR)
    places = np.argwhere(conflicts < 0.5)
    if not len(places):
        return None
    row, column = places[random.integers(len(places))]
    return round((column - x) / scale), round((row - y) / scale)


def _moved(region: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    shift = np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float32)
    return cv2.warpAffine(region, shift, region.shape[::-1], flags=cv2.INTER_NEAREST)


def _cloned(image: np.ndarray, region: np.ndarray, donor: tuple[int, int]) -> np.ndarray:
    """Replace a region by what lies at a displacement from it. Its colours follow those at the region's edge."""
    region = _without_border(region)
    x, y, width, height = cv2.boundingRect(region)
    rows, columns = slice(y + donor[1], y + donor[1] + height), slice(x + donor[0], x + donor[0] + width)
    place = region[y : y + height, x : x + width]
    centre = (x + width // 2, y + height // 2)
    return cv2.seamlessClone(np.ascontiguousarray(image[rows, columns]), image, place, centre, cv2.NORMAL_CLONE)
