"""findings.json and polyps.csv: the tracks of a recording, with times, probabilities, outlines and snapshots."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from polypstream.core.files import write_atomically, write_csv, writing
from polypstream.core.frame import Frame
from polypstream.core.marks import Mark
from polypstream.core.notice import NOTICE
from polypstream.errors import DataError
from polypstream.media.jpeg import SNAPSHOT_QUANTISER, WHOLE, Jpeg
from polypstream.sources.open import RECORDING_ENDINGS

SCHEMA = "polypstream-findings-1"
# Of a set of images, written by `polypstream process` as well.
IMAGES_SCHEMA = "polypstream-images-1"
SNAPSHOTS = "snapshots"
# The line after the head of the file.
TRACKS_LINE = '  "tracks": [\n'
# Held while a field of a finished file is replaced.
WRITING = threading.Lock()
POLYPS = "polyps.csv"
# Columns of polyps.csv of a recording.
TRACK_COLUMNS = (
    *("input", "track", "first_s", "last_s", "seconds_in_view", "frames", "peak_probability", "mean_probability"),
    *("largest_area_fraction", "snapshot", "snapshot_pts_s"),
)
# A new snapshot is saved when a track's area has grown by this factor.
SNAPSHOT_GROWTH = 1.3
# An outline is simplified with a tolerance of this many pixels.
OUTLINE_TOLERANCE_PX = 1.0


@dataclass(slots=True)
class _TrackRecord:
    """Values of one track so far. `outlines` holds the offsets of its outlines in the spool file.

    Probabilities are in grey levels and durations are exact, so that values of parts add up to those of the recording.
    """

    first: float
    last: float
    seconds: Fraction = Fraction(0)
    frames: int = 0
    peak: int = 0
    sum_of_peaks: int = 0
    largest: float = 0.0
    snapshot_area: float = 0.0
    snapshot_s: float = 0.0
    outlines: array[int] = field(default_factory=lambda: array("Q"))

    def as_row(self, track: int) -> dict[str, Any]:
        """The values as findings.json and polyps.csv have them."""
        return {
            "track": track,
            "first_s": round(self.first, 6),
            "last_s": round(self.last, 6),
            "seconds_in_view": round(float(self.seconds), 6),
            "frames": self.frames,
            "peak_probability": round(self.peak / 255, 4),
            "mean_probability": round(self.sum_of_peaks / 255 / self.frames, 4),
            "largest_area_fraction": round(self.largest, 6),
            "snapshot": f"{SNAPSHOTS}/track-{track}.jpg",
            "snapshot_pts_s": round(self.snapshot_s, 6),
        }


class ExactTrack(NamedTuple):
    """Exact values of a track in one part of a recording, needed to add up the parts.

    Attributes:
        seconds: time in view, as numerator and denominator.
        largest: largest share of the frame that it covers, 0..1.
        snapshot_area: share of the frame that it covers in its snapshot, 0..1.
        snapshot_s: time of the snapshot in seconds.
    """

    seconds: tuple[int, int]
    largest: float
    snapshot_area: float
    snapshot_s: float


class FindingsFile:
    """A sink that writes snapshots as they come, and findings.json and polyps.csv when it is closed.

    docs/findings.md describes both.

    Args:
        folder: folder of the results.
        about: first entries of the file: input, model, settings.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._path, self._about = folder / "findings.json", about
        self._snapshots = folder / SNAPSHOTS
        self._tracks: dict[int, _TrackRecord] = {}
        self._jpeg: Jpeg | None = None
        self._picture = (0, 0)
        # Outlines are kept on disk, so that memory does not grow with the recording.
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as this object exists

    def write(self, frame: Frame) -> None:
        """Add the tracks that a frame shows."""
        self._picture = frame.picture.width, frame.picture.height
        for track in dict.fromkeys(number for number in frame.tracks if number):
            record = self._tracks.setdefault(track, _TrackRecord(frame.seconds, frame.seconds))
            self._note(track, record, frame)

    def _note(self, track: int, record: _TrackRecord, frame: Frame) -> None:
        shown = [place for place, number in enumerate(frame.tracks) if number == track]
        polygons, peak = [frame.outlines[place] for place in shown], max(frame.peaks[place] for place in shown)
        record.last, record.frames = frame.seconds, record.frames + 1
        record.seconds += (frame.picture.duration or 0) * frame.time_base
        record.peak, record.sum_of_peaks = max(record.peak, peak), record.sum_of_peaks + peak
        simplified = [cv2.approxPolyDP(polygon, OUTLINE_TOLERANCE_PX, True)[:, 0] for polygon in polygons]
        outline = {
            "frame": frame.index,
            "pts_s": round(frame.seconds, 6),
            "probability": round(peak / 255, 4),
            "carried": all(frame.carried[place] for place in shown),
            "box": list(cv2.boundingRect(np.concatenate(polygons))),
            "polygons": [polygon.ravel().tolist() for polygon in simplified],
        }
        self._spool_outline(record, outline)
        area = sum(map(frame.area_of, shown)) / (self._picture[0] * self._picture[1])
        if area > SNAPSHOT_GROWTH * record.largest:
            self._save_snapshot(track, frame)
            record.snapshot_area, record.snapshot_s = area, frame.seconds
        record.largest = max(record.largest, area)

    def _spool_outline(self, record: _TrackRecord, outline: dict[str, Any]) -> None:
        record.outlines.append(self._spool.tell())
        with writing(self._path):
            self._spool.write(json.dumps(outline, separators=(",", ":")).encode() + b"\n")

    @property
    def found(self) -> dict[str, Any]:
        """Number of tracks, and the times of the first and the last frame that show one: a part of summary.json."""
        tracks = self._tracks.values()
        return {
            "polyps": len(tracks),
            "first_s": round(min(track.first for track in tracks), 6) if tracks else None,
            "last_s": round(max(track.last for track in tracks), 6) if tracks else None,
        }

    def exact_tracks(self) -> dict[int, ExactTrack]:
        """Exact values of each track, by its number. findings.json rounds or omits them."""
        return {
            track: ExactTrack(
                record.seconds.as_integer_ratio(), record.largest, record.snapshot_area, record.snapshot_s
            )
            for track, record in self._tracks.items()
        }

    def add_part(
        self, part: Path, exact: Mapping[int, ExactTrack], renumber: Callable[[int], int], first_frame: int
    ) -> None:
        """Add the findings of the next part of a recording.

        Args:
            part: folder of the part's results.
            exact: the part's `exact_tracks`.
            renumber: maps the part's track numbers to those of the recording.
            first_frame: number of the part's first frame in the recording.

        Raises:
            DataError: the part's findings.json cannot be read.
            OutputError: a snapshot cannot be written.
        """
        run = read_findings(part)
        self._picture = tuple(run["picture_size"])
        for row in run["tracks"]:
            number, exact_track = renumber(row["track"]), exact[row["track"]]
            record = self._tracks.setdefault(number, _TrackRecord(row["first_s"], row["last_s"]))
            for outline in row["outlines"]:
                level = round(outline["probability"] * 255)
                record.frames, record.peak = record.frames + 1, max(record.peak, level)
                record.sum_of_peaks += level
                self._spool_outline(record, outline | {"frame": outline["frame"] + first_frame})
            record.last, record.seconds = row["last_s"], record.seconds + Fraction(*exact_track.seconds)
            # The part's snapshot shows the last view that was larger by the factor than all earlier ones in the part.
            if exact_track.snapshot_area > SNAPSHOT_GROWTH * record.largest:
                record.snapshot_area, record.snapshot_s = exact_track.snapshot_area, exact_track.snapshot_s
                with writing(self._path):
                    self._snapshots.mkdir(exist_ok=True)
                    shutil.copyfile(part / row["snapshot"], self._snapshots / f"track-{number}.jpg")
            record.largest = max(record.largest, exact_track.largest)

    def _save_snapshot(self, track: int, frame: Frame) -> None:
        self._jpeg = self._jpeg or Jpeg(WHOLE, SNAPSHOT_QUANTISER)
        path = self._snapshots / f"track-{track}.jpg"
        with writing(path):
            self._snapshots.mkdir(exist_ok=True)
            path.write_bytes(self._jpeg(frame.in_memory(), frame.orientation))

    def close(self) -> None:
        """Write findings.json and polyps.csv, each completely or not at all."""
        with write_atomically(self._path) as unfinished, unfinished.open("w") as file:
            file.writelines(self._lines())
        self._spool.close()
        rows = [{"input": self._about["input"]} | row for _, row in self._rows()]
        write_csv(self._path.with_name(POLYPS), TRACK_COLUMNS, rows)

    def _rows(self) -> Iterator[tuple[_TrackRecord, dict[str, Any]]]:
        """The tracks by their numbers, with their values as the files have them."""
        for track, record in sorted(self._tracks.items()):
            yield record, record.as_row(track)

    def _lines(self) -> Iterator[str]:
        """The JSON text, one outline per line. Long recordings have many outlines, which are stored as text already."""
        head = {"schema": SCHEMA, "notice": NOTICE, **self._about, "picture_size": list(self._picture)}
        yield json.dumps(head, indent=2)[:-2] + ",\n" + TRACKS_LINE
        for number, (record, row) in enumerate(self._rows()):
            yield (",\n    " if number else "    ") + json.dumps(row)[:-1] + ', "outlines": [\n      '
            for index, place in enumerate(record.outlines):
                self._spool.seek(place)
                yield (",\n      " if index else "") + self._spool.readline().decode().rstrip()
            yield "\n    ]}"
        yield "\n  ]\n}\n"


