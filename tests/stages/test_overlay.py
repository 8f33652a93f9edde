"""Drawing on the planes: where there is something to draw, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from polypstream.core.config import OverlaySettings
from polypstream.core.frame import Frame, Quality
from polypstream.core.geometry import FieldOfView
from polypstream.core.orientation import Orientation
from polypstream.media.pictures import planes_of
from polypstream.sources.recording import Recording
from polypstream.stages.findings import FindingsTracker, Rules
from polypstream.stages.overlay import TEXT_SCALE, Labels, Overlay, text_masks
from polypstream.stages.status_overlay import StatusOverlay

MARKER_RGB = OverlaySettings().rgb
FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "yuv422p10le"]


def grey_frame(pixel_format: str, width: int = 320, height: int = 240) -> Frame:
    rgb = np.full((height, width, 3), 90, np.uint8)
    picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pixel_format)
    frame = Frame(0, picture, 0, Fraction(1, 25))
    frame.quality = Quality(False, False, False)
    return frame


def with_square(frame: Frame, view: FieldOfView, level: int = 255) -> Frame:
    """A finding on the middle quarter of the view."""
    frame.probability = np.zeros((64, 64), np.uint8)
    frame.probability[16:48, 16:48] = level
    frame.view = view
    return FindingsTracker(Rules(0.5), steady=False)([frame])[0]


def drawn_by(labels: Labels = "none", **settings: object) -> Overlay:
    return Overlay(OverlaySettings.model_validate(settings), labels)


def copies(frame: Frame) -> list[np.ndarray]:
    return [plane.copy() for plane in planes_of(frame.picture)]


@pytest.mark.parametrize("style", ["tint", "heatmap", "outline", "box"])
def test_a_picture_without_findings_is_the_decoders_own(make: Callable[..., Path], style: str) -> None:
    """Bit for bit, also after drawing on the pictures between: the decoder's references are never touched."""
    recording = Recording(make(frames=40, options={"g": "40", "bf": "2"}))
    clean = [copies(frame) for frame in Recording(recording.path).frames()]
    view = FieldOfView(0, 0, 320, 240)
    overlay = drawn_by(style=style, opacity=0.7, contour=8.0)
    for frame, expected in zip(recording.frames(), clean, strict=True):
        address, frame.quality = frame.picture.planes[0].buffer_ptr, Quality(False, False, False)
        if frame.index % 2:
            overlay([with_square(frame, view)])
            assert not np.array_equal(planes_of(frame.picture)[0], expected[0])
        else:
            frame.view, frame.probability = view, np.zeros((64, 64), np.uint8)
            overlay(FindingsTracker(Rules(0.5), steady=False)([frame]))
            assert frame.picture.planes[0].buffer_ptr == address
            for plane, original in zip(planes_of(frame.picture), expected, strict=True):
                assert np.array_equal(plane, original)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("size", [(320, 240), (319, 239)])
