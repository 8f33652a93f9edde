"""The sound of live sources in recordings and clips: in step with the pictures to within 40 ms, whatever happens."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from polypstream.core.config import Settings
from polypstream.core.pipeline import in_background
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import clips_of, recordings_of
from tests import rtsp_server
from tests.conftest import audio_packets_of, command, free_port

pytestmark = pytest.mark.slow

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program as a sender")
SETTINGS = Settings.model_validate(
    {"live": {"max_staleness": 60.0, "longest_wait": 0.5}, "overlay": {"labels": "none"}}
)
RATE, SOUND_RATE = 25, 48_000
# A flash and a beep begin together at these frames of each 5 seconds, and last for so many frames. The distances
# differ, so that no beep fits to another flash.
FLASHES, FLASH = (0, 22, 56, 80, 99), 6
IN_STEP_S = 0.04


@pytest.fixture
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


def flashing(
    path: Path,
    seconds: float,
    codec: str = "aac",
    silent: tuple[float, float] = (0, 0),
    size: tuple[int, int] = (160, 120),
) -> Path:
    """A video that flashes and beeps about once a second. Between two times it has no packets of sound."""
    with av.open(str(path), "w") as file:
        options = {"g": "25", "preset": "ultrafast", "tune": "zerolatency"}
        pictures = file.add_stream("libx264", rate=RATE, options=options)
        (width, height), pictures.pix_fmt = size, "yuv420p"
        pictures.width, pictures.height = size
        sound = file.add_stream(codec, rate=SOUND_RATE)
        samples = SOUND_RATE // RATE
        beep = (12_000 * np.sin(2 * np.pi * 1000 * np.arange(samples) / SOUND_RATE)).astype(np.int16).repeat(2)[None]
        for index in range(round(seconds * RATE)):
            on = any(0 <= index % (5 * RATE) - begins < FLASH for begins in FLASHES)
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = 230 if on else 40
            picture = av.VideoFrame.from_ndarray(planes, "yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            file.mux(pictures.encode(picture))
            if not silent[0] <= index / RATE < silent[1]:
                part = av.AudioFrame.from_ndarray(beep if on else np.zeros_like(beep), "s16", "stereo")
                part.sample_rate, part.pts, part.time_base = SOUND_RATE, index * samples, Fraction(1, SOUND_RATE)
                file.mux(sound.encode(part))
        file.mux(pictures.encode(None))
        file.mux(sound.encode(None))
    return path


def pictures_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times of a file's frames in seconds, and whether they are a flash."""
    with av.open(str(path)) as file:
        frames = [
            (float(each.pts * each.time_base), each.to_ndarray()[20:100, 20:140].mean())
            for each in file.decode(video=0)
        ]
    times, light = np.array(frames).T
    return times, light > 140


def beeps_of(path: Path) -> np.ndarray:
    """When beeps begin in a file, in seconds. Those that may have begun before the sound does are left out."""
    loud: list[np.ndarray] = []
    resumes: list[float] = []
    end = -1.0
    with av.open(str(path)) as file:
        for frame in file.decode(audio=0):
            begins = float(frame.pts * frame.time_base)
            if begins - end > 0.01:
                resumes.append(begins)
            end = begins + frame.samples / frame.sample_rate
            values = np.abs(frame.to_ndarray().astype(np.float32)).max(axis=0)
            values = values / 32768 if values.max() > 2 else values
            loud.append(begins + np.flatnonzero(values > 0.1) / frame.sample_rate)
    times = np.concatenate([np.zeros(0), *loud])
    starts = times[np.diff(times, prepend=-1.0) > 0.3]
    return np.array([each for each in starts if not any(0 <= each - begins < 0.05 for begins in resumes)])


def beeps_in_step(path: Path) -> int:
    """Count the beeps, each of which must begin with a flash if there are frames at that time.

    A machine that is too slow skips frames, and without a signal there is no flash.
    """
    times, bright = pictures_of(path)
    seen = 0
    for begins in beeps_of(path):
        before = bright[(times > begins - 0.3) & (times < begins - IN_STEP_S)]
        after = bright[(times > begins + IN_STEP_S) & (times < begins + FLASH / RATE - IN_STEP_S)]
        if len(before) and len(after):
            seen += 1
            assert not before.any(), (begins, times, bright)
            assert after.all(), (begins, times, bright)
    return seen


