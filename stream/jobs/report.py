"""report.html of a finished run: one file for the user, which works offline and can be printed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from polypstream.core.files import writing
from polypstream.core.formatting import clock
from polypstream.errors import DataError
from polypstream.media.pictures import read_image
from polypstream.sinks.findings import read_findings
from polypstream.sinks.tables import QUALITIES, read_frames

# Width of the timeline, and its largest number of columns for any length of the recording.
COLUMNS = 1200
# Width of the snapshots inside the file, their JPEG quality, and their largest size in all in bytes. The others are
# links to the files beside it.
SNAPSHOT_WIDTH, SNAPSHOT_QUALITY, MAX_BYTES = 480, 80, 6_000_000
# Possible distances between ticks of the timeline in seconds, and the largest number of ticks.
TICKS_S, MAX_TICKS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400), 12


@dataclass(frozen=True, slots=True)
class Timeline:
    """Highest probabilities from the first frame of a recording to its last.

    Attributes:
        start, end: time of the first and the last frame in seconds.
        highest: highest probability in each column, 0..1, float64 [columns].
    """

    start: float
    end: float
    highest: np.ndarray

    @property
    def area(self) -> str:
        """SVG path of the area under the probability, 1200 wide and 100 high."""
        places = np.linspace(0, COLUMNS - 1, len(self.highest))
        steps = " ".join(f"L{x:.1f} {100 - 100 * value:.0f}" for x, value in zip(places, self.highest, strict=True))
        return f"M0 100 {steps} L{places[-1]:.1f} 100 Z"

    def place(self, seconds: float) -> float:
        """Position of a time on the timeline, 0..1.

        Args:
            seconds: the time in seconds.
        """
        return (seconds - self.start) / max(self.end - self.start, 1e-9)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the position (0..1) and the label of each tick."""
        length = self.end - self.start
        step = next((step for step in TICKS_S if length / step <= MAX_TICKS), TICKS_S[-1])
        for number in range(int(length // step) + 1):
            yield number * step / max(length, 1e-9), clock(self.start + number * step, 0)


def write_report(run: Path, figures: dict[str, Any] | None = None) -> Path:
    """Write report.html from a run's frames.csv, findings.json and summary.json.

    Args:
        run: folder of results of `process`.
        figures: result of `score`, if the ground truth is known.

    Returns:
        Path of the report.

    Raises:
        DataError: the folder does not hold a finished run.
        OutputError: the report cannot be written.
    """
    try:
        summary = json.loads((run / "summary.json").read_text())
        tracks = read_findings(run)["tracks"]
        timeline, qualities = read_table(run / "frames.csv")
    except (OSError, ValueError) as error:
        raise DataError(f"{run}: holds no finished run of `polypstream process` ({error})") from error
    page = (
        environment()
        .get_template("report.html")
        .render(
            summary=summary,
            tracks=[
                track | {"picture": picture} for track, picture in zip(tracks, _pictures(run, tracks), strict=True)
            ],
            timeline=timeline,
            qualities=qualities,
            figures=figures,
        )
    )
    path = run / "report.html"
    with writing(path):
        # File names may contain any bytes.
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def read_table(table: Path) -> tuple[Timeline, dict[str, float]]:
    """Read from frames.csv what the report shows.

    Args:
        table: path of frames.csv.

    Returns:
        The timeline, and the shares of frames that are blurred, overexposed and outside, 0..1.

    Raises:
        DataError: the file cannot be read, or holds no frames.
    """
    frames = read_frames(table)
    times = frames["pts_s"]
    if not len(times):
        raise DataError(f"{table}: holds no frames")
    columns = np.zeros(min(COLUMNS, len(times)))
    where = ((times - times[0]) / max(times[-1] - times[0], 1e-9) * (len(columns) - 1)).round().astype(int)
    np.maximum.at(columns, where, frames["max_probability"])
    shares = {name: float(frames[name].mean()) for name in QUALITIES}
    return Timeline(float(times[0]), float(times[-1]), columns), shares


def _pictures(run: Path, tracks: list[dict[str, Any]]) -> Iterator[str]:
    """For each track its snapshot: as a data URL until MAX_BYTES are used, then as a link."""
    bytes_left = MAX_BYTES
    for track in tracks:
        picture = read_image(run / track["snapshot"], cv2.IMREAD_COLOR)
        if picture is None or bytes_left <= 0:
            yield track["snapshot"]
            continue
        height = round(picture.shape[0] * SNAPSHOT_WIDTH / picture.shape[1])
        smaller = cv2.resize(picture, (SNAPSHOT_WIDTH, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, SNAPSHOT_QUALITY])
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
        bytes_left -= len(url)
        yield url


def environment() -> Environment:
    """Environment of the templates of the report and of the web pages, which share parts."""
    web = Path(str(files("polypstream.web")))
    templates = Environment(
        loader=FileSystemLoader([web / "templates", web / "static"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["clock"] = clock
    return templates
