"""Runs and ground truths made by hand: results of `process` without a recording."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polypstream.sinks.findings import SCHEMA
from polypstream.sinks.tables import HEADER

RATE, WIDTH, HEIGHT = 25, 96, 64


class Mark(NamedTuple):
    """What a run shows of a track in a frame: a rectangle in pixels."""

    frame: int
    track: int
    probability: float
    x: int = 20
    y: int = 20
    width: int = 20
    height: int = 20

    @property
    def polygon(self) -> list[int]:
        """Through the centres of the outermost pixels."""
        right, bottom = self.x + self.width - 1, self.y + self.height - 1
        return [self.x, self.y, right, self.y, right, bottom, self.x, bottom]


def marks(frames: Sequence[int], track: int, probability: float, **box: int) -> list[Mark]:
    """The same rectangle in some frames."""
    return [Mark(frame, track, probability, **box) for frame in frames]


def make_run(folder: Path, frames: int, shown: Sequence[Mark], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write findings.json, frames.csv and summary.json."""
    folder.mkdir(parents=True)
    unused = dict.fromkeys(("first_s", "last_s", "seconds_in_view", "peak_probability", "mean_probability"), 0.0)
    unused |= {"largest_area_fraction": 0.0, "snapshot_pts_s": 0.0, "snapshot": "none.jpg", "frames": 0}
    tracks = [
        {"track": track, **unused, "outlines": [outline_of(mark) for mark in shown if mark.track == track]}
        for track in sorted({mark.track for mark in shown})
    ]
    head = {"schema": SCHEMA, "input": f"{folder.name}.mp4", "picture_size": list(size), "settings": {}}
    (folder / "findings.json").write_text(json.dumps({**head, "tracks": tracks}))
    (folder / "summary.json").write_text(json.dumps({"field_of_view": [0, 0, *size]}))
    with (folder / "frames.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, HEADER, restval=0)
        table.writeheader()
        for frame in range(frames):
            table.writerow({"frame": frame, "pts_s": f"{frame / RATE:.6f}", "tracks": ""})
    return folder


def outline_of(mark: Mark) -> dict[str, object]:
    """An outline of findings.json."""
    times = {"frame": mark.frame, "pts_s": mark.frame / RATE}
    return {**times, "probability": mark.probability, "polygons": [mark.polygon]}


def squares(values: Mapping[range, tuple[int, int, int]], frames: int) -> list[np.ndarray]:
    """Pictures with a square in ranges of frames: number of the polyp, left edge, side; uint8 [HEIGHT, WIDTH]."""
    pictures = [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(frames)]
    for where, (number, left, side) in values.items():
        for frame in where:
            pictures[frame][20 : 20 + side, left : left + side] = number
    return pictures
