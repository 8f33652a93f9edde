"""Live: the newest frame wins, every frame is accounted for, what goes away comes back."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryFile
from typing import ClassVar
from urllib.parse import urlsplit

import av
import numpy as np
import psutil
import pytest

from polypstream.cli.live import devices
from polypstream.core.addresses import back_off, redacted, split_name
from polypstream.core.config import Settings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.geometry import FieldOfView
from polypstream.core.pipeline import in_background
from polypstream.core.protocols import LiveSource
from polypstream.errors import OutputError, SettingsError, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import pushes_of, recordings_of
from polypstream.jobs.live_status import describe
from polypstream.media.pictures import planes_of
from polypstream.media.srt import srt_received, srt_sent
from polypstream.sinks.browser import Browser
from polypstream.sinks.rolling import RollingRecording
from polypstream.sources.devices import Device, parse_formats
from polypstream.sources.live import open_live, parse_address
from polypstream.stages.live import LiveViewCropper, StalenessFilter
from tests import rtsp_server
from tests.conftest import Kept, call, command, free_port, pts_of

pytestmark = pytest.mark.slow

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program as a peer")


@pytest.fixture
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


def run(texts: list[str], segmenter: Segmenter, settings: Settings, kept: Kept) -> Live:
    live = Live(open_sources(texts, settings), segmenter, settings, [("kept", kept)])
    live.run(lambda: None)
    return live


PATIENT = Settings.model_validate({"live": {"max_staleness": 60.0}})


def test_a_replay_keeps_its_pace_and_every_frame(make: Callable[..., Path], segmenter: Segmenter) -> None:
    started, kept = time.monotonic(), Kept()
    live = run([f"replay:{make(frames=50)}"], segmenter, PATIENT, kept)
    assert time.monotonic() - started >= 49 / 25
    (status,) = live.status()
    assert status.frames_in == 50
    assert status.shown + sum(status.dropped.values()) == 50
    assert status.shown >= 30
    assert any(frame.region is not None for frame in kept.frames)


@pytest.mark.realtime
def test_a_source_faster_than_the_machine_drops_and_stays_current(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_session, kept = segmenter.run, Kept()

    def slow(pictures: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return run_session(pictures)

    monkeypatch.setattr(segmenter, "run", slow)
    live = run([f"replay:{make(frames=240, rate=Fraction(120))}"], segmenter, PATIENT, kept)
    (status,) = live.status()
    assert status.frames_in == 240
    assert status.shown + status.dropped["overtaken"] + status.dropped["too_old"] == 240
    assert status.dropped["overtaken"] > 120
    ages = [frame.arrived for frame in kept.frames]
    assert ages == sorted(ages)
    assert status.latency_ms is not None
    assert status.latency_ms[3] < 1000  # a wait for the session and its own turn, no queue


def test_after_a_stall_the_picture_is_current_again(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_session, calls = segmenter.run, Counter[str]()

    def stalls_once(pictures: np.ndarray) -> np.ndarray:
        calls["all"] += 1
        time.sleep(1.0 if calls["all"] == 10 else 0)
        return run_session(pictures)

    monkeypatch.setattr(segmenter, "run", stalls_once)
    kept = Kept()
    live = run([f"replay:{make(frames=75)}"], segmenter, Settings(), kept)
    (status,) = live.status()
    assert sum(status.dropped.values()) >= 20  # of the stall's 25
    assert status.shown + sum(status.dropped.values()) == 75
    assert kept.frames[-1].index == 74


def test_a_frame_too_old_to_be_current_is_dropped_and_counted() -> None:
    picture = av.VideoFrame(16, 16, "yuv420p")
    ages = {0: 0.1, 1: 0.9, 2: 0.4}
    frames = [Frame(index, picture, index, Fraction(1), time.monotonic() - age, "a") for index, age in ages.items()]
    fresh = StalenessFilter(0.5)
    assert [frame.index for frame in fresh(frames)] == [0, 2]
    assert fresh.dropped == {"a": 1}


def test_the_picture_goes_on_without_markers_where_inference_fails(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("device lost")

    monkeypatch.setattr(segmenter, "run", broken)
    kept = Kept()
    live = run([f"replay:{make(frames=25)}"], segmenter, PATIENT, kept)
    assert len(kept.frames) >= 10
    assert all(frame.region is None for frame in kept.frames)
    assert {frame.problem for frame in kept.frames} == {"inference fails: device lost"}
    assert "inference fails: device lost" in describe(live.status()[0])


@pytest.mark.realtime
def test_in_pass_through_the_picture_does_not_wait_for_its_markers(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_session, kept = segmenter.run, Kept()

    def slow(pictures: np.ndarray) -> np.ndarray:
        time.sleep(0.15)
        return run_session(pictures)

    monkeypatch.setattr(segmenter, "run", slow)
    settings = Settings.model_validate({"live": {"display": "pass-through", "max_staleness": 60.0}})
    live = run([f"replay:{make(frames=75)}"], segmenter, settings, kept)
    (status,) = live.status()
    assert status.shown + sum(status.dropped.values()) == 75
    assert status.shown >= 40  # the session sees 20 at most
    waiting = sum(bool(frame.problem) for frame in kept.frames)
    assert waiting >= 1
    assert status.findings_of == {"own": 0, "earlier": status.shown - waiting, "none": waiting}
    assert f"findings of the frame itself in 0, of an earlier frame in {status.shown - waiting}, " in describe(status)
    assert status.latency_ms is not None
    assert status.latency_ms[0] < 150
    marked = [frame for frame in kept.frames if frame.region is not None]
    assert len(marked) >= 20
    assert min(frame.markers_age for frame in marked) >= 0.15
    assert kept.frames[0].problem == "waiting for the first ones"


def test_in_pass_through_markers_too_old_are_not_drawn(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_session, calls, kept = segmenter.run, Counter[str](), Kept()

    def stalls(pictures: np.ndarray) -> np.ndarray:
        calls["all"] += 1
        time.sleep(1.5 if calls["all"] == 10 else 0)
        return run_session(pictures)

    monkeypatch.setattr(segmenter, "run", stalls)
    settings = Settings.model_validate({"live": {"display": "pass-through", "max_staleness": 0.5}})
    live = run([f"replay:{make(frames=75)}"], segmenter, settings, kept)
    assert live.status()[0].shown >= 40
    old = [frame for frame in kept.frames if frame.problem.startswith("the newest are")]
    assert len(old) >= 10
    assert all(frame.region is None for frame in old)


def test_sources_share_the_session(make: Callable[..., Path], segmenter: Segmenter) -> None:
    kept = Kept()
    small, large = make(name="s.mp4", frames=25), make(name="l.mp4", frames=25, width=640, height=480)
    live = run([f"room1=replay:{small}", f"room2=replay:{large}"], segmenter, PATIENT, kept)
    assert [status.source for status in live.status()] == ["room1", "room2"]
    for name, width in (("room1", 320), ("room2", 640)):
        frames = [frame for frame in kept.frames if frame.source == name]
        assert len(frames) >= 8
        assert {frame.picture.width for frame in frames} == {width}
        found = [frame for frame in frames if frame.region is not None]
        assert found
        assert all(frame.region.x + frame.region.mask.shape[1] <= width for frame in found if frame.region)


class Peer:
    """A real program that sends a test picture of a size to an address, until it is killed.

    For RTSP, GStreamer serves what ffmpeg makes; for HLS, Python's own server serves ffmpeg's playlist.
    """

    def __init__(self, url: str, size: str) -> None:
        self.url, self.size = url, size
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Send."""
        if self.url.startswith("rtsp"):
            with TemporaryFile() as stream:
                subprocess.run(self._ffmpeg(["-t", "10"], "mpegts", "-"), stdout=stream, check=True)
                stream.seek(0)
                self.processes.append(rtsp_server.serve(stream, urlsplit(self.url).port or 554, "tcp"))
        elif self.url.startswith("rtmp"):
            self._start(self._ffmpeg(["-re"], "flv", "-listen", "1", self.url))
        else:
            self._start(self._ffmpeg(["-re"], "mpegts", self.url))

    def _ffmpeg(self, reading: list[str], container: str, *to: str) -> list[str]:
        picture = [*reading, "-f", "lavfi", "-i", f"testsrc2=size={self.size}:rate=25"]
        encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "12"]
        return ["ffmpeg", "-v", "error", *picture, *encoder, "-f", container, *to]

    def _start(self, command: list[str]) -> None:
        self.processes.append(subprocess.Popen(command))

    def kill(self) -> None:
        """As when the cable is pulled."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture
def peer() -> Iterator[Callable[[str, str], Peer]]:
    """peer(url, size) starts one."""
    peers: list[Peer] = []

    def start(url: str, size: str) -> Peer:
        peers.append(Peer(url, size))
        peers[-1].start()
        return peers[-1]

    yield start
    for each in peers:
        each.kill()


SIZES = (320, 480, 640, 320, 480)
# What we open, and where the peer sends.
LINKS = {
    "srt": (
        "srt://127.0.0.1:{}?mode=listener&passphrase=opensesame1",
        "srt://127.0.0.1:{}?mode=caller&passphrase=opensesame1",
    ),
    "udp": ("udp://127.0.0.1:{}", "udp://127.0.0.1:{}?pkt_size=1316"),
    "rtsp": ("rtsp://user:secret@127.0.0.1:{}/room", "rtsp://127.0.0.1:{}/room"),
}


@pytest.mark.realtime
@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize("scheme", LINKS)
def test_a_stream_that_goes_away_is_picked_up_when_it_returns(
    scheme: str, peer: Callable[[str, str], Peer], segmenter: Segmenter, tmp_path: Path
) -> None:
    if scheme == "rtsp" and not rtsp_server.is_installed():
        pytest.skip(rtsp_server.NEEDED)
    port = free_port()
    mine, theirs = (link.format(port) for link in LINKS[scheme])
    settings, kept = Settings.model_validate({"live": {"timeout": 1.0}}), Kept()
    sources = open_sources([f"room={mine}"], settings)
    recordings = recordings_of(tmp_path / "r.mp4", sources, settings)
    live = Live(sources, segmenter, settings, [("kept", kept), *recordings])
    seen = Returns()
    script = returning(live, kept, peer, theirs, seen)

    def poll() -> None:
        if next(script, "over") == "over":
            live.close()

    live.run(poll)
    assert all(seconds < 3 for seconds in seen.seconds), seen.seconds
    # Nothing is left behind by a return: one thing each time would be three more by the last. A decoder's own threads
    # may have started or not when it is looked.
    assert seen.threads[-1] < max(seen.threads[:2]) + 3, seen.threads
    assert seen.files[-1] < max(seen.files[:2]) + 3, seen.files
    (status,) = live.status()
    assert status.losses == len(SIZES)
    assert not status.signal
    assert "secret" not in describe(status)
    assert status.shown + sum(status.dropped.values()) == status.frames_in
    assert sum(not frame.has_signal for frame in kept.frames) >= len(SIZES)
    times = [frame.seconds for frame in kept.frames]
    assert times == sorted(times)
    # The recording goes on in a new file for each size, with the frames' own times.
    files = sorted(tmp_path.glob("r*.mp4"))
    assert len(files) == len(SIZES)
    for path in files:
        assert pts_of(path)[0] == 0
        assert float(pts_of(path)[-1]) > 0.5


@dataclass
class Returns:
    """What was seen at each return of a source: seconds until its picture came, threads and open files then."""

    seconds: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def note(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.threads.append(psutil.Process().num_threads())
        self.files.append(psutil.Process().num_fds())


def returning(live: Live, kept: Kept, peer: Callable[[str, str], Peer], url: str, seen: Returns) -> Iterator[None]:
    """Again and again: the sender starts with another size, pictures of that size come, it is killed."""
    for width in SIZES:
        before, started = len(kept.frames), time.monotonic()
        sender = peer(url, f"{width}x240")
        while not any(frame.has_signal and frame.picture.width == width for frame in kept.frames[before:]):
            if time.monotonic() - started > 15:
                pytest.fail(f"no picture of width {width} came: {live.status()}")
            yield
        seen.note(time.monotonic() - started)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            yield
        sender.kill()
        while live.status()[0].signal:
            yield


@needs_ffmpeg
def test_an_rtmp_stream_is_played(peer: Callable[[str, str], Peer], segmenter: Segmenter) -> None:
    url, kept = f"rtmp://127.0.0.1:{free_port()}/live/room", Kept()
    peer(url, "320x240")
    assert_it_plays(url, segmenter, kept)


@needs_ffmpeg
def test_motion_jpeg_is_played(segmenter: Segmenter) -> None:
    """As grabbers and network cameras send it."""
    url = f"http://127.0.0.1:{free_port()}/room"
    picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25", "-pix_fmt", "yuvj422p"]
    send = ["ffmpeg", "-v", "error", *picture, "-f", "mpjpeg", "-listen", "1", url]
    # ffmpeg serves one connection. On a busy machine the first one may be given up.
    again = ["sh", "-c", 'while :; do "$@"; done', "sh", *send]
    sender = subprocess.Popen(again, start_new_session=True)
    try:
        kept = Kept()
        assert_it_plays(url, segmenter, kept)
    finally:
        os.killpg(sender.pid, signal.SIGKILL)
        sender.wait()
    assert {frame.picture.format.name for frame in kept.frames if frame.has_signal} == {"yuvj422p"}


@needs_ffmpeg
def test_an_hls_playlist_is_played(segmenter: Segmenter, tmp_path: Path) -> None:
    picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"]
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-hls_time", "1"]
    sender = subprocess.Popen(["ffmpeg", "-v", "error", *picture, *encoder, str(tmp_path / "room.m3u8")])
    handler = partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        try:
            with in_background("hls", server.serve_forever, server.shutdown):
                assert_it_plays(f"http://127.0.0.1:{server.server_port}/room.m3u8", segmenter, Kept())
        finally:
            sender.kill()
            sender.wait()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def assert_it_plays(url: str, segmenter: Segmenter, kept: Kept) -> None:
    """Pictures come, and they move."""
    live = Live(open_sources([f"room={url}"], Settings()), segmenter, Settings(), [("kept", kept)])
    started = time.monotonic()

    def poll() -> None:
        if time.monotonic() - started > 20 or sum(frame.has_signal for frame in kept.frames) >= 20:
            live.close()

    live.run(poll)
    pictures = [planes_of(frame.picture)[0] for frame in kept.frames if frame.has_signal]
    assert len(pictures) >= 20, live.status()
    assert (pictures[0] != pictures[-1]).any()


def test_a_source_is_given_up_only_if_that_is_wanted(segmenter: Segmenter) -> None:
    settings, kept = Settings.model_validate({"live": {"most_attempts": 3, "longest_wait": 0.1}}), Kept()
    live = run([f"room=tcp://127.0.0.1:{free_port()}"], segmenter, settings, kept)
    (status,) = live.status()
    assert status.problem == "Connection refused; given up after 3 attempts"
    assert 1 <= len(kept.frames) <= 3  # a newer one may have replaced one that waited
    assert not any(frame.has_signal for frame in kept.frames)
    assert (status.frames_in, status.shown, status.dropped) == (0, 0, {"overtaken": 0, "too_old": 0})


@pytest.mark.realtime
def test_an_interruption_does_not_wait_for_the_next_attempt(segmenter: Segmenter) -> None:
    settings = Settings.model_validate({"live": {"longest_wait": 60.0}})
    live = Live(open_sources([f"room=tcp://127.0.0.1:{free_port()}"], settings), segmenter, settings, [])
    started = time.monotonic()
    # Control-C, whatever the main thread is doing; the fourth attempt is then more than a second away.
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        live.run(lambda: None)
    assert time.monotonic() - started < 3


def broadcast(pts: Iterable[int], sound: bool) -> bytes:
    """A transport stream of noise, so that little of it is read to find out what it is."""
    written, random = io.BytesIO(), np.random.default_rng(0)
    with av.open(written, "w", "mpegts") as file:
        video = file.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency", "g": "10"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = file.add_stream("mp2", rate=48000, layout="stereo") if sound else None
        for each in pts:
            picture = av.VideoFrame.from_ndarray(random.integers(0, 256, (96, 64), np.uint8), "yuv420p")
            picture.pts, picture.time_base = each, Fraction(1, 25)
            file.mux(video.encode(picture))
            if audio:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), "s16", "stereo")
                silence.sample_rate, silence.pts, silence.time_base = 48000, each * 1920, Fraction(1, 48000)
                file.mux(audio.encode(silence))
        file.mux(video.encode(None))
    return written.getvalue()


def test_a_track_that_appears_midway_does_not_end_the_source() -> None:
    """As when a camera's microphone is switched on."""
    data = broadcast(range(200), sound=False) + broadcast(range(200, 300), sound=True)
    with sent(data, stay=False) as source:
        frames = source.frames()
        assert all(next(frames).has_signal for _ in range(250))
        assert not all(next(frames).has_signal for _ in range(51))  # PyAV stumbles over the track at the end


