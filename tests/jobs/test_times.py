"""Recordings whose clocks are wrong, as recorders, cutters and broadcasts write them: every picture at its time."""

from __future__ import annotations

import csv
import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from polypstream.core.config import load_settings
from polypstream.jobs.process import Job, ProcessResult, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.sources.recording import Recording
from tests.archive.test_run import Ran, run  # noqa: F401 -- a fixture
from tests.conftest import Clip, audio_packets_of, frames_of, make_clip, pts_of

pytestmark = pytest.mark.slow

SMALL = {"width": 160, "height": 120}
WRAP_S = Fraction(2**33, 90_000)  # when the clock of a transport stream starts again
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


@pytest.fixture
def annotate(red_model: Path, tmp_path: Path) -> Callable[[Path], ProcessResult]:
    """annotate(recording) is the run, of which every picture stands in annotated.mp4 at the time in frames.csv."""
    settings = with_model(load_settings(None, ["inference.provider=cpu", "inference.threads=1"]), red_model)

    def annotated(recording: Path) -> ProcessResult:
        job = Job(str(recording), tmp_path / "results", masks=True, overwrite=True)
        found = process(job, make_segmenter(settings), settings)
        assert found.problem == ""
        times = seconds_of(found)
        assert [float(pts) for pts in pts_of(found.folder / "annotated.mp4")] == pytest.approx(times, abs=1e-4)
        assert times[0] >= 0
        assert all(before < after for before, after in pairwise(times))
        return found

    return annotated


def seconds_of(found: ProcessResult) -> list[float]:
    with (found.folder / "frames.csv").open(newline="") as file:
        return [float(row["pts_s"]) for row in csv.DictReader(file)]


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-y", "-loglevel", "error", "-nostdin", *map(str, arguments)], check=True)


def retimed(source: Path, target: Path, times: Sequence[Fraction | float]) -> Path:
    """The pictures of a recording, each with this time in seconds; sound stays as it is."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        copies = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        count, last = 0, -1
        for packet in old.demux():
            if not packet.size:
                continue
            if packet.stream.type == "video":
                # Decoding times advance whatever the pictures say, as the formats ask for.
                pts = round(Fraction(times[count]) / packet.time_base)
                last = max(last, min(pts, packet.dts or 0))
                packet.pts, packet.dts, packet.duration = pts, last, 0
                count += 1
            packet.stream = copies[packet.stream.index]
            new.mux(packet)
        assert count == len(times)
    return target


def with_pes_times_moved(source: Path, target: Path, which: int, seconds: int) -> Path:
    """A transport stream with the clocks of one picture's packet header moved (ISO/IEC 13818-1, 2.4.3.6)."""
    data, seen = bytearray(source.read_bytes()), 0
    for at in range(0, len(data), 188):
        packet = data[at : at + 188]
        head = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        if not packet[1] & 0x40 or packet[head : head + 3] != b"\0\0\1" or packet[head + 3] & 0xF0 != 0xE0:
            continue
        if seen == which:
            fields = {2: (9,), 3: (9, 14)}[packet[head + 7] >> 6]
            for place in (at + head + field for field in fields):
                mark, *rest = data[place : place + 5]
                value = (mark >> 1 & 7) << 30 | rest[0] << 22 | (rest[1] >> 1) << 15 | rest[2] << 7 | rest[3] >> 1
                value = (value + seconds * 90_000) % 2**33
                data[place : place + 5] = (
                    bytes([mark & 0xF0 | (value >> 30 & 7) << 1 | 1])
                    + ((value >> 15 & 0x7FFF) << 1 | 1).to_bytes(2, "big")
                    + ((value & 0x7FFF) << 1 | 1).to_bytes(2, "big")
                )
        seen += 1
    assert seen > which
    target.write_bytes(data)
    return target


def sound_moved_by(source: Path, result: Path) -> list[Fraction]:
    """By how much each packet of sound was moved, in milliseconds; all of them are there."""
    (before,), (after,) = audio_packets_of(source), audio_packets_of(result)
    assert [len(data) for _, data in before] == [len(data) for _, data in after]
    times = [when for when, _ in after]
    assert times == sorted(times)
    moved = [round((late - early) * 1000) for (early, _), (late, _) in zip(before, after, strict=True)]
    return [Fraction(each, 1000) for each in dict.fromkeys(moved)]


