"""Progress bars and status lines. Nothing is printed if standard error is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.segment import ControlType
from rich.text import Text

from polypstream.core.formatting import shortened

REFRESH_S = 0.25
# Columns that the numbers beside a name need, those of the bar, and the fewest of a name. Where they do not fit, there
# is no bar.
NUMBERS, BAR, SHORTEST_NAME = 55, 6, 10


class _Words(ProgressColumn):
    """A column of text.

    Args:
        words_of: returns the text.
    """

    def __init__(self, words_of: Callable[[Task], str]) -> None:
        super().__init__()
        self._words_of = words_of

    def render(self, task: Task) -> Text:
        return Text(self._words_of(task), no_wrap=True)


def _count(task: Task) -> str:
    total = "" if task.total is None else f" of {task.total:.0f}"
    return f"{task.completed:.0f}{total} {task.fields['unit']}"


def _rate(task: Task) -> str:
    rate = task.finished_speed or task.speed
    return f"{rate:.{0 if rate >= 9.95 else 1}f} per second" if rate else ""


def _time_left(task: Task) -> str:
    seconds = task.time_remaining
    if seconds is None or task.finished:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min left"


class ProgressBar:
    """A progress bar. Lines that are printed while it is shown appear above it.

    Args:
        name: label, for instance a path, of which the last part is shown.
        unit: unit of the numbers, in the plural.
        place: text before the name, such as `2 of 5: `.
    """

    def __init__(self, name: str, unit: str, place: str = "") -> None:
        console = Console(stderr=True)
        room = console.width - NUMBERS - len(place)
        bar = [BarColumn(bar_width=BAR)] if room >= SHORTEST_NAME + BAR + 1 else []
        longest = max(room - (BAR + 1 if bar else 0), SHORTEST_NAME)
        self._bar = Progress(
            _Words(lambda task: task.description),
            *bar,
            _Words(_count),
            _Words(_rate),
            _Words(_time_left),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(place + shortened(name.rsplit("/", 1)[-1], longest), total=None, unit=unit)

    def show(self, done: int, expected: int | None) -> None:
        """Set the position of the bar.

        Args:
            done: number of units done.
            expected: number of all units; None: unknown.
        """
        self._bar.update(self._task, completed=done, total=expected)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


@contextmanager
def passing_line(text: str) -> Iterator[None]:
    """Show a line for the duration of a with block. No thread updates it, so the process may fork meanwhile.

    Args:
        text: what the program does.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(text, end="\r", highlight=False)
    try:
        yield
    finally:
        if console.is_terminal:
            console.control(Control((ControlType.ERASE_IN_LINE, 2)))


class StatusLines:
    """Lines of text that are updated in place a few times per second."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._shown = Live("", console=console, transient=True) if console.is_terminal else None
        self._next = 0.0

    def show(self, lines: Callable[[], list[str]]) -> None:
        """Replace the lines, if the last update is old enough.

        Args:
            lines: returns the new lines.
        """
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH_S
            self._shown.update(Text("\n".join(lines())))

    def __enter__(self) -> Self:
        if self._shown:
            self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._shown.stop()
