"""frames.csv: one line a frame."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import cv2

from polypstream.core.files import writing
from polypstream.core.frame import Frame

QUALITIES = ("blurred", "overexposed", "outside")
HEADER = ("frame", "pts_s", "polyp_count", "polyp_area_fraction", "max_probability", "tracks", *QUALITIES)


class FramesTable:
    """Writes frames.csv: number, time in seconds, polyps shown, their share of the picture, highest probability, their
    tracks, and 1 for each thing that is wrong with the picture.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("w", newline="", buffering=1)
            self._rows = csv.DictWriter(self._file, HEADER, lineterminator="\n")
            self._rows.writeheader()

    def write(self, frame: Frame) -> None:
        """Append a frame's line."""
        found = cv2.countNonZero(frame.region.mask) if frame.region is not None else 0
        share = found / (frame.picture.width * frame.picture.height)
        highest = int(frame.probability.max()) / 255
        tracks = " ".join(map(str, sorted(set(frame.tracks))))
        wrong = [int(getattr(frame.quality, name)) for name in QUALITIES]
        row = (
            frame.index,
            f"{frame.seconds:.6f}",
            len(set(frame.tracks)),
            f"{share:.6f}",
            f"{highest:.4f}",
            tracks,
            *wrong,
        )
        self.write_row(dict(zip(HEADER, row, strict=True)))

    def write_row(self, row: Mapping[str, object]) -> None:
        """Append a line that is known already, by the names in HEADER."""
        with writing(self._path):
            self._rows.writerow(row)

    def close(self) -> None:
        """Finish the file."""
        with writing(self._path):
            self._file.close()
