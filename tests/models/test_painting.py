"""Polyps that are painted over: nothing of them stays, and wall is painted in the same way."""

from __future__ import annotations

import cv2
import numpy as np

from polypstream.models.painting import LARGEST, paint_over, paint_wall

SIDE, WALL, POLYP = 200, (180, 100, 90), (230, 60, 60)


def image_with(mask: np.ndarray) -> np.ndarray:
    """Wall with a texture, in a black border, and red where the mask is white."""
    random = np.random.default_rng(1)
    image = np.full((SIDE, SIDE, 3), WALL, np.int16)
    image[mask > 127] = POLYP
    image += random.integers(-10, 11, (SIDE, SIDE, 1), dtype=np.int16)
    image[:, :30] = 0
    return image.astype(np.uint8)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (x, y), radius, 255, -1)


def test_a_polyp_that_is_painted_over_leaves_wall() -> None:
    for seed in range(5):
        mask = disc(90, 120, 20)
        image = image_with(mask)
        painted = paint_over(image, mask, np.random.default_rng(seed))
        assert painted is not None
        assert not painted[1].any()
        inside = painted[0][mask > 127].astype(int)
        assert np.abs(inside.mean(axis=0) - WALL).max() < 15
        assert inside.std(axis=0).max() > 3, "the wall's texture, and not a mean colour"
        away = disc(90, 120, 40) == 0
        assert np.array_equal(painted[0][away], image[away])


def test_painted_wall_lies_beside_the_polyps_which_stay() -> None:
    for seed in range(5):
        mask = disc(150, 60, 20)
        image = image_with(mask)
        painted = paint_wall(image, mask, disc(60, 60, 15), np.random.default_rng(seed))
        assert painted is not None
        assert np.array_equal(painted[1], mask)
        changed = (painted[0] != image).any(axis=2)
        assert changed.sum() > 500
        assert not (changed & (mask > 127)).any()
        assert not changed[:, :30].any(), "the black border is no wall"


def test_without_enough_wall_around_it_nothing_is_painted() -> None:
    random, nothing = np.random.default_rng(0), np.zeros((SIDE, SIDE), np.uint8)
    large = disc(110, 100, 60)
    assert (large > 0).mean() > LARGEST
    everywhere = cv2.circle(np.full((SIDE, SIDE), 255, np.uint8), (60, 60), 10, 0, -1)
    at_the_border = disc(199, 100, 18)
    for mask in (nothing, large, everywhere, at_the_border):
        assert paint_over(image_with(mask), mask, random) is None
    polyps = sum((disc(x, y, 14) for x in range(45, 200, 36) for y in range(18, 200, 36)), nothing)
    assert (polyps > 0).mean() < 0.5
    assert paint_wall(image_with(polyps), polyps, disc(60, 60, 20), random) is None
    assert paint_wall(image_with(disc(90, 90, 9)), disc(90, 90, 9), nothing, random) is None
