"""A recording in, an annotated MP4 out: what is kept, on media of every kind that the tests can make."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from polypstream.core.config import load_settings
from polypstream.core.frame import Frame, Quality
from polypstream.core.geometry import FieldOfView
from polypstream.errors import OutputError
from polypstream.inference import segmenter
from polypstream.inference.providers import open_session
from polypstream.jobs.process import Job, process, read_result
from polypstream.jobs.setup import make_segmenter, make_stages, with_model
from polypstream.sinks.findings import read_polyps
from polypstream.sinks.tables import FramesTable
from tests.conftest import (
    RED,
    Clip,
    audio_packets_of,
    call,
    command,
    disc,
    frames_of,
    pts_of,
    summary_of,
)

Make = Callable[..., Path]


def run(recording: Path, model: Path, *overrides: str, masks: bool = True) -> Path:
    """Process one recording in this process; its folder of results."""
    settings = with_model(load_settings(None, list(overrides)), model)
    job = Job(str(recording), recording.parent / "out", masks)
    return process(job, make_segmenter(settings), settings).folder


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open() as file:
        return list(csv.DictReader(file))


VARIED = [0, 1, 7, 8, 20, 21, 22, 60, 100, 101, 102, 150, 155, 156, 157, 158, 200, 260, 261, 262]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({}, id="plain"),
        pytest.param({"name": "c.mkv", "width": 639, "height": 479, "codec": "ffv1"}, id="odd-size"),
        pytest.param({"pixel_format": "yuv420p10le"}, id="10-bit"),
        pytest.param({"pixel_format": "yuv422p"}, id="4:2:2"),
        pytest.param({"pixel_format": "yuv422p10le"}, id="4:2:2-10-bit"),
        pytest.param({"pixel_format": "yuv444p"}, id="4:4:4"),
        pytest.param({"name": "c.mkv", "codec": "ffv1", "pixel_format": "gray"}, id="grey"),
        pytest.param({"name": "c.mkv", "codec": "ffv1", "pixel_format": "bgr0"}, id="rgb"),
        pytest.param({"name": "c.avi", "codec": "mjpeg", "pixel_format": "yuvj420p"}, id="motion-jpeg"),
        pytest.param({"name": "c.ts", "codec": "mpeg2video", "audio": ["mp2"]}, id="mpeg-ts"),
        pytest.param({"frames": 20, "pts": VARIED, "time_base": Fraction(1, 100)}, id="variable-rate"),
        pytest.param({"rate": Fraction(30000, 1001)}, id="ntsc"),
        pytest.param({"width": 66, "height": 64}, id="tiny"),
        pytest.param({"frames": 1}, id="one-frame"),
        pytest.param({"pts": range(500, 3500, 100), "time_base": Fraction(1, 1000)}, id="starts-late"),
    ],
)
def test_every_frame_and_pts_survive(make: Make, red_model: Path, wanted: dict[str, object]) -> None:
    recording = make(**wanted)
    folder = run(recording, red_model)
    expected = pts_of(recording)
    assert pts_of(folder / "annotated.mp4") == expected
    masks = pts_of(folder / "masks.mkv")
    assert len(masks) == len(expected)
    assert max(abs(a - b) for a, b in zip(masks, expected, strict=True)) <= Fraction(1, 2000)  # Matroska counts in ms
    rows = table_of(folder)
    assert [float(row["pts_s"]) for row in rows] == pytest.approx([float(pts) for pts in expected], abs=1e-6)
    summary = summary_of(folder)
    assert summary["frames_in"] == summary["frames_out"] == len(expected)
    assert set(summary["seconds_per_stage"]) == {  # type: ignore[call-overload]
        *("decode", "crop", "quality", "segment", "smooth", "findings", "overlay"),
        *("encode", "table", "findings file", "masks"),
    }


def test_the_disc_is_found_where_it_is(make: Make, red_model: Path) -> None:
    clip = Clip(width=640, height=480)
    folder = run(make(width=640, height=480), red_model, "findings.steady=false")
    rows = table_of(folder)
    for index, mask in enumerate(frames_of(folder / "masks.mkv", "gray")):
        assert set(np.unique(mask)) <= {0, 255}
        expected = np.zeros(mask.shape, bool)
        if index < clip.frames * 2 / 3:
            x, y, radius = disc(clip, index)
            lines, columns = np.ogrid[:480, :640]
            expected = (columns - x) ** 2 + (lines - y) ** 2 <= radius**2
        found = mask > 0
        assert int(rows[index]["polyp_count"]) == expected.any()
        assert float(rows[index]["polyp_area_fraction"]) == pytest.approx(found.mean(), abs=1e-6)
        assert (float(rows[index]["max_probability"]) >= 0.5) == expected.any()
        if expected.any():
            assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.95

    (polyp,) = read_polyps(folder)
    assert polyp["largest_area_fraction"] == str(max(float(row["polyp_area_fraction"]) for row in rows))


@pytest.mark.parametrize("style", ["tint", "heatmap"])
def test_a_view_by_hand_may_be_anywhere(make: Make, red_model: Path, style: str) -> None:
    folder = run(make(frames=5), red_model, "view.field_of_view=[21, 11, 251, 201]", f"overlay.style={style}")
    assert all(row["polyp_count"] == "1" for row in table_of(folder)[:3])
    assert summary_of(folder)["field_of_view"] == [20, 10, 252, 202]


@pytest.mark.parametrize(("width", "height"), [(320, 240), (1280, 720)])
def test_rgb_recordings_keep_their_colours(make: Make, red_model: Path, width: int, height: int) -> None:
    recording = make(name="c.mkv", codec="ffv1", pixel_format="bgr0", width=width, height=height, frames=2)
    folder = run(recording, red_model, "overlay.opacity=0", "overlay.contour=0", "output.video.crf=1")
    x, y, _ = disc(Clip(width=width, height=height, frames=2), 0)
    with av.open(str(folder / "annotated.mp4")) as file:
        picture = next(file.decode(file.streams.video[0]))
    assert picture.colorspace in ((1,) if height >= 720 else (5, 6))  # both numbers mean BT.601
    found = picture.to_ndarray(format="rgb24", src_colorspace="ITU709" if height >= 720 else "ITU601")
    assert np.abs(found[int(y), int(x)].astype(int) - RED).max() <= 6


def test_the_picture_is_marked_on_the_disc_and_nowhere_else(make: Make, red_model: Path) -> None:
    recording = make(options={"crf": "10"})
    settings = ("output.video.crf=5", "overlay.opacity=0.5", "overlay.contour=10", "overlay.labels=none")
    folder = run(recording, red_model, *settings)
    before, after = (frames_of(path, "rgb24") for path in (recording, folder / "annotated.mp4"))
    for index in (0, 10, 29):
        difference = np.abs(after[index].astype(int) - before[index]).max(axis=2)
        x, y, radius = disc(Clip(), index)
        lines, columns = np.ogrid[:240, :320]
        away = (columns - x) ** 2 + (lines - y) ** 2 > (radius + 8) ** 2
        assert difference[away].max() < 24  # the encoder's loss
        assert (difference[~away].mean() > 40) == (index < 20)


@pytest.mark.parametrize(("name", "codec"), [("c.mp4", "aac"), ("c.ts", "mp2")])
def test_audio_packets_are_copied_with_their_own_times(make: Make, red_model: Path, name: str, codec: str) -> None:
    recording = make(name=name, audio=[codec, codec], frames=60)
    folder = run(recording, red_model)
    expected, found = audio_packets_of(recording), audio_packets_of(folder / "annotated.mp4")
    assert [[content for _, content in track] for track in found] == [
        [content for _, content in track] for track in expected
    ]
    for track, original in zip(found, expected, strict=True):
        for (time_, _), (expected_time, _) in zip(track, original, strict=True):
            assert abs(time_ - expected_time) <= Fraction(1, 2 * 48000)  # MP4 counts audio in samples


@pytest.mark.parametrize(("name", "codec"), [("c.avi", "pcm_mulaw"), ("c.mkv", "pcm_s16le")])
def test_audio_that_mp4_cannot_hold_is_encoded_and_said(make: Make, red_model: Path, name: str, codec: str) -> None:
    recording = make(name=name, codec="mpeg4", audio=[codec], frames=60)
    folder = run(recording, red_model)
    with av.open(str(folder / "annotated.mp4")) as file:
        assert [track.codec_context.name for track in file.streams.audio] == ["aac"]
        track = file.streams.audio[0]
        assert float(track.duration * track.time_base) == pytest.approx(2.36, abs=0.1)
    assert any("encoded as AAC" in note for note in summary_of(folder)["notes"])  # type: ignore[attr-defined]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize(("rate", "nearest"), [(192000, 96000), (22254, 22050), (6000, 7350)])
def test_audio_at_a_rate_that_aac_lacks_is_resampled(rate: int, nearest: int, tmp_path: Path, red_model: Path) -> None:
    recording = tmp_path / "c.mkv"
    ffmpeg(*PICTURES, "-i", f"sine=r={rate}:d=2", "-c:a", "pcm_s16le", recording)
    with av.open(str(run(recording, red_model) / "annotated.mp4")) as file:
        track = file.streams.audio[0]
        assert track.codec_context.sample_rate == nearest
        assert float(track.duration * track.time_base) == pytest.approx(2, abs=0.1)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_audio_that_changes_its_channels_midway_is_encoded_to_its_end(tmp_path: Path, red_model: Path) -> None:
    recording = tmp_path / "c.ts"
    for start, channels in ((0, 2), (2, 4)):
        sound = ("-i", "sine=r=48000:d=2", "-ac", channels, "-c:a", "s302m", "-strict", "-2")
        ffmpeg(*PICTURES, *sound, "-output_ts_offset", start, "-muxdelay", 0, "-f", "mpegts", tmp_path / f"{start}.ts")
    recording.write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    with av.open(str(run(recording, red_model) / "annotated.mp4")) as file:
        track = file.streams.audio[0]
        assert float(track.duration * track.time_base) == pytest.approx(4, abs=0.1)


PICTURES = ("-f", "lavfi", "-i", "testsrc=s=64x64:r=10:d=2", "-f", "lavfi")


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-loglevel", "error", *map(str, arguments)], check=True)


def test_a_polyp_in_two_pieces_is_counted_once_and_one_that_is_carried_has_no_probability(tmp_path: Path) -> None:
    frame = Frame(0, av.VideoFrame(8, 8, "yuv420p"), 0, Fraction(1, 25))
    frame.probability, frame.quality = np.zeros((8, 8), np.uint8), Quality(False, False, False)
    frame.outlines, frame.tracks, frame.peaks = [np.zeros((3, 2), np.int32)] * 3, [7, 2, 7], [230, 204, 230]
    frame.carried = [True, False, True]
    table = FramesTable(tmp_path / "frames.csv")
    table.write(frame)
    table.close()
    (row,) = table_of(tmp_path)
    assert (row["polyp_count"], row["tracks"], row["max_probability"], row["carried"]) == ("2", "2 7", "0.8000", "1")


BT709 = {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}
BT601_FULL = {"colorspace": 6, "color_range": 2, "color_primaries": 6, "color_trc": 6}


@pytest.mark.parametrize("tags", [BT709, BT601_FULL, {}], ids=["bt709", "bt601-full", "untagged"])
def test_colour_tags_survive(make: Make, red_model: Path, tags: dict[str, int]) -> None:
    recording = make(colours=tags, frames=5)
    folder = run(recording, red_model)
    for path in (recording, folder / "annotated.mp4"):
        with av.open(str(path)) as file:
            context = file.streams.video[0].codec_context
            assert {tag: getattr(context, tag) for tag in tags} == tags
    with av.open(str(recording)) as before, av.open(str(folder / "annotated.mp4")) as after:
        for tag in BT709:
            first, second = (getattr(file.streams.video[0].codec_context, tag) for file in (before, after))
            assert first == second


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_and_pixel_shape_survive(make: Make, red_model: Path, rotation: int) -> None:
    recording = make(rotation=rotation, sample_aspect_ratio=Fraction(12, 11), frames=5)
    folder = run(recording, red_model)
    for path in (recording, folder / "annotated.mp4"):
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            assert (next(file.decode(stream)).rotation - rotation) % 360 == 0
            assert stream.sample_aspect_ratio == Fraction(12, 11)


def test_interlaced_pictures_stay_interlaced(make: Make, red_model: Path) -> None:
    recording = make(interlaced=True, frames=10)
    folder = run(recording, red_model)
    for path in (recording, folder / "annotated.mp4"):
        with av.open(str(path)) as file:
            assert all(frame.interlaced_frame for frame in file.decode(file.streams.video[0]))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain CPU provider poses as CUDA, since on a CPU pictures run one by one whatever the settings say."""
    monkeypatch.setattr(segmenter, "choose", lambda _: (["cuda"], []))
    monkeypatch.setattr(segmenter, "open_session", lambda model, _, settings: open_session(model, "cpu", settings))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.slow
