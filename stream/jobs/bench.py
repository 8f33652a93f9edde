"""`polypstream bench`: what this machine does with the user's own video.

Each measurement runs the same stages as `process`. Pixel degradation and delay are measured because 21 CFR
876.1520(b)(2) asks for them of software that detects lesions in endoscopy, beside the algorithm's own performance.
"""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
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
from polypstream.core.pipeline import Pipeline, Sink, in_background
from polypstream.core.protocols import Signal, Source
from polypstream.errors import ProviderError
from polypstream.inference.machine import describe_machine
from polypstream.inference.providers import FASTEST_FIRST, probe
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live import Live, percentiles_of
from polypstream.jobs.setup import choose_field_of_view, make_stages
from polypstream.media.pictures import planes_of
from polypstream.media.video import AnnotatedVideo
from polypstream.sinks.browser import Browser
from polypstream.sinks.tables import FramesTable
from polypstream.stages.overlay import line_width

log = logging.getLogger(__name__)

Display = Literal["in-step", "pass-through"]


class LiveRun(NamedTuple):
    """A live measurement: how it is shown, frames per second, whether somebody looks at the page, how many sources."""

    display: Display
    rate: int
    viewer: bool = False
    rooms: int = 1


LIVE_RUNS = (
    LiveRun("in-step", 30),
    LiveRun("in-step", 30, viewer=True),
    LiveRun("pass-through", 30),
    LiveRun("in-step", 60),
)
# Stages whose work is this program's own, not the decoder's, the encoder's or the session's.
OWN = ("crop", "quality", "smooth", "findings", "overlay", "table")
PICTURES_PER_PROVIDER = 60
COMPARED_PICTURES = 30
# The first frames of a live run, in which threads and codecs start, are not timed.
LIVE_START_S = 1.0

