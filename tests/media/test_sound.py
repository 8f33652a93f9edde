"""Sound of every kind beside the pictures: copied where MP4 holds it, else encoded, in step, and never in the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from polypstream.core.config import Settings, load_settings
from polypstream.jobs.isolated import IsolatedProcessor, Outcome
from polypstream.jobs.process import Job, ProcessResult, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.media.audio_track import COPIED
from tests.conftest import Clip, audio_packets_of, command, make_clip, pts_of

pytestmark = pytest.mark.slow

SECONDS = 1.2
PITCH = 440
# Each container with a codec of its own for pictures, and the codecs for sound that FFmpeg writes there: those that its
# MP4 muxer takes, and the common ones that it does not.
VIDEO = {
    "mp4": "libx264", "mov": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4", "vob": "mpeg2video",
    "mpg": "mpeg2video", "mxf": "mpeg2video", "wmv": "wmv2", "flv": "flv", "nut": "libx264", "webm": "libvpx",
    "3gp": "mpeg4", "ogv": "libtheora",
}  # fmt: skip
PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_u8", "pcm_f32le", "pcm_alaw", "pcm_mulaw")
SOUND = {
    "mp4": ("aac", "ac3", "eac3", "alac", "flac", "mp2", "libmp3lame", "libopus", "libvorbis", "dca", "truehd"),
    "mov": ("aac", "ac3", "eac3", "alac", "mp2", "libmp3lame", *PCM),
    "mkv": ("aac", "ac3", "eac3", "alac", "flac", "mp2", "libmp3lame", "libopus", "libvorbis", "dca", "truehd", "mlp",
            "pcm_s16le", "pcm_s24le", "pcm_f32le", "wavpack", "tta", "wmav2"),
    "ts": ("aac", "ac3", "eac3", "mp2", "libmp3lame", "libopus", "dca", "truehd", "s302m"),
    "avi": ("aac", "ac3", "eac3", "mp2", "libmp3lame", "dca", "wmav2", "adpcm_ms", "adpcm_ima_wav", "pcm_s16le",
            "pcm_u8"),
    "vob": ("ac3", "mp2", "dca", "pcm_dvd"),
    "mpg": ("ac3", "mp2"),
    "mxf": ("pcm_s16le", "pcm_s24le"),
    "wmv": ("wmav1", "wmav2", "ac3", "libmp3lame", "pcm_s16le"),
    "flv": ("aac", "libmp3lame", "nellymoser", "adpcm_swf"),
    "nut": ("aac", "libvorbis", "pcm_s16be", "wavpack", "dca"),
    "webm": ("libopus", "libvorbis"),
    "3gp": ("aac", "libopencore_amrnb"),
    "ogv": ("libvorbis", "libopus", "flac", "libspeex"),
}  # fmt: skip
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


def ffmpeg(*arguments: object) -> bool:
    """Whether the program could do it."""
    command_line = ["ffmpeg", "-y", "-loglevel", "error", "-nostdin", *map(str, arguments)]
    return subprocess.run(command_line, capture_output=True, check=False).returncode == 0


def tone(seconds: float = SECONDS, rate: int = 48000) -> list[str]:
    return ["-f", "lavfi", "-i", f"sine=frequency={PITCH}:sample_rate={rate}:duration={seconds}"]


@pytest.fixture(scope="module")
def settings(red_model: Path) -> Settings:
    fast = ["inference.provider=cpu", "inference.threads=1", "output.video.preset=ultrafast"]
    return with_model(load_settings(None, fast), red_model)


@pytest.fixture(scope="module")
def isolated(settings: Settings) -> Iterator[Callable[[Path], Outcome]]:
    """isolated(recording) processes it beside itself where a crash is one failure and not the end of the tests."""
    with closing(IsolatedProcessor(settings)) as processor:

        def run(recording: Path) -> Outcome:
            processor.start()
            return processor.process(Job(str(recording), recording.parent / "results", overwrite=True))

        yield run


@dataclass
class Heard:
    """One track of sound: FFmpeg's name of its codec, from when to when it sounds, in seconds, and its pitch in Hz."""

    codec: str
    start: float
    end: float
    pitch: float


