"""report.html of a finished run: one file for people, which needs no network and prints well."""

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

# The timeline is so wide, and has at most so many columns, however long the recording is.
COLUMNS = 1200
# Snapshots in the file are this wide, and take so much room in all; the others are links beside the file.
SNAPSHOT_WIDTH, SNAPSHOT_QUALITY, MAX_BYTES = 480, 80, 6_000_000
# Ticks of the timeline are one of these apart, in seconds, and at most so many.
TICKS_S, MAX_TICKS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400), 12


@dataclass(frozen=True, slots=True)
class Timeline:
    """The recording from its first frame to its last.

    Attributes:
        start, end: in seconds.
        highest: the highest probability in each column, 0..1.
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
        """Where a time is, 0..1."""
        return (seconds - self.start) / max(self.end - self.start, 1e-9)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Place and label of each."""
        length = self.end - self.start
        step = next((step for step in TICKS_S if length / step <= MAX_TICKS), TICKS_S[-1])
        for number in range(int(length // step) + 1):
            yield number * step / max(length, 1e-9), clock(self.start + number * step, 0)


def write_report(run: Path, figures: dict[str, Any] | None = None) -> Path:
    """Make report.html of a run's frames.csv, findings.json and summary.json.

    Args:
        run: folder of results of `process`.
        figures: of `score`, if the truth is known.

    Returns:
        Its path.

    Raises:
        DataError: the folder does not hold a finished run.
        OutputError: it cannot be written.
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
        # File names may be any bytes.
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def read_table(table: Path) -> tuple[Timeline, dict[str, float]]:
    """What the report says of frames.csv.

    Returns:
        The timeline; the shares of frames that are blurred, overexposed and outside.

    Raises:
        DataError: it cannot be read, or holds no frames.
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
    """For each track its snapshot as a data URL while there is room, then as a link."""
    room = MAX_BYTES
    for track in tracks:
        picture = read_image(run / track["snapshot"], cv2.IMREAD_COLOR)
        if picture is None or room <= 0:
            yield track["snapshot"]
            continue
        height = round(picture.shape[0] * SNAPSHOT_WIDTH / picture.shape[1])
        smaller = cv2.resize(picture, (SNAPSHOT_WIDTH, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, SNAPSHOT_QUALITY])
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
        room -= len(url)
        yield url


def environment() -> Environment:
    """Of the report's and the web pages' templates, which share parts."""
    web = Path(str(files("polypstream.web")))
    made = Environment(
        loader=FileSystemLoader([web / "templates", web / "static"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["clock"] = clock
    return made
