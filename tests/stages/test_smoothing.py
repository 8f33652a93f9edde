"""Probability over time: it moves with the picture, and does not smear."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.stages.motion import LONGEST_GAP_S
from polypstream.stages.smoothing import TemporalSmoother

SIZE = 128
RATE = 25


def wall(seed: int = 0) -> np.ndarray:
    """A pattern, uint8 RGB, larger than a picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (3 * SIZE, 3 * SIZE, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 40, 215, cv2.NORM_MINMAX)


def frames_of(speed: int, count: int, seed: int = 0, rate: int = RATE, first: int = 0) -> Iterator[Frame]:
    """A camera goes over a wall, so many pixels a frame; a polyp on it is seen at (64 - speed * index, 64)."""
    picture = av.VideoFrame(SIZE, SIZE, "yuv420p")
    for index in range(count):
        frame = Frame(index, picture, first + index, Fraction(1, rate))
        left = SIZE + speed * index
        frame.view = FieldOfView(0, 0, SIZE, SIZE)
        frame.model_input = np.ascontiguousarray(wall(seed)[SIZE : 2 * SIZE, left : left + SIZE])
        frame.probability = polyp_at(64 - speed * index)
        yield frame


def polyp_at(x: int) -> np.ndarray:
    return cv2.circle(np.zeros((SIZE, SIZE), np.uint8), (x, 64), 12, 250, -1)


@pytest.mark.parametrize("speed", [0, 3])
def test_what_the_network_missed_once_is_still_there_and_where_it_is_now(speed: int) -> None:
    frames = list(frames_of(speed, 6))
    frames[-1].probability = np.zeros((SIZE, SIZE), np.uint8)
    TemporalSmoother()(frames)
    faded, expected = frames[-1].smoothed, 250 * np.exp(-1 / RATE / 0.05)
    assert faded[64, 64 - 5 * speed] == pytest.approx(expected, rel=0.15)
    # Not where it was before: the half of it that the wall has left.
    if speed:
        assert faded[64, 64 - 4 * speed + 11] < 0.2 * expected


def test_it_does_not_smear_when_the_camera_moves() -> None:
    frames = TemporalSmoother()(list(frames_of(3, 8)))
    agreed = frames[-1].smoothed >= 128
    truth = frames[-1].probability >= 128
    assert 2 * (agreed & truth).sum() / (agreed.sum() + truth.sum()) > 0.95


def test_another_scene_begins_anew() -> None:
    smoother = TemporalSmoother()
    smoother(list(frames_of(0, 3)))
    (other,) = frames_of(0, 1, seed=1, first=3)
    other.model_input //= 3
    other.probability = np.zeros((SIZE, SIZE), np.uint8)
    smoother([other])
    assert other.motion is None
    assert not other.smoothed.any()


def test_after_a_gap_it_begins_anew() -> None:
    smoother = TemporalSmoother()
    smoother(list(frames_of(0, 3)))
    (late,) = frames_of(0, 1, first=3 + round(LONGEST_GAP_S * RATE))
    smoother([late])
    assert late.motion is None


def test_it_forgets_by_the_clock_not_by_the_frame() -> None:
    left = []
    for rate in (25, 50):
        frames = list(frames_of(0, rate // 5 + 1, rate=rate))
        for frame in frames[1:]:
            frame.probability = np.zeros((SIZE, SIZE), np.uint8)
        left.append(int(TemporalSmoother()(frames)[rate // 25].smoothed[64, 64]))
    assert left[0] == pytest.approx(left[1], abs=6)


def nothing() -> np.ndarray:
    return np.zeros((SIZE, SIZE), np.uint8)


def test_what_is_gone_is_forgotten_within_a_second_to_the_last_bit() -> None:
    smoother, frames = TemporalSmoother(), list(frames_of(0, RATE + 1))
    for frame in frames[1:]:
        frame.probability = nothing()
    smoother(frames[:10])
    assert smoother.state.smooth.any()
    smoother(frames[10:])
    assert not smoother.state.smooth.any()


def test_several_frames_at_once_are_smoothed_as_one_by_one() -> None:
    """A polyp, two seconds of nothing, a polyp: to the last bit, and with the same motion."""
    together, alone = (list(frames_of(1, 60)) for _ in range(2))
    for frame in (*together[5:58], *alone[5:58]):
        frame.probability = nothing()
    with ThreadPoolExecutor(3) as workers:
        smoother = TemporalSmoother(workers=workers)
        for start in range(0, 60, 8):
            smoother(together[start : start + 8])
    one = TemporalSmoother()
    for frame in alone:
        one([frame])
    assert {frame.motion is None for frame in alone[1:]} == {True, False}
    for ours, theirs in zip(together, alone, strict=True):
        assert np.array_equal(ours.smoothed, theirs.smoothed)
        assert (ours.motion is None) == (theirs.motion is None)
        if ours.motion is not None and theirs.motion is not None:
            assert np.array_equal(ours.motion.origin, theirs.motion.origin)
            assert np.array_equal(ours.motion.similarity, theirs.motion.similarity)
    assert np.array_equal(smoother.state.smooth, one.state.smooth)


def test_after_two_seconds_of_nothing_no_motion_is_looked_for() -> None:
    frames = list(frames_of(0, 3 * RATE))
    for frame in frames[1:-1]:
        frame.probability = np.full((SIZE, SIZE), 24, np.uint8)
    TemporalSmoother()(frames)
    assert [frame.motion is not None for frame in frames] == [False] + [True] * 50 + [False] * 23 + [True]


def test_a_place_counts_for_the_less_the_less_it_looks_like_before() -> None:
    """A light falls on the right half, by which its weight falls to 1/e."""
    frames = list(frames_of(0, 5))
    frames[-1].model_input[:, 64:] += 12
    frames[-1].probability = nothing()
    TemporalSmoother()(frames)
    assert frames[-1].motion is not None
    trust, expected = frames[-1].motion.similarity, 250 * np.exp(-1 / RATE / 0.05)
    assert trust[40:90, 20:60].mean() > 0.95
    assert trust[40:90, 68:108].mean() == pytest.approx(np.exp(-1), abs=0.1)
    assert frames[-1].smoothed[64, 56] == pytest.approx(expected, rel=0.1)
    assert frames[-1].smoothed[64, 72] == pytest.approx(expected / np.e, rel=0.3)


def test_what_comes_into_view_is_not_what_was_there() -> None:
    """However dark it is: nothing before the border is as dark."""
    frames = list(frames_of(4, 6))
    for frame in frames:
        frame.model_input //= 8
    TemporalSmoother()(frames)
    assert frames[-1].motion is not None
    trust = frames[-1].motion.similarity
    assert trust[:, 20:100].mean() > 0.95
    assert trust[10:-10, -2:].mean() < 0.05


def test_another_field_of_view_begins_anew() -> None:
    smoother = TemporalSmoother()
    frames = list(frames_of(0, 4))
    for frame in frames[2:]:
        frame.view = FieldOfView(0, 0, SIZE, SIZE - 2)
    smoother(frames)
    assert [frame.motion is not None for frame in frames] == [False, True, False, True]


def test_a_picture_of_the_same_time_begins_anew() -> None:
    frames = list(frames_of(0, 3))
    frames[2].pts = frames[1].pts
    TemporalSmoother()(frames)
    assert [frame.motion is not None for frame in frames] == [False, True, False]