def test_to_be_ended_is_no_loss() -> None:
    with sent(broadcast(range(200), sound=False), stay=True) as source:
        frames = source.frames()
        assert all(next(frames).has_signal for _ in range(20))
        source.close()
        assert not list(frames)
    assert source.signal.losses == 0


@contextmanager
def sent(data: bytes, stay: bool) -> Iterator[LiveSource]:
    """A source whose sender stays there, or goes away, when it has sent these data."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = open_live("room", f"tcp://127.0.0.1:{server.getsockname()[1]}", Settings().live)

        def send() -> None:
            with server.accept()[0] as peer, suppress(ConnectionError):
                peer.sendall(data)
                peer.recv(int(stay))  # until the source has gone

        with in_background("sender", send, source.close):
            yield source


@pytest.mark.slow
def test_a_viewer_that_stops_reading_does_not_keep_the_program(make: Callable[..., Path], segmenter: Segmenter) -> None:
    settings = Settings.model_validate({"live": {"max_staleness": 60.0}, "output": {"video": {"crf": 0}}})
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sources = open_sources([f"room=replay:{make(frames=200, width=1280, height=720)}"], settings)
        pushes = pushes_of([f"tcp://127.0.0.1:{deaf.getsockname()[1]}"], sources, settings)
        live, started = Live(sources, segmenter, settings, pushes), time.monotonic()
        live.run(lambda: None)
        assert time.monotonic() - started < 8 + 8


def test_a_view_by_hand_that_no_longer_fits_gives_way_to_the_whole_picture(segmenter: Segmenter) -> None:
    settings = Settings.model_validate({"view": {"field_of_view": [400, 0, 200, 200]}})
    viewer, views = LiveViewCropper(segmenter.size, settings), []
    for width in (640, 320):
        frame = Frame(0, av.VideoFrame(width, 240, "yuv420p"), 0, Fraction(1))
        views.append(viewer([frame])[0].view)
    assert views == [FieldOfView(400, 0, 200, 200), FieldOfView(0, 0, 320, 240)]


def test_in_pass_through_the_picture_outlives_the_inference(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such view")

    monkeypatch.setattr(LiveViewCropper, "__call__", broken)
    settings, kept = Settings.model_validate({"live": {"display": "pass-through", "max_staleness": 60.0}}), Kept()
    live = run([f"replay:{make(frames=25)}"], segmenter, settings, kept)
    assert len(kept.frames) >= 10
    assert "inference ended: no such view" in live.status()[0].problem


@needs_ffmpeg
class Told:
    """In place of ffmpeg: keeps its command line and what it is told on standard input."""

    commands: ClassVar[list[str]] = []
    input: ClassVar[str] = ""

    def __init__(self, command: list[str], stdin: int, text: bool) -> None:
        Told.commands = command
        self.stdin = self

    def write(self, text: str) -> None:
        Told.input = text

    def close(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> None: ...


def test_what_an_srt_sender_sends_is_read_as_a_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a playlist, sent in its place, would have ffmpeg read this machine's files."""
    monkeypatch.setattr("polypstream.media.srt.subprocess.Popen", Told)
    with srt_received("srt://127.0.0.1:9000?mode=listener"):
        pass
    assert "-protocol_whitelist pipe,srt -i pipe:0" in " ".join(Told.commands)
    lines = Told.input.splitlines()
    assert lines[1] == "file 'srt://127.0.0.1:9000?mode=listener'"
    assert "option protocol_whitelist srt" in lines
    assert "option format_whitelist mpegts" in lines


