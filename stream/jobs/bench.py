"""`polypstream bench`: measures the performance of this machine with the user's own video.

Each measurement runs the same stages as `process`. Pixel degradation and latency are measured because 21 CFR
876.1520(b)(2) asks for both for software that detects lesions in endoscopy, besides the performance of the algorithm.
"""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import av
import cv2
import numpy as np
import psutil

from polypstream.core.config import Settings
from polypstream.core.frame import Frame, PictureFormat
from polypstream.core.geometry import FieldOfView
from polypstream.core.live_pictures import LivePictures
from polypstream.core.live_sound import LiveSound
from polypstream.core.pipeline import Pipeline, Sink, in_background
from polypstream.core.protocols import Signal, Source
from polypstream.errors import ProviderError
from polypstream.inference.machine import describe_machine
from polypstream.inference.providers import FASTEST_FIRST, probe
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live
from polypstream.jobs.live_status import Percentiles, percentiles_of
from polypstream.jobs.setup import choose_field_of_view, make_stages
from polypstream.media.pictures import planes_of
from polypstream.media.video import AnnotatedVideo
from polypstream.sinks.browser import Browser
from polypstream.sinks.tables import FramesTable
from polypstream.stages.overlay import line_width

log = logging.getLogger(__name__)

Display = Literal["in-step", "pass-through"]


class LiveRun(NamedTuple):
    """Parameters of a live measurement.

    Attributes:
        display: in-step or pass-through, see config.yaml.
        rate: frames per second of each source.
        viewer: a viewer reads the live page.
        sources: number of sources.
    """

    display: Display
    rate: int
    viewer: bool = False
    sources: int = 1


# Two frames at 30 per second. Live video with a longer latency feels late to the hand that moves the endoscope.
LONGEST_LATENCY_MS = 66.0
# A source keeps up if this share of its frames is shown.
SHOWN_SHARE = 0.95

LIVE_RUNS = (
    LiveRun("in-step", 30),
    LiveRun("in-step", 30, viewer=True),
    LiveRun("pass-through", 30),
    LiveRun("in-step", 60),
)
# Stages that do this program's own work. Decoder, encoder and inference session are not among them.
OWN = ("crop", "quality", "smooth", "findings", "overlay", "table")
PICTURES_PER_PROVIDER = 60
COMPARED_PICTURES = 30
# Start of a live run that is not measured, since threads and codecs start then.
LIVE_START_S = 1.0

