"""Groups of pictures in which nothing is drawn are the recording's own; every decoder goes through."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from polypstream.core.config import VideoSettings
from polypstream.errors import OutputError
from polypstream.media import gop_copy
from polypstream.media.encoders import ENCODERS
from polypstream.media.gop_copy import CannotCopy, GopCopy, GopReader, open_copying, with_units
from polypstream.media.video import AnnotatedVideo
from polypstream.sources.recording import Recording
from tests.conftest import RED, Clip, audio_packets_of, frames_of, pts_of, summary_of
from tests.jobs.test_process import run
from tests.web.serving import until

Make = Callable[..., Path]
FRAMES, MARKED = 72, (30, 31, 32)
BITS, SIDE = 8, 20
# Most frames that a decoder holds to put them in order.
REORDERED = 4
PLAIN = ("findings.steady=false", "overlay.labels=none")


def numbered(clip: Clip, index: int) -> np.ndarray:
    """uint8 RGB: texture that moves, a red disc in the frames MARKED, the frame's number in black and white squares."""
    lines, columns = np.ogrid[: clip.height, : clip.width]
    grey = (90 + 30 * np.sin((columns + 3 * index) / 9) * np.cos((lines - 2 * index) / 7)).astype(np.uint8)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    if index in MARKED:
        rgb[(columns - 160) ** 2 + (lines - 140) ** 2 <= 40**2] = RED
    for bit in range(BITS):
        rgb[10 : 10 + SIDE, 10 + SIDE * bit : 10 + SIDE * (bit + 1)] = 220 if index >> bit & 1 else 30
    return rgb


@pytest.fixture
def film(make: Make) -> Callable[..., Path]:
    """film(...) makes a recording with a group of 12 pictures again and again, and a marked stretch in the third."""

    def filmed(**wanted: Any) -> Path:
        options = {"g": "12", "sc_threshold": "0"} | wanted.pop("options", {})
        return make(**{"frames": FRAMES, "draw": numbered, "options": options} | wanted)

    return filmed


def groups_of(recording: Path) -> Iterator[range]:
    """Numbers of the frames of each group."""
    with av.open(str(recording)) as file:
        keys = [packet.pts for packet in file.demux(video=0) if packet.size and packet.is_keyframe]
        time_base = file.streams.video[0].time_base
    times = pts_of(recording)
    starts = [times.index(pts * time_base) for pts in keys]
    return (range(*pair) for pair in pairwise([*starts, len(times)]))


def rotation_of(path: Path) -> int:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).rotation


def openh264_frames(path: Path) -> int:
    """Number of frames that OpenH264 decodes."""
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("needs GStreamer")
    command = f"gst-launch-1.0 -q filesrc location={path} ! qtdemux ! h264parse ! openh264dec ! checksumsink"
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=60, check=False)
    if "no element" in done.stderr:
        pytest.skip("needs GStreamer's openh264dec")
    assert done.returncode == 0, done.stderr
    return len(done.stdout.splitlines())


