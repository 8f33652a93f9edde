"""report.html of a finished run: one file for the user, which works offline and can be printed."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from polypstream.core.files import write_atomically
from polypstream.core.formatting import clock, counted, time_in_view, time_span
from polypstream.core.geometry import grey_level
from polypstream.core.marks import marks_in
from polypstream.errors import DataError
from polypstream.jobs.results import TrackSummary
from polypstream.jobs.reviewed import load_reviewed
from polypstream.jobs.reviews import REVIEWS, Review, ReviewStore
from polypstream.jobs.withdrawal import withdrawal_of
from polypstream.media.pictures import read_image
from polypstream.sinks.findings import read_findings
from polypstream.sinks.tables import QUALITIES, read_frames

# Largest number of columns of the timeline, for any length of the recording.
COLUMNS = 1200
# Width and largest height of the snapshots inside the file, their JPEG quality, and their largest size in all in bytes.
# The others are links to the files beside it.
SNAPSHOT_WIDTH, SNAPSHOT_HEIGHT, SNAPSHOT_QUALITY, MAX_BYTES = 480, 1920, 80, 6_000_000
# Possible distances between ticks of the timeline in seconds, and the largest number of distances: on a wide page, and
# on the page of a phone, which shows only some of the ticks.
TICKS_S, MAX_TICKS, MAX_TICKS_PHONE = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400), 10, 3

# Two frames have a gap between them if they are further apart than this, in seconds and in usual distances.
GAP_S, GAP_STEPS = 1.0, 3
# Most rows of bars below the timeline, and the width of a polyp's number in per cent, on a wide page and on a phone.
ROWS, NUMBER_WIDTH, NUMBER_WIDTH_PHONE = 6, 2.5, 6.0
# Distance between the bars of two polyps in a row, in per cent.
ROW_GAP = 0.3
# First and last time in seconds.
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bars of a polyp are, below the timeline.

    Attributes:
        row: from 0.
        left, right: its first and last edge in per cent.
        number: there is room for its number.
        on_phone: also on a phone.
        at_end: the number ends where the bars end, since it would not fit after their beginning.
    """

    row: int
    left: float
    right: float
    number: bool
    on_phone: bool
    at_end: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """Highest probabilities from the first frame of a recording to its last.

    Attributes:
        start, end: time of the first and the last frame in seconds.
        highest: highest probability in each column, 0..1, float64 [columns]; NaN where the recording has no frame.
        not_shown: stretches in which the probability reaches the peak, but no polyp is shown.
        gap: frames that are further apart have a gap between them, in seconds.
    """

    start: float
    end: float
    highest: np.ndarray
    not_shown: list[Span]
    gap: float = math.inf

    @property
    def area(self) -> str:
        """SVG path of the area under the probability, 1 wide and 1 high, with a piece for each stretch without gaps."""
        places = np.linspace(0, 1, len(self.highest))
        pieces = []
        for stretch in _stretches(~np.isnan(self.highest)):
            left, right = self._edges(stretch)
            steps = " ".join(f"L{places[each]:.4f} {1 - self.highest[each]:.2f}" for each in stretch)
            first, last = (1 - self.highest[stretch[end]] for end in (0, -1))
            pieces.append(f"M{left:.4f} 1 V{first:.2f} {steps} L{right:.4f} {last:.2f} V1 Z")
        return " ".join(pieces)

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Left edge and width in per cent of each stretch in which the recording has no frame."""
        edges = (self._edges(stretch) for stretch in _stretches(np.isnan(self.highest)))
        return [(100 * left, 100 * (right - left)) for left, right in edges]

    def _edges(self, columns: np.ndarray) -> tuple[float, float]:
        """Left and right edge of adjacent columns, 0..1."""
        last = max(len(self.highest) - 1, 1)
        return max((columns[0] - 0.5) / last, 0.0), min((columns[-1] + 0.5) / last, 1.0)

    def box(self, span: Span) -> tuple[float, float]:
        """Left edge and width of a span on the timeline in per cent. A single frame is as wide as a column.

        Args:
            span: the span.
        """
        half = 50 / max(len(self.highest) - 1, 1)
        left, right = (100 * self._place(seconds) for seconds in span)
        left, right = max(0.0, left - half), min(100.0, right + half)
        return left, right - left

    def _place(self, seconds: float) -> float:
        """Position of a time on the timeline, 0..1."""
        return (seconds - self.start) / max(self.end - self.start, 1e-9)

    def places(self, tracks: Sequence[Mapping[str, Any]]) -> list[Place]:
        """Arrange the bars of the polyps in rows, so that bars and numbers do not overlap while there are enough rows.

        Args:
            tracks: with `spans`, in the order in which they are first shown.
        """
        places: list[Place] = []
        # Of each row: where its bars end, and where its last number begins.
        ends, numbers = list[float](), list[float]()
        for track in tracks:
            left, (last_left, last_width) = self.box(track["spans"][0])[0], self.box(track["spans"][-1])
            right = last_left + last_width
            at_end = left > 100 - NUMBER_WIDTH_PHONE
            begin = min(left, right - NUMBER_WIDTH_PHONE) if at_end else left
            row = next((each for each, end in enumerate(ends) if end <= begin), len(ends))
            if row == ROWS:
                row = ends.index(min(ends))
            elif row == len(ends):
                ends.append(-math.inf)
                numbers.append(-math.inf)
            room = begin - numbers[row]
            number, on_phone = room >= NUMBER_WIDTH, room >= NUMBER_WIDTH_PHONE
            places.append(Place(row, left, right, number, on_phone, at_end))
            ends[row] = max(ends[row], right + ROW_GAP, begin + NUMBER_WIDTH_PHONE)
            numbers[row] = begin if number else numbers[row]
        return places

    def ticks(self) -> Iterator[tuple[float, str, bool]]:
        """Yield the position in per cent and the label of each tick, and whether a phone shows it."""
        length = self.end - self.start
        step = _tick_distance(length, MAX_TICKS, 1)
        phone = _tick_distance(length, MAX_TICKS_PHONE, step)
        for seconds in range(0, int(length) + 1, step):
            yield 100 * self._place(self.start + seconds), clock(self.start + seconds, 0), seconds % phone == 0


def _stretches(mask: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each stretch of adjacent true values of a mask, bool [n]."""
    true = np.flatnonzero(mask)
    return [each for each in np.split(true, np.flatnonzero(np.diff(true) > 1) + 1) if len(each)]


