"""Ends a process in which nothing moves any more: threads inside a library cannot be stopped otherwise."""

from __future__ import annotations

import faulthandler
import time
from types import TracebackType

# So long nothing may move, in seconds.
STILL_S = 60.0
# How often, at most, it is told that something moved, in seconds: each time costs a thread.
TOLD_EVERY_S = 1.0
STANDARD_ERROR = 2
# What the process ends with.
EXIT_CODE = 1


class Watchdog:
    """Within its block the process ends, with EXIT_CODE, when `note` is told nothing new for STILL_S.

    It is C code with a thread of its own, which needs no lock of Python's; standard error gets all threads' stacks.
    """

    def __enter__(self) -> Watchdog:
        self._seen: dict[str, object] = {}
        self._rearm()
        return self

    def note(self, moved: object, measure: str = "") -> None:
        """Tell how far things have moved, in a measure of one's own."""
        if self._seen.get(measure) != moved and time.monotonic() - self._armed >= TOLD_EVERY_S:
            self._seen[measure] = moved
            self._rearm()

    def _rearm(self) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(STILL_S, exit=True, file=STANDARD_ERROR)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
