"""Several live sources at once, and what each must not do to the others; what is said where nothing is to be seen."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import requests

from polypstream.core.addresses import listening_problem
from polypstream.core.config import LiveSettings, Settings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.live_pictures import LivePictures
from polypstream.core.live_sound import LiveSound
from polypstream.core.protocols import Signal
from polypstream.errors import OutputError, ProviderError, SettingsError, SourceError
from polypstream.inference.providers import SessionSettings, open_session
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, open_sources
from polypstream.jobs.live_outputs import pushes_of, recordings_of
from polypstream.jobs.live_recent import Recent
from polypstream.jobs.live_status import Percentiles, Status, describe
from polypstream.jobs.setup import make_segmenter
from polypstream.media.pictures import black_picture
from polypstream.sinks.browser import Browser
from polypstream.sources.live import Replay, open_live
from polypstream.sources.recording import Recording
from polypstream.stages.live import LatencyMeter
from polypstream.stages.status_overlay import draw_recording
from polypstream.web.live import LivePage
from polypstream.web.server import parse_listen, web
from tests.conftest import Kept, call, free_port

pytestmark = pytest.mark.realtime

PATIENT = Settings.model_validate({"live": {"max_staleness": 60.0}})
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program as a peer")


@pytest.fixture
def segmenter(red_model: Path) -> Segmenter:
    return Segmenter(red_model, "cpu")


class Camera:
    """A source that gives pictures at a steady rate, or does something else at some picture."""

    def __init__(self, name: str, count: int, rate: float, at: Callable[[int], None] = lambda _: None) -> None:
        self.name, self.signal = name, Signal(there=True, problem="")
        self.sound, self.pictures = LiveSound(), LivePictures()
        self.format: PictureFormat | None = PictureFormat(320, 240, "yuv420p", Fraction(1, 90_000), Fraction(25))
        self._count, self._rate, self._at = count, rate, at
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        due = time.monotonic()
        for index in range(self._count):
            if self._closed.wait(max(0.0, due - time.monotonic())):
                return
            self._at(index)
            pts = round(index / self._rate * 90_000)
            yield Frame(index, black_picture(320, 240), pts, Fraction(1, 90_000), due, self.name)
            due += 1 / self._rate

    def close(self) -> None:
        self._closed.set()


def play(live: Live) -> None:
    live.run(lambda: None)


# Nothing is late


def slow(segmenter: Segmenter, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = segmenter.run

    def slowly(pictures: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return run(pictures)

    monkeypatch.setattr(segmenter, "run", slowly)


@pytest.mark.parametrize("batch", [1, 8])
def test_rooms_get_equal_shares_of_a_machine_that_is_too_slow_and_stay_current(
    batch: int, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 50 ms a picture twenty a second can be looked at; 160 come."""
    slow(segmenter, 0.05, monkeypatch)
    monkeypatch.setattr(segmenter, "batch_size", batch)
    if batch > 1:  # as a GPU would: all of a batch in the time of one
        monkeypatch.setattr(segmenter, "segment", lambda pictures: list(segmenter.run(np.stack(pictures))))
    cameras = [Camera(f"room{number}", 3 * rate, rate) for number, rate in enumerate((60, 25, 50, 25))]
    live = Live(cameras, segmenter, PATIENT, [("kept", Kept())])
    play(live)
    statuses = live.status()
    shown = [status.shown for status in statuses]
    assert min(shown) > 0.75 * max(shown), shown
    for status in statuses:
        assert status.shown + sum(status.dropped.values()) == status.frames_in
        assert status.latency_ms is not None
        # Its own turn, one of each other room, and the one that waits behind it.
        assert status.latency_ms[0] < (6 if batch == 1 else 3) * 50, status


def test_markers_are_as_old_as_the_delay_until_they_are_drawn(segmenter: Segmenter) -> None:
    live = Live([Camera("room", 30, 30)], segmenter, PATIENT, [("kept", Kept())])
    play(live)
    (status,) = live.status()
    assert status.markers_age_ms is not None
    assert status.latency_ms is not None
    assert 0 < status.markers_age_ms[0] <= status.latency_ms[0]


