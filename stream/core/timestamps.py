"""Correction of wrong timestamps in a file.

A single wrong timestamp is replaced, and the others are kept. To decide which ones are wrong, a few items are read
ahead. The longest sequence of increasing timestamps among them is taken as plausible. If the clock restarts, the
new timestamps are shifted so that they continue, and so are all timestamps after them. The video is corrected first.
The audio is shifted by the same offsets (`ClockShifts`), so that both stay synchronous.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# Number of items that are examined if a timestamp is doubtful.
WINDOW = 8
# Number of items that show a restart of the clock: they increase among themselves, but not from the last timestamp.
RUN = 4
# A step of up to a second is accepted without a check. A longer step is accepted if the next items continue from it.
NEAR_S = 1
# After a restart of the clock, a step of this many ordinary steps may mean that the clock was set back.
USUAL_STEPS = 4
# No item after the last one can confirm its timestamp. A longer step before it, in seconds, is not plausible.
LONGEST_LAST_S = 60


@dataclass(slots=True)
class ClockShifts:
    """The offsets that were added to the timestamps of a recording. The list grows while its video is read.

    Attributes:
        origin: seconds added to all timestamps, so that they start at 0 or later.
        restarts: for each restart of the clock, the seconds added to all timestamps after it, in addition to `origin`.
    """

    origin: Fraction = Fraction(0)
    restarts: list[Fraction] = field(default_factory=list)

    def after(self, restarts: int) -> Fraction | None:
        """Return the offset after a number of restarts.

        Args:
            restarts: number of restarts of the clock.

        Returns:
            Seconds added to the timestamps after them; None if there were fewer restarts so far.
        """
        if restarts > len(self.restarts):
            return None
        return self.origin + (self.restarts[restarts - 1] if restarts else 0)


class _Item(NamedTuple):
    """An item, its stored timestamp and its duration, in units of the time base."""

    content: object
    stored: int | None
    duration: int


@dataclass(slots=True)
class TimestampCorrector(Generic[T]):
    """Gives each item of a track an increasing timestamp.

    Timestamps are in units of the track's time base. `add` accepts items, and `next` returns the items whose timestamp
    is decided.

    Args:
        time_base: seconds per unit.
        longest: the longest step between two items that the output can store.
        shift: added to every stored timestamp.
        restart: called when the clock has restarted, with the stored timestamp and the timestamp that the item should
            have. It returns the new shift, or None if the shift is not known yet; then the item waits.
        least: the smallest step from one item to the next; 0 allows equal timestamps.

    Attributes:
        last: timestamp of the last item returned.
        count: number of items returned.
        missing: number of items without a stored timestamp.
        corrected: number of items whose stored timestamp was wrong.
        waiting: whether an item waits for `restart`.
    """

    time_base: Fraction
    longest: int
    shift: int
    restart: Callable[[int, int], int | None]
    least: int = 1
    last: int | None = None
    count: int = 0
    missing: int = 0
    corrected: int = 0
    waiting: bool = False
    _last_duration: int = 0
    _shifts_before: list[int] = field(default_factory=list)
    _ahead: deque[_Item] = field(default_factory=deque)
    _ended: bool = False
    _near_at_first: int = field(init=False)

    def __post_init__(self) -> None:
        self._near_at_first = round(NEAR_S / self.time_base)

    def add(self, item: T, stored: int | None, duration: int) -> None:
        """Append an item.

        Args:
            item: the item.
            stored: its stored timestamp, or None.
            duration: its duration, used if nothing else is known.
        """
        self._ahead.append(_Item(item, stored, duration))

    def end(self) -> bool:
        """Declare that no more items will be added.

        Returns:
            Whether this is the first call.
        """
        ended, self._ended = self._ended, True
        return not ended

    def correct(self, items: Iterable[tuple[T, int | None, int]]) -> Iterator[tuple[T, int]]:
        """Correct the timestamps of a whole track.

        Args:
            items: the items, each with the arguments of `add`.

        Yields:
            Each item with its timestamp.
        """
        for item in items:
            self.add(*item)
            yield from self.settled()
        self.end()
        yield from self.settled()

    def settled(self) -> Iterator[tuple[T, int]]:
        """Iterate over the items whose timestamp can be decided from what was added so far.

        Yields:
            Each item with its timestamp.
        """
        while (item := self.next()) is not None:
            yield item

    def next(self) -> tuple[T, int] | None:
        """Return the next item.

        Returns:
            The item and its timestamp; None if more items must be added first, if `restart` gave no shift yet, or if no
            items are left.
        """
        if not self._ahead or not (self._ended or self._is_plain() or len(self._ahead) >= WINDOW):
            return None
        time = self._time()
        if time is None:
            return None
        item = self._ahead.popleft()
        self.last, self._last_duration = time, item.duration
        self.count += 1
        return item.content, time  # type: ignore[return-value]  # the item as added

    @property
    def _near(self) -> int:
        """The longest step that is accepted without a check. It is shorter after a restart of the clock."""
        near = self._near_at_first
        return min(near, USUAL_STEPS * self._last_duration or near) if self._shifts_before else near

    def _stored(self, count: int) -> list[int | None]:
        """Return the shifted timestamps of the next items, at most `count` of them."""
        items = (self._ahead[place] for place in range(min(count, len(self._ahead))))
        return [None if item.stored is None else item.stored + self.shift for item in items]

    def _is_plain(self) -> bool:
        """Whether the next item and the one after it advance by an ordinary step."""
        if self.last is None or len(self._ahead) < 2:
            return False
        first, second = self._stored(2)
        if first is None or second is None:
            return False
        return self.least <= first - self.last <= self._near and self.least <= second - first <= self._near

    def _time(self) -> int | None:
        """Return the timestamp of the next item; None if the clock restarted and the new shift is not known yet."""
        self.waiting = False
        stored = self._stored(WINDOW)
        if stored[0] is not None and self._is_plain():
            return stored[0]
        plausible = self._plausible(stored)
        restart_time = self._time_after_restart(stored, plausible)
        if restart_time is not None:
            shift = self.restart(self._ahead[0].stored or 0, restart_time)
            if shift is None:
                self.waiting = True
                return None
            self._shifts_before.append(self.shift)
            self.shift = shift
            stored = self._stored(WINDOW)
            plausible = self._plausible(stored)
        if stored[0] is not None and plausible[:1] == [0]:
            return stored[0]
        if stored[0] is None:
            self.missing += 1
        else:
            self.corrected += 1
        return self._interpolated(stored, plausible)

    def _plausible(self, stored: Sequence[int | None]) -> list[int]:
        """Return the indices of the longest sequence of timestamps that increase from the last returned one."""
        best: list[list[int]] = [[] for _ in stored]
        for place in reversed(range(len(stored))):
            if stored[place] is not None:
                later = range(place + 1, len(stored))
                after = [best[each] for each in later if self._advances(stored[place], stored[each])]
                best[place] = [place, *max(after, key=len, default=[])]
        starts = [chain for chain in best if chain and self._may_be_next(stored[chain[0]], alone=len(stored) == 1)]
        # Of two sequences of equal length, the one with the shorter time span is chosen.
        return max(starts, key=lambda chain: (len(chain), -self._span(stored[chain[0]], stored[chain[-1]])), default=[])

    def _span(self, first: int | None, last: int | None) -> int:
        begins = first if self.last is None else self.last
        return (last or 0) - (begins or 0)

    def _advances(self, before: int | None, after: int | None) -> bool:
        return before is not None and after is not None and self.least <= after - before <= self.longest

    def _may_be_next(self, time: int | None, alone: bool) -> bool:
        if time is None or self.last is None:
            return time is not None
        return self._advances(self.last, time) and (not alone or (time - self.last) * self.time_base <= LONGEST_LAST_S)

    def _time_after_restart(self, stored: Sequence[int | None], plausible: Sequence[int]) -> int | None:
        """Return the timestamp of the next item if the clock restarted before it; None if it did not."""
        first = self._ahead[0].stored
        if first is None or self.last is None:
            return None
        for shift in reversed(self._shifts_before):
            # The clock restarted for a moment and has returned to what it was before.
            if (stored[0] or 0) - self.last > self._near and self.least <= first + shift - self.last <= self._near // 2:
                return first + shift
        # The next items increase among themselves, but none of them from the last timestamp.
        run = stored[: plausible[0] if plausible else len(stored)][:RUN]
        enough = len(run) >= max(2, min(RUN, len(stored)))
        return self._following_time() if enough and all(self._advances(*steps) for steps in pairwise(run)) else None

    def _following_time(self) -> int:
        """Return the timestamp of an item that follows the last one without a gap."""
        return 0 if self.last is None else self.last + max(self._last_duration, self.least)

    def _interpolated(self, stored: Sequence[int | None], plausible: Sequence[int]) -> int:
        """Compute a timestamp for an item whose own is not plausible, before that of the next plausible one."""
        if not plausible:
            return self._following_time()
        following, count = stored[plausible[0]], plausible[0]
        assert following is not None
        if self.last is None:
            return following - sum(self._ahead[place].duration for place in range(count))
        room = following - self.last
        if stored[0] is not None and 0 <= self.last - stored[0] < WINDOW and room > count * self.least:
            return self.last + self.least  # the timestamp is right, but equal to an earlier one
        if self._following_time() + sum(self._ahead[place].duration for place in range(count)) <= following:
            return self._following_time()
        return self.last + max(self.least, room // (count + 1))