def ffmpeg_says(path: Path) -> str:
    exact = ["-fps_mode", "passthrough", "-enc_time_base", "1:90000"]
    command = ["ffmpeg", "-loglevel", "warning", "-i", str(path), *exact, "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


VARIED = [each * 40 + (each * each * 7) % 31 for each in range(FRAMES)]
SLOW = pytest.mark.slow
RECORDINGS = [
    pytest.param({"options": {"profile": "baseline"}}, id="baseline", marks=SLOW),
    pytest.param({"options": {"preset": "ultrafast"}}, id="ultrafast", marks=SLOW),
    pytest.param({"options": {"profile": "main", "bf": "2", "refs": "4"}}, id="main"),
    pytest.param({"options": {"preset": "medium"}}, id="medium", marks=SLOW),
    pytest.param({"options": {"preset": "slow", "refs": "5"}}, id="slow", marks=SLOW),
    pytest.param({"options": {"bf": "0", "refs": "1", "tune": "zerolatency"}}, id="one-reference", marks=SLOW),
    pytest.param({"options": {"g": "24"}}, id="long", marks=SLOW),
    pytest.param({"pts": VARIED, "time_base": Fraction(1, 1000)}, id="variable-rate", marks=SLOW),
    pytest.param({"rotation": 90, "audio": ["aac", "aac"], "colours": {"colorspace": 1}}, id="rotated-with-sound"),
    pytest.param(
        {"name": "c.mkv", "rotation": 270, "audio": ["ac3", "aac"], "pts": VARIED, "time_base": Fraction(1, 1000)},
        id="variable-rate-rotated-with-sound",
    ),
    pytest.param({"name": "c.ts", "audio": ["mp2"]}, id="transport-stream", marks=SLOW),
    pytest.param({"name": "c.mkv"}, id="matroska", marks=SLOW),
    pytest.param({"pixel_format": "yuv420p10le"}, id="10-bit", marks=SLOW),
    pytest.param({"pts": range(5000, 5000 + FRAMES * 40, 40), "time_base": Fraction(1, 1000)}, id="starts-late"),
]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize("wanted", RECORDINGS)
def test_copied_frames_are_the_recordings_own_to_the_last_bit(
    film: Make, red_model: Path, wanted: dict[str, Any]
) -> None:
    recording = film(**wanted)
    folder = run(recording, red_model, *PLAIN, "output.video.unmarked=copy")
    annotated = folder / "annotated.mp4"
    assert pts_of(annotated) == pts_of(recording)
    form = wanted.get("pixel_format", "yuv420p")
    before, after = frames_of(recording, form), frames_of(annotated, form)
    copied = encoded = 0
    for group in groups_of(recording):
        same = [np.array_equal(before[number], after[number]) for number in group]
        if set(group) & set(MARKED):
            encoded += len(group)
            assert not any(same)
        else:
            copied += len(group)
            assert all(same)
    counts = summary_of(folder)["unmarked"]
    assert (counts["copied_frames"], counts["encoded_frames"]) == (copied, encoded)  # type: ignore[index]
    assert encoded in (12, 24)
    assert ffmpeg_says(annotated) == ""
    if form == "yuv420p":
        assert openh264_frames(annotated) == FRAMES
    assert rotation_of(annotated) == rotation_of(recording)
    sound = [[data for _, data in track] for track in audio_packets_of(annotated)]
    assert sound == [[data for _, data in track] for track in audio_packets_of(recording)]
    assert len(sound) == len(wanted.get("audio", []))


def test_a_recording_of_openh264_is_copied(film: Make, red_model: Path, tmp_path: Path) -> None:
    source, recording = film(name="x.mp4", options={"bf": "0"}), tmp_path / "open.mp4"
    openh264_frames(source)
    command = (
        f"gst-launch-1.0 -q filesrc location={source} ! qtdemux ! h264parse ! openh264dec ! openh264enc gop-size=12"
    )
    sink = f"! h264parse ! mp4mux ! filesink location={recording}"
    subprocess.run(f"{command} {sink}".split(), check=True, timeout=60)
    folder = run(recording, red_model, *PLAIN, "output.video.unmarked=copy")
    assert pts_of(folder / "annotated.mp4") == pts_of(recording)
    assert summary_of(folder)["unmarked"]["copied_gops"] > 0  # type: ignore[index]
    assert ffmpeg_says(folder / "annotated.mp4") == ""
    assert openh264_frames(folder / "annotated.mp4") == len(pts_of(recording))


def test_the_marked_group_shows_the_same_picture_with_its_markers(film: Make, red_model: Path) -> None:
    recording = film(options={"crf": "10"})
    folder = run(recording, red_model, *PLAIN, "output.video.crf=5")
    before, after = (frames_of(path, "rgb24") for path in (recording, folder / "annotated.mp4"))
    for number in range(24, 36):
        difference = np.abs(after[number].astype(int) - before[number])
        assert difference[:60].max() < 24  # the encoder's loss; the frame's number is here
        assert (difference[140, 160].max() > 20) == (number in MARKED)


@pytest.mark.slow
def test_the_same_file_comes_out_every_time(film: Make, red_model: Path, tmp_path: Path) -> None:
    recording = film()
    files = []
    for name in ("a", "b"):
        folder = (tmp_path / name).resolve()
        folder.mkdir()
        copy = shutil.copy(recording, folder / "clip.mp4")
        files.append((run(Path(copy), red_model, *PLAIN) / "annotated.mp4").read_bytes())
    assert files[0] == files[1]


def test_encode_copies_nothing(film: Make, red_model: Path) -> None:
    recording = film()
    folder = run(recording, red_model, *PLAIN, "output.video.unmarked=encode")
    counts = summary_of(folder)["unmarked"]
    assert counts == {
        "copied_gops": 0,
        "copied_frames": 0,
        "encoded_gops": None,
        "encoded_frames": FRAMES,
        "why_none": "output.video.unmarked is encode",
    }
    before, after = frames_of(recording, "yuv420p"), frames_of(folder / "annotated.mp4", "yuv420p")
    assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("wanted", "overrides", "reason"),
    [
        ({"codec": "mpeg4", "options": {}}, [], "it is not H.264"),
        ({"interlaced": True}, [], "its frames are interlaced"),
        ({"name": "c.mkv", "codec": "ffv1", "width": 321, "options": {}}, [], "its odd size must be padded"),
        ({}, ["deidentify.enabled=true"], "its packets may not be copied"),
        ({}, ["output.video.crf=0.5"], "output.video.crf below 1 is lossless"),
        ({"pixel_format": "gray"}, [], "its samples are of another kind"),
    ],
)
def test_what_cannot_be_copied_is_encoded_and_copy_is_refused(
    film: Make, red_model: Path, wanted: dict[str, Any], overrides: list[str], reason: str
) -> None:
    recording = film(**wanted)
    with pytest.raises(OutputError, match=f"output.video.unmarked copy: {reason}"):
        run(recording, red_model, *overrides, "output.video.unmarked=copy")
    folder = run(recording, red_model, *overrides)
    assert len(pts_of(folder / "annotated.mp4")) == FRAMES
    assert reason in summary_of(folder)["unmarked"]["why_none"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"x264-params": "open-gop=1:bframes=3"}, "marked"), ({"g": "1000"}, "marked")],
    ids=["open", "one-group"],
)
def test_why_nothing_was_copied_is_said(film: Make, red_model: Path, options: dict[str, str], reason: str) -> None:
    folder = run(film(options=options), red_model, *PLAIN)
    assert summary_of(folder)["unmarked"]["copied_gops"] == 0  # type: ignore[index]
    assert summary_of(folder)["unmarked"]["why_none"] == f"every group of pictures is {reason}"  # type: ignore[index]


