"""The clock of a live source: sound gets the offset of the frames beside it, whichever of them comes first."""

from __future__ import annotations

import pytest

from polypstream.sources.live_clock import LiveClock

OPENED = 1000.0
LATE = 0.2


def played(clock: LiveClock, begins: float, frames: int, at: float) -> float:
    """Let frames of a stream arrive from a time on, 25 a second. Return the time of the last one."""
    for number in range(frames):
        seconds = clock.time_of(begins + number / 25, OPENED + at + LATE + number / 25)
    return seconds


def test_sound_that_comes_before_the_frames_of_a_new_clock_waits_for_them() -> None:
    clock = LiveClock(OPENED)
    assert clock.time_of_sound(50.0, None, False) is None
    played(clock, 50.0, 100, 0.0)
    assert clock.time_of_sound(53.9, 53.88, False) == pytest.approx(3.9 + LATE)
    assert clock.time_of_sound(1.4, 53.9, False) is None
    played(clock, 1.4, 1, 5.0)
    assert clock.time_of_sound(1.4, 53.9, False) == pytest.approx(5.0 + LATE)


def test_sound_that_is_late_keeps_the_offset_of_its_frames() -> None:
    clock = LiveClock(OPENED)
    played(clock, 50.0, 100, 0.0)
    clock.time_of_sound(53.5, None, False)
    played(clock, 1.4, 10, 4.0)
    assert clock.time_of_sound(53.52, 53.5, False) == pytest.approx(3.52 + LATE)
    assert clock.time_of_sound(1.4, 53.9, False) == pytest.approx(4.0 + LATE)


def test_sound_that_is_far_from_all_frames_waits_no_longer_than_it_is_told() -> None:
    clock = LiveClock(OPENED)
    played(clock, 50.0, 10, 0.0)
    clock.time_of_sound(50.0, None, False)
    assert clock.time_of_sound(53.0, 50.0, False) is None
    assert clock.time_of_sound(53.0, 50.0, True) == pytest.approx(3.0 + LATE)


def test_a_pause_of_the_stream_is_no_jump_of_its_clock() -> None:
    clock = LiveClock(OPENED)
    played(clock, 50.0, 25, 0.0)
    assert played(clock, 58.0, 1, 8.0) == pytest.approx(8.0 + LATE)


def test_frames_that_come_in_a_burst_keep_their_distances() -> None:
    """As from a playlist, or after a stall of the network."""
    clock = LiveClock(OPENED)
    times = [clock.time_of(50.0 + number / 25, OPENED + LATE) for number in range(100)]
    assert times[-1] - times[0] == pytest.approx(99 / 25)


def test_a_new_connection_begins_behind_the_last_frame() -> None:
    clock = LiveClock(OPENED)
    for number in range(100):
        last = clock.time_of(50.0 + number / 25, OPENED + LATE)
    clock.restart()
    assert clock.time_of(1.4, OPENED + 1.0) == pytest.approx(last + 1 / 25)