def test_srt_passphrases_are_on_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polypstream.media.srt.subprocess.Popen", Told)
    url = "srt://127.0.0.1:9000?mode=caller&passphrase=open%20ses'ame1&latency=200000&streamid=user:key"
    with srt_received(url):
        assert "ses" not in " ".join(Told.commands)
        assert r"passphrase=open%20ses'\''ame1" in Told.input
    with srt_sent(url):
        words = " ".join(Told.commands)
        assert "ses" not in words
        assert "key" not in words
        assert words.endswith("srt://127.0.0.1:9000?mode=caller&latency=200000")
        preset = Path(Told.commands[Told.commands.index("-fpre") + 1])
        assert preset.read_text() == "passphrase=open ses'ame1\nstreamid=user:key\n"
        assert preset.parent.stat().st_mode & 0o077 == 0
    assert not preset.exists()


def test_waits_grow_up_to_the_longest() -> None:
    assert [round(back_off(attempts, 1.0), 3) for attempts in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert back_off(10**6, 60.0) == 60.0


def test_formats_of_devices_are_read_from_what_ffmpeg_logs() -> None:
    """As its v4l2 reader wrote them for the kernel's virtual camera, and its dshow reader for a USB grabber."""
    v4l2 = (
        "Raw       :     yuyv422 :           YUYV 4:2:2 : 640x480 1920x1080\n"
        "Compressed:       mjpeg :          Motion-JPEG : {32-4096, 2}x{32-2160, 2}\n"
    )
    assert parse_formats(v4l2) == [
        "yuyv422 (YUYV 4:2:2): 640x480 1920x1080",
        "mjpeg (Motion-JPEG): {32-4096, 2}x{32-2160, 2}",
    ]
    dshow = "  vcodec=mjpeg  min s=1920x1080 fps=30 max s=1920x1080 fps=60.0002\n" * 2
    assert parse_formats(dshow) == ["mjpeg: 1920x1080 at 60.0002 per second"]


def test_where_there_is_no_device_it_says_so() -> None:
    if sys.platform == "linux" and not list(Path("/dev").glob("video*")):
        said = call("devices").stdout
        assert said.startswith("No capture device was found. Check that the capture card or camera is connected")
        assert "/dev/video0" in said


def test_devices_are_listed_with_the_command_that_shows_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Device("dshow:My Card", "a card", ["yuyv422: 640x480"]), Device("/dev/video9", "another", [])]
    monkeypatch.setattr("polypstream.sources.devices.list_devices", lambda: found)
    devices()
    assert capsys.readouterr().out.splitlines() == [
        "dshow:My Card  a card",
        "    yuyv422: 640x480",
        "/dev/video9  another",
        "To see the first one: polypstream live 'dshow:My Card' --serve 127.0.0.1:8000",
    ]


