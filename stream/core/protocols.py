"""The interfaces of sources: recordings and live streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_pictures import LivePictures
from polypstream.core.live_sound import LiveSound
from polypstream.core.timestamps import ClockShifts

# Called as on_progress(done, total) with numbers of frames or images; total is None if unknown.
OnProgress = Callable[[int, int | None], None]
# Problems of a Signal or of an output that are no faults: not connected yet, and ended by the user.
CONNECTING, STOPPED = "connecting", "stopped"


class Source(Protocol):
    """A source of frames, such as a recording.

    Attributes:
        name: name for the user.
        stem: name of the folder for its results.
        shifts: the offsets that were added to the file's timestamps, and that must also be added to those of its audio.
        damage: problems found while reading, one phrase each.
        notes: other information for the user, one phrase each.
    """

    name: str
    stem: str
    shifts: ClockShifts
    damage: list[str]
    notes: list[str]

    @property
    def path(self) -> Path | None:
        """The file from which sinks copy the audio; None if nothing may be copied."""
        ...

    @property
    def format(self) -> PictureFormat:
        """Properties that all frames share."""
        ...

    @property
    def expected_frames(self) -> int | None:
        """Number of frames, as announced or estimated from what was read so far; None if unknown."""
        ...

    def frames(self) -> Iterator[Frame]:
        """Iterate over the frames.

        Returns:
            The frames in the order of their timestamps.
        """
        ...

    def thumbnails(self) -> list[np.ndarray]:
        """Sample the source for the search of the field of view.

        Returns:
            uint8 full-range grey images of `thumbnail_size`.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@dataclass(slots=True)
class Signal:
    """Whether a source sends frames, for the user and for status pages.

    Attributes:
        there: frames are arriving.
        problem: why there are none, or what is being waited for.
        losses: how often the signal was lost.
        ended: no more frames will come, because the source was stopped or has ended.
        given_up: no more frames will come, because too many attempts to connect have failed.
    """

    there: bool = False
    problem: str = CONNECTING
    losses: int = 0
    ended: bool = False
    given_up: bool = False

    def stop(self) -> None:
        """Note that the source was stopped."""
        self.problem = STOPPED if self.there else f"{STOPPED} without a signal ({self.problem})"
        self.there, self.ended = False, True


class LiveSource(Protocol):
    """A source whose frames arrive in real time.

    Attributes:
        name: name for the user, without credentials.
        signal: whether it sends frames.
        format: properties of the current frames; None before the first one.
        sound: its sound, if it has any.
        pictures: the packets of its frames, if they can be copied.
    """

    name: str
    signal: Signal
    format: PictureFormat | None
    sound: LiveSound
    pictures: LivePictures

    def frames(self) -> Iterator[Frame]:
        """Iterate over the frames as they arrive.

        Returns:
            The frames; a placeholder without signal when the signal is lost and after each failed attempt to reconnect.
        """
        ...

    def close(self) -> None:
        """Stop `frames`; may be called from any thread."""
        ...
