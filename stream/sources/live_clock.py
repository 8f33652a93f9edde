"""The clock of a live source's frames and of its sound."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A stream's own timestamps are used while they advance steadily. They jump by more when an encoder restarts.
JUMP_S = 1.0
# A frame after a pause is not longer than this, in seconds.
LONGEST_FRAME_S = 0.1
# Sound may come later than the frames beside it, so it may still belong to an earlier epoch.
EPOCHS = 4


@dataclass(slots=True)
class _Epoch:
    """A time in which the stream's timestamps do not jump.

    Attributes:
        offset: what is added to them, in seconds.
        newest: time of the newest frame in the stream, in seconds.
    """

    offset: float
    newest: float


class LiveClock:
    """Computes capture times, in seconds since the source was opened.

    A stream's own timestamps are evenly spaced even if the network delivers unevenly. They are shifted so that the
    first frame has its time of arrival, and again when they jump. Sound is shifted as the frames beside it are.

    Args:
        opened: when the source was opened, of time.monotonic.
    """

    def __init__(self, opened: float) -> None:
        # When the newest frame ends, in seconds since the source was opened.
        self._opened, self._end = opened, 0.0
        self._epochs: deque[_Epoch] = deque(maxlen=EPOCHS)
        self._sound: _Epoch | None = None

    def restart(self) -> None:
        """Forget the stream's timestamps, because it is a new connection."""
        self._epochs.clear()
        self._sound = None

    def time_of(self, stream_time: float | None, arrived: float) -> float:
        """Capture time of a frame in seconds.

        Args:
            stream_time: its time in the stream, in seconds; None if it has none.
            arrived: its time of arrival, of time.monotonic.
        """
        now = max(arrived - self._opened, self._end)
        if stream_time is None:
            return now
        if not self._epochs or self._jumps(stream_time, now):
            self._epochs.append(_Epoch(now - stream_time, stream_time))
        epoch = self._epochs[-1]
        step = min(max(0.0, stream_time - epoch.newest), LONGEST_FRAME_S)
        epoch.newest = stream_time
        self._end = max(self._end, stream_time + step + epoch.offset)
        return stream_time + epoch.offset

    def _jumps(self, stream_time: float, now: float) -> bool:
        """Whether a time neither follows that of the frame before nor that of a pause."""
        epoch = self._epochs[-1]
        return abs(stream_time - epoch.newest) > JUMP_S and abs(stream_time + epoch.offset - now) > JUMP_S

    def time_of_sound(self, stream_time: float, follows: float | None, far: bool) -> float | None:
        """Time of a packet of sound in seconds.

        Args:
            stream_time: its time in the stream, in seconds.
            follows: that of the packet before; None if it is the first one.
            far: its time may be far from those of all frames.

        Returns:
            The time; None if the frames beside it have not come yet.
        """
        if self._sound is None or follows is None or abs(stream_time - follows) > JUMP_S:
            nearest = min(reversed(self._epochs), key=lambda each: abs(stream_time - each.newest), default=None)
            far = far or (follows is None and len(self._epochs) == 1)  # nothing has jumped
            if nearest is None or (abs(stream_time - nearest.newest) > JUMP_S and not far):
                return None
            self._sound = nearest
        return stream_time + self._sound.offset
