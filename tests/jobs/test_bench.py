"""`polypstream bench`: every figure is measured, and would show what it is there to show."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from polypstream.cli.bench_tables import _live, _questions, verdict_of
from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.bench import (
    Degradation,
    LiveRun,
    Recorded,
    Shown,
    measure_degradation,
    measure_live,
    measure_recorded,
)
from polypstream.jobs.live import Live
from polypstream.jobs.live_status import Percentiles
from polypstream.sinks.browser import Browser
from polypstream.sources.recording import Recording
from polypstream.stages.overlay import Overlay
from tests.conftest import call

pytestmark = pytest.mark.realtime

WHOLE = FieldOfView(0, 0, 320, 240)
PATIENT = Settings.model_validate({"live": {"max_staleness": 60.0}})


def no_page(live: Live, browser: Browser) -> AbstractContextManager[str]:
    raise AssertionError("nobody looks at it")


@pytest.fixture(scope="module")
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


def test_the_command_prints_and_writes_every_figure(tmp_path: Path, make: Callable[..., Path], red_model: Path) -> None:
    wanted = ("--rooms", 3, "--seconds", 1, "--model", red_model, "--json", tmp_path / "b.json")
    done = call("bench", make(frames=40), *wanted, COLUMNS="80")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    for heading in (
        "cpu:",
        "recorded: 40 frames of 320x240",
        "bottleneck",
        "Live",
        "at once",
        "The session alone",
        "latency of the video",
        "real time",
    ):
        assert heading in done.stdout, heading
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["recorded"]["frames"] == 40
    stages = {"decode", "crop", "quality", "segment", "smooth", "findings", "overlay", "encode", "table"}
    assert set(found["recorded"]["stage_ms"]) == stages
    runs = [(each["display"], each["rate"], each["viewer"], each["rooms"]) for each in found["live"]]
    alone = [("in-step", 30, False), ("in-step", 30, True), ("pass-through", 30, False), ("in-step", 60, False)]
    assert runs[:5] == [*((*run, 1) for run in alone), ("in-step", 30, False, 3)]
    assert 0 <= found["rooms"] <= 3
    for each in found["live"]:
        assert each["frames_in"] == each["rate"] * each["rooms"]
        assert sum(each["shown_by_room"]) == each["shown"]
        assert each["shown"] + sum(each["dropped"].values()) == each["frames_in"]
        assert each["latency_ms"] is None or list(each["latency_ms"]) == ["median", "p95", "p99", "maximum"]
    assert found["providers"]["cpu"]["1"] > 0
    assert found["degradation"]["changed"] == 0
    assert found["degradation"]["encoded_psnr_db"] > 30


def test_the_verdict_is_a_sentence() -> None:
    recorded = Recorded(600, 36.0, "segment", {}, 1.0, (1.0, 1.0))
    quick = Shown("in-step", False, 1, 30, 600, 597, [597], {}, 29.9, Percentiles(38.2, 50.0, 60.0, 70.0), None)
    slow = replace(quick, shown=300, latency_ms=None)
    assert verdict_of(recorded, [1920, 1080], [quick]) == (
        "This machine processes recordings of 1920x1080 with 30 frames per second at 1.2 times real time. Of live "
        "video like this 100 % of the frames are shown, the median latency is 38 ms: the machine is fast enough for it."
    )
    said = verdict_of(recorded, [1920, 1080], [slow])
    assert said.endswith(
        "50 % of the frames are shown: the machine is too slow for it, and polyps in skipped frames may be missed."
    )


def test_a_recording_is_measured_no_longer_than_asked(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make(frames=200)
    slow_down(segmenter, 0.02, monkeypatch)
    recorded = measure_recorded(lambda: Recording(video), WHOLE, segmenter, Settings(), 0.5)
    assert 10 < recorded.frames < 60
    assert recorded.bottleneck == "segment"
    assert recorded.stage_ms["segment"] >= 20
    assert 0 < recorded.own_cpu_ms < 20


def test_a_session_too_slow_for_the_rate_drops_frames_and_stays_current(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make(frames=30)
    slow_down(segmenter, 0.1, monkeypatch)
    live = measure_live(lambda: Recording(video), segmenter, PATIENT, LiveRun("in-step", 30), 2.0, no_page)
    assert live.shown < 22
    assert live.shown + sum(live.dropped.values()) == live.frames_in == 60
    assert live.shown_per_second < 11
    assert live.latency_ms is not None
    assert live.latency_ms.median >= 100
    assert live.latency_ms.maximum < 1000  # waiting for its turn and for itself, but in no queue
    assert live.markers_ms == live.latency_ms


def test_without_a_shown_frame_there_are_no_latencies(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(segmenter, 0.1, monkeypatch)
    strict = Settings.model_validate({"live": {"max_staleness": 0.01}})
    video = make(frames=30)
    live = [
        measure_live(lambda: Recording(video), segmenter, strict, LiveRun(display, 30), 1.0, no_page)
        for display in ("in-step", "pass-through")
    ]
    assert (live[0].shown, live[0].latency_ms, live[0].markers_ms) == (0, None, None)
    console = Console(file=io.StringIO(), width=200)
    console.print(_live(live), _questions({}, Degradation(1, 0, None), live))
    assert "in-step no frame was shown" in console.file.getvalue()


def test_in_pass_through_the_picture_does_not_wait_for_a_slow_session(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make(frames=30)
    slow_down(segmenter, 0.1, monkeypatch)
    live = measure_live(lambda: Recording(video), segmenter, PATIENT, LiveRun("pass-through", 30), 2.0, no_page)
    assert live.latency_ms is not None
    assert live.markers_ms is not None
    assert live.latency_ms.median < 100 <= live.markers_ms.median


def test_a_pixel_changed_outside_the_markers_is_found(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make(frames=12, codec="ffv1", name="clip.mkv")
    before = measure_degradation(lambda: Recording(video), WHOLE, segmenter, Settings())
    assert before.frames == 12
    assert before.changed == 0
    draw = Overlay.__call__

    def careless(self: Overlay, frames: list[Frame]) -> list[Frame]:
        drawn = draw(self, frames)
        for frame in drawn:
            frame.picture.make_writable()
            memoryview(frame.picture.planes[0])[0] ^= 1
        return drawn

    monkeypatch.setattr(Overlay, "__call__", careless)
    assert measure_degradation(lambda: Recording(video), WHOLE, segmenter, Settings()).changed == 12


def slow_down(segmenter: Segmenter, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch takes so much longer."""
    run = segmenter.run

    def slowly(pictures: object) -> object:
        time.sleep(seconds)
        return run(pictures)  # type: ignore[arg-type]

    monkeypatch.setattr(segmenter, "run", slowly)
