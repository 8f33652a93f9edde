"""What counts as a finding."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from polypstream.core.config import Findings
from polypstream.core.frame import Frame, Motion, Quality
from polypstream.core.geometry import FieldOfView
from polypstream.stages.findings import FindingsTracker, Rules, choose_rules, find_blobs, find_region

VIEW = FieldOfView(40, 20, 300, 200)
Box = tuple[int, int, int, int]


def two_blobs(faint: int, strong: int) -> np.ndarray:
    """A map of 100x100 with a faint blob of 10x10 and a strong one of 30x30, each with a rim at probability 0.6."""
    probability = np.zeros((100, 100), np.uint8)
    probability[8:22, 8:22] = 153
    probability[10:20, 10:20] = faint
    probability[48:82, 48:82] = 153
    probability[50:80, 50:80] = strong
    return probability


def share_of(probability: np.ndarray, rules: Rules) -> tuple[float, float]:
    """The shares of the faint and of the strong blob's quarter that are found."""
    found = np.zeros((240, 360), np.uint8)
    region, _ = find_region(probability, VIEW, rules)
    if region is not None:
        found[region.slices] = region.mask
    view = VIEW.crop(found) > 0
    return float(view[:80, :120].mean()), float(view[80:, 120:].mean())


def test_a_blob_must_reach_the_peak_somewhere_and_keeps_its_rim() -> None:
    probability = two_blobs(faint=180, strong=250)
    before = probability.copy()
    faint, strong = share_of(probability, Rules(0.5))
    assert faint > 0
    faint, strong_alone = share_of(probability, Rules(0.5, peak=0.9))
    assert faint == 0
    assert strong_alone == strong
    assert share_of(probability, Rules(0.5, peak=0.99)) == (0, 0)
    assert np.array_equal(probability, before)  # the map itself is others' too


def test_a_peak_beside_a_blob_is_not_its_own() -> None:
    probability = np.zeros((100, 100), np.uint8)
    probability[10:90, 10:14] = probability[86:90, 10:90] = 160  # an L around the strong blob
    probability[20:40, 60:80] = 250
    _, outlines = find_region(probability, VIEW, Rules(0.5, peak=0.9))
    (outline,) = outlines
    assert outline[:, 0].min() >= VIEW.x + 3 * 59


def test_a_blob_whose_probability_is_below_the_threshold_now_is_not_sure() -> None:
    before, now = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8)
    before[20:40, 20:40], now[20:40, 20:40] = 250, 100
    for peak, probability, sure in ((0.1, now, False), (0.1, before, True), (0.9, before, True), (0.99, before, False)):
        _, (blob,) = find_blobs(before, probability, Rules(0.5, peak))
        assert (blob.label, blob.share, blob.confident) == (1, 0.04, sure)


def test_of_very_many_blobs_255_are_found() -> None:
    probability = np.zeros((100, 100), np.uint8)
    probability[::5, ::5] = 255
    labels, blobs = find_blobs(probability, probability, Rules(0.5))
    assert [blob.label for blob in blobs] == list(range(1, 256))
    assert np.array_equal(np.bincount(labels[labels > 0]), [0] + [1] * 255)


def test_blobs_are_numbered_as_in_the_whole_map() -> None:
    """Only the part with blobs is labelled; wherever it begins, the numbers are those of all of it."""
    random = np.random.default_rng(0)
    for _ in range(40):
        noise = cv2.GaussianBlur(random.standard_normal((96, 96), np.float32), (0, 0), random.uniform(0.6, 4))
        probability = np.zeros((96, 96), np.uint8)
        y, x, height, width = random.integers(1, 48, 4)
        box = np.s_[y : y + height, x : x + width]
        probability[box] = np.where(noise > 1.2 * noise.std(), 200, 0)[box]
        _, expected, boxes, _ = cv2.connectedComponentsWithStats(probability)
        labels, blobs = find_blobs(probability, probability, Rules(0.5))
        assert np.array_equal(labels, expected)
        assert [blob.share * probability.size for blob in blobs] == boxes[1:, cv2.CC_STAT_AREA].tolist()


