"""What a live session leaves: recordings with and without markers, clips of what has passed, results, marks."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import polypstream as pp
from polypstream.core.config import Settings, VideoSettings
from polypstream.core.frame import PictureFormat
from polypstream.core.marks import Mark, Marks
from polypstream.errors import DataError, OutputError, SettingsError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import clips_of, recordings_of
from polypstream.jobs.withdrawal import withdrawal_of
from polypstream.media.recent_video import RecentVideo
from polypstream.sinks.clips import ClipSaver
from polypstream.sinks.findings import read_findings, write_marks
from tests.conftest import call, frames_of, pts_of

pytestmark = pytest.mark.slow

PATIENT = Settings.model_validate({"live": {"max_staleness": 60.0}})


@pytest.fixture
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


def record(video: Path, segmenter: Segmenter, path: Path, settings: Settings = PATIENT, **wanted: bool) -> Live:
    sources = open_sources([f"room=replay:{video}"], settings)
    live = Live(sources, segmenter, settings, recordings_of(path, sources, settings, **wanted))
    live.run(lambda: None)
    return live


def greens(picture: np.ndarray) -> int:
    """Number of pixels in the colour of the markers, of an RGB picture."""
    return int((picture[..., 1].astype(int) - picture[..., 0] > 60).sum())


@pytest.mark.parametrize("display", ["in-step", "pass-through"])
def test_a_clean_recording_has_no_markers_and_the_findings_beside_it(
    display: str, make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"live": {"max_staleness": 60.0, "display": display}})
    record(make(frames=50), segmenter, tmp_path / "r.mp4", settings, clean=True)
    shown, source = frames_of(tmp_path / "r.mp4", "rgb24"), frames_of(tmp_path / "clip.mp4", "rgb24")
    assert not any(greens(picture) for picture in shown)
    assert np.abs(shown[0][5:40].astype(int) - source[0][5:40]).max() < 12  # there is no text
    run = pp.load_run(tmp_path / "r")
    assert len(run.frames["frame"]) == len(shown)
    assert list(run.frames["frame"]) == list(range(len(shown)))
    assert run.frames["pts_s"] == pytest.approx([float(each) for each in pts_of(tmp_path / "r.mp4")], abs=1e-5)
    (track,) = run.tracks
    assert track.frames > 10
    assert track.seconds_in_view == pytest.approx(track.last_s - track.first_s, abs=0.2)
    assert track.snapshot.is_file()
    assert run.summary["complete"]
    page = (tmp_path / "r" / "report.html").read_text()
    assert '<video src="../r.mp4"' in page


def test_findings_of_a_session_are_read_like_those_of_a_recording(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    record(make(frames=50), segmenter, tmp_path / "r.mp4", clean=True, masks=True)
    said = call("masks", tmp_path / "r.mp4", "--results", tmp_path, "--format", "coco", "--output", tmp_path / "coco")
    assert "coco" in said.stdout + said.stderr
    assert list((tmp_path / "coco").rglob("*.json"))
    truth = tmp_path / "truth.mkv"
    truth.write_bytes((tmp_path / "r" / "masks.mkv").read_bytes())
    assert "dice" in call("score", tmp_path / "r", "--truth", truth).stdout.lower()


def test_each_file_of_a_recording_has_its_own_findings(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"live": {"max_staleness": 60.0}, "output": {"roll": {"seconds": 1.0}}})
    record(make(frames=60), segmenter, tmp_path / "r.mp4", settings)
    for name in ("r", "r-2", "r-3"):
        frames = pp.load_run(tmp_path / name).frames
        assert len(frames["frame"]) == len(pts_of(tmp_path / f"{name}.mp4"))
        assert frames["pts_s"][0] == 0
    with pytest.raises(OutputError, match=r"r\.mp4: exists already; give another --record$"):
        recordings_of(tmp_path / "r.mp4", open_sources(["a=tcp://127.0.0.1:9"], settings), settings)


def test_results_of_another_recording_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(OutputError, match=r"r: exists already; give another --record-clean"):
        recordings_of(tmp_path / "r.mp4", open_sources(["a=tcp://127.0.0.1:9"], PATIENT), PATIENT, clean=True)


def test_frames_that_the_model_did_not_see_are_in_the_table(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("device lost")

    monkeypatch.setattr(segmenter, "run", broken)
    record(make(frames=25), segmenter, tmp_path / "r.mp4", clean=True)
    frames = pp.load_run(tmp_path / "r").frames
    assert len(frames["frame"]) == len(pts_of(tmp_path / "r.mp4"))
    assert not frames["segmented"].any()


def test_one_session_is_recorded_with_and_without_markers(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    both = ("--record", tmp_path / "marked.mp4", "--record-clean", tmp_path / "clean.mp4")
    done = call("live", f"replay:{make(frames=40)}", *both, "--model", red_model, "--set", "live.max_staleness=60.0")
    assert f"is recorded without markers in {tmp_path / 'clean.mp4'}" in done.stderr
    assert max(greens(picture) for picture in frames_of(tmp_path / "marked.mp4", "rgb24")) > 20
    assert not any(greens(picture) for picture in frames_of(tmp_path / "clean.mp4", "rgb24"))
    assert len(pp.load_run(tmp_path / "marked").tracks) == len(pp.load_run(tmp_path / "clean").tracks) == 1
    same = call("live", "demo:", "--record", "a.mp4", "--record-clean", "./a.mp4", check=False)
    assert "--record-clean a.mp4: is the file of --record, too; give it another name" in same.stderr
    lonely = call("live", "demo:", "--push", "udp://127.0.0.1:9", "--masks", check=False)
    assert "--masks: goes with --record or --record-clean" in lonely.stderr


def keep(video: Path, segmenter: Segmenter, folder: Path, seconds: float) -> tuple[Live, ClipSaver]:
    """Play a video to its end, with its last seconds kept."""
    settings = Settings.model_validate({"live": {"max_staleness": 60.0, "keep_seconds": seconds}})
    sources = open_sources([f"room=replay:{video}"], settings)
    live = Live(sources, segmenter, settings, clips_of(folder, sources, settings))
    return live, live.clips["room"]


def test_what_has_passed_is_saved_as_a_clip_with_its_findings(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    # Groups of two seconds: with one group, a busy machine would keep more than three seconds and two.
    live, clips = keep(make(frames=150, options={"g": "50"}), segmenter, tmp_path / "clips", 3.0)
    saved: list[Path] = []

    def poll() -> None:
        if not saved and live.status()[0].frames_in > 130:  # the disc is gone since frame 100
            saved.append(clips.save())
            saved.append(clips.save())  # what is kept can be saved again

    live.run(poll)
    path, again = saved
    assert re.fullmatch(r"room-\d{8}-\d{6}\.mp4", path.name)
    assert again.name != path.name
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        assert packets[0].is_keyframe
    shown = frames_of(path, "rgb24")
    assert not any(greens(picture) for picture in shown)
    assert pts_of(path)[0] == 0
    assert 2.9 <= float(pts_of(path)[-1]) <= 5.2
    run = pp.load_run(path.with_suffix(""))
    assert len(run.frames["frame"]) == len(shown)
    assert run.frames["pts_s"] == pytest.approx([float(each) for each in pts_of(path)], abs=1e-5)
    (track,) = run.tracks
    assert track.largest_area_fraction == max(run.frames["polyp_area_fraction"])
    red = [index for index, picture in enumerate(shown) if (picture[..., 0].astype(int) - picture[..., 1] > 100).any()]
    assert abs(track.outlines[-1].frame - red[-1]) <= 15  # a finding is shown a little longer than it is there
    snapshot = cv2.imread(str(track.snapshot), cv2.IMREAD_COLOR_RGB).astype(int)
    assert (snapshot[..., 0] - snapshot[..., 1] > 100).any()
    assert call("masks", path, "--results", path.parent, "--format", "png").returncode == 0


def test_no_more_is_kept_than_wanted(make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path) -> None:
    fmt = PictureFormat(320, 240, "yuv420p", Fraction(1, 25), Fraction(25))
    noise, sizes = np.random.default_rng(0), []
    for most in (10**9, 400_000):
        recent = RecentVideo(fmt, VideoSettings(preset="ultrafast"), 4.0, most)
        for pts in range(500):
            picture = av.VideoFrame.from_ndarray(noise.integers(0, 256, (360, 320), np.uint8), "yuv420p")
            picture.pts, picture.time_base = pts, fmt.time_base
            recent.add(picture)
        kept = recent.packets.last(4.0, fmt.time_base)
        assert recent.packets.bytes == sum(len(each.data) for each in kept)
        assert kept[0].is_key
        assert [each.pts for each in kept] == list(range(kept[0].pts, 500))
        sizes.append(recent.packets.bytes)
        if most > 10**8:
            assert 4.0 * 25 <= len(kept) <= 6.0 * 25
    assert sizes[1] < sizes[0]


def test_without_a_picture_there_is_no_clip(tmp_path: Path) -> None:
    ((_, clips),) = clips_of(tmp_path, open_sources(["a=tcp://127.0.0.1:9"], PATIENT), PATIENT)
    with pytest.raises(OutputError, match="there is no picture to save yet"):
        clips.save()


def test_clips_need_an_encoder_and_somebody_who_asks_for_them(tmp_path: Path) -> None:
    none = Settings.model_validate({"output": {"video": {"codec": "none"}}})
    with pytest.raises(SettingsError, match=r"--clips: output\.video\.codec is none"):
        clips_of(tmp_path, open_sources(["a=tcp://127.0.0.1:9"], none), none)
    alone = call("live", "demo:", "--record", tmp_path / "a.mp4", "--clips", tmp_path / "clips", check=False)
    assert alone.returncode == 1
    assert "--clips: nothing can ask for a clip; add --window or --serve" in alone.stderr


def test_a_clip_that_was_asked_for_is_saved_before_the_end(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "polypstream")
    live, clips = keep(make(frames=50), segmenter, tmp_path / "clips", 60.0)
    asked: list[bool] = []

    def poll() -> None:
        if not asked and live.status()[0].shown > 20:
            asked.append(True)
            clips.ask()

    live.run(poll)
    (path,) = (tmp_path / "clips").glob("*.mp4")
    assert f"room: the clip was saved in {path}" in caplog.messages
    (sink,) = (sink for sink in live.sinks() if sink.source == "room")
    assert sink.doing == f"clip saved in {path}"


def test_marks_are_in_the_findings_the_chapters_and_the_report(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"live": {"max_staleness": 60.0, "keep_seconds": 60.0}})
    sources = open_sources([f"room=replay:{make(frames=100)}"], settings)
    recordings = recordings_of(tmp_path / "r.mp4", sources, settings, clean=True)
    live = Live(sources, segmenter, settings, [*recordings, *clips_of(tmp_path / "clips", sources, settings)])
    assert live.mark("room", "biopsy") is None
    wanted = iter([(20, "withdrawal-begins", ""), (50, "note", "blurred?"), (80, "withdrawal-ends", "")])
    following = [next(wanted)]
    saved: list[Path] = []

    def poll() -> None:
        arrived = live.status()[0].frames_in
        if following and arrived > following[0][0]:
            live.mark("room", *following.pop()[1:])
            following.extend(islice(wanted, 1))
        if not saved and arrived > 95:
            saved.append(live.clips["room"].save())

    live.run(poll, 0.01)
    titles = ["Withdrawal begins", "Note: blurred?", "Withdrawal ends"]
    for video in (tmp_path / "r.mp4", saved[0]):
        marks = read_findings(video.with_suffix(""))["marks"]
        assert [mark["kind"] for mark in marks] == ["withdrawal-begins", "note", "withdrawal-ends"]
        with av.open(str(video)) as file:
            chapters = file.chapters()
        assert [chapter["metadata"]["title"] for chapter in chapters] == titles
        starts = [float(chapter["start"] * chapter["time_base"]) for chapter in chapters]
        assert starts == pytest.approx([mark["pts_s"] for mark in marks], abs=0.002)
        assert starts[0] == pytest.approx(0.84, abs=0.3)
        page = (video.with_suffix("") / "report.html").read_text()
        assert "Note: blurred?" in page
        assert "<dt>clear view</dt>" in page


def test_a_mark_belongs_to_the_file_in_which_it_was_set() -> None:
    marks = Marks()
    for seconds in (1.0, 2.5, 4.0):
        marks.add("room", Mark("biopsy", seconds))
    assert marks.within("room", 2.0, 3.0) == [Mark("biopsy", 0.5)]
    assert not marks.within("other", 0.0, 9.0)


def test_figures_of_the_withdrawal() -> None:
    times = np.arange(0, 200, 0.5)
    frames: dict[str, np.ndarray] = {
        "pts_s": times,
        "polyp_count": np.isin(times, [10, 60, 60.5, 90, 150]).astype(int),
        "blurred": (times >= 50) & (times < 65),
        "overexposed": np.zeros(len(times), bool),
        "outside": np.zeros(len(times), bool),
    }
    tracks = [{"first_s": 10.0}, {"first_s": 60.0}, {"first_s": 150.0}]
    marks = [Mark("caecum-reached", 40.0), Mark("withdrawal-begins", 50.0), Mark("withdrawal-ends", 110.0)]
    found = withdrawal_of(marks, frames, tracks)
    assert found is not None
    assert (found.seconds, found.findings, found.findings_per_minute) == (60.0, 1, 1.0)
    assert found.alarms == 3  # 60.5 is half a second after 60
    assert found.clear == pytest.approx(1 - 30 / 121)
    without_end = withdrawal_of(marks[:1], frames, tracks)
    assert without_end is not None
    assert (without_end.begins, without_end.ends) == (40.0, 199.5)
    assert withdrawal_of([Mark("biopsy", 1.0)], frames, tracks) is None
    assert withdrawal_of([Mark("withdrawal-begins", 500.0)], frames, tracks) is None


def test_marks_are_added_to_findings_without_changing_the_tracks(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    call("process", make(frames=30), "--output", tmp_path / "out", "--model", red_model)
    before = read_findings(tmp_path / "out" / "clip")
    for _ in range(2):
        write_marks(tmp_path / "out" / "clip", [Mark("note", 0.5, 'a "quoted" text')])
    after = read_findings(tmp_path / "out" / "clip")
    assert after.pop("marks") == [{"kind": "note", "pts_s": 0.5, "text": 'a "quoted" text'}]
    assert after == before
    with pytest.raises(DataError, match="cannot be read as findings"):
        write_marks(tmp_path, [])
