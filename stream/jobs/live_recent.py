"""Numbers of frames of the last seconds of live video, and whether the model keeps up."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

# Length of the window in seconds, and the least time between two values in it.
WINDOW_S, STEP_S = 10.0, 0.5
# The model is too slow if at least the first share of the frames is skipped. It keeps up again below the second.
BEHIND, KEEPS_UP = 0.2, 0.1
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recent:
    """Numbers of frames in the last seconds.

    Attributes:
        seconds: length of the time, at most about WINDOW_S.
        frames_in: frames that were received.
        skipped: frames that the model did not see, or that were not shown because they were too old.
    """

    seconds: float
    frames_in: int
    skipped: int

    @property
    def share(self) -> float:
        """Skipped frames as a share of those received, 0..1."""
        return min(1.0, self.skipped / self.frames_in) if self.frames_in else 0.0


@dataclass(slots=True)
class RecentFrames:
    """Counts the frames of one source in the last seconds, and logs once if the model is too slow or keeps up again.

    Args:
        source: name of the source.

    Attributes:
        warning: why polyps may be missed, for the user; empty if the model keeps up.
    """

    source: str
    warning: str = ""
    _counts: deque[tuple[float, int, int]] = field(default_factory=deque)

    def add(self, seconds: float, frames_in: int, skipped: int) -> None:
        """Note the numbers of frames since the start.

        Args:
            seconds: the present time, of time.monotonic.
            frames_in, skipped: as in Recent, but since the start.
        """
        counts = self._counts
        if counts and seconds - counts[-1][0] < STEP_S:
            return
        counts.append((seconds, frames_in, skipped))
        while seconds - counts[0][0] > WINDOW_S + STEP_S:
            counts.popleft()
        if seconds - counts[0][0] >= WINDOW_S - STEP_S:
            self._judge()

    @property
    def latest(self) -> Recent:
        """The numbers of the last seconds."""
        if not self._counts:
            return Recent(0.0, 0, 0)
        (start, received, left_out), (end, frames_in, skipped) = self._counts[0], self._counts[-1]
        return Recent(end - start, frames_in - received, skipped - left_out)

    def _judge(self) -> None:
        recent = self.latest
        if recent.share >= BEHIND:
            first = not self.warning
            self.warning = (
                f"this machine is too slow: {100 * recent.share:.0f} % of the frames of the last {WINDOW_S:.0f} s were "
                f"skipped. Polyps in them may be missed"
            )
            if first:
                log.warning(
                    f"{self.source}: {self.warning}. Other programs, or recordings in process, may use the CPU. "
                    "Smaller frames, fewer sources or a GPU need less of it."
                )
        elif self.warning and recent.share < KEEPS_UP:
            self.warning = ""
            log.info(f"{self.source}: the machine is fast enough again")
