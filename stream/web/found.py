"""The findings of a finished recording, for its page. They are read once, since the files of a run may be long."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from polypstream.jobs.image_results import load_stills
from polypstream.jobs.report import Span, Timeline, read_table, shown_spans
from polypstream.sinks.findings import IMAGES_SCHEMA, SCHEMA, read_findings


class FoundTrack(BaseModel):
    """One track. findings.json has its outlines."""

    track: int
    first_s: float
    last_s: float
    seconds_in_view: float
    frames: int
    peak_probability: float
    mean_probability: float
    largest_area_fraction: float
    snapshot_pts_s: float
    spans: list[Span] = []
    """First and last time of each stretch in which it is shown. Gaps that the timeline cannot show are left out."""


class FoundInImage(BaseModel):
    """One image of a set of images. findings.json has the outlines of its findings."""

    image: str
    """File name."""
    polyp_count: int
    max_probability: float
    annotated: str
    """File name of the copy with the findings marked, in `files/annotated/`."""


class Found(BaseModel):
    """The part of a finished run's results that its page shows. A set of images has no tracks and no timeline."""

    tracks: list[FoundTrack]
    images: list[FoundInImage] = []
    """The images; none: it is a recording."""
    peak: float
    """Probability that a finding must reach."""
    start: float
    end: float
    """Start and end of the recording, in seconds."""
    highest: list[float | None]
    """The highest probability in each column of the timeline; null where the recording has no frame."""
    not_shown: list[Span] = []
    """First and last time of each stretch in which the peak is reached, but no polyp is shown."""

    @property
    def findings(self) -> int:
        """Number of tracks, or of findings in images."""
        return len(self.tracks) + sum(image.polyp_count for image in self.images)

    def timeline(self) -> Timeline:
        """Return the timeline, to be drawn."""
        return Timeline(self.start, self.end, np.array(self.highest, float), self.not_shown)


def found_in(results: Path, peak: float) -> Found:
    """Read the files of a finished run.

    Args:
        results: folder of the run.
        peak: probability that a finding must reach, 0..1.
    """
    findings = read_findings(results, (SCHEMA, IMAGES_SCHEMA))
    if findings["schema"] == IMAGES_SCHEMA:
        return Found(tracks=[], images=_images_in(results), peak=peak, start=0.0, end=0.0, highest=[])
    timeline, _ = read_table(results / "frames.csv", peak)
    tracks = [track | {"spans": shown_spans(track, timeline)} for track in findings["tracks"]]
    highest = [None if math.isnan(value) else value for value in timeline.highest.round(3).tolist()]
    times = {"start": timeline.start, "end": timeline.end, "not_shown": timeline.not_shown}
    return Found(tracks=[FoundTrack(**track) for track in tracks], peak=peak, highest=highest, **times)


def _images_in(results: Path) -> list[FoundInImage]:
    run = load_stills(results)
    columns = [run.frames[name].tolist() for name in ("polyp_count", "max_probability")]
    return [
        FoundInImage(image=name, polyp_count=found, max_probability=highest, annotated=run.annotated(number))
        for number, (name, found, highest) in enumerate(zip(run.names, *columns, strict=True))
    ]