def test_what_has_no_markers_has_none_of_any_age() -> None:
    meter, now = LatencyMeter(), time.monotonic()
    for problem, signal in (("broken", True), ("", False), ("", True)):
        frame = Frame(0, black_picture(16, 16), 0, Fraction(1), now - 1, "a", has_signal=signal, problem=problem)
        meter([frame])
    assert [age is None for _, _, age in meter.latest("a")] == [True, False]
    assert meter.shown_by_origin("a") == {"own": 1, "earlier": 0, "none": 1}


def test_the_model_is_chosen_once_the_provider_has_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fallback the plain CPU has its own, the 8-bit one."""
    monkeypatch.setattr("polypstream.inference.segmenter.choose", lambda wanted: (["openvino", "cpu"], []))

    def refused(model: Path, provider: str, settings: SessionSettings) -> object:
        if provider == "openvino":
            raise ProviderError("inference.provider openvino cannot run it")
        return open_session(model, "cpu", settings)

    monkeypatch.setattr("polypstream.inference.segmenter.open_session", refused)
    segmenter = make_segmenter(Settings())
    assert segmenter.provider == "cpu"
    assert segmenter.model.name == "sa_unet_int8.onnx"
    assert segmenter.card.precision == "int8"


# Each fails alone


def test_whatever_one_source_raises_the_others_go_on(segmenter: Segmenter) -> None:
    def breaks(index: int) -> None:
        if index == 5:
            raise AttributeError("'NoneType' object has no attribute 'flags'")

    live = Live([Camera("bad", 30, 30, breaks), Camera("good", 30, 30)], segmenter, PATIENT, [("kept", Kept())])
    play(live)
    bad, good = live.status()
    assert not bad.signal
    assert "has no attribute 'flags'" in bad.problem
    assert good.frames_in == good.shown + sum(good.dropped.values()) == 30


def sent(recording: Path, port: int, once: bool = True) -> subprocess.Popen[bytes]:
    """A real program that sends a transport stream as it is."""
    repeat = [] if once else ["-stream_loop", "-1"]
    to = ["-c", "copy", "-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316"]
    return subprocess.Popen(["ffmpeg", "-loglevel", "quiet", "-nostdin", "-re", *repeat, "-i", str(recording), *to])


@needs_ffmpeg
def test_a_codec_that_is_not_known_is_said_and_tried_again(tmp_path: Path, make: Callable[..., Path]) -> None:
    data = bytearray(make(name="clip.ts", frames=75, codec="mpeg2video").read_bytes())
    for at in range(0, len(data), 188):
        pid = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        if pid == 0x1000:  # the map of the program: another kind of stream, and a checksum that fits
            table = at + 5
            length = (data[table + 1] & 0x0F) << 8 | data[table + 2]
            data[table + 12] = 0xD4  # AVS3, for which FFmpeg has no decoder of its own
            end = table + 3 + length - 4
            data[end : end + 4] = crc_of(bytes(data[table:end])).to_bytes(4, "big")
    (tmp_path / "odd.ts").write_bytes(data)
    port = free_port()
    source = open_live("room", f"udp://127.0.0.1:{port}", LiveSettings(timeout=1.0, most_attempts=2))
    sender = sent(tmp_path / "odd.ts", port, once=False)
    try:
        assert not any(frame.has_signal for frame in source.frames())
    finally:
        sender.kill()
        sender.wait()
    assert "given up after 2 attempts" in source.signal.problem


def crc_of(data: bytes) -> int:
    """CRC-32 of MPEG-2 (ISO/IEC 13818-1, annex A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


@needs_ffmpeg
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg2video", ["-bf", "2", "-q:v", "3"]),
        ("mpeg1video", ["-bf", "2", "-q:v", "3"]),
        ("mpeg4", ["-bf", "2", "-q:v", "3"]),
        ("libx264", ["-bf", "3"]),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_pictures_that_are_coded_out_of_order_are_shown_in_order(
    codec: str, options: list[str], tmp_path: Path
) -> None:
    recording, port = tmp_path / "b.ts", free_port()
    source_of = ["-f", "lavfi", "-i", "testsrc2=rate=25:size=320x240:duration=5", "-pix_fmt", "yuv420p"]
    ffmpeg = ["ffmpeg", "-loglevel", "error", "-nostdin"]
    subprocess.run([*ffmpeg, *source_of, "-c:v", codec, *options, "-g", "12", str(recording)], check=True)
    known: dict[str, int] = {}
    for frame in Recording(recording).frames():
        known.setdefault(digest(frame.picture), frame.index)
    source = open_live("room", f"udp://127.0.0.1:{port}", LiveSettings(timeout=1.0))
    sender = sent(recording, port)
    threading.Timer(6, source.close).start()
    order = [known.get(digest(frame.picture), -1) for frame in source.frames() if frame.has_signal]
    sender.wait()
    seen = [number for number in order if number >= 0]
    assert len(seen) > 60
    assert seen == sorted(set(seen))


def digest(picture: av.VideoFrame) -> str:
    return hashlib.md5(picture.to_ndarray(format="gray").tobytes()).hexdigest()


def test_a_replay_closes_its_recording(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recording, closed = Recording(make(frames=5)), []
    monkeypatch.setattr(recording, "close", lambda: closed.append(True))
    replay = Replay("room", lambda: recording)
    assert len(list(replay.frames())) == 5
    assert closed
    assert replay.signal.ended


def test_a_loop_plays_again_and_its_times_go_on(make: Callable[..., Path]) -> None:
    source = open_live("room", f"loop:{make(frames=5)}", PATIENT.live)
    frames = list(islice(source.frames(), 12))
    source.close()
    assert [frame.index for frame in frames] == list(range(12))
    pictures = [frame.in_memory().to_ndarray() for frame in frames]
    assert all(np.array_equal(pictures[number], pictures[number % 5]) for number in range(12))
    times = [frame.seconds for frame in frames]
    assert np.allclose(np.diff(times), 1 / 25)
    assert all(frame.in_memory().pts == frame.pts for frame in frames)


# What is said


def test_the_last_line_after_a_clean_end_is_no_complaint(segmenter: Segmenter, make: Callable[..., Path]) -> None:
    live = Live(open_sources([f"room=replay:{make(frames=10)}"], PATIENT), segmenter, PATIENT, [("kept", Kept())])
    play(live)
    line = describe(live.status()[0])
    assert line.startswith("room: source ended, 10 of 10 frames shown, ")
    assert "no signal" not in line


def test_a_source_is_stopped_also_if_the_run_ends_before_it_has_noticed(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera("room", 1000, 50)
    monkeypatch.setattr(camera, "close", lambda: None)
    live = Live([camera], segmenter, PATIENT, [("kept", Kept())])

    def interrupt() -> None:
        if live.status()[0].shown:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live.run(interrupt, 0.01)
    assert describe(live.status()[0]).startswith("room: stopped, ")


def test_a_source_that_loses_frames_and_its_signal_says_so_in_words() -> None:
    latency = Percentiles(46.2, 100.0, 174.4, 200.0)
    warning = "this machine is too slow: 61 % of the frames of the last 10 s were skipped"
    dropped, origins = {"overtaken": 336, "too_old": 34}, {"own": 0, "earlier": 200, "none": 30}
    counts, recent = (1, 600, 230, origins, dropped, 0), Recent(10.0, 300, 183)
    status = Status("room", False, False, "no picture for 2 s", *counts, recent, warning, latency, None, 25.0)
    assert describe(status) == (
        "room: no signal (no picture for 2 s), 230 of 600 frames shown, 25.0 per second, "
        "findings of the frame itself in 0, of an earlier frame in 200, none in 30, "
        "skipped 370 of 600 (336 overtaken, 34 too old), latency 46 ms, 99 % under 174 ms, signal lost once"
    )
    assert describe(replace(status, signal=True, problem="")).endswith(f", signal lost once, {warning}")


def test_live_without_any_output_is_refused() -> None:
    done = call("live", "demo:", check=False)
    assert done.returncode == 1
    assert "nothing would show, record or send the video. Add --serve 127.0.0.1:8000 (web page), --win" in done.stderr


def quiet_tcp(server: socket.socket) -> str:
    """A sender that takes the connection and says nothing."""
    server.listen()
    return f"tcp://user:secret@127.0.0.1:{server.getsockname()[1]}"


def quiet_udp(server: socket.socket) -> str:
    return f"udp://127.0.0.1:{server.getsockname()[1]}?reuse=1"


@pytest.mark.parametrize(
    ("address", "awaited"),
    [(quiet_tcp, r"waiting for video from 127\.0\.0\.1:\d+"), (quiet_udp, r"waiting for a sender to port \d+")],
)
def test_a_source_that_sends_nothing_is_reported_once(
    address: Callable[[socket.socket], str],
    awaited: str,
    segmenter: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("polypstream.jobs.live.SILENCE_S", 0.1)
    monkeypatch.setattr("polypstream.sources.live.CONNECT_S", 0.4)
    settings = Settings.model_validate({"live": {"timeout": 0.4, "most_attempts": 1}})
    kept = Kept()
    kind = socket.SOCK_STREAM if address is quiet_tcp else socket.SOCK_DGRAM
    with socket.socket(type=kind) as server:
        server.bind(("127.0.0.1", 0))
        url = address(server)
        if kind == socket.SOCK_DGRAM:
            server.close()
        sources = [*open_sources([f"room={url}"], settings), Camera("other", 30, 60)]
        live = Live(sources, segmenter, settings, [("kept", kept)])
        live.run(lambda: None, 0.02)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "polypstream.jobs.live"]
    assert re.fullmatch(
        rf"room: nothing has arrived yet \({awaited}\)\. polypstream keeps trying\. Ctrl-C stops it\.", line
    )
    status = live.status()[0]
    assert re.fullmatch(rf"no picture for 0\.4 s, {awaited}; given up after 1 attempt", status.problem)
    # The placeholder reached the sinks, but it is no frame of the source.
    assert [frame.has_signal for frame in kept.frames if frame.source == "room"] == [False]
    assert (status.frames_in, status.shown, status.latency_ms) == (0, 0, None)
    assert live.status()[1].shown > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--serve", "here"), "--serve here: the port `here` is not a number; write HOST:PORT, for instance"),
        (("--serve", "127.0.0.1:70000"), "the port 70000 is too large; the largest one is 65535"),
        (("--push", "udp://127.0.0.1"), "--push udp://127.0.0.1: the port is missing; write udp://127.0.0.1:PORT"),
        (("--push", "rtmp://u:secret@host:x/y"), "--push rtmp://host:x/y: the port `x` is not a number"),
        (("--push", "tcp://[::1:3"), "--push tcp://[::1:3: the host is not valid; write an IPv6 address in brackets"),
    ],
)
def test_each_mistake_in_an_address_has_its_own_words(arguments: tuple[str, str], words: str) -> None:
    option, value = arguments
    with pytest.raises(SettingsError) as refused:
        if option == "--serve":
            parse_listen(value)
        else:
            pushes_of([value], [Camera("room", 1, 1)], Settings())
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "in use"), "another program uses port 80 already; choose another port, or 0"),
        (OSError(errno.EACCES, "denied"), "you are not allowed to use port 80; choose a port above 1023"),
        (OSError(errno.EADDRNOTAVAIL, "no"), "host is not an address of this machine; 127.0.0.1 is this machine only"),
        (socket.gaierror(-2, "unknown"), "no address is known for the name host; write an IP address"),
        (OSError(errno.ENETDOWN, "Network is down"), "cannot listen there (Network is down)"),
    ],
)
def test_each_reason_why_a_server_cannot_listen_has_its_own_words(error: OSError, words: str) -> None:
    assert listening_problem(error, "host", 80).startswith(words)


