"""Residue for training views: where it is cut out, and what it does to view and mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from polypstream.models.residue import MOST_HIDDEN, RESIDUE, lay_residue, residue_patches

SIDE = 160


def wall_with_stool(at: tuple[int, int] = (100, 100), stool: tuple[int, int, int] = (120, 85, 20)) -> np.ndarray:
    """Pink wall with a square of stool, 50 pixels wide. All colours vary a little from pixel to pixel."""
    random = np.random.default_rng(3)
    image = np.full((SIDE, SIDE, 3), (190, 110, 100), np.int16)
    image[at[1] : at[1] + 50, at[0] : at[0] + 50] = stool
    return np.clip(image + random.integers(-12, 13, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)


def nothing() -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.uint8)


def polyp() -> np.ndarray:
    return cv2.circle(nothing(), (80, 80), 30, 255, -1)


def test_stool_is_cut_out_and_wall_is_not() -> None:
    (patch,) = residue_patches(wall_with_stool(), nothing())
    assert 40 <= patch.shape[0] <= 50
    assert np.abs(patch.mean(axis=(0, 1)) - (120, 85, 20)).max() < 5


@pytest.mark.parametrize(
    "image",
    [
        wall_with_stool(stool=(190, 110, 100)),  # no stool
        np.full((SIDE, SIDE, 3), (235, 190, 90), np.uint8),  # a warm white balance: all of the wall is yellow
        wall_with_stool(stool=(255, 225, 60)),  # glare
        cv2.medianBlur(cv2.GaussianBlur(wall_with_stool(), (0, 0), 6), 5),  # no texture
        np.zeros((SIDE, SIDE, 3), np.uint8),
    ],
)
def test_pale_wall_glare_and_blur_are_no_residue(image: np.ndarray) -> None:
    assert residue_patches(image, nothing()) == []


def test_nothing_near_a_polyp_is_cut_out() -> None:
    image = wall_with_stool(at=(84, 56))
    assert residue_patches(image, nothing())
    assert residue_patches(image, polyp()) == []


def test_the_mask_ends_where_residue_hides_the_polyp_and_most_of_it_stays() -> None:
    image, mask, patches = wall_with_stool(), polyp(), [np.full((40, 40, 3), (120, 85, 20), np.uint8)]
    hidden = []
    for seed in range(60):
        view, rest = lay_residue(image, mask, patches, np.random.default_rng(seed))
        changed = np.abs(view.astype(int) - image).max(axis=2) > 0
        assert set(np.unique(rest)) <= {0, RESIDUE, 255}
        assert not ((rest == 255) & (mask == 0)).any()
        lost = (mask > 0) & (rest == RESIDUE)
        assert (changed | ~lost).mean() > 0.99  # a pixel may keep its colour by chance
        hidden.append(lost.sum() / (mask > 0).sum())
    assert 0.05 < np.mean(np.array(hidden) > 0) < 0.95
    assert max(hidden) <= MOST_HIDDEN
    assert np.array_equal(image, wall_with_stool())


def test_views_without_any_patch_get_foam_and_fluid() -> None:
    image = wall_with_stool()
    views = [lay_residue(image, nothing(), [], np.random.default_rng(seed))[0] for seed in range(10)]
    assert all((view != image).any() for view in views)
