"""findings.json: which polyps, from when to when, how sure, and what they looked like."""

from __future__ import annotations

import json
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from polypstream.core.files import write_atomically, writing
from polypstream.core.frame import Frame
from polypstream.errors import DataError
from polypstream.inference.model_card import NOTICE
from polypstream.media.jpeg import SNAPSHOT_QUANTISER, WHOLE, Jpeg

SCHEMA = "polypstream-findings-1"
SNAPSHOTS = "snapshots"
# A larger view of a track is worth another snapshot if it is larger by this factor.
LARGER = 1.3
# Corners of an outline may move so far, in pixels, to be fewer.
SIMPLER = 1.0


@dataclass(slots=True)
class _Seen:
    """What is known of one track so far; of its outlines, where each stands in the spool.

    Probabilities are in grey levels and durations exact, so that parts of a recording add up to the whole.
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


class ExactTrack(NamedTuple):
    """Of one track in one part of a recording, what is needed to add the parts up.

    Attributes:
        seconds: in view, numerator and denominator.
        largest: share of the picture that it covers at most.
        snapshot_area: share that it covers in its snapshot.
        snapshot_s: time of the snapshot in seconds.
    """

    seconds: tuple[int, int]
    largest: float
    snapshot_area: float
    snapshot_s: float


class FindingsFile:
    """Writes findings.json when it is closed, and the snapshots as they come; docs/findings.md has the schema.

    Args:
        folder: of the results.
        about: what stands at its head: input, model, settings.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._path, self._about = folder / "findings.json", about
        self._snapshots = folder / SNAPSHOTS
        self._tracks: dict[int, _Seen] = {}
        self._jpeg: Jpeg | None = None
        self._picture = (0, 0)
        # Outlines wait on disk, so that memory does not grow with the recording.
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 -- it lives as long as this

    def write(self, frame: Frame) -> None:
        """Note what a frame shows of each track."""
        self._picture = frame.picture.width, frame.picture.height
        for track in dict.fromkeys(number for number in frame.tracks if number):
            polygons = [
                outline for outline, number in zip(frame.outlines, frame.tracks, strict=True) if number == track
            ]
            seen = self._tracks.setdefault(track, _Seen(frame.seconds, frame.seconds))
            self._note(track, seen, frame, polygons)

    def _note(self, track: int, seen: _Seen, frame: Frame, polygons: list[np.ndarray]) -> None:
        peak = max(peak_of(frame, polygon) for polygon in polygons)
        seen.last, seen.frames = frame.seconds, seen.frames + 1
        seen.seconds += (frame.picture.duration or 0) * frame.time_base
        seen.peak, seen.sum_of_peaks = max(seen.peak, peak), seen.sum_of_peaks + peak
        simpler = [cv2.approxPolyDP(polygon, SIMPLER, True)[:, 0] for polygon in polygons]
        outline = {
            "frame": frame.index,
            "pts_s": round(frame.seconds, 6),
            "probability": round(peak / 255, 4),
            "box": list(cv2.boundingRect(np.concatenate(polygons))),
            "polygons": [polygon.ravel().tolist() for polygon in simpler],
        }
        self._spool_outline(seen, outline)
        area = sum(cv2.contourArea(polygon) for polygon in polygons) / (self._picture[0] * self._picture[1])
        if area > LARGER * seen.largest:
            self._save_snapshot(track, frame)
            seen.snapshot_area, seen.snapshot_s = area, frame.seconds
        seen.largest = max(seen.largest, area)

    def _spool_outline(self, seen: _Seen, outline: dict[str, Any]) -> None:
        seen.outlines.append(self._spool.tell())
        with writing(self._path):
            self._spool.write(json.dumps(outline, separators=(",", ":")).encode() + b"\n")

    def exact_tracks(self) -> dict[int, ExactTrack]:
        """What findings.json rounds, or does not say, of each track."""
        return {
            track: ExactTrack(seen.seconds.as_integer_ratio(), seen.largest, seen.snapshot_area, seen.snapshot_s)
            for track, seen in self._tracks.items()
        }

    def add_part(
        self, part: Path, exact: Mapping[int, ExactTrack], rename: Callable[[int], int], first_frame: int
    ) -> None:
        """Note what was found in the next part of a recording.

        Args:
            part: folder of its results.
            exact: its `exact_tracks`.
            rename: from its numbers of tracks to the recording's.
            first_frame: number of its first frame in the recording.

        Raises:
            DataError: its findings.json cannot be read.
        """
        run = read_findings(part)
        self._picture = tuple(run["picture_size"])
        for row in run["tracks"]:
            number, more = rename(row["track"]), exact[row["track"]]
            seen = self._tracks.setdefault(number, _Seen(row["first_s"], row["last_s"]))
            for outline in row["outlines"]:
                level = round(outline["probability"] * 255)
                seen.frames, seen.peak = seen.frames + 1, max(seen.peak, level)
                seen.sum_of_peaks += level
                self._spool_outline(seen, outline | {"frame": outline["frame"] + first_frame})
            seen.last, seen.seconds = row["last_s"], seen.seconds + Fraction(*more.seconds)
            # Its snapshot is of the last view that was so much larger than those before it in the part.
            if more.snapshot_area > LARGER * seen.largest:
                seen.snapshot_area, seen.snapshot_s = more.snapshot_area, more.snapshot_s
                with writing(self._path):
                    self._snapshots.mkdir(exist_ok=True)
                    shutil.copyfile(part / row["snapshot"], self._snapshots / f"track-{number}.jpg")
            seen.largest = max(seen.largest, more.largest)

    def _save_snapshot(self, track: int, frame: Frame) -> None:
        self._jpeg = self._jpeg or Jpeg(WHOLE, SNAPSHOT_QUANTISER)
        path = self._snapshots / f"track-{track}.jpg"
        with writing(path):
            self._snapshots.mkdir(exist_ok=True)
            path.write_bytes(self._jpeg(frame.picture, frame.orientation))

    def close(self) -> None:
        """Write the file, whole or not at all."""
        with write_atomically(self._path) as unfinished, unfinished.open("w") as file:
            file.writelines(self._lines())
        self._spool.close()

    def _lines(self) -> Iterator[str]:
        """JSON, an outline a line: a long recording has many, and they are text already."""
        head = {"schema": SCHEMA, "notice": NOTICE, **self._about, "picture_size": list(self._picture)}
        yield json.dumps(head, indent=2)[:-2] + ',\n  "tracks": ['
        for number, (track, seen) in enumerate(sorted(self._tracks.items())):
            row = {
                "track": track,
                "first_s": round(seen.first, 6),
                "last_s": round(seen.last, 6),
                "seconds_in_view": round(float(seen.seconds), 6),
                "frames": seen.frames,
                "peak_probability": round(seen.peak / 255, 4),
                "mean_probability": round(seen.sum_of_peaks / 255 / seen.frames, 4),
                "largest_area_fraction": round(seen.largest, 6),
                "snapshot": f"{SNAPSHOTS}/track-{track}.jpg",
                "snapshot_pts_s": round(seen.snapshot_s, 6),
            }
            yield (",\n    " if number else "\n    ") + json.dumps(row)[:-1] + ', "outlines": [\n      '
            for index, place in enumerate(seen.outlines):
                self._spool.seek(place)
                yield (",\n      " if index else "") + self._spool.readline().decode().rstrip()
            yield "\n    ]}"
        yield "\n  ]\n}\n"


def read_findings(folder: Path) -> dict[str, Any]:
    """findings.json of a folder of results.

    Raises:
        DataError: there is none, it cannot be read, or it is of another version's schema.
    """
    path = folder / "findings.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        schema = content["schema"]
    except FileNotFoundError as error:
        raise DataError(f"{folder}: holds no finished run of `polypstream process` (no findings.json)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as findings ({error})") from error
    if schema != SCHEMA:
        raise DataError(f"{path}: is of schema {schema}; this version of polypstream reads {SCHEMA}")
    return content


def peak_of(frame: Frame, polygon: np.ndarray) -> int:
    """The highest probability that the network saw in the box around an outline, 0..255."""
    view, (rows, columns) = frame.view, frame.probability.shape
    x, y, width, height = cv2.boundingRect(polygon)
    left, top = (x - view.x) * columns // view.width, (y - view.y) * rows // view.height
    right, bottom = -(-(x + width - view.x) * columns // view.width), -(-(y + height - view.y) * rows // view.height)
    return int(frame.probability[max(0, top) : bottom, max(0, left) : right].max(initial=0))
