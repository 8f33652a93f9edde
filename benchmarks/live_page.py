"""What a viewer of the live page costs, and how late it sees each frame.

    python benchmarks/live_page.py VIDEO [--seconds 12] [--rate 30] [--rooms 1] [--display pass-through]

VIDEO is played through `live` again and again, in each room. Each of its frames carries its number as bits in the left
top corner. First both encoders of the page encode its frames in turn: bits per second, and likeness to the scaled frame
(PSNR and SSIM of the luma). Then it is played without a viewer, with two viewers of the video, and with two of JPEGs:
for each room the frames shown and the latency to the sinks; bits per second for each viewer, CPU time of the server.
Each viewer watches all rooms. The viewers are processes of their own that decode nothing. Then a real Chromium reads
the number of each picture from its canvas: the time from the arrival of the frame (before it is decoded) to the canvas,
and from the end of the pipeline to the canvas.

With the default values it takes one to two minutes on two cores that are free. A demo is rendered before that, once.
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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing.synchronize import Event
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
from polypstream.jobs.live_status import Status
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
# Sources play for this long if they are not closed before.
LONGEST_S = 600.0
HOOK = f"""
window.seen = [];
const draw = LiveVideo.prototype.draw;
LiveVideo.prototype.draw = function (...drawn) {{
  draw.call(this, ...drawn);
  const side = {BLOCK} * this.picture.width / 1920;
  const row = this.picture.getContext("2d").getImageData(0, side / 2, {BITS} * side, 1).data;
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit++) number |= (row[4 * Math.round((bit + 0.5) * side)] > 127) << bit;
  window.seen.push([Number(this.path.split("/").at(-1)), number, (performance.timeOrigin + performance.now()) / 1000]);
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

    Args:
        rooms: names of the sources.
        frames: number of frames with different numbers.
    """

    queue_size = 60

    def __init__(self, rooms: list[str], frames: int) -> None:
        # Both times, in seconds since 1970, of all frames with a number.
        self._times: dict[str, list[list[tuple[float, float]]]] = {room: [[] for _ in range(frames)] for room in rooms}

    def write(self, frame: Frame) -> None:
        now, times = time.time(), self._times[frame.source]
        times[frame.index % len(times)].append((now - (time.monotonic() - frame.arrived), now))

    def close(self) -> None:
        pass

    def passed(self, room: str, number: int, when: float) -> tuple[float, float]:
        """Seconds from both times of a frame until it was seen on a canvas."""
        times = self._times[room][number]
        return min((when - arrived, when - shown) for arrived, shown in times if arrived <= when)


def watch(address: str, rooms: int, ended: Event, results: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Read the videos of all rooms until the end."""

    def read(room: int, counts: Counter[str]) -> None:
        viewer = websocket.create_connection(address.replace("http", "ws") + f"live/{room}/video")
        while not ended.is_set():
            message = viewer.recv()
            counts["bytes"] += len(message)
            if isinstance(message, bytes):
                counts["pictures"] += 1
                viewer.send("shown")

    read_all(read, rooms, results)


def watch_jpegs(address: str, rooms: int, ended: Event, results: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Read the JPEGs of all rooms until the end."""

    def read(room: int, counts: Counter[str]) -> None:
        with urllib.request.urlopen(f"{address}live/{room}/stream") as stream:
            while not ended.is_set():
                data = stream.read1(1 << 20)
                counts["bytes"] += len(data)
                counts["pictures"] += data.count(b"--frame\r\n")

    read_all(read, rooms, results)


def read_all(read: Any, rooms: int, results: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Read all rooms at the same time; Mbit and pictures per second into a queue."""
    counts, started = Counter[str](), time.monotonic()
    with ThreadPoolExecutor(rooms) as readers:
        list(readers.map(lambda room: read(room, counts), range(rooms)))
    passed = time.monotonic() - started
    results.put((counts["bytes"] * 8 / 1e6 / passed, counts["pictures"] / passed))


def played(path: Path, wanted: argparse.Namespace) -> list[LoopedVideo]:
    """A source for each room, which plays until it is closed."""
    open_video = partial(open_source, str(path))
    return [LoopedVideo(f"room{number}", open_video, wanted.rate, LONGEST_S) for number in range(1, wanted.rooms + 1)]


def measure(path: Path, segmenter: Segmenter, settings: Settings, wanted: argparse.Namespace, read: Any) -> None:
    """Print a line about two viewers of a kind, or about none, and one about each room."""
    browser, count = Browser(), 2 if read else 0
    live = Live(played(path, wanted), segmenter, settings, [("web", browser)])
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    ended = context.Event()
    with (
        web([LivePage(live, browser)], "127.0.0.1", 0, None) as address,
        in_background("live", lambda: live.run(lambda: None), live.close),
    ):
        viewers = [context.Process(target=read, args=(address, wanted.rooms, ended, results)) for _ in range(count)]
        for viewer in viewers:
            viewer.start()
        while any(browser.viewers(source.name) < count for source in live.sources):
            time.sleep(0.1)
        time.sleep(START_S)
        process = psutil.Process()
        used, before, others = process.cpu_times(), live.status(), psutil.cpu_percent()
        time.sleep(wanted.seconds)
        now, after, others = process.cpu_times(), live.status(), psutil.cpu_percent()
        ended.set()
        found = [results.get() for _ in viewers]
        for viewer in viewers:
            viewer.join()
    cpu = now.user + now.system - used.user - used.system
    shown = sum(status.shown for status in after) - sum(status.shown for status in before)
    print(
        f"{read.__name__ if read else 'no viewer'}: CPU of the server {100 * cpu / wanted.seconds:.0f} % of a core, "
        f"{1000 * cpu / max(1, shown):.1f} ms per shown frame, machine {others:.0f} %, load {os.getloadavg()[0]:.1f}",
        *(f"{megabits:.2f} Mbit/s ({pictures:.1f} pictures per second)" for megabits, pictures in found),
        sep=", ",
    )
    print_rooms(before, after)


def print_rooms(before: list[Status], after: list[Status]) -> None:
    """Print what each room got between two moments."""
    for earlier, later in zip(before, after, strict=True):
        print(f"  {later.source}: shown {later.shown - earlier.shown} of {later.frames_in - earlier.frames_in}", end="")
        if later.latency_ms:
            print(f", latency to the sinks p50 {later.latency_ms.median:.0f} ms", end="")
            print(f", p95 {later.latency_ms.p95:.0f} ms, p99 {later.latency_ms.p99:.0f} ms", end="")
        print(flush=True)


def measure_canvas(
    path: Path, frames: int, segmenter: Segmenter, settings: Settings, wanted: argparse.Namespace
) -> None:
    """Print the time to the canvas."""
    sources, browser = played(path, wanted), Browser()
    stopwatch = Stopwatch([source.name for source in sources], frames)
    live = Live(sources, segmenter, settings, [("stopwatch", stopwatch), ("web", browser)])
    with ExitStack() as stack:
        address = stack.enter_context(web([LivePage(live, browser)], "127.0.0.1", 0, None))
        drivers = [start_chromium(stack) for _ in range(wanted.browsers)]
        stack.enter_context(in_background("live", lambda: live.run(lambda: None), live.close))
        for driver in drivers:
            driver.get(address)
            driver.execute_script(HOOK)
        time.sleep(START_S)
        for driver in drivers:
            driver.execute_script("window.seen = []")
        before = live.status()
        time.sleep(wanted.seconds)
        after = live.status()
        seen = [each for driver in drivers for each in driver.execute_script("return window.seen")]
    print(f"{wanted.browsers} browser(s): {len(seen)} pictures on the canvas; load {os.getloadavg()[0]:.1f}")
    print_rooms(before, after)
    passed = [stopwatch.passed(sources[room].name, number, when) for room, number, when in seen]
    for name, each in zip(("arrival", "the pipeline"), np.array(passed).T * 1000, strict=True):
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
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rate", type=int, default=30)
    parser.add_argument("--rooms", type=int, default=1)
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
            measure(path, segmenter, settings, wanted, read)
        measure_canvas(path, frames, segmenter, settings, wanted)


if __name__ == "__main__":
    main()
