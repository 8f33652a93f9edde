"""Drawing on the planes: where there is something to draw, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.media.pictures import planes_of
from polypstream.sources.recording import Recording
from polypstream.stages.findings import FindingsTracker, Rules
from polypstream.stages.overlay import MARKER_RGB, Overlay

FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "yuv422p10le"]


def grey_frame(pixel_format: str, width: int = 320, height: int = 240) -> Frame:
    rgb = np.full((height, width, 3), 90, np.uint8)
    picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pixel_format)
    return Frame(0, picture, 0, Fraction(1, 25))


def with_square(frame: Frame, view: FieldOfView, level: int = 255) -> Frame:
    """A finding on the middle quarter of the view."""
    frame.probability = np.zeros((64, 64), np.uint8)
    frame.probability[16:48, 16:48] = level
    frame.view = view
    return FindingsTracker(Rules(0.5), steady=False)([frame])[0]


def copies(frame: Frame) -> list[np.ndarray]:
    return [plane.copy() for plane in planes_of(frame.picture)]


@pytest.mark.parametrize("style", ["tint", "heatmap"])
def test_a_picture_without_findings_is_the_decoders_own(make: Callable[..., Path], style: str) -> None:
    """Bit for bit, also after drawing on the pictures between: the decoder's references are never touched."""
    recording = Recording(make(frames=40, options={"g": "40", "bf": "2"}))
    clean = [copies(frame) for frame in Recording(recording.path).frames()]
    view = FieldOfView(0, 0, 320, 240)
    overlay = Overlay(style, 0.7, 8)  # type: ignore[arg-type]
    for frame, expected in zip(recording.frames(), clean, strict=True):
        address = frame.picture.planes[0].buffer_ptr
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
    Overlay("tint", 0.5, 0)([with_square(frame, view)])
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
        Overlay("heatmap", 0.8, 0)([frame])
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
    Overlay("tint", 0, 9)([frame])
    after = frame.picture.to_ndarray(format="rgb24").astype(int)
    x, y = frame.outlines[0].min(axis=0)
    assert np.abs(after[120, x] - MARKER_RGB).max() <= 40
    assert np.abs(after[y, 160] - MARKER_RGB).max() <= 40
    assert np.abs(after[120, 160] - 90).max() <= 2


def test_touching_blobs_are_one_finding_and_separate_ones_two() -> None:
    frame = grey_frame("yuv420p")
    frame.view = FieldOfView(0, 0, 320, 240)
    frame.probability = np.zeros((64, 64), np.uint8)
    frame.probability[5:15, 5:15] = frame.probability[40:50, 40:60] = 255
    assert len(FindingsTracker(Rules(0.5), steady=False)([frame])[0].outlines) == 2
    frame.probability[10:45, 10:45] = 255
    assert len(FindingsTracker(Rules(0.5), steady=False)([frame])[0].outlines) == 1