def test_a_group_that_is_too_long_is_encoded_and_not_held(
    film: Make, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gop_copy, "LONGEST_GOP_S", 0.5)
    recording = film(options={"g": "24"})
    folder = run(recording, red_model, *PLAIN)
    assert pts_of(folder / "annotated.mp4") == pts_of(recording)
    assert summary_of(folder)["unmarked"]["copied_gops"] == 0  # type: ignore[index]
    assert "longer than" in summary_of(folder)["unmarked"]["why_none"]  # type: ignore[index]


def test_a_damaged_group_alone_is_encoded(film: Make, red_model: Path) -> None:
    recording = film(options={"bf": "0", "g": "12"})
    with av.open(str(recording)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        start, size = packets[53].pos, packets[53].size  # in the fifth group
    content = bytearray(recording.read_bytes())
    content[start + 30 : start + size] = b"\x00" * (size - 30)
    recording.write_bytes(content)
    folder = run(recording, red_model, *PLAIN)
    counts = summary_of(folder)["unmarked"]
    assert (counts["copied_gops"], counts["encoded_gops"]) == (4, 2)  # type: ignore[index]


@pytest.mark.parametrize("place", [1, 11])
def test_another_frame_stands_for_one_that_is_not_decoded_a_second_time(film: Make, place: int) -> None:
    reader = GopReader(film(options={"bf": "3"}), 0)
    gop = reader.next()
    assert gop
    gop.packets[place] = with_units(gop.packets[place], [b"\x41" + bytes(30)])
    whole = frames_of(Path(reader.stream.container.name), "yuv420p")
    found = [picture.to_ndarray() for picture in reader.first_pictures(gop, 12)]
    reader.close()
    assert len(found) == 12
    np.testing.assert_array_equal(found[0], whole[0])


def test_parameter_sets_that_change_midway_are_encoded_from_there_on(film: Make, red_model: Path) -> None:
    one, other = film(name="a.ts", frames=36), film(name="b.ts", frames=36, options={"refs": "5", "bf": "0"})
    recording = one.parent / "both.ts"
    with av.open(str(recording), "w") as out:
        shift = 0
        for path in (one, other):
            with av.open(str(path)) as file:
                stream = out.streams.video[0] if shift else out.add_stream_from_template(file.streams.video[0])
                for packet in file.demux(video=0):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        out.mux(packet)
            shift = 40 * 3600
    folder = run(recording, red_model, *PLAIN)
    assert pts_of(folder / "annotated.mp4") == pts_of(recording)
    counts = summary_of(folder)["unmarked"]
    assert (counts["copied_frames"], counts["encoded_frames"]) == (24, 48)  # type: ignore[index]
    assert ffmpeg_says(folder / "annotated.mp4") == ""


def written(recording: Path, target: Path, frames: int, marked: range, keep: dict[int, Path]) -> GopCopy:
    """Write the first frames as `process` does, and copy the unfinished file after some of them."""
    source = Recording(recording)
    copying, _ = open_copying(recording, source.format, VideoSettings(), source.shifts)
    assert copying
    video = AnnotatedVideo(target, source.format, recording, VideoSettings(), 0, source.shifts, copying)
    for frame in source.frames():
        if frame.index == frames:
            break
        frame.as_recorded = frame.index not in marked
        video.write(frame)
        if frame.index in keep:
            shutil.copy(target, keep[frame.index])
    video.close()
    source.close()
    return copying


LATE = {"pts": range(700_000, 700_000 + 200 * 40, 40), "time_base": Fraction(1, 1000)}


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3"}], ids=["in-order", "reordered"])
@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({}, id="silent"),
        pytest.param({"audio": ["aac"]}, id="sound"),
        pytest.param({"audio": ["ac3"]}, id="sound-that-the-header-waits-for"),
        pytest.param(LATE, id="late-start"),
    ],
)
def test_a_file_that_was_not_closed_plays_up_to_the_group_before_its_end(
    film: Make, tmp_path: Path, options: dict[str, str], wanted: dict[str, Any]
) -> None:
    """From its first frame on."""
    recording = film(frames=200, width=160, height=120, options=options, **wanted)
    keep = {place: tmp_path / f"{place}.mp4" for place in (60, 110, 155, 199)}
    written(recording, tmp_path / "out.mp4", 200, range(90, 140), keep)
    expected = pts_of(recording)
    for place, path in keep.items():
        found = pts_of(path)
        # Frames that are decoded after the last one, but shown before it, may be missing.
        complete = len(found) - (REORDERED if options["bf"] != "0" else 0)
        assert found[:complete] == expected[:complete]
        assert found[-1] >= expected[place] - 1.2  # a group of 12 pictures, a fragment, a packet that is held
    assert pts_of(tmp_path / "out.mp4") == expected


