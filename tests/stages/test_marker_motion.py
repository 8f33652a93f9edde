"""Markers of an earlier frame, moved to where the polyp is now."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from polypstream.core.frame import Frame
from polypstream.core.geometry import Region
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from polypstream.stages.marker_motion import move_markers
from polypstream.stages.motion import SmallGrey

WIDTH, HEIGHT = 640, 360
grey_of = SmallGrey()


def frame_of(image: np.ndarray, truth: np.ndarray) -> Frame:
    """A frame of a grey or RGB image whose markers are a mask."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    frame = Frame(0, av.VideoFrame.from_ndarray(grey, "gray").reformat(format="yuv420p"), 0, Fraction(1, 30))
    x, y, width, height = cv2.boundingRect(truth)
    x, y, width, height = x & ~1, y & ~1, width + (x & 1), height + (y & 1)
    part = np.ascontiguousarray(truth[y : y + height, x : x + width])
    frame.region = Region(x, y, part, part)
    frame.outlines = [each[:, 0] for each in cv2.findContours(truth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]]
    frame.tracks, frame.peaks = [1] * len(frame.outlines), [255] * len(frame.outlines)
    frame.carried = [False] * len(frame.outlines)
    return frame


def shown(frame: Frame) -> np.ndarray:
    """The markers, uint8 [HEIGHT, WIDTH], 0 or 255."""
    mask = np.zeros((frame.picture.height, frame.picture.width), np.uint8)
    assert frame.region is not None
    mask[frame.region.slices] = frame.region.mask
    return mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b)))


@pytest.mark.parametrize("matrix", [[[1, 0, 18], [0, 1, -12]], [[1.15, 0, -50], [0, 1.15, -20]]])
def test_markers_follow_a_shift_and_a_zoom(matrix: list[list[float]]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 20, WIDTH // 20), np.uint8)
    image = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    truth = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (300, 180), 50, 255, -1)
    later, expected = (cv2.warpAffine(each, np.float32(matrix), (WIDTH, HEIGHT)) for each in (image, truth))  # type: ignore[arg-type]
    frame = frame_of(later, truth)
    assert move_markers(frame, grey_of(frame_of(image, truth).in_memory()), grey_of(frame.in_memory()))
    assert overlap(truth, expected) < 0.75
    assert overlap(shown(frame), expected) > 0.9
    drawn = cv2.fillPoly(np.zeros_like(truth), frame.outlines, 255)
    assert overlap(drawn, expected) > 0.9


def test_markers_at_the_border_are_cut_and_those_of_another_scene_stay() -> None:
    random = np.random.default_rng(1)
    images = [
        cv2.resize(random.integers(0, 256, (18, 32), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in range(2)
    ]
    truth = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (40, 180), 35, 255, -1)
    before = grey_of(frame_of(images[0], truth).in_memory())
    moved = cv2.warpAffine(images[0], np.float32([[1, 0, -20], [0, 1, 0]]), (WIDTH, HEIGHT))  # type: ignore[arg-type]
    frame = frame_of(moved, truth)
    assert move_markers(frame, before, grey_of(frame.in_memory()))
    assert shown(frame)[:, 0].any()
    assert min(point for outline in frame.outlines for point in outline.ravel()) >= 0
    frame = frame_of(images[1], truth)
    assert not move_markers(frame, before, grey_of(frame.in_memory()))
    assert np.array_equal(shown(frame), truth)


@pytest.mark.slow
def test_markers_sit_better_on_the_polyps_of_the_demo() -> None:
    """Markers that are four frames old, 133 ms. The truth of the demo is the marker."""
    colon = DemoColon(DemoSettings(width=WIDTH, height=HEIGHT, rate=Fraction(30), seconds=10, seed=5))
    frames = [colon.render(index)[:2] for index in range(20, 75)]
    before, after = [], []
    for (old, old_truth), (new, new_truth) in zip(frames, frames[4:], strict=False):
        truths = [255 * (np.asarray(each) > 0).astype(np.uint8) for each in (old_truth, new_truth)]
        if min(map(cv2.countNonZero, truths)) < 500:
            continue
        frame = frame_of(new, truths[0])
        move_markers(frame, grey_of(frame_of(old, truths[0]).in_memory()), grey_of(frame.in_memory()))
        before.append(overlap(truths[0], truths[1]))
        after.append(overlap(shown(frame), truths[1]))
    assert len(before) > 30
    assert np.mean(after) > np.mean(before) + 0.08