def read_findings(folder: Path, schemas: Sequence[str] = (SCHEMA,)) -> dict[str, Any]:
    """Read findings.json.

    Args:
        folder: folder of the results of a recording, or of images.
        schemas: schemas that it may have.

    Raises:
        DataError: there is no such file, it cannot be read, or it has another schema.
    """
    path = folder / "findings.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        schema = content["schema"]
    except FileNotFoundError as error:
        raise DataError(f"{folder}: holds no finished run of `polypstream process` (no findings.json)") from error
    except NotADirectoryError as error:
        if folder.suffix.lower() in RECORDING_ENDINGS:
            what, example = "a recording", Path("results", folder.stem)
        else:
            what, example = "a file", folder.parent
        raise DataError(f"{folder}: is {what}; give the folder of its results, for instance {example}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as findings ({error})") from error
    if schema in schemas:
        return content
    if schema == IMAGES_SCHEMA:
        raise DataError(
            f"{folder}: holds results of images, which have no tracks. Their masks are in {folder / 'masks'}, their "
            f"findings in {folder / POLYPS}; in Python, Detector()(image) finds polyps in an image"
        )
    if schema == SCHEMA:
        raise DataError(f"{folder}: holds results of a recording, not of images")
    raise DataError(f"{path}: is of schema {schema}; this version of polypstream reads {' and '.join(schemas)}")


