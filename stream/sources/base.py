"""What every source offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from stream.frame import Frame
from stream.pictures import PictureFormat


class Source(Protocol):
    """Anything that yields frames.

    Attributes:
        name: for people.
        stem: names the folder of its results.
        path: the file behind it, from which sinks copy sound; None: nothing may be copied.
        format: what is the same for every picture.
        expected_frames: how many frames it says it has, or None.
        damage: what was found wrong with it while reading, one phrase each.
        notes: what else a user should know, likewise.
    """

    name: str
    stem: str
    format: PictureFormat
    expected_frames: int | None
    damage: list[str]
    notes: list[str]

    @property
    def path(self) -> Path | None: ...

    def frames(self) -> Iterator[Frame]: ...

    def thumbnails(self) -> list[np.ndarray]: ...

    def close(self) -> None: ...
