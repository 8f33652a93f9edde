"""Live recordings without markers whose packets are those of the source, with a line of results for every frame."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

import polypstream as pp
from polypstream.core.config import Settings
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import clips_of, recordings_of
from polypstream.media.h264 import IDR, is_avcc, split_lengths, split_start_codes, unit_type
from tests.conftest import audio_packets_of, call, frames_of, free_port, pts_of
from tests.jobs.test_live_sound import beeps_in_step, flashing, sending

pytestmark = pytest.mark.slow

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program as a sender")
PATIENT = Settings.model_validate({"live": {"max_staleness": 60.0, "longest_wait": 0.5}})
H264 = {"g": "20", "preset": "ultrafast"}


@pytest.fixture
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


def slices_of(path: Path) -> list[list[bytes]]:
    """The slices of each packet of a video, in the order of decoding. They are the coded pictures."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        split = split_lengths if is_avcc(stream.codec_context.extradata or b"") else split_start_codes
        packets = [split(bytes(packet)) for packet in file.demux(stream) if packet.size]
    return [[unit for unit in units if 1 <= unit_type(unit) <= IDR] for units in packets]


def record(video: Path, segmenter: Segmenter, path: Path, settings: Settings = PATIENT, masks: bool = False) -> Live:
    """Record a video without markers, and save a clip of it at its end."""
    sources = open_sources([f"room=replay:{video}"], settings)
    recordings = recordings_of(path, sources, settings, True, masks)
    live = Live(sources, segmenter, settings, [*recordings, *clips_of(path.parent / "clips", sources, settings)])

    def poll() -> None:
        if sources[0].signal.ended:
            live.clips["room"].ask()

    live.run(poll, 0.01)
    return live


def assert_results_fit(path: Path) -> pp.Run:
    """A line for each frame of the file, with its time."""
    run = pp.load_run(path.with_suffix(""))
    assert list(run.frames["frame"]) == list(range(len(pts_of(path))))
    assert run.frames["pts_s"] == pytest.approx([float(each) for each in pts_of(path)], abs=1e-5)
    return run


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_packets_are_copied_also_those_of_frames_that_were_skipped(
    bframes: str, make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_session = segmenter.run

    def slow(pictures: np.ndarray) -> np.ndarray:
        time.sleep(0.1)
        return run_session(pictures)

    monkeypatch.setattr(segmenter, "run", slow)
    video = make(frames=60, options={**H264, "bf": bframes, "b-adapt": "0"}, audio=("aac",))
    live = record(video, segmenter, tmp_path / "r.mp4", masks=True)
    assert sum(live.status()[0].dropped.values()) > 10
    assert slices_of(tmp_path / "r.mp4") == slices_of(video)
    assert (np.array(frames_of(tmp_path / "r.mp4", "gray")) == np.array(frames_of(video, "gray"))).all()
    times = {data: when for when, data in audio_packets_of(video)[0]}
    assert len(audio_packets_of(tmp_path / "r.mp4")[0]) > 80
    assert all(abs(times[data] - when) < 0.001 for when, data in audio_packets_of(tmp_path / "r.mp4")[0])
    run = assert_results_fit(tmp_path / "r.mp4")
    assert run.frames["pts_s"] == pytest.approx([float(each) for each in pts_of(video)], abs=1e-5)
    assert 0 < run.frames["segmented"].sum() < 50
    (track,) = run.tracks
    # The disc is there up to frame 40. Frames that were skipped have the findings of the frame before.
    assert track.frames > 30
    clip = live.clips["room"].clips[-1]
    assert slices_of(clip) == slices_of(video)
    kept = assert_results_fit(clip)
    assert [each.frames for each in kept.tracks] == [track.frames]
    said = call("masks", tmp_path / "r.mp4", "--results", tmp_path, "--format", "coco", "--output", tmp_path / "coco")
    assert "coco" in said.stdout + said.stderr
    truth = tmp_path / "truth.mkv"
    truth.write_bytes((tmp_path / "r" / "masks.mkv").read_bytes())
    assert "dice" in call("score", tmp_path / "r", "--truth", truth).stdout.lower()


def test_new_files_begin_with_key_pictures_and_miss_no_frame(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"live": {"max_staleness": 60.0}, "output": {"roll": {"seconds": 1.0}}})
    video = make(frames=90, options={**H264, "bf": "2"})
    record(video, segmenter, tmp_path / "r.mp4", settings)
    files = [tmp_path / "r.mp4", *sorted(tmp_path.glob("r-*.mp4"))]
    assert len(files) >= 2
    assert [each for path in files for each in slices_of(path)] == slices_of(video)
    for path in files:
        assert_results_fit(path)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"name": "clip.mkv", "codec": "mpeg2video"}, "the source sends mpeg2video, not H.264"),
        ({"interlaced": True, "options": H264}, "it may have interlaced frames"),
    ],
)
def test_what_cannot_be_copied_is_encoded_and_said_once(
    wanted: dict[str, object],
    why: str,
    make: Callable[..., Path],
    segmenter: Segmenter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "polypstream")
    live = record(make(frames=40, **wanted), segmenter, tmp_path / "r.mp4")
    assert sorted(message for message in caplog.messages if "encoded" in message) == [
        f"room: {what} encoded, because {why}"
        for what in ("the recording without markers is", "what is kept for clips is")
    ]
    assert f"(encoded, because {why})" in live.sinks()[0].doing
    assert_results_fit(tmp_path / "r.mp4")


@pytest.mark.realtime
@needs_ffmpeg
def test_packets_of_a_stream_are_copied_in_step_with_its_sound_across_a_loss(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    """The third sender has other parameter sets than the first two, so its pictures have a file of their own."""
    port = free_port()
    first = flashing(tmp_path / "a.mkv", 6)
    second = flashing(tmp_path / "b.mkv", 6, size=(320, 240))
    sources = open_sources([f"room=srt://127.0.0.1:{port}?mode=listener"], PATIENT)
    live = Live(sources, segmenter, PATIENT, recordings_of(tmp_path / "r.mp4", sources, PATIENT, True))
    to = ["-f", "mpegts", f"srt://127.0.0.1:{port}?mode=caller"]

    def senders() -> Iterator[None]:
        for video in (first, first, second):
            with sending(video, to) as sender:
                while sender.poll() is None:
                    yield
            while sources[0].signal.there:
                yield
        live.close()

    acting = senders()
    live.run(lambda: next(acting, None))
    sent = [slices_of(video) for video in (first, second)]
    for path, slices in zip((tmp_path / "r.mp4", tmp_path / "r-2.mp4"), sent, strict=True):
        assert_results_fit(path)
        assert beeps_in_step(path) >= 2
        assert all(each in slices for each in slices_of(path))
    assert len(slices_of(tmp_path / "r.mp4")) > len(sent[0])