def test_addresses_are_shown_without_credentials() -> None:
    assert redacted("rtsp://user:secret@host:554/path?token=abc#x") == "rtsp://host:554/path"
    assert redacted("srt://host:9000?passphrase=secret") == "srt://host:9000"
    assert split_name("room1=rtsp://u:p@h/s") == ("room1", "rtsp://u:p@h/s")
    assert split_name("rtsp://u:p@h/s?a=b") == ("rtsp://h/s", "rtsp://u:p@h/s?a=b")
    for sign in "#?/@":  # none of which belongs there unescaped
        assert redacted(f"rtsp://u:se{sign}cret@h/s") == "rtsp://h/s"
    for wrong in ("my room=rtsp://u:p@h/s", "rtsp:/u:p@h/s", "rtsp://u:p@[::1/s"):
        assert "p@" not in redacted(wrong)
        with pytest.raises(SourceError) as refused:
            open_sources([wrong], PATIENT)
        assert "p@" not in str(refused.value)
    with pytest.raises(SettingsError) as refused_push:
        pushes_of(["nobody=rtsp://u:p@h/s"], open_sources(["a=tcp://127.0.0.1:9"], PATIENT), PATIENT)
    assert "p@" not in str(refused_push.value)


def test_devices_of_another_system_are_refused() -> None:
    other = "dshow:Card" if sys.platform != "win32" else "avfoundation:0"
    with pytest.raises(SourceError, match="this system has no such devices"):
        open_sources([other], PATIENT)


