"""What a viewer of the live page costs, and how late it sees each frame.

    python benchmarks/live_page.py VIDEO [--seconds 20] [--rate 30] [--display pass-through]

VIDEO is played through `live` again and again. Each of its frames carries its number as bits in the left top
corner. First both encoders of the page encode its frames in turn: bits per second, and likeness to the scaled frame
(PSNR and SSIM of the luma). Then it is played without a viewer, with two viewers of the video, and with two of JPEGs:
bits per second for each viewer, CPU time of the server, frames shown. The viewers are processes of their own that
decode nothing. Then a real Chromium reads the number of each picture from its canvas: the time from the arrival of the
frame (before it is decoded) to the canvas, and from the end of the pipeline to the canvas.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
import websocket
from selenium import webdriver

from polypstream.core.config import Settings
from polypstream.core.frame import Frame
from polypstream.core.orientation import AS_STORED
from polypstream.core.pipeline import in_background
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.bench import LoopedVideo
from polypstream.jobs.live import Live
from polypstream.jobs.setup import make_segmenter
from polypstream.media.color import rgb_matrix
from polypstream.media.jpeg import Jpeg
from polypstream.media.page_video import PageEncoder
from polypstream.media.pictures import copy_of, planes_of
from polypstream.media.scaling import shown_within
from polypstream.sinks.browser import PAGE_QUANTISER, PAGE_WIDTH, Browser
from polypstream.sources.open import open_source
from polypstream.web.live import LivePage
from polypstream.web.server import web

BITS, BLOCK = 8, 48  # a block of the pattern is BLOCK pixels wide and high, in a video that is 1920 wide
# Frames of the start, in which threads start and the encoders open, are not counted.
START_S = 3.0
HOOK = f"""
window.seen = [];
const draw = LiveVideo.prototype.draw;
LiveVideo.prototype.draw = function (...drawn) {{
  draw.call(this, ...drawn);
  const side = {BLOCK} * this.picture.width / 1920;
  const row = this.picture.getContext("2d").getImageData(0, side / 2, {BITS} * side, 1).data;
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit++) number |= (row[4 * Math.round((bit + 0.5) * side)] > 127) << bit;
  window.seen.push([number, (performance.timeOrigin + performance.now()) / 1000]);
}};
"""


def write_pattern(video: str, path: Path, most: int) -> None:
    """Write the first frames of a video with their numbers as bits."""
    source = open_source(video)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=source.format.rate, options={"crf": "16", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = source.format.width, source.format.height, "yuv420p"
        block = BLOCK * stream.width // 1920
        for number, frame in zip(range(most), source.frames(), strict=False):
            picture = copy_of(frame.in_memory())
            planes = planes_of(picture)
            bits = np.array([[235 if number >> bit & 1 else 16 for bit in range(BITS)]], np.uint8)
            planes[0][:block, : BITS * block] = bits.repeat(block, axis=0).repeat(block, axis=1)
            for plane in planes[1:]:
                plane[: block // 2, : BITS * block // 2] = 128
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    source.close()


def compare_encoders(path: Path, most: int) -> None:
    """Print a line about each encoder of the page."""
    encode_jpeg, encode_video = Jpeg(PAGE_WIDTH, PAGE_QUANTISER), PageEncoder(PAGE_WIDTH)
    scale = shown_within(PAGE_WIDTH, "yuv420p", AS_STORED, ":out_color_matrix=bt709:out_range=limited")
    decoder: Any = av.CodecContext.create("h264", "r")
    found: dict[str, list[tuple[float, ...]]] = {"JPEG": [], "H.264": []}
    source = open_source(str(path))
    for frame, number in zip(source.frames(), range(most), strict=False):
        wanted, times = luma_of(scale(frame.in_memory())), [time.thread_time()]
        jpeg = encode_jpeg(frame.in_memory())
        times.append(time.thread_time())
        (picture,) = encode_video(frame, number / float(source.format.rate))
        times.append(time.thread_time())
        jpeg_seconds, video_seconds = np.diff(times)
        (decoded,) = av.open(io.BytesIO(jpeg)).decode(video=0)
        found["JPEG"].append((len(jpeg), jpeg_seconds, *likeness(wanted, luma_of(decoded))))
        (decoded,) = decoder.decode(av.Packet(picture.data))
        found["H.264"].append((len(picture.data), video_seconds, *likeness(wanted, luma_of(decoded))))
    for name, each in found.items():
        size, seconds, psnr, ssim = np.mean(each, axis=0)
        megabits = size * 8 * float(source.format.rate) / 1e6
        print(
            f"{name}: {megabits:.2f} Mbit/s, PSNR {psnr:.1f} dB, SSIM {ssim:.4f}, CPU {1000 * seconds:.1f} ms a frame"
        )
    source.close()


def luma_of(picture: av.VideoFrame) -> np.ndarray:
    """float32 [height, width], the BT.709 luma of what a viewer sees, 0..255."""
    size = picture.width, picture.height
    planes = [cv2.resize(plane.astype(np.float32), size) for plane in planes_of(picture)]
    matrix, offset = rgb_matrix(picture)
    luma: np.ndarray = (np.stack(planes, axis=-1) @ matrix.T + offset) @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    return luma


def likeness(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """PSNR in dB, and SSIM with Gaussian windows (Wang et al. 2004)."""

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    ours, theirs = mean(one), mean(other)
    variances = mean(one * one) - ours**2 + mean(other * other) - theirs**2
    covariance = mean(one * other) - ours * theirs
    alike = (2 * ours * theirs + 6.5025) * (2 * covariance + 58.5225)
    ssim = alike / ((ours**2 + theirs**2 + 6.5025) * (variances + 58.5225))
    return 10 * np.log10(255**2 / np.mean((one - other) ** 2)), float(ssim.mean())


class Stopwatch:
    """A sink that keeps for each number when the newest frame with it arrived, and when it came from the pipeline.

    Attributes:
        times: both, in seconds since 1970, of all frames with a number.
    """

    queue_size = 60

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self.times: list[list[tuple[float, float]]] = [[] for _ in range(frames)]

    def write(self, frame: Frame) -> None:
        now = time.time()
        self.times[frame.index % self._frames].append((now - (time.monotonic() - frame.arrived), now))

    def close(self) -> None:
        pass

    def passed(self, number: int, when: float) -> tuple[float, float]:
        """Seconds from both times of a frame until it was seen on a canvas."""
        return min((when - arrived, when - shown) for arrived, shown in self.times[number] if arrived <= when)


def watch(address: str, seconds: float, results: multiprocessing.Queue[tuple[int, int]]) -> None:
    """Read the video for a time; bytes and pictures into a queue."""
    viewer = websocket.create_connection(address.replace("http", "ws") + "live/0/video")
    size = pictures = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = viewer.recv()
        size += len(message)
        if isinstance(message, bytes):
            pictures += 1
            viewer.send("shown")
    results.put((size, pictures))


def watch_jpegs(address: str, seconds: float, results: multiprocessing.Queue[tuple[int, int]]) -> None:
    """Read the JPEGs for a time; bytes and pictures into a queue."""
    size = pictures = 0
    end = time.monotonic() + seconds
    with urllib.request.urlopen(f"{address}live/0/stream") as stream:
        while time.monotonic() < end:
            data = stream.read1(1 << 20)
            size += len(data)
            pictures += data.count(b"--frame\r\n")
    results.put((size, pictures))


def measure(path: Path, segmenter: Segmenter, settings: Settings, rate: int, seconds: float, read: Any) -> None:
    """Print a line about two viewers of a kind, or about none."""
    source, browser = LoopedVideo("room", partial(open_source, str(path)), rate, seconds + 2 * START_S), Browser()
    live = Live([source], segmenter, settings, [("web", browser)])
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with (
        web([LivePage(live, browser)], "127.0.0.1", 0, None) as address,
        in_background("live", lambda: live.run(lambda: None), live.close),
    ):
        viewers = [context.Process(target=read, args=(address, seconds, results)) for _ in range(2 if read else 0)]
        for viewer in viewers:
            viewer.start()
        time.sleep(START_S)
        process = psutil.Process()
        busy, (before,), others = process.cpu_times(), live.status(), psutil.cpu_percent()
        time.sleep(seconds - START_S)
        now, (after,), others = process.cpu_times(), live.status(), psutil.cpu_percent()
        cpu = (now.user + now.system - busy.user - busy.system) / (seconds - START_S)
        found = [results.get() for _ in viewers]
        for viewer in viewers:
            viewer.join()
    megabits = [f"{size * 8 / seconds / 1e6:.2f} Mbit/s ({pictures} pictures)" for size, pictures in found]
    print(
        f"{read.__name__ if read else 'no viewer'}: shown {after.shown - before.shown} of "
        f"{after.frames_in - before.frames_in}, CPU of the server {100 * cpu:.0f} % of a core, machine {others:.0f} %, "
        f"latency to the sinks {after.latency_ms}, {'; '.join(megabits)}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def measure_latency(
    path: Path, frames: int, segmenter: Segmenter, settings: Settings, rate: int, seconds: float, browsers: int
) -> None:
    """Print the time to the canvas."""
    source, browser = LoopedVideo("room", partial(open_source, str(path)), rate, seconds + 4 * START_S), Browser()
    stopwatch = Stopwatch(frames)
    live = Live([source], segmenter, settings, [("stopwatch", stopwatch), ("web", browser)])
    with ExitStack() as stack:
        address = stack.enter_context(web([LivePage(live, browser)], "127.0.0.1", 0, None))
        drivers = [start_chromium(stack) for _ in range(browsers)]
        stack.enter_context(in_background("live", lambda: live.run(lambda: None), live.close))
        for driver in drivers:
            driver.get(address)
            driver.execute_script(HOOK)
        time.sleep(START_S)
        for driver in drivers:
            driver.execute_script("window.seen = []")
        (before,) = live.status()
        time.sleep(seconds)
        (after,) = live.status()
        seen = [each for driver in drivers for each in driver.execute_script("return window.seen")]
    print(f"{browsers} browser(s): {len(seen)} pictures on the canvas; shown {after.shown - before.shown} of ", end="")
    print(f"{after.frames_in - before.frames_in}; load {os.getloadavg()[0]:.1f}")
    passed = np.array([stopwatch.passed(number, when) for number, when in seen]) * 1000
    for name, each in zip(("arrival", "the pipeline"), passed.T, strict=True):
        p50, p95, p99, longest = np.percentile(each, [50, 95, 99, 100])
        print(
            f"from {name} to the canvas: p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, longest {longest:.0f} ms"
        )


def start_chromium(stack: ExitStack) -> Any:
    """Start a headless Chromium, which ends with the stack."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    stack.callback(driver.quit)
    return driver


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=int, default=30)
    parser.add_argument("--browsers", type=int, default=1)
    parser.add_argument("--display", choices=("in-step", "pass-through"), default="in-step")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pattern.mp4"
        write_pattern(wanted.video, path, 2**BITS)
        with av.open(str(path)) as file:
            frames = file.streams.video[0].frames
        compare_encoders(path, most=100)
        settings = Settings.model_validate({"live": {"display": wanted.display}})
        segmenter = make_segmenter(settings)
        for read in (None, watch, watch_jpegs):
            measure(path, segmenter, settings, wanted.rate, wanted.seconds, read)
        measure_latency(path, frames, segmenter, settings, wanted.rate, wanted.seconds, wanted.browsers)


if __name__ == "__main__":
    main()
