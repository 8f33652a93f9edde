"""Reads a finished run of `process`: its tracks and, from the recording, the frames in which they were found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.orientation import Orientation
from polypstream.core.protocols import OnProgress, Source
from polypstream.core.time_range import TimeRange, range_in
from polypstream.errors import DataError, SettingsError
from polypstream.jobs.setup import choose_field_of_view, restricted
from polypstream.sinks.findings import read_findings
from polypstream.sinks.tables import read_frames
from polypstream.sources.open import open_source, stem_of

# findings.json stores times in microseconds.
SAME_TIME_S = 1e-5


class Outline(NamedTuple):
    """A track in one frame.

    Attributes:
        track_id: number of the track.
        frame: number of the frame, from 0.
        seconds: presentation time in seconds.
        probability: highest probability in its bounding box, 0..1.
        polygons: int32 [n, 2] each, x and y in pixels of the frame.
        reviewed: a reader has drawn it, or accepted its track; False: it is the network's guess.
        carried: this frame does not show the track. The outline comes from an earlier frame, along the motion, and the
            probability is that of the last frame that showed it.
    """

    track_id: int
    frame: int
    seconds: float
    probability: float
    polygons: list[np.ndarray]
    reviewed: bool = False
    carried: bool = False

    def shown(self, orientation: Orientation, width: int, height: int) -> Outline:
        """The outline in the displayed frame.

        Args:
            orientation: how the frame is displayed.
            width, height: size of the stored frame in pixels.
        """
        moved = [orientation.points(polygon + 0.5, width, height) - 0.5 for polygon in self.polygons]
        return self._replace(polygons=[np.rint(polygon).astype(np.int32) for polygon in moved])

    @property
    def area(self) -> int:
        """Number of pixels inside, its edge included, as `mask` has them."""
        if not self.polygons:
            return 0
        x, y, width, height = cv2.boundingRect(np.concatenate(self.polygons))
        inside = cv2.fillPoly(np.zeros((height, width), np.uint8), self.polygons, 255, offset=(-x, -y))
        return cv2.countNonZero(inside)

    def mask(self, width: int, height: int) -> np.ndarray:
        """Mask of the outline.

        Args:
            width, height: size of the frame in pixels.

        Returns:
            uint8 [height, width], 255 inside.
        """
        return cv2.fillPoly(np.zeros((height, width), np.uint8), self.polygons, 255)


class TrackSummary(NamedTuple):
    """A track, which is one polyp over time, as in findings.json.

    Attributes:
        track_id: number of the track, from 1.
        first_s, last_s: time of the first and the last frame that show it, in seconds.
        seconds_in_view: total time in view in seconds.
        frames: number of frames that show it.
        peak_probability, mean_probability: maximum and mean of its highest probability in each frame, 0..1.
        largest_area_fraction: largest share of the frame that it covers, 0..1.
        snapshot: JPEG file of one of its largest views.
        snapshot_s: time of that frame in seconds.
        outlines: its outline in each frame that shows it.
    """

    track_id: int
    first_s: float
    last_s: float
    seconds_in_view: float
    frames: int
    peak_probability: float
    mean_probability: float
    largest_area_fraction: float
    snapshot: Path
    snapshot_s: float
    outlines: list[Outline]

    def __repr__(self) -> str:
        return f"TrackSummary(track_id={self.track_id}, first_s={self.first_s}, last_s={self.last_s}, …)"


@dataclass(frozen=True)
class Run:
    """Results of `process` for a recording.

    Attributes:
        folder: folder of the results; docs/findings.md describes its files.
        about: head of findings.json: input, model, settings, version.
        tracks: the tracks, in the order in which they are first shown.
        settings: settings of the run.
        times: range of the recording that was processed; None: all of it.

    Example:
        >>> import polypstream as pp
        >>> run = pp.load_run("results/colon")
        >>> [(track.track_id, round(track.first_s), round(track.last_s)) for track in run.tracks]
        [(1, 1, 3)]
    """

    folder: Path
    about: dict[str, Any] = field(repr=False)
    tracks: list[TrackSummary]
    settings: Settings = field(repr=False)
    times: TimeRange | None = None

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels."""
        width, height = self.about["picture_size"]
        return int(width), int(height)

    def size_of(self, frame: int) -> tuple[int, int]:
        """Width and height of a frame in pixels.

        Args:
            frame: number of the frame, from 0.
        """
        return self.picture_size

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of summary.json: whether the run is `complete`, its `damage` and `notes`, the provider, the speed.

        Raises:
            DataError: it cannot be read.
        """
        path = self.folder / "summary.json"
        try:
            summary: dict[str, Any] = json.loads(path.read_text())
            return summary
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    @cached_property
    def frames(self) -> dict[str, np.ndarray]:
        """Columns of frames.csv with one value per frame, as `pandas.DataFrame(run.frames)` accepts them.

        `frame`, `polyp_count`, `carried`: int64. `pts_s`, `polyp_area_fraction`, `max_probability`: float64. `tracks`:
        object, a tuple of track numbers. `blurred`, `overexposed`, `outside`, `segmented`: bool.

        Raises:
            DataError: it cannot be read.
        """
        return read_frames(self.folder / "frames.csv")

    def outlines(self) -> dict[int, list[Outline]]:
        """Outlines by frame number, for each frame that shows any."""
        frames: dict[int, list[Outline]] = {}
        for track in self.tracks:
            for outline in track.outlines:
                frames.setdefault(outline.frame, []).append(outline)
        return frames


def load_run(folder: str | Path) -> Run:
    """Read the results of `process` for one recording.

    Args:
        folder: folder of the recording's results, which holds findings.json.

    Raises:
        DataError: there are no results, or they cannot be read.

    Example:
        >>> import polypstream as pp
        >>> pp.load_run("results/colon").picture_size
        (320, 180)
    """
    folder = Path(folder)
    return run_of(folder, read_findings(folder))


def run_of(folder: Path, about: dict[str, Any]) -> Run:
    """The results of `process` for one recording.

    Args:
        folder: folder of the recording's results.
        about: content of its findings.json.

    Raises:
        DataError: it cannot be read as findings.
    """
    try:
        tracks = [_track_of(folder, row) for row in about.pop("tracks")]
        run = Run(folder, about, tracks, Settings.model_validate(about["settings"]), range_in(about))
        if min(run.picture_size) < 1:
            raise ValueError("no picture_size")
        return run
    except (ValueError, KeyError, TypeError, SettingsError) as error:
        raise DataError(f"{folder / 'findings.json'}: cannot be read as findings ({error})") from error


def _track_of(folder: Path, row: dict[str, Any]) -> TrackSummary:
    """Convert one track of findings.json."""
    number = row["track"]
    outlines = [
        Outline(
            number,
            each["frame"],
            each["pts_s"],
            each["probability"],
            [np.array(polygon, np.int32).reshape(-1, 2) for polygon in each["polygons"]],
            carried=each.get("carried", False),
        )
        for each in row["outlines"]
    ]
    return TrackSummary(
        number,
        row["first_s"],
        row["last_s"],
        row["seconds_in_view"],
        row["frames"],
        row["peak_probability"],
        row["mean_probability"],
        row["largest_area_fraction"],
        folder / row["snapshot"],
        row["snapshot_pts_s"],
        outlines,
    )


def find_run(recording: str, results: Path) -> Run:
    """Find the run of a recording.

    Args:
        recording: its path, or a demo's address.
        results: folder that was given to `process --output`, or the folder of this run.

    Raises:
        DataError: there is none.
        SourceError: a demo's address is wrong.
    """
    if Path(recording).is_dir():
        raise DataError(f"{recording}: is a folder; name its recordings, for instance {recording}/*.mp4")
    return load_run(run_folder(stem_of(recording), results))


def run_folder(name: str, results: Path) -> Path:
    """Find the folder of a run.

    Args:
        name: name of the folder in that of all results.
        results: folder that was given to `process --output`, or the folder of this run.

    Raises:
        DataError: there is none.
    """
    for folder in (results, results / name):
        if (folder / "findings.json").is_file():
            return folder
    raise DataError(
        f"{results / name}: holds no finished run of `polypstream process`. If the results are elsewhere, give "
        "--results FOLDER"
    )


def shown_until(run: Run) -> dict[tuple[int, int], int]:
    """Find how long each track is shown without a gap.

    Args:
        run: the run.

    Returns:
        For each track number and frame that shows it: the last frame of the same stretch without a gap.
    """
    ends: dict[tuple[int, int], int] = {}
    for track in run.tracks:
        end = -2
        for frame in sorted((outline.frame for outline in track.outlines), reverse=True):
            end = end if (track.track_id, frame + 1) in ends else frame
            ends[track.track_id, frame] = end
    return ends


def best_outlines(run: Run) -> dict[int, list[Outline]]:
    """Find the frame that shows each track best: with the largest area, then the highest probability, then the first.

    Args:
        run: the run.

    Returns:
        Outlines by frame number, one for each track.
    """
    frames: dict[int, list[Outline]] = {}
    for track in run.tracks:
        best = max(track.outlines, key=lambda outline: (outline.area, outline.probability, -outline.frame))
        frames.setdefault(best.frame, []).append(best)
    return frames


def frames_again(
    run: Run, source: Source, on_progress: OnProgress = lambda *_: None
) -> Iterator[tuple[Frame, list[Outline]]]:
    """Decode the recording of a run again, with the outlines that the run found.

    Args:
        run: the run.
        source: the recording, from `open_again`.
        on_progress: called as on_progress(done, total) with frame counts; total is None if unknown.

    Yields:
        Each frame as decoded, and its outlines.

    Raises:
        DataError: it is not the recording of this run.
    """
    remaining = run.outlines()
    for frame in source.frames():
        outlines = remaining.pop(frame.index, [])
        if any(abs(outline.seconds - frame.seconds) > SAME_TIME_S for outline in outlines):
            raise DataError(f"{source.name}: its frames have other times than those of {run.folder}")
        yield frame, outlines
        on_progress(frame.index + 1, source.expected_frames)
    if remaining:
        raise DataError(f"{source.name}: ends before the last findings of {run.folder}: it is not its recording")


def open_again(run: Run, recording: str) -> Source:
    """Open the recording of a run, or the range of it. It is de-identified if the run is.

    Args:
        run: the run.
        recording: path of the recording, or a demo's address.

    Raises:
        SourceError: it cannot be opened.
        DataError: its frames have another size than those of the run.
    """
    source = open_source(recording)
    try:
        if (source.format.width, source.format.height) != run.picture_size:
            raise DataError(
                f"{recording}: its pictures are {source.format.width}x{source.format.height}, those of {run.folder} "
                f"{run.picture_size[0]}x{run.picture_size[1]}: it is not the recording of this run"
            )
        if run.times is None and not run.settings.deidentify.enabled:
            return source
        view = FieldOfView(0, 0, *run.picture_size)
        if run.settings.deidentify.enabled:
            view = choose_field_of_view(source, run.settings)
        return restricted(source, view, run.settings, run.folder.name, run.times)
    except BaseException:
        source.close()
        raise
