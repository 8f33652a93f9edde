"""What is read from a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polypstream.core.config import Settings
from polypstream.jobs.results import Outline, Run, TrackSummary, best_outlines

SQUARE = np.array([(0, 0), (9, 0), (9, 9), (0, 9)], np.int32)


def track_of(number: int, frames: range) -> TrackSummary:
    """A track that looks the same in each of these frames."""
    outlines = [Outline(number, frame, frame / 25, 0.9, [SQUARE]) for frame in frames]
    return TrackSummary(number, 0.0, 1.0, 1.0, len(frames), 0.9, 0.9, 0.1, Path("track.jpg"), 0.0, outlines)


def test_of_equal_views_the_first_is_the_best_whatever_else_is_in_the_picture() -> None:
    """Track 2 begins before track 1, and shares its later frames with it."""
    run = Run(Path(), {}, [track_of(1, range(10, 20)), track_of(2, range(5, 15))], Settings())
    assert {frame: [outline.track_id for outline in found] for frame, found in best_outlines(run).items()} == {
        10: [1],
        5: [2],
    }