def test_each_outline_has_the_number_of_its_track() -> None:
    """The map is nearly as probable around the blobs, so that their outlines run in other places of the map."""
    tracker = FindingsTracker(Rules(0.5), steady=False)
    shown: list[dict[tuple[int, int], int]] = []
    for index, places in enumerate([[(20, 20)], [(20, 20), (80, 10)], [(80, 10), (20, 20), (50, 90)]]):
        frame = Frame(index, av.VideoFrame(360, 240, "yuv420p"), index, Fraction(1, 25))
        frame.view, frame.probability = VIEW, np.full((100, 100), 127, np.uint8)
        frame.quality = Quality(False, False, False)
        for x, y in places:
            frame.probability[y : y + 2, x : x + 2] = 250
        tracker([frame])
        middles = [(outline.min(axis=0) + outline.max(axis=0)) / 2 - (VIEW.x, VIEW.y) for outline in frame.outlines]
        columns = [(round(float(x) / 3 - 0.5), round(float(y) / 2 - 0.5)) for x, y in middles]
        shown.append(dict(zip(columns, frame.tracks, strict=True)))
    assert shown == [{(20, 20): 1}, {(20, 20): 1, (80, 10): 2}, {(20, 20): 1, (80, 10): 2, (50, 90): 3}]


def steady_frame(
    seconds: Fraction, smoothed: Box | None, sure: bool, moved_by: int | None, blurred: bool = False
) -> Frame:
    """The smoothed map has a box; the network is as sure of it, or sees nothing; the picture moved to the right."""
    frame = Frame(0, av.VideoFrame(360, 240, "yuv420p"), int(seconds * 100), Fraction(1, 100))
    frame.view, frame.smoothed = VIEW, np.zeros((100, 100), np.uint8)
    frame.quality = Quality(blurred, False, False)
    if smoothed is not None:
        left, top, right, bottom = smoothed
        frame.smoothed[top:bottom, left:right] = 250
    frame.probability = frame.smoothed if sure else np.zeros((100, 100), np.uint8)
    origin = np.dstack(np.meshgrid(np.arange(100), np.arange(100))).astype(np.float32) - np.float32([moved_by or 0, 0])
    frame.motion = None if moved_by is None else Motion(origin, np.ones((100, 100), np.float32))
    return frame


def box_of(frame: Frame) -> Box | None:
    """The one finding of a frame, in places of the map."""
    if not frame.outlines:
        return None
    (outline,) = frame.outlines
    assert frame.tracks == [1]
    (left, top), (right, bottom) = outline.min(axis=0) - (VIEW.x, VIEW.y), outline.max(axis=0) - (VIEW.x, VIEW.y)
    return round(left / 3), round(top / 2), round((right + 1) / 3), round((bottom + 1) / 2)


def test_steady_findings_follow_the_smoothed_map_and_the_pictures_motion() -> None:
    tracker, small, large = FindingsTracker(Rules(0.5, peak=0.9), steady=True), (20, 20, 40, 40), (20, 20, 50, 40)
    frames = [
        steady_frame(Fraction(0), small, True, None),
        steady_frame(Fraction(4, 100), large, False, 0),  # not seen now, and still shown as far as the map reaches
        steady_frame(Fraction(8, 100), None, False, 10),  # held where the wall took it
        steady_frame(Fraction(9, 100), large, True, -10),
        steady_frame(Fraction(60, 100), large, False, 0),
        steady_frame(Fraction(120, 100), large, False, 0),  # faint for more than a second, however the map looks
    ]
    for frame in frames:
        tracker([frame])
    assert [box_of(frame) for frame in frames] == [small, large, (30, 20, 60, 40), large, large, None]
    # The network sees nothing in the second frame, and the third one only holds the finding.
    assert [frame.peaks for frame in frames] == [[250], [250], [250], [250], [250], []]
    assert [frame.carried for frame in frames] == [[False], [False], [True], [False], [False], []]