@needs_ffmpeg
@pytest.mark.parametrize("before_the_wrap", [1.5, 6.0], ids=["wraps", "all negative"])
@pytest.mark.parametrize("container", ["ts", "vob"])
def test_a_clock_that_wraps_loses_no_picture(
    before_the_wrap: float,
    container: str,
    annotate: Callable[[Path], ProcessResult],
    tmp_path: Path,
    make: Callable[..., Path],
) -> None:
    recording = tmp_path / f"wraps.{container}"
    offset = ["-muxdelay", 0, "-muxpreload", 0, "-output_ts_offset", float(WRAP_S) - before_the_wrap]
    codecs = ["-c:v", "libx264", "-bf", "2"] if container == "ts" else ["-c:v", "mpeg2video"]
    ffmpeg("-i", make(frames=75, audio=("mp2",), name="c.mkv"), *codecs, "-c:a", "mp2", *offset, recording)
    found = annotate(recording)
    assert found.frames == 75
    assert seconds_of(found)[0] < 0.1
    (by,) = sound_moved_by(recording, found.folder / "annotated.mp4")
    assert abs(by - Recording(recording).shifts.origin) < Fraction(1, 100)
    tracks = json.loads((found.folder / "findings.json").read_text())["tracks"]
    assert tracks
    assert all(track["first_s"] >= 0 for track in tracks)


@pytest.mark.parametrize("seconds", [1800, -1800, 3])
def test_one_wrong_time_in_a_transport_stream_moves_nothing_else(
    seconds: int, annotate: Callable[[Path], ProcessResult], tmp_path: Path, make: Callable[..., Path]
) -> None:
    plain = make(name="plain.ts", frames=60, audio=("mp2",), options={"bf": "0"}, **SMALL)
    right = seconds_of(annotate(plain))
    recording = with_pes_times_moved(plain, tmp_path / "outlier.ts", 30, seconds)
    found = annotate(recording)
    assert seconds_of(found) == pytest.approx(right, abs=2e-3)
    assert sound_moved_by(recording, found.folder / "annotated.mp4") == [0]
    assert any(note.startswith("1 picture had no usable time") for note in found.notes)


@pytest.mark.parametrize("container", ["mkv", "mp4", "nut"])
@pytest.mark.parametrize("by", [1800, 0.5])
def test_one_wrong_time_in_other_containers_moves_nothing_else(
    container: str, by: float, annotate: Callable[[Path], ProcessResult], tmp_path: Path, make: Callable[..., Path]
) -> None:
    times = [Fraction(number, 25) for number in range(60)]
    times[30] += Fraction(by)
    plain = make(name="plain.mkv", frames=60, options={"bf": "0"}, **SMALL)
    found = annotate(retimed(plain, tmp_path / f"outlier.{container}", times))
    assert seconds_of(found) == pytest.approx([number / 25 for number in range(60)], abs=2e-3)


def test_pictures_of_the_same_time_are_moved_by_a_tick(
    annotate: Callable[[Path], ProcessResult], tmp_path: Path, make: Callable[..., Path]
) -> None:
    times = sorted([Fraction(number, 25) for number in range(57)] + [Fraction(n, 25) for n in (10, 30, 50)])
    plain = make(name="plain.mkv", frames=60, audio=("aac",), options={"bf": "0"}, **SMALL)
    recording = retimed(plain, tmp_path / "duplicates.mkv", times)
    found = annotate(recording)
    wrong = [late - float(told) for late, told in zip(seconds_of(found), times, strict=True) if late != float(told)]
    assert wrong == pytest.approx([0.001] * 3)
    assert sound_moved_by(recording, found.folder / "annotated.mp4") == [0]


def test_where_a_clock_starts_again_sound_goes_on_with_the_pictures(
    annotate: Callable[[Path], ProcessResult], tmp_path: Path, make: Callable[..., Path]
) -> None:
    once = make(name="once.ts", frames=50, audio=("mp2",), options={"bf": "0"}, **SMALL)
    recording = tmp_path / "joined.ts"
    recording.write_bytes(once.read_bytes() * 3)
    found = annotate(recording)
    assert found.frames == 150
    assert {round(after - before, 3) for before, after in pairwise(seconds_of(found))} == {0.04}
    assert sound_moved_by(recording, found.folder / "annotated.mp4") == [0, 2, 4]