def test_the_result_does_not_depend_on_batch_size_or_timing(make: Make, red_model: Path) -> None:
    recording = make(frames=40)
    results = []
    for turn, size in enumerate((1, 3, 8, 8)):
        settings = with_model(load_settings(None, [f"inference.batch_size={size}"]), red_model)
        model = make_segmenter(settings)
        batches: list[int] = []

        def noting(
            pictures: list[np.ndarray], run: Callable[[list[np.ndarray]], np.ndarray], batches: list[int]
        ) -> np.ndarray:
            batches.append(len(pictures))
            return run(pictures)

        model.run = partial(noting, run=model.run, batches=batches)  # type: ignore[method-assign]
        job = Job(str(recording), recording.parent / str(turn), masks=True)
        folder = process(job, model, settings).folder
        assert batches == [size] * (40 // size) + [40 % size] * bool(40 % size)
        results.append([(folder / name).read_bytes() for name in ("frames.csv", "annotated.mp4")])
        results[-1].append(np.stack(frames_of(folder / "masks.mkv", "gray")).tobytes())
    assert all(result == results[0] for result in results[1:])
    assert {row["polyp_count"] for row in table_of(folder)} == {"0", "1"}


def test_the_heat_map_marks_the_disc(make: Make, red_model: Path) -> None:
    recording = make()
    folder = run(recording, red_model, "overlay.style=heatmap", "overlay.opacity=0.8")
    before, after = (frames_of(path, "rgb24")[5] for path in (recording, folder / "annotated.mp4"))
    x, y, _ = disc(Clip(), 5)
    assert np.abs(after[int(y), int(x)].astype(int) - RED).max() > 30
    assert np.abs(after[20, 20].astype(int) - before[20, 20]).max() < 16


def test_raw_aac_of_a_transport_stream_gets_the_header_that_mp4_wants(make: Make, red_model: Path) -> None:
    recording = make(name="c.ts", audio=["aac"], frames=60)
    folder = run(recording, red_model)
    (before,), (after,) = audio_packets_of(recording), audio_packets_of(folder / "annotated.mp4")
    assert [content[7:] for _, content in before] == [content for _, content in after]  # without the ADTS header
    with av.open(str(folder / "annotated.mp4")) as file:
        assert sum(frame.samples for frame in file.decode(file.streams.audio[0])) > 2 * 48000


@pytest.mark.slow
def test_several_recordings_share_one_call_and_results_are_not_overwritten(make: Make, red_model: Path) -> None:
    first, second = make(name="a.mp4", frames=5), make(name="b.mp4", frames=5)
    output = first.parent / "out"
    done = call("process", first, second, "--output", output, "--model", red_model)
    assert [line.split(":")[1] for line in done.stdout.splitlines()[:2]] == [f" {first}", f" {second}"]
    assert done.stderr == ""
    again = call("process", first, "--output", output, "--model", red_model, check=False)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    call("process", first, "--output", output, "--model", red_model, "--overwrite")


def test_a_run_without_its_report_is_not_finished(make: Make, red_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_full_disk(*_: object, **__: object) -> None:
        raise OutputError("report.html: the disk is full")

    recording = make(frames=5)
    folder = recording.parent / "out" / recording.stem
    monkeypatch.setattr("polypstream.jobs.process.write_report", on_a_full_disk)
    with pytest.raises(OutputError, match="the disk is full"):
        run(recording, red_model)
    assert summary_of(folder)["complete"] is False
    assert read_result(folder) is None
    monkeypatch.undo()
    run(recording, red_model)
    assert read_result(folder) is not None


def test_the_summary_is_the_last_file(make: Make, red_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed before must not count as finished."""
    there: list[bool] = []
    monkeypatch.setattr(
        "polypstream.jobs.process.write_summary", lambda folder, _: there.append((folder / "report.html").exists())
    )
    run(make(frames=5), red_model)
    assert there == [True]


@pytest.mark.slow
def test_interruption_finishes_the_files(make: Make, red_model: Path) -> None:
    folder, process_ = _start_long_run(make, red_model)
    process_.send_signal(signal.SIGINT)
    assert process_.wait(60) == 130
    frames = len(pts_of(folder / "annotated.mp4"))
    assert frames == len(table_of(folder)) == len(pts_of(folder / "masks.mkv"))
    assert summary_of(folder)["complete"] is False


@pytest.mark.slow
def test_a_killed_run_leaves_a_playable_video(make: Make, red_model: Path) -> None:
    folder, process_ = _start_long_run(make, red_model)
    process_.kill()
    process_.wait()
    reached = float(table_of(folder)[-2]["pts_s"])
    assert reached > 2
    assert float(pts_of(folder / "annotated.mp4")[-1]) > reached - 2


def _start_long_run(make: Make, model: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """A run that is surely in its middle: over four seconds of a minute are done."""
    recording = make(frames=1500, audio=["aac"], options={"preset": "ultrafast"})
    folder = recording.parent / "out" / recording.stem
    arguments = ["process", str(recording), "--output", str(folder.parent), "--model", str(model), "--masks"]
    process_ = subprocess.Popen(
        [*command(), *arguments, "--set", "output.video.preset=slower"], stderr=subprocess.DEVNULL, env=os.environ
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "frames.csv").exists() and (folder / "frames.csv").read_text().count("\n") > 110:
            return folder, process_
        time.sleep(0.02)
    raise AssertionError("the run did not get going")


def test_findings_say_who_when_and_where(make: Make, red_model: Path) -> None:
    clip = Clip(frames=75)
    folder = run(make(frames=75), red_model)
    found = json.loads((folder / "findings.json").read_text())
    assert found["schema"] == "polypstream-findings-1"
    assert found["picture_size"] == [clip.width, clip.height]
    (track,) = found["tracks"]
    assert track["track"] == 1
    assert track["first_s"] == 0
    # The disc is there for two thirds; what is gone is held for a moment.
    assert 49 / 25 <= track["last_s"] <= 49 / 25 + 0.12
    assert track["frames"] == len(track["outlines"])
    assert track["seconds_in_view"] == pytest.approx(track["frames"] / 25)
    assert track["peak_probability"] > 0.95
    for outline in track["outlines"][:50:7]:
        x, y, radius = disc(clip, outline["frame"])
        left, top, width, height = outline["box"]
        assert [left, top, left + width, top + height] == pytest.approx(
            [x - radius, y - radius, x + radius, y + radius], abs=6
        )
        assert outline["pts_s"] == outline["frame"] / 25
        assert len(outline["polygons"]) == 1
    with av.open(str(folder / track["snapshot"])) as file:
        assert next(file.decode(video=0)).width == clip.width


@pytest.mark.slow
def test_overwriting_leaves_no_old_snapshots(make: Make, red_model: Path, tmp_path: Path) -> None:
    video = make(frames=10)
    arguments = ("process", video, "--output", tmp_path / "out", "--model", red_model)
    call(*arguments)
    old = tmp_path / "out" / "clip" / "snapshots" / "track-9.jpg"
    old.touch()
    call(*arguments, "--overwrite")
    assert [path.name for path in old.parent.iterdir()] == ["track-1.jpg"]


@pytest.mark.parametrize(("batch", "rate", "frames"), [(8, 30, 30), (8, 120, 60), (1, 30, 4), (1, 5, 2), (1, 0.5, 1)])
def test_frames_that_wait_for_the_encoder_last_a_second_at_most(
    red_model: Path, batch: int, rate: float, frames: int
) -> None:
    """A kill loses them, and what it loses is documented as two seconds at most."""
    settings = with_model(load_settings(None, ["inference.provider=cpu"]), red_model)
    stages = make_stages(FieldOfView(0, 0, 320, 240), make_segmenter(settings), settings)
    assert replace(stages, batch_size=batch).ahead(Fraction(rate)) == frames