def codec_of(path: Path) -> str:
    """FFmpeg's name of the codec of a file's sound."""
    with av.open(str(path)) as file:
        return file.streams.audio[0].codec_context.codec.canonical_name


@pytest.mark.parametrize(("name", "codec", "kept_as"), [("a.mp4", "aac", "aac"), ("a.mkv", "pcm_s16le", "aac")])
def test_sound_of_a_recording_played_as_live_is_in_step_in_every_file(
    name: str, codec: str, kept_as: str, segmenter: Segmenter, tmp_path: Path
) -> None:
    """Across new files, a pause of the recording, a pause of the sound, and the end of a loop; and in a clip."""
    roll = Settings.model_validate(SETTINGS.model_dump() | {"output": {"roll": {"seconds": 2.6}}})
    sources = open_sources([f"room=loop:{flashing(tmp_path / name, 5, codec, (2.2, 3.7))}"], roll)
    recordings = recordings_of(tmp_path / "r.mp4", sources, roll)
    live = Live(sources, segmenter, roll, [*recordings, *clips_of(tmp_path / "clips", sources, roll)])
    ((_, recording),) = recordings

    def poll() -> None:
        seconds = live.status()[0].frames_in / RATE
        recording.on = not 5.4 < seconds < 7.3
        if seconds >= 10:
            live.clips["room"].ask()
            live.close()

    live.run(poll)
    assert len(recording.files) >= 4
    with_sound = [path for path in recording.files if audio_packets_of(path)]
    assert sum(map(beeps_in_step, with_sound)) >= 3
    clip = live.clips["room"].clips[-1]
    assert beeps_in_step(clip) >= 4
    assert codec_of(clip) == kept_as
    if codec == "aac":
        sent = {data for _, data in audio_packets_of(tmp_path / name)[0]}
        assert {data for _, data in audio_packets_of(clip)[0]} <= sent


