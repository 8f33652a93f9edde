"""Findings over time: who is who, and whether to believe it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from polypstream.core.frame import Motion
from polypstream.stages.tracking import Blob, Tracker

SIZE = 100
Place = tuple[int, int]


def still(x: float = 0, y: float = 0) -> Motion:
    """The picture's content moves by so many pixels from one frame to the next."""
    grid = np.dstack(np.meshgrid(np.arange(SIZE), np.arange(SIZE))).astype(np.float32)
    return Motion(grid - np.float32([x, y]), np.ones((SIZE, SIZE), np.float32))


STILL = still()


def see(
    tracker: Tracker,
    seconds: float,
    places: Sequence[Place],
    motion: Motion | None = STILL,
    sure: bool = True,
    share: float = 0.05,
) -> list[int]:
    """Show a tracker blobs of 10x10 around some places, which shall cover so much; the numbers that it shows there."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for label, (x, y) in enumerate(places, 1):
        labels[y - 5 : y + 5, x - 5 : x + 5] = label
    blobs = [Blob(label, share, sure) for label in range(1, len(places) + 1)]
    shown = tracker.update(seconds, motion, labels, blobs)
    return [] if shown is None else [int(shown.numbers[shown.slots[y, x]]) for x, y in places]


def begun(steady: bool = True) -> Tracker:
    """A tracker that has seen a scene without any finding."""
    tracker = Tracker(steady)
    see(tracker, 0.0, [], None)
    return tracker


@pytest.mark.parametrize("rate", [25, 60])
def test_a_finding_is_shown_once_it_lasts(rate: int) -> None:
    tracker = begun()
    shown = [see(tracker, 1 + index / rate, [(50, 50)]) for index in range(rate // 5)]
    first = shown.index([1]) / rate
    assert 0.06 <= first <= 0.081
    assert shown[shown.index([1]) :] == [[1]] * (len(shown) - shown.index([1]))


def first_shown(rate: int, share: float, sure: Sequence[bool]) -> float | None:
    """After how many seconds a blob is shown that the network is sure of in some pictures."""
    tracker = begun()
    for index, each in enumerate(sure):
        if see(tracker, 1 + index / rate, [(50, 50)], sure=each, share=share):
            return index / rate
    return None


@pytest.mark.parametrize("rate", [5, 25, 60])
def test_what_is_small_must_last_longer(rate: int) -> None:
    always = [True] * (2 * rate)
    large, small, tiny = (first_shown(rate, share, always) for share in (0.04, 0.02, 0.001))
    assert large is not None
    assert small is not None
    assert tiny is not None
    assert 0.06 <= large < 0.06 + 1 / rate + 1e-6
    assert 0.26 <= small < 0.26 + 1 / rate + 1e-6
    assert 0.44 <= tiny < 0.44 + 1 / rate + 1e-6


@pytest.mark.parametrize("rate", [5, 25, 60])
@pytest.mark.parametrize("motion", [None, STILL])
def test_what_is_shorter_than_the_shortest_is_not_shown(rate: int, motion: Motion | None) -> None:
    """Not in the first frame of a scene, either. What was shown once is shown again without that wait."""
    tracker = Tracker(True, shortest=1.0)
    shown = [see(tracker, 0.0, [(50, 50)], motion)]
    shown += [see(tracker, index / rate, [(50, 50)]) for index in range(1, 2 * rate)]
    assert 1.0 <= shown.index([1]) / rate <= 1.0 + 1 / rate + 1e-6
    for index in range(2 * rate, 3 * rate):
        see(tracker, index / rate, [])
    again = [see(tracker, 3 + index / rate, [(50, 50)], share=0.01) for index in range(2 * rate)]
    assert again.index([1]) / rate <= 0.36 + 1 / rate + 1e-6
    short = Tracker(True, shortest=1.0)
    assert not any(see(short, index / rate, [(50, 50)]) for index in range(rate))


def test_what_the_network_is_sure_of_now_and_then_is_not_shown() -> None:
    assert first_shown(25, 0.05, [True, False] * 50) is None
    assert first_shown(25, 0.05, [True, True, False] * 50) is None
    assert first_shown(25, 0.05, [True, True, True, False] * 50) == 0.08


@pytest.mark.parametrize(("share", "missing", "after"), [(0.01, 1, [1]), (0.01, 2, []), (0.05, 4, [1])])
def test_what_is_small_must_last_anew_after_more_than_a_moment(share: float, missing: int, after: list[int]) -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None, share=share)
    for index in range(1, missing + 1):
        see(tracker, index / 25, [])
    again = [see(tracker, (missing + 1 + index) / 25, [(50, 50)], share=share) for index in range(10)]
    assert again[0] == after
    assert again[-1] == [1]  # and is the same one


def test_a_flash_is_not_shown() -> None:
    tracker = begun()
    assert see(tracker, 1.0, [(50, 50)]) == []
    assert see(tracker, 1.04, []) == []
    assert see(tracker, 1.9, [(50, 50)]) == []
    assert see(tracker, 4.5, [(50, 50)]) == []


def test_what_is_there_from_the_first_picture_on_is_shown_at_once() -> None:
    assert see(Tracker(True), 0.0, [(50, 50)], None) == [1]


def test_what_the_network_is_never_sure_of_is_not_shown() -> None:
    tracker = begun()
    assert not any(see(tracker, 1 + index / 25, [(50, 50)], sure=False) for index in range(50))


def test_a_faint_moment_does_not_end_it_but_a_faint_second_does() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    assert see(tracker, 0.5, [(50, 50)], sure=False) == [1]
    assert see(tracker, 1.2, [(50, 50)], sure=False) == []


def test_what_is_not_seen_for_a_moment_is_held_where_the_wall_took_it() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    shown = tracker.update(0.04, still(x=8), np.zeros((SIZE, SIZE), np.uint8), [])
    assert shown is not None
    assert shown.numbers[shown.slots[50, 58]] == 1
    assert shown.slots[50, 50 - 5 + 2] == 0
    assert tracker.update(0.08, still(), np.zeros((SIZE, SIZE), np.uint8), []) is None


def in_blur(tracker: Tracker, seconds: float, motion: Motion | None = STILL) -> list[int]:
    """Show a tracker a blurred frame without any blob; the numbers that it shows, each of which must be carried."""
    shown = tracker.update(seconds, motion, np.zeros((SIZE, SIZE), np.uint8), [], blurred=True)
    slots = [] if shown is None else [int(slot) for slot in np.unique(shown.slots) if slot]
    assert shown is None or all(slot in shown.carried for slot in slots)
    return [] if shown is None else [int(shown.numbers[slot]) for slot in slots]


@pytest.mark.parametrize("rate", [5, 25, 60])
def test_a_finding_is_carried_through_blur_for_a_second(rate: int) -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    carried = [in_blur(tracker, index / rate) for index in range(1, 2 * rate)]
    until = carried.index([])
    assert carried[:until] == [[1]] * until
    assert 1.0 <= (until + 1) / rate <= 1.0 + 0.055 + 1.5 / rate
    assert carried[until:] == [[]] * (len(carried) - until)


def test_what_was_carried_need_not_last_anew_however_small() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None, share=0.01)
    for index in range(1, 13):
        assert in_blur(tracker, index / 25, still(x=1)) == [1]
    assert see(tracker, 13 / 25, [(63, 50)], still(x=1), share=0.01) == [1]


def test_a_sharp_frame_without_it_ends_what_is_carried() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    assert in_blur(tracker, 0.04) == in_blur(tracker, 0.08) == [1]
    tracker.update(0.12, STILL, np.zeros((SIZE, SIZE), np.uint8), [])
    assert tracker.update(0.16, STILL, np.zeros((SIZE, SIZE), np.uint8), []) is None
    assert in_blur(tracker, 0.2) == []


def test_what_was_not_shown_and_what_was_there_before_a_leap_is_not_carried() -> None:
    tracker = begun()
    see(tracker, 1.0, [(50, 50)])
    assert in_blur(tracker, 1.04) == []
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    assert in_blur(tracker, 0.04, None) == in_blur(tracker, 0.08) == []


def test_where_no_frame_is_sharp_nothing_is_carried() -> None:
    tracker, labels = Tracker(True), np.zeros((SIZE, SIZE), np.uint8)
    labels[45:55, 45:55] = 1
    for index in range(10):
        shown = tracker.update(index / 25, STILL if index else None, labels, [Blob(1, 0.05, True)], blurred=True)
        assert shown is not None
    in_blur(tracker, 0.4)
    assert in_blur(tracker, 0.44) == []


def test_without_patience_nothing_is_carried() -> None:
    tracker = Tracker(False)
    see(tracker, 0.0, [(50, 50)], None)
    assert in_blur(tracker, 0.04) == []


def test_of_what_the_motion_tears_apart_the_largest_piece_is_carried() -> None:
    tracker, torn = Tracker(True), still()
    see(tracker, 0.0, [(50, 50)], None)
    torn.origin[:, 52:, 0] += 50  # the content right of it moved in between
    torn.origin[:, 54:, 0] -= 50
    shown = tracker.update(0.04, torn, np.zeros((SIZE, SIZE), np.uint8), [], blurred=True)
    assert shown is not None
    assert (np.flatnonzero(shown.slots.any(axis=0)) == np.arange(45, 52)).all()


def test_a_number_survives_a_short_occlusion_while_the_camera_moves() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(30, 50)], None)
    for index in range(1, 26):
        see(tracker, index / 25, [], still(x=1))
    assert see(tracker, 1.04, [(56, 50)], still(x=1)) == [1]


def test_after_a_long_absence_it_is_another() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    for index in range(1, 60):
        see(tracker, index / 25, [])
    for index in range(60, 64):
        shown = see(tracker, index / 25, [(50, 50)])
    assert shown == [2]


def test_two_polyps_keep_their_numbers_when_they_come_close() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(20, 50), (80, 50)], None)
    for index in range(1, 24):
        shown = see(tracker, index / 25, [(20 + index, 50), (80 - index, 50)])
    assert shown == [1, 2]


def test_after_a_leap_nothing_is_held() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    assert tracker.update(0.04, None, np.zeros((SIZE, SIZE), np.uint8), []) is None


def test_without_patience_each_picture_counts_by_itself() -> None:
    tracker = begun(steady=False)
    assert see(tracker, 1.0, [(50, 50)], None) == [1]
    assert see(tracker, 1.04, [(50, 50)], None, sure=False) == []
    assert see(tracker, 1.08, [(52, 50)], None) == [1]
    assert tracker.update(1.12, None, np.zeros((SIZE, SIZE), np.uint8), []) is None


def test_without_patience_a_faint_neighbour_neither_hides_a_finding_nor_is_shown() -> None:
    for faint_first in (False, True):
        tracker = begun(steady=False)
        see(tracker, 1.0, [(50, 50)], None)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[45:55, 45:55], labels[45:55, 56:60] = (2, 1) if faint_first else (1, 2)
        blobs = [Blob(1, 0.05, not faint_first), Blob(2, 0.05, faint_first)]
        shown = tracker.update(1.04, None, labels, blobs)
        assert shown is not None
        assert (shown.slots > 0).sum() == 100
        assert shown.slots[50, 50] > 0


def test_what_goes_on_faintly_is_shown_in_one_piece() -> None:
    for sure, shown_at in ((False, [True, False]), (True, [True, True])):
        tracker = Tracker(True)
        see(tracker, 1.0, [(50, 50)], None)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[45:55, 45:55], labels[45:55, 56:60] = 1, 2
        shown = tracker.update(1.04, STILL, labels, [Blob(1, 0.1, False), Blob(2, 0.04, sure)])
        assert shown is not None
        assert [bool(shown.slots[50, x]) for x in (50, 58)] == shown_at


def test_what_has_left_long_ago_does_not_bring_two_new_ones_together() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(80, 80)], None)
    for index in range(1, 80):
        see(tracker, index / 25, [])
    for index in range(80, 84):
        shown = see(tracker, index / 25, [(20, 20), (80, 80)])
    assert shown == [2, 3]


def test_tracks_may_be_many() -> None:
    tracker = Tracker(False)
    tracker.state.count = 2**16
    assert see(tracker, 0.0, [(50, 50)], None) == [2**16 + 1]


@pytest.mark.parametrize(("by", "number"), [(15, 1), (16, 2)])
def test_a_blob_near_to_where_a_track_was_is_the_same_polyp(by: int, number: int) -> None:
    """Blobs of 10 pixels, and a map of 100: a gap of 6 is near."""
    tracker = Tracker(False)
    see(tracker, 0.0, [(30, 50)], None)
    assert see(tracker, 0.04, [(30 + by, 50)]) == [number]


def test_a_blob_over_two_tracks_is_the_one_that_it_covers_most_of() -> None:
    for left, number in ((32, 2), (20, 1)):
        tracker = Tracker(False)
        see(tracker, 0.0, [(30, 50), (50, 50)], None)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[45:55, left : left + 30] = 1
        shown = tracker.update(0.04, STILL, labels, [Blob(1, 0.05, True)])
        assert shown is not None
        assert shown.numbers[shown.slots[50, left + 15]] == number


def test_what_was_seen_for_long_is_not_trusted_for_ever() -> None:
    tracker = Tracker(True)
    for index in range(125):
        see(tracker, index / 25, [(50, 50)], STILL if index else None, share=0.001)
    for index in range(125, 155):
        faint = see(tracker, index / 25, [(50, 50)], sure=False, share=0.001)
    assert faint == []
    again = [see(tracker, (155 + index) / 25, [(50, 50)], share=0.001) for index in range(15)]
    assert again[0] == []
    assert again[-1] == [1]


def test_what_is_seen_again_after_a_leap_is_held_again() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(50, 50)], None)
    see(tracker, 0.04, [], None)
    assert see(tracker, 0.08, [(50, 50)]) == [1]
    assert tracker.update(0.12, STILL, np.zeros((SIZE, SIZE), np.uint8), []) is not None


@pytest.mark.parametrize(("by", "stays", "place"), [(40, 1, 60), (-40, 2, 40)])
def test_what_has_left_the_picture_is_forgotten(by: int, stays: int, place: int) -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(20, 50), (80, 50)], None)
    assert see(tracker, 0.04, [(place, 50)], still(x=by)) == [stays]
    assert [track.number for track in tracker.state.tracks] == [stays]
    see(tracker, 0.08, [], still(x=2 * by))
    assert tracker.state.tracks == []


@pytest.mark.parametrize("both_sure", [True, False])
def test_the_parts_of_a_polyp_count_together(both_sure: bool) -> None:
    """Each by itself would be small, and so would have to last longer."""
    tracker, whole, apart = begun(), np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    whole[45:55, 40:62] = 1
    apart[45:55, 40:50], apart[45:55, 52:62] = 1, 2
    assert tracker.update(1.0, STILL, whole, [Blob(1, 0.03, True)]) is None
    parts = [Blob(1, 0.03, both_sure), Blob(2, 0.03, True)]
    assert tracker.update(1.04, STILL, apart, parts) is None
    shown = tracker.update(1.08, STILL, apart, parts)
    assert shown is not None
    assert shown.numbers[shown.slots[50, 57]] == 1


def test_a_map_of_another_size_has_other_tracks() -> None:
    tracker = Tracker(False)
    see(tracker, 0.0, [(30, 30)], None)
    labels = np.zeros((SIZE // 2, SIZE // 2), np.uint8)
    labels[25:35, 25:35] = 1
    shown = tracker.update(0.04, None, labels, [Blob(1, 0.05, True)])
    assert shown is not None
    assert shown.numbers[shown.slots[30, 30]] == 2
    assert len(tracker.state.tracks) == 1


def test_of_more_polyps_than_255_the_new_ones_share_a_track() -> None:
    tracker, labels = Tracker(False), np.zeros((SIZE, SIZE), np.uint8)
    for number in range(255):
        labels[3 * (number // 13), 3 * (number % 13)] = number + 1
    shown = tracker.update(0.0, None, labels, [Blob(label, 0.0001, True) for label in range(1, 256)])
    assert shown is not None
    assert np.array_equal(shown.numbers[shown.slots], labels)
    assert see(tracker, 0.04, [(70, 20), (70, 60)]) == [256, 256]
    assert [track.number for track in tracker.state.tracks][1:] == list(range(1, 255))


def test_a_track_that_is_not_seen_gives_its_place_to_one_that_is() -> None:
    tracker = Tracker(True)
    see(tracker, 0.0, [(30, 50), (40, 50)], None)
    assert see(tracker, 0.04, [(38, 50)]) == [2]
    state = tracker.state
    assert [track.number for track in state.tracks] == [2, 1]
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[45:55, 25:33], expected[45:55, 33:43] = 2, 1
    assert np.array_equal(state.places, expected)
