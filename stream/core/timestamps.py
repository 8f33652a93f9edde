"""Times that a file tells wrongly: which are believed, and what stands in place of the others.

One wrong time is mended and the others stay: a few items ahead are looked at, and as many of their times are believed
as advance together. A clock that starts again is moved so that it goes on, and everything after it with it. Pictures
come first; sound is moved by as much as they were (`ClockShifts`), so that the two stay in step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# So many items are looked at where a time is doubtful.
WINDOW = 8
# So many items that advance among themselves, but not from what was before, are a clock that was set anew.
RUN = 4
# A step of up to a second is nothing to be doubted; a longer one is believed if what follows goes on from there.
NEAR_S = 1
# After a clock was set anew, a step of so many ordinary ones may mean that it was set back.
USUAL_STEPS = 4
# The last item of all has nothing after it that could tell: so long a step before it, in seconds, is not believed.
LONGEST_LAST_S = 60


@dataclass(slots=True)
class ClockShifts:
    """By how much the times of a recording were moved; it grows while its pictures are read.

    Attributes:
        origin: seconds added to all times, so that they start at 0 or above.
        restarts: for each place at which the clock was set anew, the seconds added to all times after it, besides.
    """

    origin: Fraction = Fraction(0)
    restarts: list[Fraction] = field(default_factory=list)

    def after(self, restarts: int) -> Fraction | None:
        """Seconds added to the times after so many restarts; None: there were not so many yet."""
        if restarts > len(self.restarts):
            return None
        return self.origin + (self.restarts[restarts - 1] if restarts else 0)


class _Item(NamedTuple):
    """What is to be timed, the time that it tells, and how long it lasts, in units of the time base."""

    thing: object
    told: int | None
    duration: int


@dataclass(slots=True)
class TimestampMender(Generic[T]):
    """Gives each item of a track a time that advances.

    Times are in units of the track's time base. `add` takes what was read, `next` hands out what is settled.

    Args:
        time_base: seconds per unit.
        longest: the longest step between two items that the output can store.
        shift: added to every time that is told.
        least: the smallest step from one item to the next; 0 lets two have the same time.
        restart: asked for the new shift where the clock was set anew, given the time told and the time that the item
            should have; None: not known yet, and the item waits.

    Attributes:
        last: time of the last item handed out.
        count: items handed out.
        missing: items that told no time.
        mended: items whose time was wrong.
        waiting: an item waits for `restart`.
    """

    time_base: Fraction
    longest: int
    shift: int
    restart: Callable[[int, int], int | None]
    least: int = 1
    last: int | None = None
    count: int = 0
    missing: int = 0
    mended: int = 0
    waiting: bool = False
    _last_duration: int = 0
    _shifts_before: list[int] = field(default_factory=list)
    _ahead: deque[_Item] = field(default_factory=deque)
    _ended: bool = False

    def add(self, thing: T, told: int | None, duration: int) -> None:
        """Append an item: the time that it tells, and how long it lasts if nothing else is known."""
        self._ahead.append(_Item(thing, told, duration))

    def end(self) -> bool:
        """Say that no more will be added; whether that was not known."""
        known, self._ended = self._ended, True
        return not known

    def mend(self, items: Iterable[tuple[T, int | None, int]]) -> Iterator[tuple[T, int]]:
        """All items of a track, each as for `add`, with their times."""
        for item in items:
            self.add(*item)
            yield from self.settled()
        self.end()
        yield from self.settled()

    def settled(self) -> Iterator[tuple[T, int]]:
        """Items with their times, as far as they can be told from what was added."""
        while (item := self.next()) is not None:
            yield item

    def next(self) -> tuple[T, int] | None:
        """The next item and its time; None: more must be added first, or `restart` be known, or there is none."""
        if not self._ahead or not (self._ended or self._is_plain() or len(self._ahead) >= WINDOW):
            return None
        time = self._time()
        if time is None:
            return None
        item = self._ahead.popleft()
        self.last, self._last_duration = time, item.duration
        self.count += 1
        return item.thing, time  # type: ignore[return-value]  # as it was added

    @property
    def _near(self) -> int:
        """The longest step that is nothing to be doubted; after a clock was set anew, less is."""
        near = round(NEAR_S / self.time_base)
        return min(near, USUAL_STEPS * self._last_duration or near) if self._shifts_before else near

    def _told(self, count: int) -> list[int | None]:
        items = (self._ahead[place] for place in range(min(count, len(self._ahead))))
        return [None if item.told is None else item.told + self.shift for item in items]

    def _is_plain(self) -> bool:
        """Whether the next item and the one after it advance by an ordinary step."""
        if self.last is None or len(self._ahead) < 2:
            return False
        first, second = self._told(2)
        if first is None or second is None:
            return False
        return self.least <= first - self.last <= self._near and self.least <= second - first <= self._near

    def _time(self) -> int | None:
        """The time of the next item; None: its clock was set anew, and by how much is not known yet."""
        self.waiting = False
        told = self._told(WINDOW)
        if told[0] is not None and self._is_plain():
            return told[0]
        believed = self._believed(told)
        anew = self._time_by_another_clock(told, believed)
        if anew is not None:
            shift = self.restart(self._ahead[0].told or 0, anew)
            if shift is None:
                self.waiting = True
                return None
            self._shifts_before.append(self.shift)
            self.shift = shift
            told = self._told(WINDOW)
            believed = self._believed(told)
        if told[0] is not None and believed[:1] == [0]:
            return told[0]
        if told[0] is None:
            self.missing += 1
        else:
            self.mended += 1
        return self._between(told, believed)

    def _believed(self, told: Sequence[int | None]) -> list[int]:
        """Places of as many times as advance together, from the last one on: the longest such sequence."""
        best: list[list[int]] = [[] for _ in told]
        for place in reversed(range(len(told))):
            if told[place] is not None:
                later = range(place + 1, len(told))
                after = [best[each] for each in later if self._advances(told[place], told[each])]
                best[place] = [place, *max(after, key=len, default=[])]
        starts = [chain for chain in best if chain and self._may_be_next(told[chain[0]], alone=len(told) == 1)]
        # Of two that are as long, the one that takes the least time.
        return max(starts, key=lambda chain: (len(chain), -self._span(told[chain[0]], told[chain[-1]])), default=[])

    def _span(self, first: int | None, last: int | None) -> int:
        begins = first if self.last is None else self.last
        return (last or 0) - (begins or 0)

    def _advances(self, before: int | None, after: int | None) -> bool:
        return before is not None and after is not None and self.least <= after - before <= self.longest

    def _may_be_next(self, time: int | None, alone: bool) -> bool:
        if time is None or self.last is None:
            return time is not None
        return self._advances(self.last, time) and (not alone or (time - self.last) * self.time_base <= LONGEST_LAST_S)

    def _time_by_another_clock(self, told: Sequence[int | None], believed: Sequence[int]) -> int | None:
        """When the next item comes if the clock was set anew before it; None: it was not."""
        first = self._ahead[0].told
        if first is None or self.last is None:
            return None
        for shift in reversed(self._shifts_before):
            # It was set anew for a moment, and is now what it was before that.
            if (told[0] or 0) - self.last > self._near and self.least <= first + shift - self.last <= self._near // 2:
                return first + shift
        # The next items advance among themselves, but not one of them from what was before.
        run = told[: believed[0] if believed else len(told)][:RUN]
        enough = len(run) >= max(2, min(RUN, len(told)))
        return self._follows() if enough and all(self._advances(*steps) for steps in pairwise(run)) else None

    def _follows(self) -> int:
        """When an item comes that follows the last one directly."""
        return 0 if self.last is None else self.last + max(self._last_duration, self.least)

    def _between(self, told: Sequence[int | None], believed: Sequence[int]) -> int:
        """A time for an item whose own is not believed, before that of the next one that is."""
        if not believed:
            return self._follows()
        following, count = told[believed[0]], believed[0]
        assert following is not None
        if self.last is None:
            return following - sum(self._ahead[place].duration for place in range(count))
        room = following - self.last
        if told[0] is not None and 0 <= self.last - told[0] < WINDOW and room > count * self.least:
            return self.last + self.least  # it has the right time, only not one of its own
        if self._follows() + sum(self._ahead[place].duration for place in range(count)) <= following:
            return self._follows()
        return self.last + max(self.least, room // (count + 1))