def write_marks(folder: Path, marks: Sequence[Mark]) -> None:
    """Replace the marks in findings.json.

    Args:
        folder: folder of the results of a recording.
        marks: the new marks.

    Raises:
        DataError: there is no such file, or it cannot be read.
        OutputError: it cannot be written.
    """
    _write_field(folder, "marks", [mark.as_json() for mark in marks])


def write_reviews(folder: Path, reviews: Sequence[dict[str, object]]) -> None:
    """Replace what findings.json says about the decisions of readers.

    Args:
        folder: folder of the results of a recording, or of images.
        reviews: the decisions about the tracks, with the names that the file has.

    Raises:
        DataError: there is no such file, or it cannot be read.
        OutputError: it cannot be written.
    """
    _write_field(folder, "reviews", reviews)


def _write_field(folder: Path, name: str, value: object) -> None:
    """Replace a field of findings.json. Tracks are copied as they are, since there may be many outlines."""
    path = folder / "findings.json"
    try:
        with WRITING, path.open() as file:
            lines = iter(file)
            head = "".join(itertools.takewhile(lambda line: line != TRACKS_LINE, lines))
            is_whole = not head.endswith(",\n")  # of images, which have no tracks
            about = json.loads(head if is_whole else head.rstrip().removesuffix(",") + "}")
            about[name] = value
            with write_atomically(path) as unfinished, unfinished.open("w") as written:
                text = json.dumps(about, indent=2)
                written.write(text + "\n" if is_whole else text[:-2] + ",\n" + TRACKS_LINE)
                written.writelines(lines)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as findings ({error})") from error


def read_polyps(folder: Path) -> list[dict[str, str]]:
    """Read polyps.csv: one dictionary for each row.

    Args:
        folder: folder of the results of a recording or of a set of images.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    path = folder / POLYPS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            # Images of earlier versions have another name for it.
            rows.fieldnames = [
                "polyp_area_fraction" if name == "area_fraction" else name for name in rows.fieldnames or ()
            ]
            return list(rows)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise DataError(f"{path}: cannot be read ({reason}); `process --overwrite` writes it again") from error
