"""Progress bars and status lines. Nothing is printed if standard error is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

REFRESH_S = 0.25


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:6.1f} {task.fields['unit']}/s" if rate else "", style="progress.data.speed")


class ProgressBar:
    """A progress bar. Lines that are printed while it is shown appear above it.

    Args:
        name: label, for instance a path, of which the last part is shown.
        unit: unit of the numbers, in the plural.
    """

    def __init__(self, name: str, unit: str) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f} {task.fields[unit]}"),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name.rsplit("/", 1)[-1], total=None, unit=unit)

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
