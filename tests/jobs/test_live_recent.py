"""Whether the machine is fast enough for live video, from the frames of the last seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from polypstream.core.config import Settings
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_recent import RecentFrames
from tests.conftest import Kept


def test_a_machine_that_is_too_slow_is_said_once_and_so_is_its_recovery(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polypstream")
    recent, frames, skipped, warnings = RecentFrames("room"), 0, 0, {}
    shares = {range(30): 0.1, range(30, 60): 0.5, range(60, 90): 0.0}
    for second in range(90):
        share = next(share for times, share in shares.items() if second in times)
        frames, skipped = frames + 30, skipped + round(30 * share)
        recent.add(float(second), frames, skipped)
        warnings[second] = recent.warning
    assert not any(warnings[second] for second in range(31))
    assert warnings[45].startswith(
        "this machine is too slow: 50 % of the frames of the last 10 s were skipped. Polyps in"
    )
    assert not warnings[80]
    assert recent.latest.skipped == 0
    first, last = (each.getMessage() for each in caplog.records)
    assert first.startswith("room: this machine is too slow")
    assert last == "room: the machine is fast enough again"


def test_nothing_is_said_before_ten_seconds() -> None:
    recent = RecentFrames("room")
    for second in range(9):
        recent.add(float(second), 30 * second, 30 * second)
    assert recent.warning == ""
    assert recent.latest.share == 1


@pytest.mark.parametrize("display", ["in-step", "pass-through"])
def test_frames_that_the_model_does_not_see_count_as_skipped(
    display: str, make: Callable[..., Path], red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.model_validate({"live": {"display": display, "max_staleness": 60.0}})
    segmenter = Segmenter(red_model, "cpu")
    run, slow = segmenter.run, __import__("time").sleep
    monkeypatch.setattr(segmenter, "run", lambda pictures: (slow(0.2), run(pictures))[1])
    live = Live(open_sources([f"room=replay:{make(frames=100)}"], settings), segmenter, settings, [("kept", Kept())])
    live.run(lambda: None)
    recent = live.status()[0].recent
    assert recent.frames_in > 50
    assert recent.share > 0.4
