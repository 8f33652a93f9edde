"""The field of view: found, cropped to, and mapped back out of."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView, grey_level, region_above, thumbnail_size
from polypstream.stages.field_of_view import ViewCropper, find_field_of_view


def octagon(width: int, height: int, box: tuple[int, int, int, int], panel: bool = False) -> np.ndarray:
    """A grey octagon in a box (left, top, right, bottom) on near-black, with a text panel if wanted."""
    picture = np.full((height, width), 12, np.uint8)
    left, top, right, bottom = box
    cut = (bottom - top) // 5
    corners = [(left + cut, top), (right - cut, top), (right, top + cut), (right, bottom - cut)]
    corners += [(right - cut, bottom), (left + cut, bottom), (left, bottom - cut), (left, top + cut)]
    cv2.fillPoly(picture, [np.array(corners)], 120)
    if panel:
        for line in range(6):
            cv2.putText(picture, "NAME 1234", (8, 40 + 40 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2)
    return picture


def find(picture: np.ndarray) -> FieldOfView:
    height, width = picture.shape
    thumbnail = cv2.resize(picture, thumbnail_size(width, height), interpolation=cv2.INTER_AREA)
    return find_field_of_view([thumbnail], width, height)


@pytest.mark.parametrize("panel", [False, True])
@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (720, 576)])
def test_the_view_is_found_beside_borders_and_text(size: tuple[int, int], panel: bool) -> None:
    width, height = size
    box = (width // 3, 20, width - 30, height - 20)
    view = find(octagon(width, height, box, panel))
    tolerance = 2.5 * width / 128  # two pixels of the thumbnail
    found = (view.x, view.y, view.x + view.width, view.y + view.height)
    assert np.abs(np.subtract(found, box)).max() <= tolerance


def test_a_view_that_fills_the_picture_is_the_picture() -> None:
    assert find(np.full((480, 640), 100, np.uint8)) == FieldOfView(0, 0, 640, 480)


@pytest.mark.parametrize("level", [0, 16])
def test_a_dark_picture_is_taken_whole(level: int) -> None:
    assert find(np.full((480, 640), level, np.uint8)) == FieldOfView(0, 0, 640, 480)


def test_a_dark_moment_does_not_shrink_the_view() -> None:
    whole = cv2.resize(octagon(640, 480, (100, 10, 600, 470)), thumbnail_size(640, 480), interpolation=cv2.INTER_AREA)
    dark = whole.copy()
    dark[:, : dark.shape[1] // 2] = 10
    assert find_field_of_view([dark, whole], 640, 480) == find_field_of_view([whole], 640, 480)


@pytest.mark.parametrize(
    ("size", "thumbnail"),
    [((1280, 720), (128, 72)), ((720, 1280), (72, 128)), ((100, 50), (100, 50)), ((20_000, 10), (128, 1))],
)
def test_the_longer_side_of_a_thumbnail_has_128_pixels_at_most(
    size: tuple[int, int], thumbnail: tuple[int, int]
) -> None:
    assert thumbnail_size(*size) == thumbnail


def test_a_box_begins_at_even_places_and_ends_where_it_ends() -> None:
    assert FieldOfView.around(21, 11, 272, 212) == FieldOfView(20, 10, 252, 202)
    assert FieldOfView.around(20, 10, 273, 213) == FieldOfView(20, 10, 253, 203)


@pytest.mark.parametrize(
    "view", [FieldOfView(0, 0, 640, 480), FieldOfView(122, 34, 455, 401), FieldOfView(2, 0, 33, 21)]
)
def test_a_region_is_the_enlarged_map_cut_out(view: FieldOfView) -> None:
    random = np.random.default_rng(3)
    noise = cv2.GaussianBlur(random.random((64, 64), np.float32), (0, 0), 4)
    probability = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    probability[:, 40:] = 0
    region = region_above(probability, view, 0.5)
    assert region is not None
    assert (region.x % 2, region.y % 2) == (0, 0)
    expected = np.zeros((480, 640), np.uint8)
    enlarged = cv2.resize(probability.astype(np.float32), (view.width, view.height), interpolation=cv2.INTER_LINEAR)
    view.crop(expected)[:] = (enlarged >= grey_level(0.5)) * 255
    found = np.zeros_like(expected)
    found[region.slices] = region.mask
    # OpenCV's warp counts in 1/32 of a pixel, so values at the very threshold may fall to either side.
    disputed = np.zeros((480, 640), bool)
    view.crop(disputed)[:] = np.abs(enlarged - grey_level(0.5)) < 4
    assert np.array_equal(found[~disputed], expected[~disputed])


def test_no_region_where_nothing_reaches_the_threshold() -> None:
    assert region_above(np.full((64, 64), 127, np.uint8), FieldOfView(0, 0, 640, 480), 0.5) is None


def test_what_reaches_the_threshold_everywhere_is_the_whole_view() -> None:
    region = region_above(np.full((64, 64), 128, np.uint8), FieldOfView(20, 10, 333, 201), 0.5)
    assert region is not None
    assert (region.x, region.y, region.mask.shape) == (20, 10, (201, 333))
    assert region.mask.min() == 255
    assert (region.probability == 128).all()


@pytest.mark.parametrize(("threshold", "level"), [(0.5, 128), (1 / 255, 1), (0.001, 1), (0.999, 255)])
def test_a_threshold_is_the_lowest_level_that_counts(threshold: float, level: int) -> None:
    assert grey_level(threshold) == level


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuvj420p", "yuv422p10le"])
@pytest.mark.parametrize(("height", "tag"), [(480, 2), (720, 2), (480, 1), (720, 5)])
def test_the_network_sees_the_right_colours(pixel_format: str, height: int, tag: int) -> None:
    rgb = np.zeros((height, 640, 3), np.uint8)
    rgb[:, 320:] = (180, 60, 40)
    matrix = {1: "ITU709", 5: "ITU601", 2: "ITU709" if height >= 720 else "ITU601"}[tag]
    full = pixel_format.startswith("yuvj")
    picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
        format=pixel_format, dst_colorspace=matrix, dst_color_range="JPEG" if full else "MPEG"
    )
    picture.colorspace, picture.color_range = tag, 2 if full else 0
    frame = Frame(0, picture, 0, Fraction(1, 25))
    ViewCropper(FieldOfView(320, 0, 320, height), 64)([frame])
    assert frame.model_input.shape == (64, 64, 3)
    assert np.abs(frame.model_input.astype(int) - (180, 60, 40)).max() <= 4


def test_the_network_sees_only_the_field_of_view() -> None:
    rgb = np.zeros((200, 300, 3), np.uint8)
    rgb[40:160, 100:260] = 200
    picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuv444p")
    frame = Frame(0, picture, 0, Fraction(1, 25))
    ViewCropper(FieldOfView(100, 40, 160, 120), 32)([frame])
    assert frame.model_input.min() > 190
