"""Real media, made with PyAV; a real ONNX model whose answer is known; the way to call the command."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec.context import Flags

from polypstream.core.frame import Frame
from tests.fork_server import ForkServer, environment_of_tests

# Several test processes share the cores. torch's threads would wait for each other and use twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that runs a script in the background makes it ignore Control-C, and all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# These take longest, so they come first: at the end no test process is left alone with one of them.
LONGEST = (
    *("archive/test_cluster.py", "jobs/test_live.py", "web/test_serve.py", "web/test_serve_browser.py"),
    *("media/test_sound.py", "jobs/test_range.py", "export/test_export.py", "web/test_live.py"),
    *("jobs/test_bad_input.py", "export/test_wrap.py", "web/test_openapi.py", "web/test_review_browser.py"),
    *("web/test_review.py", "jobs/test_live_sources.py", "study/test_report.py", "models/test_training.py"),
    "benchmarks/test_reliability.py",
)
RED = (200, 30, 30)
GREY = (90, 90, 90)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by their place in LONGEST. With --dist loadfile a file belongs to one test process."""
    place = {name: number for number, name in enumerate(LONGEST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.relative_to(tests).as_posix(), len(place)))


# The environment in which the tests begin, once their modules have been imported.
_ENVIRONMENT: dict[str, str] = {}


def pytest_collection_finish() -> None:
    """The server that runs commands may be started by a test that has changed the environment for itself."""
    _ENVIRONMENT.update(environment_of_tests())


@dataclass
class Clip:
    """What a test recording is made of: a grey view on black in which a red disc wanders.

    Attributes:
        pts: of each frame, in units of time_base.
        audio: codec of each audio track.
        draw: draws a picture, uint8 RGB [height, width, 3]; None: `picture`.
    """

    name: str = "clip.mp4"
    width: int = 320
    height: int = 240
    frames: int = 30
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    rate: Fraction = Fraction(25)
    time_base: Fraction | None = None
    pts: Sequence[int] | None = None
    audio: Sequence[str] = ()
    rotation: int = 0
    sample_aspect_ratio: Fraction | None = None
    colours: dict[str, int] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    interlaced: bool = False
    draw: Callable[[Clip, int], np.ndarray] | None = None