def test_the_tint_blends_inside_and_leaves_the_rest(pixel_format: str, size: tuple[int, int]) -> None:
    frame = grey_frame(pixel_format, *size)
    before = frame.picture.to_ndarray(format="rgb24").astype(int)
    view = FieldOfView(20, 10, 280, 220)
    drawn_by(opacity=0.5, contour=0)([with_square(frame, view)])
    after = frame.picture.to_ndarray(format="rgb24").astype(int)
    centre = after[120, 160]
    assert np.abs(centre - (before[120, 160] + MARKER_RGB) / 2).max() <= 6
    assert frame.region is not None
    rows, columns = frame.region.slices
    outside = np.ones(before.shape[:2], bool)
    outside[rows.start - 2 : rows.stop + 2, columns.start - 2 : columns.stop + 2] = False
    assert np.array_equal(after[outside], before[outside])


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_the_heat_map_follows_the_probability(pixel_format: str) -> None:
    view = FieldOfView(0, 0, 320, 240)
    colours = []
    for level in (60, 128, 255):
        frame = with_square(grey_frame(pixel_format), view, level)
        drawn_by(style="heatmap", opacity=0.8, contour=0)([frame])
        colours.append(frame.picture.to_ndarray(format="rgb24")[120, 160].astype(int))
    cold, middle, hot = colours
    assert cold[2] > cold[0]  # blue
    assert middle[1] > middle[0]  # green
    assert hot[0] > hot[2]  # red
    assert np.abs(hot - (90, 90, 90)).max() > np.abs(cold - (90, 90, 90)).max()


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_the_outline_runs_along_the_edge(pixel_format: str) -> None:
    view = FieldOfView(0, 0, 320, 240)
    frame = with_square(grey_frame(pixel_format), view)
    drawn_by(style="outline", contour=9.0)([frame])
    after = frame.picture.to_ndarray(format="rgb24").astype(int)
    x, y = frame.outlines[0].min(axis=0)
    assert np.abs(after[120, x] - MARKER_RGB).max() <= 40
    assert np.abs(after[y, 160] - MARKER_RGB).max() <= 40
    assert np.abs(after[120, 160] - 90).max() <= 2


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_a_box_has_the_colour_of_the_settings_and_leaves_its_inside(pixel_format: str) -> None:
    frame = grey_frame(pixel_format)
    frame.view, frame.probability = FieldOfView(0, 0, 320, 240), np.zeros((64, 64), np.uint8)
    cv2.circle(frame.probability, (32, 32), 15, 255, -1)
    FindingsTracker(Rules(0.5), steady=False)([frame])
    drawn_by(style="box", colour="#ff0040", contour=9.0)([frame])
    after = frame.picture.to_ndarray(format="rgb24").astype(int)
    (x, y), (right, bottom) = frame.outlines[0].min(axis=0), frame.outlines[0].max(axis=0)
    assert np.abs(after[y, x] - (255, 0, 64)).max() <= 50
    assert np.abs(after[bottom, right] - (255, 0, 64)).max() <= 50
    assert np.abs(after[120, 160] - 90).max() <= 2


def test_style_none_draws_nothing() -> None:
    frame = with_square(grey_frame("yuv420p"), FieldOfView(0, 0, 320, 240))
    before = copies(frame)
    drawn_by("all", style="none")([frame])
    assert all(np.array_equal(*planes) for planes in zip(before, copies(frame), strict=True))