@contextmanager
def sending(recording: Path, to: list[str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real program that sends a video at its own pace, until the block ends."""
    command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-re", *options, "-i", str(recording), "-c", "copy"]
    command += ["-max_interleave_delta", "100000", *to]  # pictures do not wait for sound that pauses
    sender = subprocess.Popen(command)
    try:
        yield sender
    finally:
        sender.kill()
        sender.wait()


@pytest.mark.realtime
@needs_ffmpeg
def test_sound_of_a_stream_stops_and_starts_again_and_its_sender_goes_and_returns(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    """The second sender comes at once, with a new clock in the same connection; the third one after a loss."""
    port = free_port()
    video = flashing(tmp_path / "a.mkv", 15, "aac", (3.0, 5.5))
    sources = open_sources([f"room=udp://127.0.0.1:{port}"], SETTINGS)
    recordings = [
        *recordings_of(tmp_path / "r.mp4", sources, SETTINGS),
        *clips_of(tmp_path / "clips", sources, SETTINGS),
    ]
    live = Live(sources, segmenter, SETTINGS, recordings)
    to = ["-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316"]

    def senders() -> Iterator[None]:
        for seconds, rest in ((9.0, 0.0), (4.0, 4.0), (8.0, 0.0)):
            with sending(video, to):
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    yield
            end = time.monotonic() + rest
            while time.monotonic() < end:
                yield
        live.clips["room"].ask()
        live.close()

    acting = senders()
    live.run(lambda: next(acting, None))
    assert live.status()[0].losses == 1
    for path in (tmp_path / "r.mp4", *live.clips["room"].clips):
        assert beeps_in_step(path) >= 6


@pytest.mark.realtime
@pytest.mark.skipif(not rtsp_server.is_installed(), reason=rtsp_server.NEEDED)
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_sound_of_an_rtsp_server_that_goes_and_returns_is_in_step(
    transport: str, segmenter: Segmenter, tmp_path: Path
) -> None:
    port = free_port()
    video = flashing(tmp_path / "a.ts", 5.6)
    sources = open_sources([f"room=rtsp://127.0.0.1:{port}/room"], SETTINGS)
    recordings = [
        *recordings_of(tmp_path / "r.mp4", sources, SETTINGS),
        *recordings_of(tmp_path / "c.mp4", sources, SETTINGS, True),
    ]
    live = Live(sources, segmenter, SETTINGS, recordings)

    def servers() -> Iterator[None]:
        for _ in range(2):
            with video.open("rb") as stream:
                server = rtsp_server.serve(stream, port, transport, "--sound")
            while not sources[0].signal.there:
                yield
            while sources[0].signal.there:  # until the end of the video
                yield
            server.kill()
            server.wait()
        live.close()

    serving = servers()
    live.run(lambda: next(serving, None))
    assert live.status()[0].losses == 2
    for path in (tmp_path / "r.mp4", tmp_path / "c.mp4"):
        assert beeps_in_step(path) >= 6
        assert codec_of(path) == "aac"


@pytest.mark.realtime
@needs_ffmpeg
def test_sound_that_a_stream_sends_later_begins_a_new_file(segmenter: Segmenter, tmp_path: Path) -> None:
    """FFmpeg cannot know its format when the recording begins. AC-3 is encoded, since its header needs packets."""
    port = free_port()
    video = flashing(tmp_path / "a.mkv", 9, "ac3", (0, 4.0))
    sources = open_sources([f"room=tcp://127.0.0.1:{port}?listen"], SETTINGS)
    live = Live(sources, segmenter, SETTINGS, recordings_of(tmp_path / "r.mp4", sources, SETTINGS, clean=True))
    with sending(video, ["-f", "mpegts", f"tcp://127.0.0.1:{port}"]) as sender:

        def poll() -> None:
            if sender.poll() is not None:
                live.close()

        live.run(poll)
    with av.open(str(tmp_path / "r.mp4")) as file:
        assert not file.streams.audio
    assert beeps_in_step(tmp_path / "r-2.mp4") >= 3
    assert codec_of(tmp_path / "r-2.mp4") == "aac"


@pytest.mark.realtime
@needs_ffmpeg
def test_a_recording_with_sound_that_is_killed_is_in_step(red_model: Path, tmp_path: Path) -> None:
    port = free_port()
    video = flashing(tmp_path / "a.mkv", 12, "mp2", (2.5, 4.5))
    both = ["--record", str(tmp_path / "r.mp4"), "--record-clean", str(tmp_path / "c.mp4")]
    wanted = ["--model", str(red_model), "--set", "live.max_staleness=60.0"]
    running = subprocess.Popen([*command(), "live", f"room=udp://127.0.0.1:{port}", *both, *wanted])
    table, end = tmp_path / "c" / "frames.csv", time.monotonic() + 90
    try:
        with sending(video, ["-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316"], "-stream_loop", "-1"):
            while not table.exists() or len(table.read_text().splitlines()) < 12 * RATE:
                assert time.monotonic() < end
                time.sleep(0.1)
    finally:
        running.kill()
        running.wait()
    for path in (tmp_path / "r.mp4", tmp_path / "c.mp4"):
        assert beeps_in_step(path) >= 3


@pytest.mark.realtime
@needs_ffmpeg
def test_sound_that_an_srt_sender_only_announces_costs_no_picture(tmp_path: Path) -> None:
    """FFmpeg cannot pass on sound that it has not seen, so it is left out at the next attempt."""
    port, ended = free_port(), threading.Event()
    video = flashing(tmp_path / "a.mkv", 40, "aac", (0.0, 39.0))
    (source,) = open_sources([f"room=srt://127.0.0.1:{port}?mode=listener"], SETTINGS)
    source.sound.keep(1.0)

    def send() -> None:
        while not ended.wait(0.3):
            with sending(video, ["-f", "mpegts", f"srt://127.0.0.1:{port}?mode=caller"]) as sender:
                while sender.poll() is None and not ended.wait(0.1):
                    pass

    with in_background("sender", send, ended.set):
        end = time.monotonic() + 60
        for frame in source.frames():
            assert time.monotonic() < end
            if frame.has_signal:
                source.close()
    assert source.signal.ended
