"""Live: the newest frame wins, every frame is accounted for, what goes away comes back."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stream.config import Settings
from stream.errors import OutputError, SettingsError, SourceError
from stream.frame import Frame
from stream.live import Live, describe, open_sources, pushes_of, recordings_of
from stream.live_rooms import Fresh
from stream.segment import Segmenter
from stream.sources.live import parse_address, redacted, split_name
from tests.conftest import call, pts_of

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program as a peer")


@pytest.fixture
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


class Kept:
    """A sink that keeps what it needs to know of each frame."""

    queue = 1000

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def write(self, frame: Frame) -> None:
        self.frames.append(frame)

    def close(self) -> None:
        pass


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
    assert status.shown + status.dropped["newer"] + status.dropped["stale"] == 240
    assert status.dropped["newer"] > 120
    ages = [frame.arrived for frame in kept.frames]
    assert ages == sorted(ages)
    assert status.delay_ms is not None
    assert status.delay_ms[3] < 1000  # a wait for the session and its own turn, no queue


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
    fresh = Fresh(0.5)
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
    assert status.delay_ms is not None
    assert status.delay_ms[0] < 150
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


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def peer() -> Iterator[Callable[[str, str], subprocess.Popen[bytes]]]:
    """peer(url, size) starts an ffmpeg that sends a test picture of this size."""
    running: list[subprocess.Popen[bytes]] = []

    def start(url: str, size: str) -> subprocess.Popen[bytes]:
        picture = ["-re", "-f", "lavfi", "-i", f"testsrc2=size={size}:rate=25"]
        encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "12"]
        running.append(subprocess.Popen(["ffmpeg", "-v", "error", *picture, *encoder, "-f", "mpegts", url]))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@needs_ffmpeg
@pytest.mark.parametrize("scheme", ["srt", "udp"])
def test_a_stream_that_goes_away_is_picked_up_when_it_returns(
    scheme: str, peer: Callable[[str, str], subprocess.Popen[bytes]], segmenter: Segmenter, tmp_path: Path
) -> None:
    port = free_port()
    mine, theirs = (f"{scheme}://127.0.0.1:{port}{query}" for query in LINKS[scheme])
    settings, kept = Settings.model_validate({"live": {"timeout": 1.0}}), Kept()
    sources = open_sources([f"room={mine}"], settings)
    recordings = recordings_of(tmp_path / "r.mp4", sources, settings)
    live = Live(sources, segmenter, settings, [("kept", kept), *recordings])
    returned: list[float] = []
    script = returning(live, kept, peer, theirs, returned)

    def poll() -> None:
        if next(script, "over") == "over":
            live.close()

    live.run(poll)
    assert all(seconds < 3 for seconds in returned), returned
    (status,) = live.status()
    assert status.losses == 3
    assert not status.signal
    assert status.shown + sum(status.dropped.values()) == status.frames_in
    assert sum(not frame.signal for frame in kept.frames) >= 3
    times = [frame.seconds for frame in kept.frames]
    assert times == sorted(times)
    # The recording goes on in a new file for each size, with the frames' own times.
    files = sorted(tmp_path.glob("r*.mp4"))
    assert len(files) == 3
    for path in files:
        assert pts_of(path)[0] == 0
        assert float(pts_of(path)[-1]) > 1


LINKS = {"srt": ("?mode=listener", "?mode=caller"), "udp": ("", "?pkt_size=1316")}


def returning(
    live: Live, kept: Kept, peer: Callable[[str, str], subprocess.Popen[bytes]], url: str, returned: list[float]
) -> Iterator[None]:
    """Three times: the sender starts with another size, pictures of that size come, it is killed."""
    for width in (320, 480, 640):
        sender = peer(url, f"{width}x240")
        started = time.monotonic()
        while not any(frame.signal and frame.picture.width == width for frame in kept.frames):
            if time.monotonic() - started > 15:
                pytest.fail(f"no picture of width {width} came: {live.status()}")
            yield
        returned.append(time.monotonic() - started)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            yield
        sender.kill()
        while live.status()[0].signal:
            yield


def test_addresses_are_shown_without_credentials() -> None:
    assert redacted("rtsp://user:secret@host:554/path?token=abc#x") == "rtsp://host:554/path"
    assert redacted("srt://host:9000?passphrase=secret") == "srt://host:9000"
    assert split_name("room1=rtsp://u:p@h/s") == ("room1", "rtsp://u:p@h/s")
    assert split_name("rtsp://u:p@h/s?a=b") == ("rtsp://h/s", "rtsp://u:p@h/s?a=b")


def test_addresses_that_are_none_are_refused_without_credentials() -> None:
    with pytest.raises(SourceError, match=r"no live source; write /dev/video0") as refused:
        parse_address("ftp://user:secret@host/file")
    assert "secret" not in str(refused.value)
    with pytest.raises(SourceError, match="no such value speed"):
        parse_address("/dev/video0?speed=3")
    device = parse_address("/dev/video0?size=640x480&rate=30")
    assert (device.url, device.reader) == ("/dev/video0", "v4l2")
    assert device.options == {"video_size": "640x480", "framerate": "30"}
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
    with pytest.raises(OutputError, match="exists already"):
        recordings_of(tmp_path / "r.mp4", sources, settings)


def test_the_command_ends_with_the_account_of_every_source(
    tmp_path: Path, make: Callable[..., Path], red_model: Path
) -> None:
    wanted = ("--model", red_model, "--record", tmp_path / "r.mp4", "--set", "live.max_staleness=60.0")
    done = call("live", f"room=replay:{make(frames=30)}", *wanted)
    assert "room: no signal (it ended), 30 frames in" in done.stdout
    with av.open(str(tmp_path / "r.mp4")) as file:
        assert len(list(file.decode(video=0))) >= 25


class Full:
    """A sink on a full disk."""

    def write(self, frame: Frame) -> None:
        raise OutputError("r.mp4: the disk is full; what was written so far is kept")

    def close(self) -> None:
        pass


def test_a_sink_that_fails_fails_alone(make: Callable[..., Path], segmenter: Segmenter) -> None:
    sources, kept = open_sources([f"replay:{make(frames=25)}"], PATIENT), Kept()
    live = Live(sources, segmenter, PATIENT, [("full", Full()), ("kept", kept)])
    live.run(lambda: None)
    assert len(kept.frames) >= 10
    assert live.failed_sinks() == ["r.mp4: the disk is full; what was written so far is kept"]


@needs_ffmpeg
def test_what_is_shown_is_pushed_on(make: Callable[..., Path], segmenter: Segmenter, tmp_path: Path) -> None:
    """To a real ffmpeg that is not there at first, listens then, and saves what it is sent."""
    port, received = free_port(), tmp_path / "received.ts"
    sources = open_sources([f"room=replay:{make(frames=150)}"], PATIENT)
    live = Live(sources, segmenter, PATIENT, pushes_of([f"tcp://127.0.0.1:{port}"], sources, PATIENT))
    started, peers = time.monotonic(), []

    def poll() -> None:
        if not peers and time.monotonic() - started > 1:
            listen = ["ffmpeg", "-v", "error", "-f", "mpegts", "-i", f"tcp://127.0.0.1:{port}?listen=1"]
            peers.append(subprocess.Popen([*listen, "-c", "copy", str(received)]))

    live.run(poll)
    assert peers[0].wait(timeout=20) == 0
    with av.open(str(received)) as file:
        pictures = [picture.to_ndarray(format="rgb24") for picture in file.decode(video=0)]
    assert 50 < len(pictures) < 140
    outlined = [picture for picture in pictures if ((picture[..., 1].astype(int) - picture[..., 0]) > 60).any()]
    assert outlined  # the marker's green
    assert not live.failed_sinks()


def test_a_push_to_nowhere_is_refused() -> None:
    sources = open_sources(["a=/dev/video0", "b=/dev/video1"], PATIENT)
    with pytest.raises(SettingsError, match="write NAME=URL with the name of a source"):
        pushes_of(["udp://127.0.0.1:1"], sources, PATIENT)
    with pytest.raises(SettingsError, match="write rtsp://, udp://") as refused:
        pushes_of(["a=ftp://user:secret@host/"], sources, PATIENT)
    assert "secret" not in str(refused.value)
