"""A finished run of `process`, read back: its tracks and, from the recording, the pictures that they were found in."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.orientation import Orientation
from polypstream.core.protocols import Source
from polypstream.errors import DataError
from polypstream.jobs.process import OnProgress
from polypstream.jobs.setup import choose_field_of_view
from polypstream.sinks.findings import read_findings
from polypstream.sources.deidentified import Deidentified
from polypstream.sources.open import open_source, stem_of

# findings.json has times to the microsecond.
SAME_TIME_S = 1e-5


class Outline(NamedTuple):
    """A track in one frame.

    Attributes:
        track: its number.
        frame: number of the frame, from 0.
        seconds: its presentation time.
        probability: the highest that the network saw there, 0..1.
        polygons: int32 [n, 2] each, x and y in picture pixels.
    """

    track: int
    frame: int
    seconds: float
    probability: float
    polygons: list[np.ndarray]

    def shown(self, orientation: Orientation, width: int, height: int) -> Outline:
        """The same in the picture of that size as it is shown."""
        moved = [orientation.points(polygon + 0.5, width, height) - 0.5 for polygon in self.polygons]
        return self._replace(polygons=[np.rint(polygon).astype(np.int32) for polygon in moved])

    def mask(self, width: int, height: int) -> np.ndarray:
        """uint8 [height, width], 255 inside."""
        return cv2.fillPoly(np.zeros((height, width), np.uint8), self.polygons, 255)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of `process` found in a recording.

    Attributes:
        folder: of its results.
        about: the head of findings.json.
        tracks: as they stand there.
        settings: of the run.
    """

    folder: Path
    about: dict[str, Any]
    tracks: list[dict[str, Any]]
    settings: Settings

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = self.about["picture_size"]
        return int(width), int(height)

    def outlines(self) -> dict[int, list[Outline]]:
        """For each frame that shows any, its outlines."""
        frames: dict[int, list[Outline]] = {}
        for track in self.tracks:
            for row in track["outlines"]:
                polygons = [np.array(polygon, np.int32).reshape(-1, 2) for polygon in row["polygons"]]
                outline = Outline(track["track"], row["frame"], row["pts_s"], row["probability"], polygons)
                frames.setdefault(outline.frame, []).append(outline)
        return frames


def load_run(folder: Path) -> Run:
    """Read findings.json of a run.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    about = read_findings(folder)
    try:
        run = Run(folder, about, about.pop("tracks"), Settings.model_validate(about["settings"]))
        if min(run.picture_size) < 1:
            raise ValueError("no picture_size")
        return run
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'findings.json'}: cannot be read as findings ({error})") from error


def find_run(recording: str, results: Path) -> Run:
    """The run of a recording.

    Args:
        recording: its path, or a demo's address.
        results: the folder that was given to `process --output`, or that of this one run.

    Raises:
        DataError: there is none.
        SourceError: a demo's address is wrong.
    """
    return load_run(results if (results / "findings.json").is_file() else results / stem_of(recording))


def frame_times(run: Run) -> list[float]:
    """The time of every frame of a run, in seconds, from its frames.csv.

    Raises:
        DataError: it cannot be read.
    """
    path = run.folder / "frames.csv"
    try:
        with path.open(newline="") as file:
            return [float(row["pts_s"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def shown_until(run: Run) -> dict[tuple[int, int], int]:
    """For each track and frame that shows it, the frame up to which it is shown from there on without a gap."""
    ends: dict[tuple[int, int], int] = {}
    for track in run.tracks:
        end = -2
        for frame in sorted((row["frame"] for row in track["outlines"]), reverse=True):
            end = end if (track["track"], frame + 1) in ends else frame
            ends[track["track"], frame] = end
    return ends


def best_outlines(run: Run) -> dict[int, list[Outline]]:
    """For each frame that shows a track at its best, the outlines: largest, then surest, then first."""
    outlines = [outline for frame in run.outlines().values() for outline in frame]
    best: dict[int, Outline] = {}
    for outline in sorted(outlines, key=lambda outline: (_area(outline), outline.probability), reverse=True):
        best.setdefault(outline.track, outline)
    frames: dict[int, list[Outline]] = {}
    for outline in best.values():
        frames.setdefault(outline.frame, []).append(outline)
    return frames


def _area(outline: Outline) -> float:
    return sum(cv2.contourArea(polygon) for polygon in outline.polygons)


def frames_again(
    run: Run, source: Source, on_progress: OnProgress = lambda *_: None
) -> Iterator[tuple[Frame, list[Outline]]]:
    """Every frame of a run's recording, as decoded, with the outlines that the run found in it.

    Args:
        run: what was found.
        source: the recording, by open_again.
        on_progress: told the frames done and the frames expected (None: unknown).

    Raises:
        DataError: it is not the recording of this run.
    """
    left = run.outlines()
    for frame in source.frames():
        outlines = left.pop(frame.index, [])
        if any(abs(outline.seconds - frame.seconds) > SAME_TIME_S for outline in outlines):
            raise DataError(f"{source.name}: its frames have other times than those of {run.folder}")
        yield frame, outlines
        on_progress(frame.index + 1, source.expected_frames)
    if left:
        raise DataError(f"{source.name}: ends before the last findings of {run.folder}: it is not its recording")


def open_again(run: Run, recording: str) -> Source:
    """Open the recording of a run, de-identified if the run was.

    Raises:
        SourceError: it cannot be opened.
        DataError: its pictures are of another size than those of the run.
    """
    source = open_source(recording)
    try:
        if (source.format.width, source.format.height) != run.picture_size:
            raise DataError(
                f"{recording}: its pictures are {source.format.width}x{source.format.height}, those of {run.folder} "
                f"{run.picture_size[0]}x{run.picture_size[1]}: it is not the recording of this run"
            )
        if run.settings.deidentify.enabled:
            return Deidentified(source, choose_field_of_view(source, run.settings), run.settings, run.folder.name)
        return source
    except BaseException:
        source.close()
        raise