Open = Callable[[], Source]
# Serves the page of a live run while a block lasts, and returns its address.
ServePage = Callable[[Live, Browser], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Annotating a recording, as `process` does.

    Attributes:
        frames: annotated.
        frames_per_second: of wall time.
        bottleneck: the stage that worked longest.
        stage_ms: wall time that each stage worked, per frame.
        own_cpu_ms: CPU time per frame of this program's own stages, without decoder, session and encoder.
        memory_mb: resident, at half time and at most.
    """

    frames: int
    frames_per_second: float
    bottleneck: str
    stage_ms: dict[str, float]
    own_cpu_ms: float
    memory_mb: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shown:
    """The same video played at a fixed rate through `polypstream live`, the newest frame winning.

    Attributes:
        display: in-step or pass-through, see config.yaml.
        viewer: somebody looked at the page; else nobody did.
        rooms: so many sources sent the video at once; counts are of all of them.
        rate: frames per second that came in from each.
        frames_in, shown: counted.
        shown_by_room: counted for each.
        dropped: frames that were not shown, by reason; with `shown` they add up to `frames_in`.
        shown_per_second: frames that came out.
        delay_ms: of the pictures, from arrival to a sink; median, 95th and 99th percentile, and longest.
        markers_ms: likewise of the markers, from the arrival of the frame that they were found in.
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
    delay_ms: tuple[float, ...]
    markers_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Degradation:
    """What happens to pixels outside the markers.

    Attributes:
        frames: compared.
        changed: pixels outside the markers that differ from the decoder's before encoding.
        encoded_psnr_db: of luma outside the markers in the encoded file; None if they are identical.
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
    rooms: int = 1,
) -> dict[str, Any]:
    """Measure everything.

    Args:
        open_video: opens the video from its beginning.
        segmenter: of the provider to measure.
        settings: of the run.
        seconds: at most so long for the recording and so long for each live run.
        serve_page: serves the live page, for a viewer.
        rooms: if more than one, live play of so many sources at once is measured, too.

    Returns:
        Plain values: machine, model, provider, recorded, providers, live, degradation.
    """
    with closing(open_video()) as source:
        view, pictures = choose_field_of_view(source, settings), source.format
    log.info("annotating the recording")
    recorded = measure_recorded(open_video, view, segmenter, settings, seconds)
    live = []
    for run in (*LIVE_RUNS, *([LiveRun("in-step", 30, rooms=rooms)] if rooms > 1 else [])):
        log.info(
            f"live, {run.display}, at {run.rate} frames per second"
            + (", with a viewer of the page" if run.viewer else "")
            + (f", in {run.rooms} rooms" if run.rooms > 1 else "")
        )
        live.append(measure_live(open_video, segmenter, settings, run, seconds, serve_page))
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
        "degradation": degradation,
        "providers": measure_providers(segmenter.model, settings.inference.batch_size),
    }


def measure_recorded(
    open_video: Open, view: FieldOfView, segmenter: Segmenter, settings: Settings, seconds: float
) -> Recorded:
    """Annotate for so many seconds, or to the end."""
    process, memory = psutil.Process(), [0.0]
    with TemporaryDirectory() as folder, closing(open_video()) as source:
        video = AnnotatedVideo(Path(folder) / "annotated.mp4", source.format, None, settings.output.video)
        table = FramesTable(Path(folder) / "frames.csv")
        sinks: list[tuple[str, Sink[Frame]]] = [("encode", video), ("table", table)]
        started = time.monotonic()
        frames = _until(source.frames(), started + seconds)
        pipeline = Pipeline([("decode", frames)], [*make_stages(view, segmenter, settings)], sinks)
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
    """Play the video over and over at a rate, and look at when each frame comes out."""
    live_settings = settings.live.model_copy(update={"display": run.display})
    names = [f"room {number}" for number in range(1, run.rooms + 1)]
    played = [Played(name, open_video, run.rate, seconds) for name in names]
    stopwatch, browser = _Stopwatch(), Browser()
    sinks: list[tuple[str, Sink[Frame]]] = [("stopwatch", stopwatch), ("web", browser)]
    live = Live(played, segmenter, settings.model_copy(update={"live": live_settings}), sinks)
    with ExitStack() as stack:
        if run.viewer:
            address = stack.enter_context(serve_page(live, browser))
            stack.enter_context(in_background("viewer", lambda: _look_at(address), lambda: None))
        started = time.monotonic()
        live.run(lambda: None)
        passed = time.monotonic() - started
    statuses = live.status()
    timed = [each for each in stopwatch.seen if each[0] > started + LIVE_START_S] or stopwatch.seen
    delays, ages = ([each[part] for each in timed] for part in (1, 2))
    shown = [status.shown for status in statuses]
    return Shown(
        run.display,
        run.viewer,
        run.rooms,
        run.rate,
        sum(status.frames_in for status in statuses),
        sum(shown),
        shown,
        {reason: sum(status.dropped[reason] for status in statuses) for reason in statuses[0].dropped},
        sum(shown) / passed,
        percentiles_of(delays),
        percentiles_of(ages if run.display == "pass-through" else delays),
    )


def _look_at(address: str) -> None:
    """Fetch live pictures as a browser does, until there are no more."""
    with urllib.request.urlopen(f"{address}live/0/stream") as pictures:
        while pictures.read(65536):
            pass


class Played:
    """A live source: a video repeated at a steady rate, as a camera would send it."""

    def __init__(self, name: str, open_video: Open, rate: int, seconds: float) -> None:
        self.name, self.signal = name, Signal(there=True, problem="")
        self.format: PictureFormat | None = None
        self._open_video, self._rate, self._count = open_video, rate, round(rate * seconds)

    def frames(self) -> Iterator[Frame]:
        """Each arrives when it is due and is decoded then: decoding is part of the delay, opening the video is not."""
        index, due = 0, 0.0
        while index < self._count:
            with closing(self._open_video()) as source:
                for frame in source.frames():
                    due = due or time.monotonic()
                    time.sleep(max(0.0, due - time.monotonic()))
                    yield replace(frame, index=index, arrived=due, source=self.name)
                    index, due = index + 1, due + 1 / self._rate
                    if index == self._count:
                        return
            due = 0.0

    def close(self) -> None:
        """It ends by itself."""


class _Stopwatch:
    """A sink that notes when each frame came out, how long it was on its way, and its markers' age, in seconds."""

    queue_size = 60  # it has to note every one

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def write(self, frame: Frame) -> None:
        now = time.monotonic()
        self.seen.append((now, now - frame.arrived, frame.markers_age))

    def close(self) -> None:
        pass


def measure_degradation(open_video: Open, view: FieldOfView, segmenter: Segmenter, settings: Settings) -> Degradation:
    """Compare pictures with the decoder's before and after encoding, outside the markers."""
    stages = make_stages(view, segmenter, settings)
    compared: list[tuple[np.ndarray, np.ndarray]] = []
    changed = 0
    with TemporaryDirectory() as folder, closing(open_video()) as source:
        path = Path(folder) / "annotated.mp4"
        video = AnnotatedVideo(path, source.format, None, settings.output.video)
        with closing(video):
            for frame in islice(source.frames(), COMPARED_PICTURES):
                before = [plane.copy() for plane in planes_of(frame.picture)]
                for _, stage, _ in stages:
                    stage([frame])
                outside = _outside_markers(frame, settings)
                for plane, original in zip(planes_of(frame.picture), before, strict=True):
                    unmarked = cv2.resize(outside, plane.shape[::-1], interpolation=cv2.INTER_AREA) == 255
                    changed += int(np.count_nonzero((plane != original) & unmarked))
                compared.append((before[0], outside == 255))
                video.write(frame)
        errors = list(_luma_errors(path, compared))
    error = float(np.mean(errors))
    peak = 255.0 if before[0].dtype == np.uint8 else 1023.0
    return Degradation(len(compared), changed, 10 * float(np.log10(peak**2 / error)) if error else None)


def _outside_markers(frame: Frame, settings: Settings) -> np.ndarray:
    """uint8 [height, width]: 255 where nothing may be drawn."""
    outside = np.full((frame.picture.height, frame.picture.width), 255, np.uint8)
    if frame.region is not None:
        outside[frame.region.slices] = cv2.bitwise_not(frame.region.mask)
        width = line_width(settings.overlay.contour, frame.picture.height)
        # An outline lies on the finding's rim, half of it outside; chroma samples cover two pixels.
        outside = cv2.erode(outside, np.ones((width + 4, width + 4), np.uint8))
    return outside


def _luma_errors(path: Path, compared: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[float]:
    """Mean squared error of each picture of a file, outside its markers."""
    with av.open(str(path)) as file:
        for picture, (luma, outside) in zip(file.decode(file.streams.video[0]), compared, strict=True):
            encoded = planes_of(picture)[0][: luma.shape[0], : luma.shape[1]]
            yield float(np.mean((encoded[outside].astype(np.float32) - luma[outside]) ** 2))


def measure_providers(model: Path, batch_size: int) -> dict[str, dict[str, float] | str]:
    """Median milliseconds a picture of each provider that is here, by batch size; or why it is not here."""
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