def test_addresses_that_are_none_are_refused_without_credentials() -> None:
    with pytest.raises(SourceError, match=r"is no live source\. For a recording write replay:FILE") as refused:
        parse_address("ftp://user:secret@host/file")
    assert "secret" not in str(refused.value)
    with pytest.raises(SourceError, match="there is no value speed"):
        parse_address("/dev/video0?speed=3")
    device = parse_address("/dev/video0?size=640x480&rate=30")
    assert (device.url, device.reader) == ("/dev/video0", "v4l2")
    assert device.options == {"video_size": "640x480", "framerate": "30"}
    assert parse_address("/dev/video0?format=nv12").options == {"input_format": "nv12"}
    steady_name = "/dev/v4l/by-id/usb-Magewell_USB_Capture-video-index0"
    assert (parse_address(f"{steady_name}?rate=60").url, parse_address(steady_name).reader) == (steady_name, "v4l2")
    assert parse_address("dshow:Card?format=nv12").options == {"pixel_format": "nv12"}
    assert parse_address("dshow:My Card").url == "video=My Card"


def test_a_recording_rolls_over_and_overwrites_nothing(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"live": {"max_staleness": 60.0}, "output": {"roll": {"seconds": 1.0}}})
    sources = open_sources([f"replay:{make(frames=60)}"], settings)
    recordings = recordings_of(tmp_path / "r.mp4", sources, settings)
    live = Live(sources, segmenter, settings, recordings)
    live.run(lambda: None)
    files = [tmp_path / name for name in ("r.mp4", "r-2.mp4", "r-3.mp4")]
    lengths = [len(pts_of(path)) for path in files]
    dropped = sum(live.pipeline.dropped_by_sinks[recordings[0][0]].values())
    assert sum(lengths) == live.status()[0].shown - dropped
    assert all(pts_of(path)[0] == 0 for path in files)
    assert live.status()[0].unrecorded == dropped
    with pytest.raises(OutputError, match="exists already"):
        recordings_of(tmp_path / "r.mp4", sources, settings)