Open = Callable[[], Source]
# Serves the page of a live run within a `with` block, and returns its address.
ServePage = Callable[[Live, Browser], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Measurement of annotating a recording, as `process` does.

    Attributes:
        frames: number of frames annotated.
        frames_per_second: frames per second of wall time.
        bottleneck: name of the stage that worked longest.
        stage_ms: wall time per frame in which each stage worked, in milliseconds.
        own_cpu_ms: CPU time per frame of the stages in OWN, in milliseconds.
        memory_mb: largest resident memory in the first half of the run and in all of it, in megabytes.
    """

    frames: int
    frames_per_second: float
    bottleneck: str
    stage_ms: dict[str, float]
    own_cpu_ms: float
    memory_mb: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shown:
    """Measurement of the same video played at a fixed rate through `polypstream live`. New frames replace waiting ones.

    Attributes:
        display: in-step or pass-through, see config.yaml.
        viewer: True if a viewer read the live page.
        rooms: number of sources that sent the video at the same time. Counts are sums over all of them.
        rate: frames per second of each source.
        frames_in, shown: numbers of frames.
        shown_by_room: number of frames shown of each source.
        dropped: numbers of frames not shown, by reason; with `shown` they add up to `frames_in`.
        shown_per_second: frames shown per second.
        latency_ms: latency of frames, from arrival to a sink; None if no frame was shown.
        markers_ms: latency of markers, from the arrival of the frame in which the findings were detected; likewise.
    """

    display: Display
    viewer: bool
    rooms: int
    rate: int
    frames_in: int
    shown: int
    shown_by_room: list[int]
    dropped: dict[str, int]
    shown_per_second: float
    latency_ms: Percentiles | None
    markers_ms: Percentiles | None

    def as_json(self) -> dict[str, Any]:
        """Return the values by name."""
        latency, markers = (each and each._asdict() for each in (self.latency_ms, self.markers_ms))
        return asdict(self) | {"latency_ms": latency, "markers_ms": markers}


@dataclass(frozen=True, slots=True)
class Degradation:
    """Changes of pixels outside the markers.

    Attributes:
        frames: number of frames compared.
        changed: number of pixels outside the markers that differ from the decoded ones before encoding.
        encoded_psnr_db: PSNR of luma outside the markers in the encoded file, in decibels; None if it is identical.
    """

    frames: int
    changed: int
    encoded_psnr_db: float | None


def bench(
    open_video: Open,
    segmenter: Segmenter,
    settings: Settings,
    seconds: float,
    serve_page: ServePage,
    sources: int = 1,
) -> dict[str, Any]:
    """Run all measurements.

    Args:
        open_video: opens the video from its beginning.
        segmenter: runs the model with the provider to measure.
        settings: settings of the run.
        seconds: longest time for the recording, and for each live run.
        serve_page: serves the live page for a viewer.
        sources: if more than one, it is measured how many sources at once keep up, at most this many.

    Returns:
        Measurements and plain values: machine, picture_size, model, provider, recorded, live, rooms (the most sources
        that keep up, None if not measured), degradation, providers.
    """
    with closing(open_video()) as source:
        view, pictures = choose_field_of_view(source, settings), source.format
    log.info("annotating the recording")
    recorded = measure_recorded(open_video, view, segmenter, settings, seconds)
    live: list[Shown] = []

    def measure(run: LiveRun) -> Shown:
        log.info(
            f"live, {run.display}, at {run.rate} frames per second"
            + (", with a viewer of the page" if run.viewer else "")
            + (f", {run.sources} sources" if run.sources > 1 else "")
        )
        live.append(measure_live(open_video, segmenter, settings, run, seconds, serve_page))
        return live[-1]

    for run in LIVE_RUNS:
        measure(run)
    rooms = most_rooms(lambda count: measure(LiveRun("in-step", 30, sources=count)), sources) if sources > 1 else None
    log.info("pixels outside the markers")
    degradation = measure_degradation(open_video, view, segmenter, settings)
    log.info("each provider")
    return {
        "machine": describe_machine(),
        "picture_size": [pictures.width, pictures.height],
        "model": segmenter.card.model_dump(mode="json"),
        "provider": segmenter.provider,
        "recorded": recorded,
        "live": live,
        "rooms": rooms,
        "degradation": degradation,
        "providers": measure_providers(segmenter.model, settings.inference.batch_size),
    }


def most_rooms(measure: Callable[[int], Shown], most: int) -> int:
    """Find how many sources at once keep up: 95 % of their frames are shown, 95 % of these within LONGEST_LATENCY_MS.

    Args:
        measure: measures live play of a number of sources.
        most: the largest number to try; it is tried first.

    Returns:
        The number; 0 if even one source does not keep up.
    """
    enough, too_many, count = 0, most + 1, most
    while count > enough:
        if keeps_up(measure(count)):
            enough = count
        else:
            too_many = count
        count = (enough + too_many) // 2
    return enough


def keeps_up(shown: Shown) -> bool:
    """Whether live play showed SHOWN_SHARE of the frames, and 95 % of these within LONGEST_LATENCY_MS.

    Args:
        shown: the measurement.
    """
    if not shown.latency_ms or shown.shown < SHOWN_SHARE * shown.frames_in:
        return False
    return shown.latency_ms.p95 < LONGEST_LATENCY_MS


def measure_recorded(
    open_video: Open, view: FieldOfView, segmenter: Segmenter, settings: Settings, seconds: float
) -> Recorded:
    """Annotate a video for a limited time, or to its end.

    Args:
        open_video: opens the video from its beginning.
        view: its field of view.
        segmenter: runs the model.
        settings: settings of the run.
        seconds: longest time in seconds.
    """
    process, memory = psutil.Process(), [0.0]
    with TemporaryDirectory() as folder, closing(open_video()) as source:
        video = AnnotatedVideo(Path(folder) / "annotated.mp4", source.format, None, settings.output.video)
        table = FramesTable(Path(folder) / "frames.csv")
        sinks: list[tuple[str, Sink[Frame]]] = [("encode", video), ("table", table)]
        started = time.monotonic()
        frames = _until(source.frames(), started + seconds)
        pipeline = Pipeline([("decode", frames)], [*make_stages(view, segmenter, settings)], sinks, full_batches=True)
        pipeline.run(lambda: memory.append(process.memory_info().rss / 1e6))
        passed = time.monotonic() - started
    stage_ms = {name: 1000 * work.seconds / video.frames for name, work in pipeline.work.items()}
    own = sum(pipeline.work[name].cpu_seconds for name in OWN if name in pipeline.work)
    return Recorded(
        video.frames,
        video.frames / passed,
        max(stage_ms, key=lambda name: stage_ms[name]),
        stage_ms,
        1000 * own / video.frames,
        (max(memory[: len(memory) // 2 + 1]), max(memory)),
    )


def _until(frames: Iterator[Frame], end: float) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        if time.monotonic() > end:
            return


def measure_live(
    open_video: Open, segmenter: Segmenter, settings: Settings, run: LiveRun, seconds: float, serve_page: ServePage
) -> Shown:
    """Play a video repeatedly at a fixed rate, and measure when each frame reaches a sink.

    Args:
        open_video: opens the video from its beginning.
        segmenter: runs the model.
        settings: settings of the run.
        run: parameters of the measurement.
        seconds: length of the run in seconds.
        serve_page: serves the live page for a viewer.
    """
    live_settings = settings.live.model_copy(update={"display": run.display})
    names = [f"room {number}" for number in range(1, run.sources + 1)]
    sources = [LoopedVideo(name, open_video, run.rate, seconds) for name in names]
    recorder, browser = _DelayRecorder(), Browser()
    sinks: list[tuple[str, Sink[Frame]]] = [("stopwatch", recorder), ("web", browser)]
    live = Live(sources, segmenter, settings.model_copy(update={"live": live_settings}), sinks)
    with ExitStack() as stack:
        if run.viewer:
            address = stack.enter_context(serve_page(live, browser))
            stack.enter_context(in_background("viewer", lambda: _read_stream(address), lambda: None))
        started = time.monotonic()
        live.run(lambda: None)
        passed = time.monotonic() - started
    statuses = live.status()
    timed = [each for each in recorder.samples if each[0] > started + LIVE_START_S] or recorder.samples
    delays, ages = ([each[part] for each in timed] for part in (1, 2))
    shown = [status.shown for status in statuses]
    return Shown(
        run.display,
        run.viewer,
        run.sources,
        run.rate,
        sum(status.frames_in for status in statuses),
        sum(shown),
        shown,
        {reason: sum(status.dropped[reason] for status in statuses) for reason in statuses[0].dropped},
        sum(shown) / passed,
        percentiles_of(delays) if delays else None,
        percentiles_of(ages if run.display == "pass-through" else delays) if delays else None,
    )


def _read_stream(address: str) -> None:
    """Read the live stream as a browser does, until it ends."""
    with urllib.request.urlopen(f"{address}live/0/stream") as pictures:
        while pictures.read(65536):
            pass


class LoopedVideo:
    """A LiveSource that repeats a video at a steady rate, as a camera would send it.

    Args:
        name: name of the source.
        open_video: opens the video from its beginning.
        rate: frames per second.
        seconds: length of the run in seconds.
    """

    def __init__(self, name: str, open_video: Open, rate: int, seconds: float) -> None:
        self.name, self.signal = name, Signal(there=True, problem="")
        self.sound, self.pictures = LiveSound(), LivePictures()
        self.format: PictureFormat | None = None
        self._open_video, self._rate, self._count = open_video, rate, round(rate * seconds)
        self._closed = False

    def frames(self) -> Iterator[Frame]:
        """Each frame arrives when it is due and is decoded then: decoding counts as latency, opening does not."""
        index, due = 0, 0.0
        while index < self._count:
            with closing(self._open_video()) as source:
                for frame in source.frames():
                    due = due or time.monotonic()
                    time.sleep(max(0.0, due - time.monotonic()))
                    yield replace(frame, index=index, arrived=due, source=self.name)
                    index, due = index + 1, due + 1 / self._rate
                    if index == self._count or self._closed:
                        return
            due = 0.0

    def close(self) -> None:
        """End `frames` after the next frame."""
        self._closed = True


class _DelayRecorder:
    """A sink that records the time, latency and marker age of each frame, in seconds."""

    queue_size = 60  # it must record every frame

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []

    def write(self, frame: Frame) -> None:
        now = time.monotonic()
        self.samples.append((now, now - frame.arrived, frame.markers_age))

    def close(self) -> None:
        pass


def measure_degradation(open_video: Open, view: FieldOfView, segmenter: Segmenter, settings: Settings) -> Degradation:
    """Compare frames outside the markers with the decoded ones, before and after encoding.

    Args:
        open_video: opens the video from its beginning.
        view: its field of view.
        segmenter: runs the model.
        settings: settings of the run.
    """
    # Labels are text beside the markers, and would count as changed pixels outside them.
    overlay = settings.overlay.model_copy(update={"labels": "none"})
    stages = make_stages(view, segmenter, settings.model_copy(update={"overlay": overlay}))
    compared: list[tuple[np.ndarray, np.ndarray]] = []
    changed = 0
    with TemporaryDirectory() as folder, closing(open_video()) as source:
        path = Path(folder) / "annotated.mp4"
        video = AnnotatedVideo(path, source.format, None, settings.output.video)
        with closing(video):
            for frame in islice(source.frames(), COMPARED_PICTURES):
                before = [plane.copy() for plane in planes_of(frame.in_memory())]
                for _, stage, _ in stages:
                    stage([frame])
                outside = _outside_markers(frame, settings)
                for plane, original in zip(planes_of(frame.in_memory()), before, strict=True):
                    unmarked = cv2.resize(outside, plane.shape[::-1], interpolation=cv2.INTER_AREA) == 255
                    changed += int(np.count_nonzero((plane != original) & unmarked))
                compared.append((before[0], outside == 255))
                video.write(frame)
        errors = list(_luma_errors(path, compared))
    error = float(np.mean(errors))
    peak = 255.0 if before[0].dtype == np.uint8 else 1023.0
    return Degradation(len(compared), changed, 10 * float(np.log10(peak**2 / error)) if error else None)


def _outside_markers(frame: Frame, settings: Settings) -> np.ndarray:
    """Pixels that no marker may change.

    Returns:
        uint8 [height, width], 255 there.
    """
    outside = np.full((frame.picture.height, frame.picture.width), 255, np.uint8)
    if frame.region is not None:
        outside[frame.region.slices] = cv2.bitwise_not(frame.region.mask)
        width = line_width(settings.overlay.contour, frame.picture.height)
        # Half of an outline's width lies outside the finding. Chroma samples cover two pixels.
        outside = cv2.erode(outside, np.ones((width + 4, width + 4), np.uint8))
    return outside


def _luma_errors(path: Path, compared: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[float]:
    """Mean squared error of the luma outside the markers, for each frame of a file."""
    with av.open(str(path)) as file:
        for picture, (luma, outside) in zip(file.decode(file.streams.video[0]), compared, strict=True):
            encoded = planes_of(picture)[0][: luma.shape[0], : luma.shape[1]]
            yield float(np.mean((encoded[outside].astype(np.float32) - luma[outside]) ** 2))


def measure_providers(model: Path, batch_size: int) -> dict[str, dict[str, float] | str]:
    """Measure each execution provider.

    Args:
        model: the ONNX file.
        batch_size: images per batch, besides 1.

    Returns:
        For each provider the median time per image in milliseconds, by batch size; or why it is not available.
    """
    found: dict[str, dict[str, float] | str] = {}
    for provider in FASTEST_FIRST:
        absent = probe(provider)
        if absent is not None:
            found[provider] = str(absent)
            continue
        try:
            segmenter = Segmenter(model, provider, batch_size)
        except ProviderError as error:
            found[provider] = str(error)
            continue
        segmenter.prepare_one()
        sizes = sorted({1, segmenter.batch_size})
        found[provider] = {str(size): _milliseconds(segmenter, size) for size in sizes}
    return found


def _milliseconds(segmenter: Segmenter, batch: int) -> float:
    pictures = np.random.default_rng(0).integers(0, 256, (batch, segmenter.size, segmenter.size, 3), np.uint8)
    times = []
    for _ in range(max(5, PICTURES_PER_PROVIDER // batch)):
        started = time.perf_counter()
        segmenter.run(pictures)
        times.append((time.perf_counter() - started) / batch)
    return 1000 * float(np.median(times))