def test_a_source_with_a_wrong_port_or_an_unknown_host_says_so(segmenter: Segmenter) -> None:
    with pytest.raises(SourceError, match="rtsp://host:70000/x: the port 70000 is too large"):
        open_sources(["rtsp://user:secret@host:70000/x"], Settings())
    settings = Settings.model_validate({"live": {"most_attempts": 1}})
    live = Live(open_sources(["room=tcp://nowhere.invalid:1"], settings), segmenter, settings, [])
    play(live)
    assert live.status()[0].problem.startswith("the host name nowhere.invalid is not known; given up after 1 attempt")


def test_what_is_recorded_is_in_the_status(segmenter: Segmenter, tmp_path: Path, make: Callable[..., Path]) -> None:
    sources = open_sources([f"room=replay:{make(frames=75)}"], PATIENT)
    recordings = recordings_of(tmp_path / "r.mp4", sources, PATIENT)
    browser = Browser()
    live = Live(sources, segmenter, PATIENT, [*recordings, ("web", browser)])
    (recording,) = [sink for _, sink in recordings]
    assert recording.doing == "waiting for the first picture"
    with web([LivePage(live, browser)], "127.0.0.1", 0, None) as address:
        play(live)
        (status,) = requests.get(f"{address}status.json", timeout=10).json()
        doing = {sink["name"]: sink["doing"] for sink in status["sinks"]}
        assert re.fullmatch(rf"recording 0:00:0[23]\.\d in {re.escape(str(tmp_path / 'r.mp4'))}", doing["record room"])
        recording.on = False
        (status,) = requests.get(f"{address}status.json", timeout=10).json()
        assert any(sink["doing"].startswith("paused 0:00:0") for sink in status["sinks"])
    assert recording.caption.startswith("recording paused at 0:00:0")


