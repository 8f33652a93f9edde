"""`output.video.codec: none`: everything but annotated.mp4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polypstream as pp
from polypstream.core.config import load_settings
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.media import audio
from tests.archive.test_parts import GOP, Twice
from tests.conftest import call, frames_of, summary_of
from tests.web.serving import served, settings_for, until

NO_VIDEO = "output.video.codec=none"


def test_everything_else_is_as_with_a_video(
    make: Callable[..., Path], red_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = make(audio=["aac"], frames=40)
    folders = []
    for name, overrides in (("with", []), ("without", [NO_VIDEO])):
        if overrides:  # the sound is not read
            monkeypatch.setattr(audio, "open_container", lambda *_: pytest.fail("the sound was opened"))
        settings = with_model(load_settings(None, overrides), red_model)
        run = process(Job(str(recording), tmp_path / name, masks=True), make_segmenter(settings), settings)
        assert (run.frames, run.polyps, run.problem) == (40, 1, "")
        folders.append(run.folder)
    one, other = folders
    assert not (other / "annotated.mp4").exists()
    assert (one / "frames.csv").read_bytes() == (other / "frames.csv").read_bytes()
    assert pp.load_run(one).tracks[0].peak_probability == pp.load_run(other).tracks[0].peak_probability
    assert (one / "snapshots/track-1.jpg").read_bytes() == (other / "snapshots/track-1.jpg").read_bytes()
    assert all(
        (a == b).all() for a, b in zip(*(frames_of(each / "masks.mkv", "gray") for each in folders), strict=True)
    )
    summary = summary_of(other)
    assert (summary["complete"], summary["frames_in"], summary["frames_out"]) == (True, 40, 40)
    assert (summary["encoder"], summary["notes"]) == (None, [])
    assert "encode" not in summary["seconds_per_stage"]  # type: ignore[operator]
    assert "<video" in (one / "report.html").read_text()
    assert "<video" not in (other / "report.html").read_text()


def test_the_api_writes_no_video(make: Callable[..., Path], red_model: Path, tmp_path: Path) -> None:
    settings = pp.load_settings(overrides=[NO_VIDEO])
    detector = pp.Detector(red_model, provider="cpu", settings=settings)
    done: list[tuple[int, int | None]] = []
    run = pp.process(make(), tmp_path / "out", detector=detector, on_progress=lambda *both: done.append(both))
    assert len(run.frames["pts_s"]) == 30
    assert done[-1][0] == 30
    assert not (run.folder / "annotated.mp4").exists()


@pytest.mark.slow
def test_parts_are_joined_without_a_video(make: Callable[..., Path], red_model: Path) -> None:
    twice = Twice(make(options=GOP, audio=["aac"], frames=80), red_model, 1.0, NO_VIDEO)
    assert len(twice.parts) > 1
    for name in ("frames.csv", "findings.json"):
        assert (twice.joined / name).read_bytes() == (twice.whole / name).read_bytes()
    assert not (twice.joined / "annotated.mp4").exists()
    assert len(frames_of(twice.joined / "masks.mkv", "gray")) == 80
    assert twice.joining.frames == 80
    assert "<video" not in (twice.joined / "report.html").read_text()


@pytest.mark.parametrize("option", ["--record", "--push"])
def test_live_video_is_not_recorded_or_sent_without_an_encoder(
    make: Callable[..., Path], red_model: Path, tmp_path: Path, option: str
) -> None:
    target = tmp_path / "live.mp4" if option == "--record" else "rtsp://127.0.0.1:9/x"
    done = call("live", f"replay:{make()}", option, target, "--model", red_model, "--set", NO_VIDEO, check=False)
    assert done.returncode == 1
    assert f"{option}: output.video.codec is none, which writes no video; set it to libx264 or auto" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_bench_refuses_to_measure_no_encoder(make: Callable[..., Path], red_model: Path) -> None:
    done = call("bench", make(), "--seconds", 1, "--model", red_model, "--set", NO_VIDEO, check=False)
    assert done.returncode == 1
    assert "output.video.codec none: writes no video; choose libx264 or auto" in done.stderr


@pytest.mark.browser
def test_the_report_and_the_page_of_the_server_without_a_video(
    make: Callable[..., Path], red_model: Path, tmp_path: Path, browse: Callable[[], Any]
) -> None:
    driver = browse()
    settings = settings_for(red_model, output={"video": {"codec": "none"}})

    def check() -> None:
        until(lambda: driver.find_elements("css selector", ".bar"))
        assert not driver.find_elements("css selector", "video")
        assert "Click on the timeline" not in driver.page_source
        driver.find_element("css selector", ".bar").click()
        until(lambda: driver.find_elements("css selector", ".card.chosen"))
        assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]

    with served(tmp_path / "served", settings) as app:
        id_ = app.send(make())
        info = app.wait_for(id_, "finished", "failed")
        assert info["state"] == "finished"
        assert "annotated.mp4" not in info["files"]
        assert app.get(f"/api/recordings/{id_}/files/annotated.mp4").status_code == 404
        driver.get(f"{app.address}/recordings/{id_}")
        check()
        driver.get(f"{app.address}/api/recordings/{id_}/files/report.html")
        check()
