"""What was found in a recording, as its page shows it: of a finished run's files, once, since they may be long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from polypstream.jobs.report import Timeline, read_table
from polypstream.sinks.findings import read_findings


class FoundTrack(BaseModel):
    """One polyp over time; findings.json has its outlines."""

    track: int
    first_s: float
    last_s: float
    seconds_in_view: float
    frames: int
    peak_probability: float
    mean_probability: float
    largest_area_fraction: float
    snapshot_pts_s: float


class Found(BaseModel):
    """What a page shows of a finished run, without reading its files again: they may be long."""

    tracks: list[FoundTrack]
    peak: float
    """Probability that a finding must reach."""
    start: float
    end: float
    """Of the recording, in seconds."""
    highest: list[float]
    """The highest probability in each column of the timeline."""

    def timeline(self) -> Timeline:
        """To draw it."""
        return Timeline(self.start, self.end, np.array(self.highest))


def found_in(results: Path, peak: float) -> Found:
    """From the files of a finished run."""
    timeline, _ = read_table(results / "frames.csv")
    tracks = read_findings(results)["tracks"]
    highest = timeline.highest.round(3).tolist()
    return Found(tracks=tracks, peak=peak, start=timeline.start, end=timeline.end, highest=highest)