def test_the_sign_of_a_recording_is_drawn_into_its_corner() -> None:
    for on, colour in ((True, 2), (False, None)):
        picture = np.full((480, 640, 3), 40, np.uint8)
        draw_recording(picture, "REC 0:12:34" if on else "recording paused at 0:12:34", on)
        corner, rest = picture[:60, 320:], picture[60:]
        assert (rest == 40).all()
        assert corner.max() == 255
        if colour is not None:
            bright = corner[corner.max(axis=2) > 200]
            assert (bright[:, colour] > bright[:, 0] + 100).mean() > 0.5


def parts(address: str, seconds: float) -> list[np.ndarray]:
    """The pictures that a viewer of the first source gets in so long."""
    pictures, buffer, end = [], b"", time.monotonic() + seconds
    with requests.get(f"{address}live/0/stream", stream=True, timeout=10) as answer:
        for chunk in answer.iter_content(4096):
            buffer += chunk
            while (stop := buffer.find(b"\xff\xd9")) >= 0:
                jpeg = buffer[buffer.find(b"\xff\xd8") : stop + 2]
                pictures.append(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))
                buffer = buffer[stop + 2 :]
            if time.monotonic() > end:
                return pictures
    return pictures


@pytest.mark.parametrize("before", [0, 20], ids=["from the beginning", "after some pictures"])
def test_a_page_without_a_signal_says_so_twice_a_second(before: int, segmenter: Segmenter) -> None:
    """The source stands still for five seconds, as one that is being connected to."""

    def waits(index: int) -> None:
        if index == before:
            time.sleep(5)

    browser = Browser()
    camera = Camera("room", before + 1, 50, waits)
    live = Live([camera], segmenter, PATIENT, [("web", browser)])
    with web([LivePage(live, browser)], "127.0.0.1", 0, None) as address:
        running = threading.Thread(target=play, args=(live,))
        running.start()
        time.sleep(1)
        shown = parts(address, 2.2)
        running.join()
    assert 3 <= len(shown) <= 7
    words = shown[-1][-60:, :400]
    assert words.max() > 180, "something is written there"
    assert {picture.shape for picture in shown} == ({(720, 1280)} if before == 0 else {(240, 320)})