def heard(path: Path, number: int = 0) -> Heard:
    """What is to be heard in a track of a file."""
    samples: list[np.ndarray] = []
    start = end = 0.0
    with av.open(str(path)) as file:
        track = file.streams.audio[number]
        for frame in file.decode(track):
            begins = end if frame.pts is None else float(frame.pts * frame.time_base)
            start = start if samples else begins
            end = begins + frame.samples / frame.sample_rate
            values = frame.to_ndarray().astype(np.float64)
            channels = frame.layout.nb_channels
            samples.append(values.reshape(-1, channels).T.sum(axis=0) if len(values) == 1 else values.sum(axis=0))
        rate = track.codec_context.sample_rate
        whole = np.concatenate(samples)
        middle = whole[len(whole) // 4 : len(whole) // 4 * 3]
        spectrum = np.abs(np.fft.rfft(middle - middle.mean()))
        return Heard(
            track.codec_context.codec.canonical_name, start, end, float(spectrum.argmax()) * rate / len(middle)
        )


@needs_ffmpeg
@pytest.mark.parametrize("container", SOUND)
def test_sound_of_every_codec_in_every_container_is_kept(
    container: str, isolated: Callable[[Path], Outcome], tmp_path: Path
) -> None:
    silent, made = tmp_path / f"silent.{container}", 0
    size = "720x576" if container == "mxf" else "176x144"
    pictures = ["-f", "lavfi", "-i", f"testsrc2=rate=25:size={size}:duration={SECONDS}", "-pix_fmt", "yuv420p"]
    assert ffmpeg(*pictures, "-c:v", VIDEO[container], "-g", 12, silent)
    for codec in SOUND[container]:
        recording = tmp_path / f"{codec}.{container}"
        rate = {"libopencore_amrnb": 8000, "nellymoser": 44100, "adpcm_swf": 44100}.get(codec, 48000)
        channels = 1 if codec in ("libopencore_amrnb", "nellymoser", "libspeex") else 2
        sound = ["-c:a", codec, "-ac", channels, "-strict", "-2", "-shortest"]
        if not ffmpeg("-i", silent, *tone(rate=rate), "-c:v", "copy", *sound, recording):
            continue  # this ffmpeg is built without that encoder
        made += 1
        outcome = isolated(recording)
        assert outcome.problem is None, (codec, outcome.problem)
        assert outcome.run is not None
        assert outcome.run.problem == "", codec
        annotated = outcome.run.folder / "annotated.mp4"
        assert len(pts_of(annotated)) == round(SECONDS * 25), codec
        source, result = heard(recording), heard(annotated)
        copied = source.codec in COPIED
        # In MP4 both are "MPEG-1 audio", which FFmpeg's reader calls MP3.
        expected = {"mp2": "mp3"}.get(source.codec, source.codec) if copied else "aac"
        assert result.codec == expected, codec
        assert any("was encoded as AAC" in note for note in outcome.run.notes) == (not copied), codec
        assert abs(result.pitch - PITCH) < 5, codec
        assert abs(result.start - source.start) < 0.05, codec
        assert abs(result.end - source.end) < 0.1, codec
        if copied:
            assert [data for _, data in packets(annotated)] == [data for _, data in packets(recording)], codec
    assert made >= 2 or container == "3gp"


def packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """Of the first track, without AAC's headers of transport streams, which MP4 has once."""
    (track, *_) = audio_packets_of(path)
    return [(when, data[7:] if data[:2] in (b"\xff\xf1", b"\xff\xf9") else data) for when, data in track]


@needs_ffmpeg
@pytest.mark.parametrize(("layout", "count"), [("7.1", 8), ("6.1", 7), ("5.1", 6), ("quad", 4)])
def test_pcm_of_many_channels_as_sdi_recorders_write_it_is_encoded(
    layout: str, count: int, isolated: Callable[[Path], Outcome], make: Callable[..., Path], tmp_path: Path
) -> None:
    recording = tmp_path / "sdi.mov"
    loud = "|".join([f"sin(2*PI*{PITCH}*t)/2"] * count)
    source = ["-f", "lavfi", "-i", f"aevalsrc={loud}:channel_layout={layout}:sample_rate=48000:duration={SECONDS}"]
    mapped = ["-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "pcm_s24le"]
    assert ffmpeg("-i", make(frames=30), *source, *mapped, recording)
    outcome = isolated(recording)
    assert outcome.problem is None, outcome.problem
    assert outcome.run is not None
    assert outcome.run.problem == ""
    assert any("was encoded as AAC" in note for note in outcome.run.notes)
    assert abs(heard(outcome.run.folder / "annotated.mp4").pitch - PITCH) < 5


@pytest.mark.slow
@needs_ffmpeg
def test_a_recording_with_ac3_that_is_killed_plays_to_within_two_seconds(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    """Its header can be written only once the first packet of sound is there."""
    recording = tmp_path / "ac3.mkv"
    pictures = make(frames=500, width=640, height=480, options={"preset": "ultrafast"})
    assert ffmpeg("-i", pictures, *tone(20), "-c:v", "copy", "-c:a", "ac3", recording)
    wanted = ("--output", tmp_path / "out", "--model", red_model, "--set", "output.video.preset=slow")
    running = subprocess.Popen([*command(), "process", *map(str, (recording, *wanted))])
    table = tmp_path / "out" / "ac3" / "frames.csv"
    end = time.monotonic() + 60
    while not table.exists() or len(table.read_text().splitlines()) < 120:
        assert time.monotonic() < end
        time.sleep(0.02)
    running.kill()
    running.wait()
    time.sleep(0.5)  # its child ends when it next says how far it is
    written = float(table.read_text().splitlines()[-2].split(",")[1])
    with av.open(str(table.with_name("annotated.mp4"))) as file:
        times = [float(packet.pts * packet.time_base) for packet in file.demux(video=0) if packet.pts is not None]
    assert times[-1] > written - 2
    assert audio_packets_of(table.with_name("annotated.mp4"))[0]


@needs_ffmpeg
def test_sound_that_begins_late_does_not_hold_up_the_header(
    make: Callable[..., Path], isolated: Callable[[Path], Outcome], tmp_path: Path
) -> None:
    """AC-3 from the fifth second on: copied, the file could not be played before."""
    recording = tmp_path / "late.mkv"
    sound = ["-itsoffset", "5", *tone(3)]
    assert ffmpeg(
        "-i", make(frames=200), *sound, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "ac3", recording
    )
    outcome = isolated(recording)
    assert outcome.run is not None
    result = heard(outcome.run.folder / "annotated.mp4")
    assert result.codec == "aac"
    assert abs(result.start - 5) < 0.1
    assert any("(ac3) was encoded as AAC" in note for note in outcome.run.notes)


def test_a_track_whose_header_is_damaged_is_left_out_and_said(
    make: Callable[..., Path], isolated: Callable[[Path], Outcome]
) -> None:
    """Copied, it would keep players from opening the file."""
    recording = make(name="header.mp4", frames=30, audio=("aac",))
    content = recording.read_bytes()
    low_complexity = b"\x11\x90"  # AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1): AAC-LC, 48 kHz, two channels
    assert content.count(b"\x05\x80\x80\x80\x05" + low_complexity) == 1
    recording.write_bytes(content.replace(b"\x80\x05" + low_complexity, b"\x80\x05" + bytes(2)))
    outcome = isolated(recording)
    assert outcome.run is not None
    assert "audio track 1 cannot be decoded and was not copied" in outcome.run.problem
    with av.open(str(outcome.run.folder / "annotated.mp4")) as file:
        assert not file.streams.audio
    assert len(pts_of(outcome.run.folder / "annotated.mp4")) == 30


@needs_ffmpeg
def test_what_is_encrypted_is_said_to_be_so(
    make: Callable[..., Path], isolated: Callable[[Path], Outcome], tmp_path: Path
) -> None:
    """Common Encryption (ISO/IEC 23001-7), as FFmpeg writes it."""
    recording = tmp_path / "encrypted.mp4"
    key = "76a6c65c5ea762046bd749a2e632ccbb"
    locked = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", key, "-encryption_kid", key[::-1]]
    assert ffmpeg("-i", make(frames=30, audio=("aac",)), "-c", "copy", *locked, recording)
    assert str(isolated(recording).problem) == f"{recording}: is encrypted; decrypt it first"


def run_of(recording: Path, settings: Settings) -> ProcessResult:
    job = Job(str(recording), recording.parent / "results", overwrite=True)
    return process(job, make_segmenter(settings), settings)


@needs_ffmpeg
def test_the_default_track_of_sound_stays_the_default(
    make: Callable[..., Path], settings: Settings, tmp_path: Path
) -> None:
    recording = tmp_path / "two.mkv"
    source = make(frames=30, audio=("aac", "aac"))
    assert ffmpeg(
        "-i", source, "-map", 0, "-c", "copy", "-disposition:a:0", 0, "-disposition:a:1", "default", recording
    )
    with av.open(str(run_of(recording, settings).folder / "annotated.mp4")) as file:
        assert [bool(track.disposition & track.disposition.default) for track in file.streams.audio] == [False, True]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_interrupted_pictures_and_sound_end_together(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    recording = make(frames=1500, audio=("aac",), options={"preset": "ultrafast"})
    wanted = ("--output", tmp_path / "out", "--model", red_model, "--set", "output.video.preset=slower")
    running = subprocess.Popen(
        [*command(), "process", *map(str, (recording, *wanted))], stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "out" / "clip"
    end = time.monotonic() + 60
    while not (folder / "frames.csv").exists() or len((folder / "frames.csv").read_text().splitlines()) < 50:
        assert time.monotonic() < end
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert "interrupted" in running.communicate(timeout=60)[1]
    with av.open(str(folder / "annotated.mp4")) as file:
        pictures, sound = file.streams.video[0], file.streams.audio[0]
        ends = [float(track.duration * track.time_base) for track in (pictures, sound)]
    assert 1 < ends[0] < 59
    assert abs(ends[0] - ends[1]) < 0.1
    assert '"problem": "interrupted"' in (folder / "summary.json").read_text()
    assert (folder / "report.html").is_file()


def test_chapters_are_kept(make: Callable[..., Path], settings: Settings, tmp_path: Path) -> None:
    recording = tmp_path / "chapters.mkv"
    with av.open(str(make(frames=50))) as old, av.open(str(recording), "w") as new:
        new.set_chapters(
            [
                {"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "caecum"}},
                {"id": 2, "start": 1000, "end": 2000, "time_base": Fraction(1, 1000), "metadata": {"title": "rectum"}},
            ]
        )
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    with av.open(str(run_of(recording, settings).folder / "annotated.mp4")) as file:
        chapters = [
            (chapter["start"] * chapter["time_base"], chapter["metadata"]["title"]) for chapter in file.chapters()
        ]
    assert chapters == [(0, "caecum"), (1, "rectum")]


def test_a_second_track_of_pictures_is_said_to_be_left_out(settings: Settings, tmp_path: Path) -> None:
    recording, one = tmp_path / "two.mkv", make_clip(tmp_path, Clip(frames=20))
    with av.open(str(one)) as old, av.open(str(recording), "w") as new:
        copies = [new.add_stream_from_template(old.streams.video[0]) for _ in range(2)]
        for packet in old.demux(old.streams.video[0]):
            for copy in copies if packet.size else ():
                packet.stream = copy
                new.mux(packet)
    assert "video track 1 was left out: only track 0 is processed" in run_of(recording, settings).notes