def picture(clip: Clip, index: int) -> np.ndarray:
    """uint8 RGB [height, width, 3]: a grey field with a red disc, none in the last third of the clip."""
    rgb = _grey(clip.height, clip.width).copy()
    if index < clip.frames * 2 / 3:
        x, y, radius = disc(clip, index)
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        around = rgb[top : int(y + radius) + 2, left : int(x + radius) + 2]
        rows, columns = np.ogrid[top : top + around.shape[0], left : left + around.shape[1]]
        around[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = RED
    return rgb


@cache
def _grey(height: int, width: int) -> np.ndarray:
    """To fill a picture costs ten times as much as to copy it."""
    return np.full((height, width, 3), GREY, np.uint8)


def disc(clip: Clip, index: int) -> tuple[float, float, float]:
    """Centre and radius of the red disc in a frame, in pixels."""
    share = index / max(1, clip.frames)
    return clip.width * (0.3 + 0.4 * share), clip.height * 0.5, min(clip.width, clip.height) * 0.15


# The clips that were encoded, by what they are made of: many tests want the same ones.
_ENCODED: dict[str, bytes] = {}


def make_clip(folder: Path, clip: Clip) -> Path:
    """Encode a clip with PyAV, or write one that was encoded before."""
    path = folder / clip.name
    key = repr(replace(clip, name=path.suffix))
    if clip.draw is not None:  # functions may differ although they are called the same
        _encode_clip(path, clip)
    elif key in _ENCODED:
        path.write_bytes(_ENCODED[key])
    else:
        _encode_clip(path, clip)
        _ENCODED[key] = path.read_bytes()
    return path


def _encode_clip(path: Path, clip: Clip) -> None:
    with av.open(str(path), "w", container_options=clip.container_options) as file:
        video = file.add_stream(clip.codec, rate=clip.rate, options=clip.options)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = clip.width, clip.height, clip.pixel_format
        context.time_base = video.time_base = clip.time_base or 1 / clip.rate
        if clip.sample_aspect_ratio:
            context.sample_aspect_ratio = clip.sample_aspect_ratio
        for tag, value in clip.colours.items():
            setattr(context, tag, value)
        if clip.interlaced:
            context.flags |= Flags.interlaced_dct
        if clip.rotation:
            video.set_display_rotation(clip.rotation)
        tracks = [file.add_stream(codec, rate=48000) for codec in clip.audio]
        step = round(1 / (clip.rate * context.time_base))
        pts = clip.pts or range(0, clip.frames * step, step)
        for index, when in enumerate(pts):
            frame = av.VideoFrame.from_ndarray((clip.draw or picture)(clip, index), "rgb24").reformat(
                format=clip.pixel_format
            )
            frame.pts, frame.time_base = when, context.time_base
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        seconds = float(max(pts) * context.time_base)
        for number, track in enumerate(tracks):
            _encode_tone(file, track, 330 * (number + 1), seconds)


def _encode_tone(file: av.container.OutputContainer, track: av.AudioStream, pitch: int, seconds: float) -> None:
    times = np.arange(int(48000 * seconds)) / 48000
    tone = (np.sin(2 * np.pi * pitch * times) * 8000).astype(np.int16)
    for start in range(0, len(tone), 1024):
        part = np.repeat(tone[start : start + 1024], 2)[None]
        frame = av.AudioFrame.from_ndarray(part, "s16", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        file.mux(track.encode(frame))
    file.mux(track.encode(None))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(name=..., pixel_format=..., ...) encodes a Clip in the test's folder and returns its path."""
    return lambda **wanted: make_clip(tmp_path, Clip(**wanted))


@pytest.fixture(scope="session")
def red_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that keeps our contract and whose probability is how much redder than grey a pixel is.

    Its findings in a Clip are known: the red disc.
    """
    return make_red_model(tmp_path_factory.mktemp("model") / "red.onnx")


def make_red_model(path: Path, size: int = 128, **metadata: str) -> Path:
    """uint8(max(0, red - green) * 1.5) per pixel: about 255 on the disc, 0 on grey."""
    from onnx import TensorProto, checker, helper, save

    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["float"], ["r", "g", "b"], axis=3, num_outputs=3),
        helper.make_node("Sub", ["r", "g"], ["redder"]),
        helper.make_node("Mul", ["redder", "gain"], ["gained"]),
        helper.make_node("Clip", ["gained", "low", "high"], ["clipped"]),
        helper.make_node("Squeeze", ["clipped", "axis"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["probability"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info("probability", TensorProto.UINT8, ["N", size, size])],
        [
            helper.make_tensor("gain", TensorProto.FLOAT, [], [1.5]),
            helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("high", TensorProto.FLOAT, [], [255.0]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    card = {
        "model_name": "red",
        "model_version": "1",
        "input_size": str(size),
        "threshold": "0.5",
        "peak": "0.5",
        "gmac": "0.001",
        "precision": "fp32",
        "trained_on": "nothing",
        "terms": "none",
        "scores": "{}",
        "checkpoint_sha256": "0" * 64,
        "exported_with": "onnx",
        "notice": "Research use only, not a medical device.",
    }
    helper.set_model_props(model, card | metadata)
    checker.check_model(model, full_check=True)
    save(model, str(path))
    return path


class Kept:
    """A sink that keeps what it needs to know of each frame."""

    queue_size = 1000

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def write(self, frame: Frame) -> None:
        self.frames.append(frame)

    def close(self) -> None:
        pass


# Ports for peers: below those that the system gives away by itself, and others for each worker of pytest-xdist.
_PORTS = count(20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))


def free_port() -> int:
    """A port of 127.0.0.1 that is free for TCP and UDP, and that no other test gets."""
    for port in _PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("count() does not end")


def command() -> list[str]:
    """The command as a user calls it."""
    return [str(Path(sys.executable).with_name("polypstream"))]


@cache
def fork_server() -> ForkServer:
    """The server that runs the commands of `call`, as long as these tests run."""
    server = ForkServer(_ENVIRONMENT)
    atexit.register(server.close)
    return server


def call(*arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; with `check`, it must succeed.

    It is run in a fork of a process that has imported its modules, or in a new Python process if its environment could
    change what is imported, and how.
    """
    words = [*command(), *map(str, arguments)]
    variables = environment_of_tests() | environment
    changes = fork_server().changes(variables)
    if changes is not None:
        done = fork_server().run(words, changes, timeout=300)
    else:
        done = subprocess.run(words, capture_output=True, text=True, env=variables, timeout=300, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def pts_of(path: Path) -> list[Fraction]:
    """The time of every decoded frame, in seconds, exact."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [frame.pts * stream.time_base for frame in file.decode(stream)]


def frames_of(path: Path, pixel_format: str) -> list[np.ndarray]:
    """Every decoded frame as an array."""
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format=pixel_format) for frame in file.decode(file.streams.video[0])]


def audio_packets_of(path: Path) -> list[list[tuple[Fraction, bytes]]]:
    """For every audio track, each packet's time in seconds and content."""
    with av.open(str(path)) as file:
        tracks: dict[int, list[tuple[Fraction, bytes]]] = {track.index: [] for track in file.streams.audio}
        if not tracks:
            return []  # demuxing no stream means all
        for packet in file.demux(*file.streams.audio):
            if packet.pts is not None:
                tracks[packet.stream.index].append((packet.pts * packet.time_base, bytes(packet)))
        return list(tracks.values())


def summary_of(folder: Path) -> dict[str, object]:
    """summary.json of a run."""
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    folder = os.environ.get("POLYPSTREAM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the real pictures and clips: set POLYPSTREAM_DATA")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real browser, which `browse` gives to one test after another: to start one takes two seconds of the CPU."""
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def start_browser(profile: Path) -> Any:
    """Start Chromium with a profile of its own."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs Chromium and its driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    for argument in ("--headless", "--no-sandbox", "--disable-sync", "--window-size=1400,900", *quiet):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))


@pytest.fixture
def browse(browser: Any, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """browse() gives a real browser with one empty tab that remembers nothing. A second one is started for the test."""
    drivers: list[Any] = []

    def start() -> Any:
        drivers.append(start_browser(tmp_path / f"profile{len(drivers)}") if drivers else forgetful(browser))
        return drivers[-1]

    yield start
    for driver in drivers[1:]:
        driver.quit()
    if drivers:
        forgetful(browser)  # its pages ask a server that ends now


def forgetful(driver: Any) -> Any:
    """Close all tabs of a browser, open a new one, and clear what pages and tests have left in it."""
    from selenium.common.exceptions import WebDriverException

    before = driver.window_handles
    driver.switch_to.new_window("tab")
    after = driver.current_window_handle
    for handle in before:
        driver.switch_to.window(handle)
        driver.close()
    driver.switch_to.window(after)
    with suppress(WebDriverException):  # there are none
        driver.delete_network_conditions()
    driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
    driver.get_log("browser")
    return driver
