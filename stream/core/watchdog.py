"""Watchdog: ends a process that makes no progress. Threads inside a library cannot be stopped in another way."""

from __future__ import annotations

import faulthandler
import time
from types import TracebackType

# Seconds without progress after which the process ends.
STALL_TIMEOUT_S = 60.0
# Minimum time between two restarts of the timer, in seconds, because each restart creates a thread.
REARM_INTERVAL_S = 1.0
STANDARD_ERROR = 2
# Exit status of the process.
EXIT_CODE = 1


class Watchdog:
    """Ends the process with EXIT_CODE if no progress is reported for STALL_TIMEOUT_S while its block runs.

    It uses faulthandler's timer. That is C code with its own thread, which does not need Python's GIL. It writes the
    stacks of all threads to standard error.
    """

    def __enter__(self) -> Watchdog:
        self._seen: dict[str, object] = {}
        self._rearm()
        return self

    def note(self, moved: object, measure: str = "") -> None:
        """Report progress.

        Args:
            moved: the current value of a measure of progress; it is progress if the value differs from the one before.
            measure: name of the measure; each measure is compared by itself.
        """
        if self._seen.get(measure) != moved and time.monotonic() - self._armed >= REARM_INTERVAL_S:
            self._seen[measure] = moved
            self._rearm()

    def _rearm(self) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(STALL_TIMEOUT_S, exit=True, file=STANDARD_ERROR)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