def test_several_sources_are_recorded_under_their_names(tmp_path: Path) -> None:
    named = open_sources(["a=tcp://127.0.0.1:9", "b=tcp://127.0.0.1:9"], Settings())
    assert [name for name, _ in recordings_of(tmp_path / "r.mp4", named, Settings())] == ["record a", "record b"]
    nameless = open_sources(["tcp://127.0.0.1:9", "/dev/video0"], Settings())
    with pytest.raises(SettingsError, match="9 needs a name for its file; write NAME=ADDRESS"):
        recordings_of(tmp_path / "r.mp4", nameless, Settings())


def test_what_the_recording_has_no_time_for_is_told(
    make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = open_sources([f"replay:{make(frames=50)}"], PATIENT)
    ((name, recording),) = recordings_of(tmp_path / "r.mp4", sources, PATIENT)
    monkeypatch.setattr(RollingRecording, "queue_size", 1)
    write = recording.write
    monkeypatch.setattr(recording, "write", lambda frame: (time.sleep(0.1), write(frame)))
    live = Live(sources, segmenter, PATIENT, [(name, recording)])
    live.run(lambda: None)
    (status,) = live.status()
    assert status.unrecorded > 10
    assert len(pts_of(tmp_path / "r.mp4")) == status.shown - status.unrecorded
    assert f"{status.unrecorded} not recorded" in describe(status)


def test_frames_from_before_a_change_of_size_share_a_file(tmp_path: Path) -> None:
    """When the reader is ahead of the recording."""
    (source,) = open_sources(["tcp://127.0.0.1:9"], Settings())
    source.format = PictureFormat(96, 96, "yuv420p", Fraction(1, 25), Fraction(25))
    recording = RollingRecording(tmp_path / "r.mp4", source, Settings().output)
    for index in range(20):
        side = 64 if index < 10 else 96
        picture = av.VideoFrame(side, side, "yuv420p")
        picture.pts, picture.time_base = index, Fraction(1, 25)
        recording.write(Frame(index, picture, index, Fraction(1, 25), source=source.name))
    recording.close()
    assert [len(pts_of(path)) for path in recording.files] == [10, 10]


@pytest.mark.realtime
def test_the_command_ends_with_the_account_of_every_source(
    tmp_path: Path, make: Callable[..., Path], red_model: Path
) -> None:
    wanted = ("--model", red_model, "--record", tmp_path / "r.mp4", "--set", "live.max_staleness=60.0")
    done = call("live", f"room=replay:{make(frames=30)}", *wanted)
    assert " of 30 frames shown" in done.stdout
    video, report = (re.escape(str(tmp_path / name)) for name in ("r.mp4", "r/report.html"))
    assert re.search(rf"room: recorded 0:00:01\.\d in {video}; open {report}\n", done.stdout)
    assert f"room: is recorded in {tmp_path / 'r.mp4'}; Ctrl-C ends it" in done.stderr
    with av.open(str(tmp_path / "r.mp4")) as file:
        assert len(list(file.decode(video=0))) >= 25


class Failing:
    """A sink that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, frame: Frame) -> None:
        raise self.error

    def close(self) -> None:
        pass


def test_a_sink_that_fails_fails_alone(make: Callable[..., Path], segmenter: Segmenter) -> None:
    sources, kept = open_sources([f"replay:{make(frames=25)}"], PATIENT), Kept()
    full = Failing(OutputError("r.mp4: the disk is full; what was written so far is kept"))
    broken = Failing(RuntimeError("the screen is gone\nand more"))
    live = Live(sources, segmenter, PATIENT, [("full", full), ("broken", broken), ("kept", kept)])
    live.run(lambda: None)
    assert len(kept.frames) >= 10
    assert live.failed_sinks() == ["r.mp4: the disk is full; what was written so far is kept", "the screen is gone"]


class Meeting(Browser):
    """A page whose first frame waits until a frame of another source is written at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, int]] = []
        self.present: set[str] = set()
        self.met = threading.Event()

    def write(self, frame: Frame) -> None:
        self.present.add(frame.source)
        if len(self.present) == 2:
            self.met.set()
        self.met.wait(5)
        self.written.append((frame.source, frame.index))
        self.present.discard(frame.source)