def test_a_finding_is_carried_through_blur_along_the_motion() -> None:
    tracker, place = FindingsTracker(Rules(0.5, peak=0.9), steady=True), (20, 20, 40, 40)
    frames = [
        steady_frame(Fraction(0), place, True, None),
        *(steady_frame(Fraction(4 * index, 100), None, False, 2, blurred=True) for index in range(1, 6)),
        steady_frame(Fraction(24, 100), (30, 20, 50, 40), True, 0),
    ]
    for frame in frames:
        tracker([frame])
    moved: list[Box | None] = [(20 + 2 * index, 20, 40 + 2 * index, 40) for index in range(6)]
    assert [box_of(frame) for frame in frames] == [*moved, (30, 20, 50, 40)]
    assert [frame.carried for frame in frames] == [[False], *[[True]] * 5, [False]]


def test_a_blob_must_be_large_enough() -> None:
    probability = np.zeros((100, 100), np.uint8)
    probability[20:30, 20:30] = 250
    assert find_region(probability, VIEW, Rules(0.5, smallest=0.01))[0] is not None
    assert find_region(probability, VIEW, Rules(0.5, smallest=0.0101)) == (None, [])
    probability = two_blobs(faint=250, strong=250)
    assert share_of(probability, Rules(0.5, smallest=0.015))[0] > 0
    faint, strong = share_of(probability, Rules(0.5, smallest=0.025))
    assert faint == 0
    assert strong > 0
    assert share_of(probability, Rules(0.5, smallest=0.2)) == (0, 0)


def test_thin_parts_that_come_apart_when_enlarged_are_left_out() -> None:
    probability = np.zeros((100, 100), np.uint8)
    probability[20:60, 20:60] = 250
    for step in range(20):
        probability[60 + step, 60 + step] = 200  # joined to the blob at corners alone
    region, _ = find_region(probability, VIEW, Rules(0.5, peak=0.9, smallest=0.001))
    assert region is not None
    assert cv2.connectedComponents(region.mask)[0] == 2
    alone = np.where(probability == 200, probability, 0).astype(np.uint8)
    assert find_region(alone, VIEW, Rules(0.5)) == (None, [])


def test_a_finding_in_the_hole_of_another_has_an_outline_too() -> None:
    probability = np.zeros((100, 100), np.uint8)
    for radius, level in ((40, 250), (25, 0), (12, 250)):
        cv2.circle(probability, (50, 50), radius, level, cv2.FILLED)
    region, outlines = find_region(probability, VIEW, Rules(0.5))
    assert region is not None
    assert cv2.connectedComponents(region.mask)[0] - 1 == len(outlines) == 2


def test_the_outline_runs_where_the_probability_crosses_the_threshold() -> None:
    probability = np.full((100, 100), 120, np.uint8)
    probability[30:70, 30:70] = 200
    region, _ = find_region(probability, VIEW, Rules(0.5))
    assert region is not None
    found = np.zeros((240, 360), np.uint8)
    found[region.slices] = region.mask
    # A tenth of the way from the middle of place 29 to that of place 30, and nine from 69 to 70. A place is three
    # picture pixels wide and two high.
    first, last = 29.5 + (128 - 120) / (200 - 120), 69.5 + (200 - 128) / (200 - 120)
    columns, rows = np.flatnonzero(found[120]), np.flatnonzero(found[:, 190])
    assert [columns.min(), columns.max() + 1] == pytest.approx([VIEW.x + 3 * first, VIEW.x + 3 * last], abs=0.6)
    assert [rows.min(), rows.max() + 1] == pytest.approx([VIEW.y + 2 * first, VIEW.y + 2 * last], abs=0.6)


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        (Findings(), Rules(0.4, 0.8, 0.001)),
        (Findings(threshold=0.6, smallest=0.0), Rules(0.6, 0.8, 0.0)),
        (Findings(peak=0.5), Rules(0.4, 0.5, 0.001)),
    ],
)
def test_settings_go_before_the_models_own_choice(settings: Findings, rules: Rules) -> None:
    assert choose_rules(settings, threshold=0.4, peak=0.8) == rules
