"""findings.json: which polyps, from when to when, how sure, and what they looked like."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stream.frame import Frame
from stream.model import NOTICE
from stream.sinks.browser import SNAPSHOT_QUANTISER, Jpeg
from stream.sinks.files import writing

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
    snapshot_s: float = 0.0
    outlines: array[int] = field(default_factory=lambda: array("Q"))


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
        peak = max(_peak(frame, polygon) for polygon in polygons)
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
        seen.outlines.append(self._spool.tell())
        with writing(self._path):
            self._spool.write(json.dumps(outline, separators=(",", ":")).encode() + b"\n")
        area = sum(cv2.contourArea(polygon) for polygon in polygons) / (self._picture[0] * self._picture[1])
        if area > LARGER * seen.largest:
            self._save_snapshot(track, frame)
            seen.snapshot_s = frame.seconds
        seen.largest = max(seen.largest, area)

    def _save_snapshot(self, track: int, frame: Frame) -> None:
        self._jpeg = self._jpeg or Jpeg(frame.picture.width, SNAPSHOT_QUANTISER)
        path = self._snapshots / f"track-{track}.jpg"
        with writing(path):
            self._snapshots.mkdir(exist_ok=True)
            path.write_bytes(self._jpeg(frame.picture))

    def close(self) -> None:
        """Write the file, whole or not at all."""
        unfinished = self._path.with_suffix(".json.unfinished")
        with writing(self._path):
            with unfinished.open("w") as file:
                file.writelines(self._lines())
            unfinished.replace(self._path)
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


def _peak(frame: Frame, polygon: np.ndarray) -> int:
    """The highest probability that the network saw in the box around an outline, 0..255."""
    view, (rows, columns) = frame.view, frame.probability.shape
    x, y, width, height = cv2.boundingRect(polygon)
    left, top = (x - view.x) * columns // view.width, (y - view.y) * rows // view.height
    right, bottom = -(-(x + width - view.x) * columns // view.width), -(-(y + height - view.y) * rows // view.height)
    return int(frame.probability[max(0, top) : bottom, max(0, left) : right].max(initial=0))