def test_a_recording_goes_on_in_another_file_where_the_shape_of_pixels_changes(tmp_path: Path) -> None:
    source = Camera("room", 0, 25)
    assert source.format is not None
    ((_, recording),) = recordings_of(tmp_path / "r.mp4", [source], Settings())
    wide = replace(source.format, sample_aspect_ratio=Fraction(4, 3))
    for index, pictures in enumerate([source.format] * 5 + [wide] * 5):
        source.format = pictures
        frame = Frame(index, black_picture(320, 240), index * 3600, Fraction(1, 90_000), 0.0, "room")
        frame.orientation = pictures.orientation
        recording.write(frame)
    recording.close()
    shapes = []
    for path in recording.files:
        with av.open(str(path)) as file:
            shapes.append(file.streams.video[0].sample_aspect_ratio)
    assert shapes == [None, Fraction(4, 3)]


@pytest.mark.parametrize(
    ("name", "words"), [("rec", "write a name that ends in .mp4, such as "), ("none/r.mp4", "none does not exist")]
)
def test_a_recording_that_cannot_be_written_is_said_before_the_start(tmp_path: Path, name: str, words: str) -> None:
    sources = open_sources(["tcp://127.0.0.1:9"], Settings())
    with pytest.raises(OutputError, match=re.escape(words)):
        recordings_of(tmp_path / name, sources, Settings())