def test_a_fragment_that_ends_among_reordered_frames_costs_none(film: Make, tmp_path: Path) -> None:
    """The last fragment is one packet, whose frame is shown before others."""
    recording = film(frames=240, width=160, height=120, draw=None, options={"bf": "5", "b-pyramid": "normal"})
    written(recording, tmp_path / "out.mp4", 120, range(0), {})
    assert pts_of(tmp_path / "out.mp4") == pts_of(recording)[:120]


def test_a_run_that_ends_within_a_group_keeps_every_frame(film: Make, tmp_path: Path) -> None:
    recording = film()
    copying = written(recording, tmp_path / "out.mp4", 41, range(0), {})
    assert pts_of(tmp_path / "out.mp4") == pts_of(recording)[:41]
    assert (copying.counts.copied_frames, copying.counts.encoded_frames) == (36, 5)


def test_another_encoder_than_x264_does_not_copy(film: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Recording(film())
    GopCopy(source.path, source.format, VideoSettings(codec="auto"), 0).close()  # x264 on a machine without a GPU
    monkeypatch.setattr(gop_copy, "choose_encoder", lambda *_: ENCODERS["h264_nvenc"])
    with pytest.raises(CannotCopy, match="only libx264"):
        GopCopy(source.path, source.format, VideoSettings(codec="auto"), 0)
    source.close()


@pytest.mark.browser
def test_a_browser_seeks_into_copied_and_encoded_groups(film: Make, red_model: Path, browse: Callable[[], Any]) -> None:
    folder = run(film(options={"preset": "medium"}), red_model, *PLAIN, "output.video.unmarked=copy")
    data = base64.b64encode((folder / "annotated.mp4").read_bytes()).decode()
    driver = browse()
    driver.get("data:text/html,<video muted></video><canvas width=320 height=240></canvas>")
    driver.execute_script("document.querySelector('video').src = 'data:video/mp4;base64,' + arguments[0]", data)
    until(lambda: driver.execute_script("return document.querySelector('video').readyState >= 2"))
    for number in (5, 26, 31, 35, 36, 50, 71, 25, 0):
        driver.execute_script("document.querySelector('video').currentTime = arguments[0]", (number + 0.5) / 25)
        until(lambda: not driver.execute_script("return document.querySelector('video').seeking"))
        assert driver.execute_script(READ_NUMBER) == number
    driver.execute_script("document.querySelector('video').currentTime = 0; document.querySelector('video').play()")
    until(lambda: driver.execute_script("return document.querySelector('video').ended"))
    assert driver.execute_script("return document.querySelector('video').error") is None


READ_NUMBER = f"""
const brush = document.querySelector('canvas').getContext('2d');
brush.drawImage(document.querySelector('video'), 0, 0);
let number = 0;
for (let bit = 0; bit < {BITS}; bit++)
    number += (brush.getImageData({10 + SIDE // 2} + {SIDE} * bit, {10 + SIDE // 2}, 1, 1).data[1] > 120) << bit;
return number;
"""
