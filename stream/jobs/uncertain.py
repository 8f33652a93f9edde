"""Chooses the frames that a reader should review first: those from whose correction a network learns most."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polypstream.jobs.image_results import Stills
from polypstream.jobs.report import peak_of
from polypstream.jobs.results import Run

# Two chosen frames are at least this many seconds apart, or closer if there are not enough frames otherwise.
APART_S, NEAREST_S = 2.0, 0.02
# A probability this far from the one that a finding must reach is half as uncertain as at it.
HALF = 0.15


class UncertainFrame(NamedTuple):
    """A frame to review.

    Attributes:
        frame: number of the frame, from 0.
        track: number of a track that it shows; None: it shows none.
    """

    frame: int
    track: int | None


def uncertainty(run: Run) -> np.ndarray:
    """How uncertain each frame is, float64 [frames].

    The sum of three values of 0 to 1: how near the highest probability is to the one that a finding must reach; whether
    a track begins, ends or flickers here; and how much the area of the findings differs from that of the frames beside.
    Images have no frames beside them: only the first value counts.

    Args:
        run: the run.
    """
    frames = run.frames
    near: np.ndarray = np.exp2(-(((frames["max_probability"] - peak_of(run.summary)) / HALF) ** 2))
    if isinstance(run, Stills):
        return near
    counts, areas = frames["polyp_count"].astype(float), frames["polyp_area_fraction"]
    changes, steps = (np.abs(np.diff(values, prepend=values[:1])) for values in (counts, areas))
    beside = [np.maximum(values, np.append(values[1:], 0.0)) for values in (changes, steps)]
    return near + np.minimum(beside[0], 1.0) + beside[1] / max(float(areas.max()), 1e-9)


def choose_uncertain(run: Run, count: int) -> list[UncertainFrame]:
    """Choose frames to review, the most uncertain one first, far apart in time.

    Args:
        run: the run.
        count: number of frames; fewer if the recording has fewer.
    """
    values, times = uncertainty(run), run.frames["pts_s"]
    chosen: list[int] = []
    apart, left = 0.0 if isinstance(run, Stills) else APART_S, values.copy()
    while len(chosen) < min(count, len(values)):
        frame = int(left.argmax())
        if np.isneginf(left[frame]):
            # All others are too near.
            apart = apart / 2 if apart > NEAREST_S else 0.0
            left = values.copy()
            for other in chosen:
                left[np.abs(times - times[other]) <= apart] = -np.inf
            continue
        chosen.append(frame)
        left[np.abs(times - times[frame]) <= apart] = -np.inf
    return [UncertainFrame(frame, next(iter(run.frames["tracks"][frame]), None)) for frame in chosen]
