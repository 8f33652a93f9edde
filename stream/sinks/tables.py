"""frames.csv: one line per frame."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from polypstream.core.files import writing
from polypstream.core.frame import Frame
from polypstream.errors import DataError

QUALITIES = ("blurred", "overexposed", "outside")
HEADER = (
    *("frame", "pts_s", "polyp_count", "polyp_area_fraction", "max_probability", "tracks", *QUALITIES),
    "segmented",
    "carried",
)


class FramesTable:
    """A sink that writes frames.csv.

    Columns: frame number, time in seconds, number of polyps shown, their share of the frame's area, highest
    probability of the model or of a polyp that this frame shows, track numbers, 1 or 0 for each quality problem, 1 or 0
    for whether the model saw the frame, and number of polyps that are carried from an earlier frame.

    Args:
        path: file to write.

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
        """Append the line of a frame."""
        self.write_row(row_of(frame))

    def write_row(self, row: Mapping[str, object]) -> None:
        """Append a line.

        Args:
            row: values by column name; the columns are those in HEADER.
        """
        with writing(self._path):
            self._rows.writerow(row)

    def close(self) -> None:
        """Finish the file."""
        with writing(self._path):
            self._file.close()


def row_of(frame: Frame) -> dict[str, object]:
    """Return the line of a frame: values by the names in HEADER.

    Args:
        frame: a frame that has passed all stages.
    """
    found = cv2.countNonZero(frame.region.mask) if frame.region is not None else 0
    share = found / (frame.picture.width * frame.picture.height)
    carried = {track for track, moved in zip(frame.tracks, frame.carried, strict=True) if moved}
    measured = (peak for peak, moved in zip(frame.peaks, frame.carried, strict=True) if not moved)
    highest = max(int(frame.probability.max()), *measured, 0) / 255
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
        int(frame.segmented),
        len(carried),
    )
    return dict(zip(HEADER, row, strict=True))


def read_frames(path: Path) -> dict[str, np.ndarray]:
    """Read frames.csv into one array per column, since a recording may have a million frames.

    Args:
        path: the file.

    Returns:
        Arrays by the names in HEADER. `frame`, `polyp_count`, `carried`: int64. `pts_s`, `polyp_area_fraction`,
        `max_probability`: float64. `tracks`: object, a tuple of track numbers. `blurred`, `overexposed`, `outside`,
        `segmented`: bool.

    Raises:
        DataError: it cannot be read.
    """
    kinds = dict.fromkeys(("frame", "polyp_count", "carried"), "int64")
    kinds |= dict.fromkeys((*QUALITIES, "segmented"), "bool")
    numbers = {name: array("d") for name in HEADER if name != "tracks"}
    tracks: list[tuple[int, ...]] = []
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                # Tables of earlier versions do not have the column `carried`.
                row = {"carried": "0"} | row
                for name, column in numbers.items():
                    column.append(float(row[name]))
                tracks.append(tuple(map(int, row["tracks"].split())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a table of frames ({error})") from error
    columns = {name: np.array(column).astype(kinds.get(name, "float64")) for name, column in numbers.items()}
    columns["tracks"] = np.empty(len(tracks), object)
    columns["tracks"][:] = tracks
    return {name: columns[name] for name in HEADER}