@pytest.mark.parametrize("turn", [(False, False, False), (False, True, True), (True, True, False), (True, False, True)])
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_a_label_stands_upright_above_its_finding_as_displayed(
    pixel_format: str, turn: tuple[bool, bool, bool]
) -> None:
    frame = with_square(grey_frame(pixel_format, 1280, 960), FieldOfView(0, 0, 1280, 960))
    frame.orientation, frame.tracks = Orientation(*turn), [7]
    plain = grey_frame(pixel_format, 1280, 960)
    drawn_by("number", contour=0, opacity=0)([frame])
    changed = np.abs(frame.picture.to_ndarray(format="rgb24").astype(int) - plain.picture.to_ndarray(format="rgb24"))
    text = frame.orientation.plane((changed.max(axis=2) > 60).astype(np.uint8))
    found = frame.orientation.plane(cv2.fillPoly(np.zeros((960, 1280), np.uint8), frame.outlines, 1))
    x, y, width, height = cv2.boundingRect(text)
    left, top, wide, _ = cv2.boundingRect(found)
    assert height > width  # a digit is
    assert y + height <= top
    assert abs(x + width / 2 - (left + wide / 2)) < 12
    seven = text[y : y + height, x : x + width]
    assert seven[: height // 4].mean() > 1.5 * seven[-height // 4 :].mean()  # its bar is at its top


@pytest.mark.parametrize("turn", [(False, False, False), (False, True, True), (True, True, False), (True, False, True)])
def test_the_label_of_a_slanting_finding_stands_above_its_upper_end(turn: tuple[bool, bool, bool]) -> None:
    frame = with_square(grey_frame("yuv444p", 1280, 960), FieldOfView(0, 0, 1280, 960))
    frame.orientation, frame.tracks = Orientation(*turn), [7]
    displayed = np.zeros_like(frame.orientation.plane(np.zeros((960, 1280), np.uint8)))
    cv2.fillPoly(displayed, [np.array([(300, 200), (360, 200), (900, 800), (840, 800)])], 1)
    contours, _ = cv2.findContours(frame.orientation.stored(displayed), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    frame.outlines = [contours[0][:, 0]]
    drawn_by("number", contour=0, opacity=0)([frame])
    changed = np.abs(planes_of(frame.picture)[0].astype(int) - 90) > 60
    x, y, width, height = cv2.boundingRect(frame.orientation.plane(changed.astype(np.uint8)))
    assert 190 - height < y < 200 - height
    assert 320 < x + width / 2 < 420


@pytest.mark.parametrize(("carried", "text"), [(False, "7 0.93"), (True, "7")])
def test_a_label_with_everything_says_number_and_probability_of_this_frame(carried: bool, text: str) -> None:
    frame, bare = (with_square(grey_frame("yuv444p", 1280, 960), FieldOfView(0, 0, 1280, 960), 237) for _ in range(2))
    frame.tracks, frame.peaks, frame.carried = [7], [237], [carried]
    drawn_by("all")([frame])
    drawn_by("none")([bare])
    changed = (planes_of(frame.picture)[0] != planes_of(bare.picture)[0]).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(changed)
    _, expected = text_masks(text, TEXT_SCALE * 960 / 1080, 2, 3)  # 0.93 is 237 of 255
    assert np.array_equal(255 * changed[y : y + height, x : x + width], expected)


@pytest.mark.parametrize(("width", "height"), [(384, 288), (320, 240), (1920, 1080)])
def test_texts_of_small_frames_can_be_read(width: int, height: int) -> None:
    """Digits of a label are at least 12 pixels high, and the notice fits into the width."""
    frame = with_square(grey_frame("yuv444p", width, height), FieldOfView(0, 0, width, height))
    frame.tracks, frame.peaks, frame.carried = [7], [237], [False]
    plain = planes_of(grey_frame("yuv444p", width, height).picture)[0].copy()
    drawn_by("all", contour=0, opacity=0)([frame])
    assert boxes_of_change(planes_of(frame.picture)[0], plain)[3] >= 12
    frame = grey_frame("yuv444p", width, height)
    frame.view = FieldOfView(width // 2, 0, 2, 2)
    StatusOverlay()([frame])
    lower = slice(height * 3 // 4, height)
    left, _, wide, tall = boxes_of_change(planes_of(frame.picture)[0][lower], plain[lower])
    assert tall >= 2 * 12
    assert 0 < left < left + wide < width


def boxes_of_change(after: np.ndarray, before: np.ndarray) -> Sequence[int]:
    """Left, top, width and height of what differs."""
    return cv2.boundingRect((after != before).astype(np.uint8))


def test_the_border_of_a_live_text_surrounds_its_letters() -> None:
    frame = grey_frame("yuv444p", 1280, 720)
    frame.view = FieldOfView(0, 0, 1280, 720)
    StatusOverlay()([frame])
    luma = planes_of(frame.picture)[0][600:].copy()
    luma[:, :20] = 90  # without the corner marks
    luma[80:] = 90
    letters = cv2.dilate((luma == 235).astype(np.uint8), np.ones((5, 5), np.uint8))
    assert (luma == 235).any()
    assert not ((luma == 235 // 15) & (letters == 0)).any()


def test_a_heat_map_of_the_default_opacity_changes_the_colour_clearly() -> None:
    """A tint of 0.3 leaves the pattern visible. A heat map of 0.3 could not be told from mucosa."""
    frame = with_square(grey_frame("yuv444p"), FieldOfView(0, 0, 320, 240), 200)
    drawn_by(style="heatmap", contour=0)([frame])
    after = frame.picture.to_ndarray(format="rgb24")[120, 160].astype(int)
    assert np.abs(after - 90).max() > 60


def test_a_label_fits_into_a_small_frame_and_into_its_corner() -> None:
    frame = grey_frame("yuv420p", 32, 16)
    frame.view, frame.probability = FieldOfView(0, 0, 32, 16), np.full((64, 64), 255, np.uint8)
    FindingsTracker(Rules(0.5), steady=False)([frame])
    frame.tracks = [123456]
    drawn_by("all")([frame])


def test_touching_blobs_are_one_finding_and_separate_ones_two() -> None:
    frame = grey_frame("yuv420p")
    frame.view = FieldOfView(0, 0, 320, 240)
    frame.probability = np.zeros((64, 64), np.uint8)
    frame.probability[5:15, 5:15] = frame.probability[40:50, 40:60] = 255
    assert len(FindingsTracker(Rules(0.5), steady=False)([frame])[0].outlines) == 2
    frame.probability[10:45, 10:45] = 255
    assert len(FindingsTracker(Rules(0.5), steady=False)([frame])[0].outlines) == 1