def test_the_page_encodes_several_sources_at_the_same_time(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polypstream.jobs.live.usable_cores", lambda: 4)
    page, clip = Meeting(), make(frames=25)
    live = Live(open_sources([f"a=replay:{clip}", f"b=replay:{clip}"], PATIENT), segmenter, PATIENT, [("page", page)])
    live.run(lambda: None)
    assert page.met.is_set()
    assert not live.failed_sinks()
    for name in "ab":
        indices = [index for source, index in page.written if source == name]
        assert indices == sorted(set(indices))
        assert len(indices) >= 5
    for status in live.status():
        assert status.frames_in == status.shown + sum(status.dropped.values())


def test_what_fails_for_one_source_ends_the_page_alone(
    make: Callable[..., Path], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Browser):
        def write(self, frame: Frame) -> None:
            if frame.source == "b":
                raise OutputError("the page is gone")

    monkeypatch.setattr("polypstream.jobs.live.usable_cores", lambda: 4)
    kept, clip = Kept(), make(frames=25)
    sources = open_sources([f"a=replay:{clip}", f"b=replay:{clip}"], PATIENT)
    live = Live(sources, segmenter, PATIENT, [("page", Broken()), ("kept", kept)])
    live.run(lambda: None)
    assert live.failed_sinks() == ["the page is gone"]
    assert len(kept.frames) >= 20


@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize(
    ("push", "listen"),
    [
        ("tcp://127.0.0.1:{}", ["-f", "mpegts", "-i", "tcp://127.0.0.1:{}?listen=1"]),
        (
            "srt://127.0.0.1:{}?mode=caller&passphrase=opensesame1",
            ["-f", "mpegts", "-i", "srt://127.0.0.1:{}?mode=listener&passphrase=opensesame1"],
        ),
        ("rtmp://127.0.0.1:{}/live/room", ["-listen", "1", "-f", "flv", "-i", "rtmp://127.0.0.1:{}/live/room"]),
        ("rtsp://127.0.0.1:{}/room", ["-rtsp_flags", "listen", "-i", "rtsp://127.0.0.1:{}/room"]),
    ],
    ids=["tcp", "srt", "rtmp", "rtsp"],
)
def test_what_is_shown_is_pushed_on(
    push: str, listen: list[str], make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path
) -> None:
    """To a real ffmpeg that is not there at first, listens then, and saves what it is sent."""
    port, received = free_port(), tmp_path / "received.ts"
    sources = open_sources([f"room=replay:{make(frames=200)}"], PATIENT)
    live = Live(sources, segmenter, PATIENT, pushes_of([push.format(port)], sources, PATIENT))
    started, peers = time.monotonic(), []

    def poll() -> None:
        if not peers and time.monotonic() - started > 1:
            open_ = [part.format(port) for part in listen]
            peers.append(subprocess.Popen(["ffmpeg", "-v", "error", *open_, "-c", "copy", str(received)]))

    live.run(poll)
    try:
        peers[0].wait(timeout=10)
    except subprocess.TimeoutExpired:  # not every protocol says goodbye
        peers[0].send_signal(signal.SIGINT)
        peers[0].wait(timeout=10)
    with av.open(str(received)) as file:
        pictures = [picture.to_ndarray(format="rgb24") for picture in file.decode(video=0)]
    assert 40 < len(pictures) < 190
    outlined = [picture for picture in pictures if ((picture[..., 1].astype(int) - picture[..., 0]) > 60).any()]
    assert outlined  # the marker's green
    assert not live.failed_sinks()


@needs_ffmpeg
def test_a_push_goes_on_in_another_size(peer: Callable[[str, str], Peer], segmenter: Segmenter, tmp_path: Path) -> None:
    """The other side sees a new stream when the source comes back with other pictures."""
    port, onward = free_port(), free_port()
    settings, kept = Settings.model_validate({"live": {"timeout": 1.0}}), Kept()
    sources = open_sources([f"room=udp://127.0.0.1:{port}"], settings)
    pushes = pushes_of([f"udp://127.0.0.1:{onward}"], sources, settings)
    live = Live(sources, segmenter, settings, [("kept", kept), *pushes])
    widths: set[int] = set()

    def watch() -> None:
        timeout = (5.0, 5.0)
        with av.open(f"udp://127.0.0.1:{onward}?overrun_nonfatal=1", timeout=timeout) as file:
            for picture in file.decode(video=0):
                widths.add(picture.width)
                if len(widths) == 2:
                    return

    def script() -> Iterator[None]:
        for width in (320, 480):
            sender = peer(f"udp://127.0.0.1:{port}?pkt_size=1316", f"{width}x240")
            until = time.monotonic() + 4
            while time.monotonic() < until and width not in widths:
                yield
            sender.kill()

    steps = script()

    def poll() -> None:
        if next(steps, "over") == "over":
            live.close()

    with in_background("watch", watch, lambda: None):
        live.run(poll)
    assert widths == {320, 480}
    assert not live.failed_sinks()


@pytest.mark.slow
def test_a_recording_that_is_killed_plays_to_within_two_seconds(
    make: Callable[..., Path], red_model: Path, tmp_path: Path
) -> None:
    path, video = tmp_path / "r.mp4", make(frames=1000)
    wanted = ("--model", str(red_model), "--record", str(path), "--set", "live.max_staleness=60.0")
    running = subprocess.Popen([*command(), "live", f"room=replay:{video}", *wanted], stdout=subprocess.DEVNULL)
    try:
        while not (path.exists() and path.stat().st_size > 20_000):
            assert running.poll() is None
            time.sleep(0.05)
        started = time.monotonic()
        time.sleep(5)
    finally:
        running.kill()
        running.wait()
    played = pts_of(path)
    assert float(played[-1]) >= time.monotonic() - started - 2


def test_a_push_to_nowhere_is_refused() -> None:
    sources = open_sources(["a=/dev/video0", "b=/dev/video1"], PATIENT)
    with pytest.raises(SettingsError, match="write NAME=URL with the name of a source"):
        pushes_of(["udp://127.0.0.1:1"], sources, PATIENT)
    with pytest.raises(SettingsError, match="write rtsp://, srt://, udp://") as refused:
        pushes_of(["a=ftp://user:secret@host/"], sources, PATIENT)
    assert "secret" not in str(refused.value)
