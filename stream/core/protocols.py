"""What every source offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from polypstream.core.frame import Frame
from polypstream.core.timestamps import ClockShifts
from polypstream.media.pictures import PictureFormat


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
