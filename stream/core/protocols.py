"""What every source offers, of recordings and of live pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.timestamps import ClockShifts


class Source(Protocol):
    """Anything that yields frames.

    Attributes:
        name: for people.
        stem: names the folder of its results.
        path: the file behind it, from which sinks copy sound; None: nothing may be copied.
        format: what is the same for every picture.
        shifts: by how much the times of that file were moved, and so must be those of the sound.
        expected_frames: how many frames it has: as it says, or by the time read so far; None: nobody knows.
        damage: what was found wrong with it while reading, one phrase each.
        notes: what else a user should know, likewise.
    """

    name: str
    stem: str
    shifts: ClockShifts
    damage: list[str]
    notes: list[str]

    @property
    def path(self) -> Path | None: ...

    @property
    def format(self) -> PictureFormat: ...

    @property
    def expected_frames(self) -> int | None: ...

    def frames(self) -> Iterator[Frame]: ...

    def thumbnails(self) -> list[np.ndarray]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Signal:
    """Whether a source gives pictures, for people and for status pages.

    Attributes:
        there: pictures are coming.
        problem: why not.
        losses: how often it went away.
        ended: there is no more to come, as it was wanted or because all of it has come.
    """

    there: bool = False
    problem: str = "connecting"
    losses: int = 0
    ended: bool = False


class LiveSource(Protocol):
    """A source whose frames come when they come.

    Attributes:
        name: for people, without credentials.
        signal: whether it gives pictures.
        format: of the pictures that come now; None before there were any.
    """

    name: str
    signal: Signal
    format: PictureFormat | None

    def frames(self) -> Iterator[Frame]:
        """Frames as they arrive; where the signal is lost, one without signal, and one more for each vain attempt."""
        ...

    def close(self) -> None:
        """Let `frames` end; from any thread."""
        ...