@needs_ffmpeg
@pytest.mark.parametrize("container", ["ts", "mkv", "flv", "wmv", "mp4"])
def test_pictures_of_variable_rate_stand_at_their_times_beside_sound(
    container: str, annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    """Thirty a second, then one a second: where sound ends a fragment, the last picture's duration counts."""
    recording = tmp_path / f"slow.{container}"
    source = ["-f", "lavfi", "-i", "testsrc2=rate=30:duration=12:size=160x120"]
    sound = ["-f", "lavfi", "-i", "sine=sample_rate=48000:duration=12"]
    slow = ["-vf", r"select=lt(t\,3)+not(mod(n\,30))", "-fps_mode", "vfr"]
    codecs = {"wmv": ("wmv2", "wmav2"), "flv": ("libx264", "aac")}.get(container, ("libx264", "aac"))
    ffmpeg(*source, *sound, *slow, "-c:v", codecs[0], "-c:a", codecs[1], recording)
    found = annotate(recording)
    assert found.frames == 99
    steps = [after - before for before, after in pairwise(seconds_of(found))]
    assert max(steps) == pytest.approx(1, abs=0.02)


def test_key_frames_come_by_time(
    annotate: Callable[[Path], ProcessResult], tmp_path: Path, make: Callable[..., Path]
) -> None:
    """A recording that announces 25 a second has a picture each 0.3 seconds."""
    plain = make(name="plain.mkv", frames=60, options={"bf": "0"}, **SMALL)
    found = annotate(retimed(plain, tmp_path / "slow.mkv", [Fraction(3 * number, 10) for number in range(60)]))
    with av.open(str(found.folder / "annotated.mp4")) as file:
        keys = [float(p.pts * p.time_base) for p in file.demux(video=0) if p.pts is not None and p.is_keyframe]
    assert max(after - before for before, after in pairwise([*keys, 18.0])) <= 2.31


def test_a_recording_that_announces_a_thousand_a_second_is_followed_by_time(tmp_path: Path) -> None:
    """As recorders write it that have no rate; here each picture comes after another time."""
    chance = random.Random(3)
    pts = list(accumulate((chance.choice((17, 29, 33, 40, 41, 57)) for _ in range(99)), initial=0))
    path = make_clip(tmp_path, Clip(name="k.mkv", codec="mjpeg", pixel_format="yuvj420p", rate=Fraction(1000), pts=pts))
    with av.open(str(path)) as file:
        assert file.streams.video[0].guessed_rate == 1000
    recording = Recording(path)
    expected = [(frame.index, recording.expected_frames) for frame in recording.frames()]
    assert len(expected) == 100
    assert all(abs((of or 0) - 100) <= 15 for index, of in expected if index > 20), "not 4000"
    again = list(Recording(path).frames())
    assert sum(float(frame.picture.duration * frame.time_base) for frame in again) == pytest.approx(
        pts[-1] / 1000, abs=0.1
    )


def test_a_picture_that_lasts_for_days_is_written(
    annotate: Callable[[Path], ProcessResult], tmp_path: Path, make: Callable[..., Path]
) -> None:
    """A sample table is damaged: MP4 cannot store how long its one picture would last."""
    recording = make(name="days.mp4", frames=1, **SMALL)
    data = bytearray(recording.read_bytes())
    # The duration of each sample follows the version, the number of entries and the number of samples.
    duration = data.index(b"stts") + 16
    data[duration : duration + 4] = (2**31 + 2**30).to_bytes(4, "big")
    recording.write_bytes(data)
    assert annotate(recording).frames == 1


def test_a_rate_of_less_than_one_frame_a_day_is_not_believed(
    annotate: Callable[[Path], ProcessResult], make: Callable[..., Path]
) -> None:
    """A header is damaged: MP4 cannot store one unit of its time."""
    recording = make(name="rate.avi", frames=10, codec="mjpeg", pixel_format="yuvj420p", **SMALL)
    data = bytearray(recording.read_bytes())
    scale = data.index(b"strh") + 28  # behind it is the rate: units per second times the scale
    data[scale : scale + 8] = struct.pack("<II", 0x01010000, 1)
    recording.write_bytes(data)
    found = annotate(recording)
    assert seconds_of(found) == [number / 25 for number in range(10)]
    assert found.notes == [
        "states one frame in 16842752 seconds, which cannot be right; 25 frames per second were assumed"
    ]


@needs_ffmpeg
def test_sound_that_outlasts_the_pictures_is_no_damage(
    annotate: Callable[[Path], ProcessResult], tmp_path: Path
) -> None:
    recording = tmp_path / "longer.wmv"
    sound = ["-f", "lavfi", "-i", "sine=sample_rate=48000:duration=8"]
    ffmpeg("-f", "lavfi", "-i", "testsrc2=rate=25:duration=3:size=160x120", *sound, "-c:v", "wmv2", recording)
    assert annotate(recording).frames == 75


@needs_ffmpeg
@pytest.mark.parametrize("share", [0.41, 0.55, 0.61, 0.72])
def test_behind_a_damaged_end_every_picture_that_can_be_decoded_is_there(share: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    pictures = ["-f", "lavfi", "-i", "testsrc2=rate=25:duration=6:size=320x240"]
    ffmpeg(*pictures, "-c:v", "libx264", "-bf", 3, "-movflags", "+faststart", whole)
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    count = ["-count_frames", "-select_streams", "v:0", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    told = subprocess.run(["ffprobe", "-v", "quiet", "-threads", "1", *count, cut], capture_output=True, check=True)
    recording = Recording(cut)
    times = [frame.seconds for frame in recording.frames()]
    assert len(times) == int(told.stdout.split()[0].strip(b","))
    assert all(before < after for before, after in pairwise(times))
    assert any("of 6.0 s" in damage for damage in recording.damage)


def test_archives_of_wrong_clocks_are_as_process_has_them(
    run: Callable[..., Ran],  # noqa: F811
    annotate: Callable[[Path], ProcessResult],
    tmp_path: Path,
    make: Callable[..., Path],
) -> None:
    once = make(name="once.ts", frames=50, audio=("mp2",), options={"bf": "0", "g": "10"}, **SMALL)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(once.read_bytes() * 2)
    outlier = with_pes_times_moved(once, tmp_path / "outlier.ts", 30, 1800)
    run(joined, outlier)
    for recording in (joined, outlier):
        found, archived = annotate(recording).folder, tmp_path / "out" / recording.stem
        assert (archived / "frames.csv").read_bytes() == (found / "frames.csv").read_bytes()
        assert audio_packets_of(archived / "annotated.mp4") == audio_packets_of(found / "annotated.mp4")


RARE = {
    "264": ("libx264", "yuv420p"),
    "265": ("libx265", "yuv420p"),
    "3g2": ("libx264", "yuv420p"),
    "m1v": ("mpeg1video", "yuv420p"),
    "f4v": ("libx264", "yuv420p"),
    "ivf": ("libvpx", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "rm": ("rv20", "yuv420p"),
}


@pytest.mark.slow
def test_an_archive_takes_rare_endings_with_the_results_of_process(
    run: Callable[..., Ran],  # noqa: F811
    annotate: Callable[[Path], ProcessResult],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for ending, (codec, pixels) in RARE.items():
        clip = Clip(name=f"{ending}.{ending}", codec=codec, pixel_format=pixels, frames=40, width=176, height=144)
        make_clip(folder, replace(clip, options={"g": "10"} if codec != "gif" else {}))
    assert set(run(folder).states()) == set(RARE)
    for ending in RARE:
        found, archived = annotate(folder / f"{ending}.{ending}").folder, tmp_path / "out" / ending
        assert len(pts_of(archived / "annotated.mp4")) == 40
        assert (archived / "frames.csv").read_bytes() == (found / "frames.csv").read_bytes()
        assert np.array_equal(frames_of(archived / "masks.mkv", "gray"), frames_of(found / "masks.mkv", "gray"))
