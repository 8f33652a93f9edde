"""What is read from a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polypstream.core.config import Settings
from polypstream.errors import DataError
from polypstream.jobs.results import Outline, Run, TrackSummary, best_outlines, find_run, load_run

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


def test_a_folder_and_results_of_images_are_said_to_be_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; name its recordings"):
        find_run(str(tmp_path), tmp_path / "results")
    (tmp_path / "findings.json").write_text('{"schema": "polypstream-images-1"}')
    with pytest.raises(
        DataError, match=r"results of images, which have no tracks\. Their masks are in .*polyps\.csv; in Python, "
    ):
        load_run(tmp_path)
