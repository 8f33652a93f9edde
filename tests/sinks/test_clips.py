"""What a clip keeps of each frame."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from polypstream.core.frame import Frame, Quality
from polypstream.core.geometry import FieldOfView
from polypstream.sinks.clips import _note_of


def test_a_skipped_frame_has_the_findings_before_it_only_if_they_are_recent() -> None:
    frame = Frame(7, av.VideoFrame(64, 48, "yuv420p"), 100, Fraction(1, 100))
    frame.view, frame.probability = FieldOfView(0, 0, 64, 48), np.zeros((4, 4), np.uint8)
    frame.quality = Quality(blurred=True, overexposed=False, outside=False)
    frame.outlines, frame.tracks, frame.peaks, frame.carried = [np.zeros((3, 2), np.int32)], [1], [230], [True]
    frame.areas = [6]
    note = _note_of(frame)
    assert (note.row["polyp_count"], note.row["carried"], note.row["segmented"]) == (1, 1, 1)

    recent = note.skipped(110, 0.2)
    assert (recent.frame.tracks, recent.frame.carried) == ([1], [True])
    assert (recent.row["polyp_count"], recent.row["carried"], recent.row["segmented"]) == (1, 1, 0)
    old = note.skipped(130, 0.2)
    assert (old.frame.outlines, old.frame.tracks, old.frame.peaks, old.frame.carried) == ([], [], [], [])
    assert (old.row["polyp_count"], old.row["carried"], old.row["segmented"]) == (0, 0, 0)
    assert (note.frame.tracks, note.row["polyp_count"]) == ([1], 1)  # it is as it was
