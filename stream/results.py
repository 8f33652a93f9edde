"""A finished run of `process`, read back: its tracks and, from the recording, the pictures that they were found in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from stream.config import Settings
from stream.deidentify import Deidentified
from stream.errors import DataError
from stream.frame import Frame
from stream.process import Poll, choose_view
from stream.sinks.findings import read_findings
from stream.sources.base import Source
from stream.sources.open import open_source, stem_of

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

    def mask(self, width: int, height: int) -> np.ndarray:
        """uint8 [height, width], 255 inside."""
        return cv2.fillPoly(np.zeros((height, width), np.uint8), self.polygons, 255)


@dataclass(frozen=True, slots=True)
class FinishedRun:
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


def read_run(folder: Path) -> FinishedRun:
    """Read findings.json of a run.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    about = read_findings(folder)
    try:
        run = FinishedRun(folder, about, about.pop("tracks"), Settings.model_validate(about["settings"]))
        if min(run.picture_size) < 1:
            raise ValueError("no picture_size")
        return run
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'findings.json'}: cannot be read as findings ({error})") from error


def find_run(recording: str, results: Path) -> FinishedRun:
    """The run of a recording.

    Args:
        recording: its path, or a demo's address.
        results: the folder that was given to `process --output`, or that of this one run.

    Raises:
        DataError: there is none.
        SourceError: a demo's address is wrong.
    """
    return read_run(results if (results / "findings.json").is_file() else results / stem_of(recording))


def frames_again(
    run: FinishedRun, source: Source, poll: Poll = lambda *_: None
) -> Iterator[tuple[Frame, list[Outline]]]:
    """Every frame of a run's recording, as decoded, with the outlines that the run found in it.

    Args:
        run: what was found.
        source: the recording, by open_again.
        poll: told the frames done and the frames expected (None: unknown).

    Raises:
        DataError: it is not the recording of this run.
    """
    left = run.outlines()
    for frame in source.frames():
        outlines = left.pop(frame.index, [])
        if any(abs(outline.seconds - frame.seconds) > SAME_TIME_S for outline in outlines):
            raise DataError(f"{source.name}: its frames have other times than those of {run.folder}")
        yield frame, outlines
        poll(frame.index + 1, source.expected_frames)
    if left:
        raise DataError(f"{source.name}: ends before the last findings of {run.folder}: it is not its recording")


def open_again(run: FinishedRun, recording: str) -> Source:
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
            return Deidentified(source, choose_view(source, run.settings), run.settings, run.folder.name)
        return source
    except BaseException:
        source.close()
        raise