def _tick_distance(length: float, most: int, multiple_of: int) -> int:
    """Return the smallest distance in seconds between ticks that gives at most `most` distances."""
    possible = [step for step in TICKS_S if step % multiple_of == 0]
    return next((step for step in possible if length / step <= most), possible[-1])


def write_report(run: Path, figures: dict[str, Any] | None = None, summary: dict[str, Any] | None = None) -> Path:
    """Write report.html from a run's frames.csv, findings.json and summary.json.

    Args:
        run: folder of results of `process`.
        figures: result of `score`, if the ground truth is known.
        summary: what summary.json will contain; None: it is there already.

    Returns:
        Path of the report.

    Raises:
        DataError: the folder does not hold a finished run.
        OutputError: the report cannot be written.
    """
    try:
        if summary is None:
            summary = dict(json.loads((run / "summary.json").read_text()))
        found = read_findings(run)
        tracks, marks = found["tracks"], marks_in(found)
        review = ReviewStore(run).read()
        peak = peak_of(summary)
        timeline, qualities = read_table(run / "frames.csv", peak)
        withdrawal = withdrawal_of(marks, read_frames(run / "frames.csv"), tracks) if marks else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run}: holds no finished run of `polypstream process` ({error})") from error
    rows = [
        track | {"picture": picture, "spans": shown_spans(track, timeline), "review": review_of(track["track"], review)}
        for track, picture in zip(tracks, inlined(run, [track["snapshot"] for track in tracks]), strict=True)
    ]
    values = {"summary": summary, "peak": peak, "timeline": timeline, "qualities": qualities, "figures": figures}
    values |= {"marks": marks, "withdrawal": withdrawal, "drawn": drawn_by_readers(run, review), "review": review}
    return write_page(run, "report.html", tracks=rows, video=_video_of(run, summary), **values)


def _video_of(run: Path, summary: dict[str, Any]) -> str | None:
    """Return the path of a run's video from the folder of the results; None: there is none."""
    video = str(summary.get("video", "annotated.mp4"))
    return video if (run / video).is_file() else None


def update_report(run: Path) -> None:
    """Write report.html again if the run was reviewed since.

    Args:
        run: folder of the results.

    Raises:
        DataError: the folder does not hold a finished run.
        OutputError: the report cannot be written.
    """
    if reviewed_since_report(run):
        write_report(run)


def reviewed_since_report(run: Path) -> bool:
    """Whether a run was reviewed after its report was written.

    Args:
        run: folder of the results.
    """
    review, report = run / REVIEWS, run / "report.html"
    return review.is_file() and report.is_file() and review.stat().st_mtime >= report.stat().st_mtime


def review_of(track: int, review: Review) -> str:
    """What readers decided about a track, for people; empty: nothing.

    Args:
        track: number of the track.
        review: what the readers stored.
    """
    corrections = [each for (number, _), each in review.corrections.items() if number == track]
    corrected = f"outline corrected in {counted(len(corrections), 'frame')}" if corrections else ""
    decision = review.decisions.get(track)
    if decision is None or decision.choice == "undecided":
        return corrected
    day = datetime.fromtimestamp(decision.time, UTC)
    return "; ".join(filter(None, (f"{decision.choice} by {decision.reader} on {day:%Y-%m-%d}", corrected)))


def drawn_by_readers(run: Path, review: Review) -> list[TrackSummary]:
    """The tracks that readers added to a run.

    Args:
        run: folder of the results.
        review: what the readers stored.
    """
    return [track for track in load_reviewed(run).tracks if track.track_id in review.drawn] if review.drawn else []


