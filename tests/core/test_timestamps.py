"""Times that are told wrongly: which are believed, and what stands in place of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

import pytest

from polypstream.core.timestamps import WINDOW, ClockShifts, TimestampCorrector

MS = Fraction(1, 1000)
# Thirty pictures at 25 a second.
TOLD = [40 * number for number in range(30)]


def mend(
    told: Sequence[int | None],
    duration: int = 40,
    time_base: Fraction = MS,
    least: int = 1,
    restart: Callable[[int, int], int | None] = lambda told, follows: follows - told,
) -> tuple[list[int], TimestampCorrector[int]]:
    """The times given to items that tell these."""
    corrector = TimestampCorrector[int](time_base, 2**31 - 1, 0, restart, least)
    items = [(number, time, duration) for number, time in enumerate(told)]
    given = list(corrector.correct(items))
    assert [number for number, _ in given] == list(range(len(told))), "every item, in order"
    return [time for _, time in given], corrector


def changed(told: Sequence[int | None], **how: object) -> list[tuple[int, int]]:
    """Place and new time of each item whose time was not believed."""
    times, _ = mend(told, **how)  # type: ignore[arg-type]
    assert all(before < after for before, after in pairwise(times))
    return [(place, time) for place, time in enumerate(times) if time != told[place]]


def with_one(place: int, time: int | None) -> list[int | None]:
    return [*TOLD[:place], time, *TOLD[place + 1 :]]


@pytest.mark.parametrize(
    "told",
    [
        TOLD,
        [time - 600 for time in TOLD],
        [5000 * number for number in range(20)],
        [*TOLD[:10], *(time + 1_800_000 for time in TOLD)],
        [0, 33, 67, 100, 3_100, 3_133, 10_000, 10_001, 10_500],
    ],
    ids=["even", "negative", "slow", "a pause of half an hour", "variable"],
)
def test_times_that_advance_stay_as_they_are(told: list[int]) -> None:
    times, corrector = mend(told)
    assert times == told
    assert (corrector.missing, corrector.corrected) == (0, 0)


@pytest.mark.parametrize("by", [1_800_000, -1_800_000, 200, -200, 10**9 * 4])
@pytest.mark.parametrize("place", [0, 1, 10, 28])
def test_one_wrong_time_is_mended_and_the_others_stay(place: int, by: int) -> None:
    # A first time that is too early is a pause after it.
    wrong = [(place, TOLD[place])] if place or by > 0 else []
    assert changed(with_one(place, TOLD[place] + by)) == wrong
    assert mend(with_one(place, TOLD[place] + by))[1].corrected == len(wrong)


def test_a_last_time_that_nothing_confirms_is_believed_if_it_is_near() -> None:
    assert changed(with_one(29, TOLD[29] + 1_800_000)) == [(29, TOLD[29])]
    assert changed(with_one(29, TOLD[28] + 60_000)) == []
    assert changed(with_one(29, TOLD[28] + 60_001)) == [(29, TOLD[29])]


def test_two_wrong_times_in_a_row_are_mended() -> None:
    told = [*TOLD[:10], TOLD[10] + 1_800_000, TOLD[11] + 1_800_000, *TOLD[12:]]
    assert changed(told) == [(10, TOLD[10]), (11, TOLD[11])]


def test_items_of_the_same_time_are_moved_by_a_unit_and_the_others_stay() -> None:
    told = sorted([*TOLD, 400, 400, 800])
    assert changed(told) == [(11, 401), (12, 402), (23, 801)]


def test_where_two_may_have_the_same_time_they_keep_it() -> None:
    told = sorted([*TOLD, 400, 800])
    times, corrector = mend(told, least=0)
    assert times == told
    assert corrector.corrected == 0


def test_missing_times_lie_between_their_neighbours() -> None:
    assert changed(with_one(7, None)) == [(7, TOLD[7])]
    assert mend([None] * 5)[0] == [0, 40, 80, 120, 160]
    assert mend([None] * 5)[1].missing == 5
    assert mend([0, None, None, 60, 100])[0] == [0, 20, 40, 60, 100], "as much room as there is"
    assert mend([None] * 4, duration=0)[0] == [0, 1, 2, 3], "no two have the same"


def test_a_shift_that_is_known_from_the_beginning_is_added_to_all_times() -> None:
    corrector = TimestampCorrector[int](MS, 2**31 - 1, 500, lambda told, follows: follows - told)
    items = [(number, time, 40) for number, time in enumerate(with_one(7, None))]
    assert [time for _, time in corrector.correct(items)] == [time + 500 for time in TOLD]
    assert (corrector.missing, corrector.corrected) == (1, 0)


@pytest.mark.parametrize("after", [3, 12, 30])
def test_a_clock_that_starts_again_goes_on_where_it_was(after: int) -> None:
    asked: list[tuple[int, int]] = []

    def restart(told: int, follows: int) -> int:
        asked.append((told, follows))
        return follows - told

    times, corrector = mend([*TOLD, *TOLD[:after]], restart=restart)
    assert times == [40 * number for number in range(30 + after)]
    assert asked == [(0, 1200)]
    assert corrector.corrected == 0


@pytest.mark.parametrize(("wrong", "restarts"), [(3, 0), (4, 2)])
def test_four_items_that_advance_among_themselves_are_another_clock(wrong: int, restarts: int) -> None:
    """Which is asked for its shift, as is the old one when it goes on."""
    asked: list[tuple[int, int]] = []

    def restart(told: int, follows: int) -> int:
        asked.append((told, follows))
        return follows - told

    told = [*TOLD[:10], *(time - 1_800_000 for time in TOLD[10 : 10 + wrong]), *TOLD[10 + wrong :]]
    times, corrector = mend(told, restart=restart)
    assert times == TOLD
    assert len(asked) == restarts
    assert corrector.corrected == (0 if restarts else wrong)


def test_a_clock_that_steps_back_a_little_keeps_its_spacing() -> None:
    times, _ = mend([*TOLD, *(time + 960 for time in TOLD)])
    assert times == [40 * number for number in range(60)]


def test_a_clock_that_is_set_anew_for_a_moment_is_believed_again_after_it() -> None:
    """Five items in the middle have times of the beginning."""
    times, _ = mend([*TOLD[:20], *TOLD[1:6], *(time + 1000 for time in TOLD)])
    assert times == [40 * number for number in range(55)]


def test_a_step_that_cannot_be_stored_is_a_clock_set_anew() -> None:
    times, _ = mend([*TOLD, *(time + 3 * 10**9 for time in TOLD)])
    assert times == [40 * number for number in range(60)]


def test_a_clock_that_stands_still_runs_on_at_the_usual_pace() -> None:
    assert mend([0, 40, 80, *[80] * 10])[0] == [40 * number for number in range(13)]


def test_an_item_waits_for_a_shift_that_is_not_known_yet() -> None:
    shifts, corrector_of = ClockShifts(), TimestampCorrector[int]

    def of_the_pictures(told: int, follows: int) -> int | None:
        shift = shifts.after(1)
        return None if shift is None else round(shift / MS)

    corrector = corrector_of(MS, 2**31 - 1, 0, of_the_pictures, least=0)
    for number, time in enumerate([*TOLD, *TOLD]):
        corrector.add(number, time, 40)
    assert len(list(corrector.settled())) == 30
    assert corrector.waiting
    shifts.restarts.append(Fraction(1230, 1000))
    settled = list(corrector.settled())
    assert settled[0] == (30, 1230)
    assert not corrector.waiting


def test_as_few_items_are_held_as_can_be() -> None:
    corrector = TimestampCorrector[int](MS, 2**31 - 1, 0, lambda told, follows: follows - told)
    held = []
    for number, time in enumerate(with_one(15, 1_800_000)):
        corrector.add(number, time, 40)
        list(corrector.settled())
        held.append(number + 1 - corrector.count)
    assert set(held[WINDOW:14]) == {1}, "one item waits to see an ordinary one after it"
    assert max(held) < WINDOW


@pytest.mark.parametrize(("step", "waiting"), [(1000, 1), (1001, WINDOW - 1)])
def test_a_step_of_up_to_a_second_is_not_doubted(step: int, waiting: int) -> None:
    corrector = TimestampCorrector[int](MS, 2**31 - 1, 0, lambda told, follows: follows - told)
    for number in range(20):
        corrector.add(number, step * number, 40)
        assert all(time == step * place for place, time in corrector.settled())
    assert 20 - corrector.count == waiting


@pytest.mark.parametrize(("gap", "following"), [(80, 1040), (81, 1041 + 760)])
def test_a_clock_is_believed_again_after_two_ordinary_steps_at_most(gap: int, following: int) -> None:
    """Five items have times of the beginning, from 40 on, and are moved by 760; then the old clock goes on."""
    times, _ = mend([*TOLD[:20], *TOLD[1:6], *(time + 960 + gap for time in TOLD)])
    assert times[:25] == [40 * number for number in range(25)]
    assert times[25:] == [time + following for time in TOLD]


def test_shifts_add_up_to_the_origin() -> None:
    shifts = ClockShifts(Fraction(3, 2), [Fraction(4), Fraction(-1)])
    assert [shifts.after(number) for number in range(4)] == [Fraction(3, 2), Fraction(11, 2), Fraction(1, 2), None]