def write_page(run: Path, template: str, **values: Any) -> Path:
    """Write report.html from a template.

    Args:
        run: folder of the results.
        template: name of the template.
        values: for the template.

    Returns:
        Path of the report.

    Raises:
        OutputError: it cannot be written.
    """
    page, path = environment().get_template(template).render(**values), run / "report.html"
    with write_atomically(path) as unfinished:
        # File names may contain any bytes.
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def peak_of(summary: dict[str, Any]) -> float:
    """Return the probability that a finding of a run must reach, 0..1.

    Args:
        summary: content of summary.json.
    """
    wanted = summary["settings"]["findings"]["peak"]
    return float(summary["model"]["peak"] if wanted == "model" else wanted)


def read_table(table: Path, peak: float) -> tuple[Timeline, dict[str, float]]:
    """Read from frames.csv what the report shows.

    Args:
        table: path of frames.csv.
        peak: probability that a finding must reach, 0..1.

    Returns:
        The timeline, and the shares of frames that are blurred, overexposed and outside, 0..1.

    Raises:
        DataError: the file cannot be read, or holds no frames.
    """
    frames = read_frames(table)
    times = frames["pts_s"]
    if not len(times):
        raise DataError(f"{table}: holds no frames")
    gap = max(GAP_S, GAP_STEPS * float(np.median(np.diff(times)))) if len(times) > 1 else GAP_S
    shares = {name: float(frames[name].mean()) for name in QUALITIES}
    reaches = (frames["max_probability"] * 255).round() >= grey_level(peak)
    unseen = np.flatnonzero(reaches & (frames["polyp_count"] == 0))
    start, end = float(times[0]), float(times[-1])
    columns = _columns(times, frames["max_probability"], gap)
    return Timeline(start, end, columns, _spans(unseen, times[unseen], end - start, gap), gap), shares


def _columns(times: np.ndarray, values: np.ndarray, gap: float) -> np.ndarray:
    """Return the highest value in each column of the timeline, NaN in gaps, float64 [columns].

    Args:
        times: of the frames in seconds, rising, float [n].
        values: of the frames, float [n].
        gap: frames that are further apart have a gap between them, in seconds.
    """
    length = times[-1] - times[0]  # 0 also if a damaged header puts all frames into a microsecond
    columns = np.full(min(COLUMNS, len(times)) if length else 1, np.nan)
    where = ((times - times[0]) / (length or 1.0) * (len(columns) - 1)).round().astype(int)
    np.fmax.at(columns, where, values)
    # A column between two frames has the value of the frame before. Distances between frames are rarely all equal.
    empty = np.flatnonzero(np.isnan(columns))
    after = np.searchsorted(where, empty)
    near = times[after] - times[after - 1] <= gap
    columns[empty[near]] = values[after[near] - 1]
    return columns


def shown_spans(track: dict[str, Any], timeline: Timeline) -> list[Span]:
    """Return the stretches in which a track is shown. Gaps that the timeline cannot show are left out.

    Args:
        track: a track of findings.json.
        timeline: of the recording.
    """
    frames = np.array([outline["frame"] for outline in track["outlines"]])
    times = np.array([outline["pts_s"] for outline in track["outlines"]])
    return _spans(frames, times, timeline.end - timeline.start, timeline.gap)


def _spans(frames: np.ndarray, times: np.ndarray, length: float, gap: float) -> list[Span]:
    """Join frames to spans.

    Args:
        frames: numbers of the frames, rising, int [n].
        times: their times in seconds, float [n].
        length: of the timeline in seconds. Gaps that are shorter than one of its columns are left out.
        gap: frames that are further apart have a gap between them, in seconds.
    """
    if not len(frames):
        return []
    apart = np.diff(times)
    ends = np.flatnonzero(((np.diff(frames) > 1) | (apart > gap)) & (apart > length / COLUMNS))
    return [
        (float(times[first]), float(times[last]))
        for first, last in zip([0, *(ends + 1)], [*ends, len(frames) - 1], strict=True)
    ]


def inlined(run: Path, images: Sequence[str]) -> Iterator[str]:
    """Yield each image of a report: smaller, as a data URL, until MAX_BYTES are used, then as a link.

    Args:
        run: folder of the results.
        images: paths in it.
    """
    bytes_left = MAX_BYTES
    for name in images:
        picture = read_image(run / name, cv2.IMREAD_COLOR) if bytes_left > 0 else None
        if picture is None:
            yield name
            continue
        height, width = picture.shape[:2]
        scale = min(SNAPSHOT_WIDTH / width, SNAPSHOT_HEIGHT / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        smaller = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, SNAPSHOT_QUALITY])
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
        bytes_left -= len(url)
        yield url


@cache
def environment() -> Environment:
    """Environment of the templates of the report and of the web pages, which share parts. It compiles them once."""
    web = Path(str(files("polypstream.web")))
    templates = Environment(
        loader=FileSystemLoader([web / "templates", web / "static"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["zip"] = partial(zip, strict=True)
    templates.filters["clock"] = clock
    templates.filters["time_span"] = time_span
    templates.filters["time_in_view"] = time_in_view
    templates.filters["counted"] = counted
    return templates
