"""`polypstream live`: shows, records and sends live sources with their markers."""

from __future__ import annotations

import logging
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol, runtime_checkable

import cv2

from polypstream.core.addresses import split_name
from polypstream.core.config import Display, Settings
from polypstream.core.formatting import clock, words_of
from polypstream.core.frame import Frame
from polypstream.core.marks import TITLES, Mark, MarkKind, Marks
from polypstream.core.memory import give_back_free_memory
from polypstream.core.pipeline import POLL_S, ByKey, Channel, Pipeline, Sink, Stage, in_background
from polypstream.core.protocols import CONNECTING, LiveSource
from polypstream.errors import SettingsError, SourceError
from polypstream.inference.cpu import usable_cores
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.live_changes import LiveChanges
from polypstream.jobs.live_outputs import recording_name
from polypstream.jobs.live_recent import RecentFrames
from polypstream.jobs.live_session import SourceSession
from polypstream.jobs.live_status import SinkStatus, Status, describe, percentiles_of
from polypstream.sinks.browser import Browser
from polypstream.sinks.clips import ClipSaver
from polypstream.sinks.recorded_file import Session
from polypstream.sinks.rolling import RollingRecording
from polypstream.sinks.window import Windows
from polypstream.sources.live import open_live
from polypstream.stages.findings import FindingsTracker, choose_rules
from polypstream.stages.live import (
    BackgroundInferenceFeed,
    CleanKeeper,
    FailSafe,
    IsolatedSink,
    LatencyMeter,
    LatestMarkers,
    LiveViewCropper,
    ParallelSink,
    PerSource,
    SkipInvalid,
    StalenessFilter,
)
from polypstream.stages.overlay import Overlay
from polypstream.stages.quality import QualityInspector
from polypstream.stages.smoothing import TemporalSmoother
from polypstream.stages.status_overlay import StatusOverlay

# One frame per source waits before each stage. More would only add latency.
QUEUE = 1
# Seconds after which a source that has sent nothing is reported.
SILENCE_S = 3.0
# Seconds between two looks at whether the last frames of a source that is removed are delivered.
DRAIN_POLL_S = 0.01
# Seconds between two times at which freed memory is given back.
MEMORY_S = 60.0
log = logging.getLogger(__name__)


@runtime_checkable
class ReportingSink(Protocol):
    """A sink that reports its state.

    Attributes:
        source: name of the source that it records or sends.
        doing: what it does, for the user, such as what it records and where.
        problem: why it does not work, for the user; empty if it works.
    """

    @property
    def source(self) -> str:
        """Name of the source that it records or sends."""

    @property
    def doing(self) -> str:
        """What it does, for the user, such as what it records and where."""

    problem: str


@runtime_checkable
class SessionSink(Protocol):
    """A sink that keeps video of a source with its results.

    Attributes:
        source: name of the source.
        clean: it needs the pictures without markers.
        session: what its videos are parts of; set by Live.
    """

    @property
    def source(self) -> str:
        """Name of the source."""

    clean: bool
    session: Session | None


NamedStages = list[tuple[str, Stage[Frame], int]]


def open_sources(texts: Sequence[str], settings: Settings) -> list[LiveSource]:
    """Open the sources that the user gave.

    Args:
        texts: `ADDRESS` or `NAME=ADDRESS` of each source.
        settings: settings of the run.

    Raises:
        SourceError: a source cannot be opened, or two have the same name.
    """
    sources: dict[str, LiveSource] = {}
    for text in texts:
        name, uri = split_name(text)
        if name in sources:
            raise SourceError(f"{name}: two sources have the same name; write NAME=ADDRESS")
        sources[name] = open_live(name, uri, settings.live)
    return list(sources.values())


class Live:
    """The pipeline of live sources.

    Args:
        sources: sources with different names.
        segmenter: runs the model for all of them.
        settings: settings of the run.
        sinks: name and sink of each.
        displays: how sources are shown, by their names; the others are shown as `live.display` says.
        changes: sources may be added and removed while it runs.

    Raises:
        SettingsError: the settings ask for what only recordings support.

    Attributes:
        overlay: the stage that draws the markers; it can be switched off and on.
        numbers: number of each source by its name, for addresses.
        marks: marks of the sources.
        clips: what keeps the last seconds of a source, by its name.
    """

    def __init__(
        self,
        sources: Sequence[LiveSource],
        segmenter: Segmenter,
        settings: Settings,
        sinks: Sequence[tuple[str, Sink[Frame]]],
        displays: Mapping[str, Display] | None = None,
        changes: bool = False,
    ) -> None:
        if settings.deidentify.enabled:
            raise SettingsError("deidentify.enabled: is for recordings; live pictures are not de-identified")
        if settings.inference.every > 1:
            raise SettingsError(
                f"inference.every={settings.inference.every}: is for recordings; in live video every frame that is not "
                f"dropped is segmented; write inference.every=1"
            )
        self.sources: list[LiveSource] = []
        self.numbers: dict[str, int] = {}
        self.marks = Marks()
        self._fail_safe, self._staleness, self._meter = (
            FailSafe(segmenter),
            StalenessFilter(settings.live.max_staleness),
            LatencyMeter(),
        )
        self._segmenter, self._settings = segmenter, settings
        segmenter.prepare_one()
        card, overlay, findings = segmenter.card, settings.overlay, settings.findings
        rules = choose_rules(findings, card.threshold, card.peak)
        labels = "none" if overlay.labels == "auto" else overlay.labels
        self.overlay = Overlay(overlay, labels, any(isinstance(sink, Browser) for _, sink in sinks))
        # Names of the sources that are shown in either way, and of those whose pictures without markers are needed.
        self._in_step, self._pass_through, self._clean = set[str](), set[str](), set[str]()
        self._received: Counter[str] = Counter()
        self._recent: dict[str, RecentFrames] = {}
        self._ends: dict[str, _End] = {}
        self._silent_from: dict[str, float] = {}
        self._memory_due = 0.0
        self.clips: dict[str, ClipSaver] = {}
        for source in sources:
            self._admit(source, (displays or {}).get(source.name))
        self._sinks: list[tuple[str, IsolatedSink]] = []
        self._sinks += self._isolated(sinks)

        # Frames of different sources pass a stage at the same time, but only so many that other stages also have cores.
        # More would only wait, and be late.
        most = max(2, usable_cores() // 2)
        self._workers = ThreadPoolExecutor(most)

        def by_source(name: str, stage: Stage[Frame]) -> tuple[str, Stage[Frame], int]:
            return name, ByKey(stage, _source_of, self._workers), most

        def analysis(only: Collection[str] | None) -> NamedStages:
            """Stages that find polyps, for the frames of some sources, or of all."""
            return [
                by_source("crop", SkipInvalid(PerSource(lambda: LiveViewCropper(segmenter.size, settings)), only)),
                by_source("quality", SkipInvalid(QualityInspector(), only)),
                ("segment", SkipInvalid(self._fail_safe, only), segmenter.batch_size),
                *([by_source("smooth", SkipInvalid(PerSource(TemporalSmoother), only))] if findings.steady else []),
                by_source("findings", SkipInvalid(PerSource(lambda: FindingsTracker(rules, findings.steady)), only)),
            ]

        stages = analysis(self._in_step) if self._in_step or changes else []
        drawing: NamedStages = [
            *([("clean", CleanKeeper(self._clean), 1)] if self._clean or changes else []),
            by_source("status", StatusOverlay()),
            by_source("overlay", SkipInvalid(self.overlay)),
            ("staleness", self._staleness, 1),
            ("latency", self._meter, 1),
        ]
        self._markers = LatestMarkers(settings.live.max_staleness)
        self._background: Pipeline[Frame] | None = None
        self._background_problem = ""
        if self._pass_through or changes:
            self._pictures = Channel[Frame](QUEUE, _source_of)
            pictures, found = [("pictures", iter(self._pictures))], [("markers", self._markers)]
            self._background = Pipeline(pictures, analysis(None), found, QUEUE, _source_of)
            stages = [*stages, ("markers", SkipInvalid(self._markers, self._pass_through), 1)]
            self._sinks.append(("aside", IsolatedSink(BackgroundInferenceFeed(self._pictures, self._markers))))
        self.pipeline = Pipeline(
            [(_reader_name(source), self._frames_of(source)) for source in sources],
            [*stages, *drawing],
            self._sinks,
            QUEUE,
            _source_of,
            self.close,
            lambda frame: frame.has_signal,
        )

    def _admit(self, source: LiveSource, display: Display | None) -> None:
        """Note a source, before its first frame."""
        name = source.name
        self.numbers.setdefault(name, len(self.numbers))
        in_step = (display or self._settings.live.display) == "in-step"
        (self._in_step if in_step else self._pass_through).add(name)
        self._recent[name] = RecentFrames(name)
        self._silent_from[name] = time.monotonic() + SILENCE_S
        insort(self.sources, source, key=lambda each: self.numbers[each.name])

    def _isolated(self, sinks: Sequence[tuple[str, Sink[Frame]]]) -> list[tuple[str, IsolatedSink]]:
        """Prepare sinks, before their first frame."""
        prepared: list[tuple[str, IsolatedSink]] = []
        for name, sink in sinks:
            if isinstance(sink, SessionSink):
                sink.session = SourceSession(sink.source, self._segmenter, self._settings, self.marks)
                if sink.clean:
                    self._clean.add(sink.source)
            if isinstance(sink, ClipSaver):
                self.clips[sink.source] = sink
            # Streams to one server may differ only in what is not shown of their addresses.
            taken = {taken for taken, _ in (*self._sinks, *prepared)}
            names = (name if number == 1 else f"{name} ({number})" for number in count(1))
            half = max(1, usable_cores() // 2)  # the page encodes video; the other cores are for the model
            isolated = ParallelSink(sink, half) if isinstance(sink, Browser) else IsolatedSink(sink)
            prepared.append((next(each for each in names if each not in taken), isolated))
        return prepared

    def add(self, source: LiveSource, sinks: Sequence[tuple[str, Sink[Frame]]], display: Display | None) -> None:
        """Add a source to the running pipeline, which is `held`.

        If a source of this name was removed, numbers and times of its frames go on.

        Args:
            source: the source. No present one has its name.
            sinks: name and sink of each output of this source.
            display: how it is shown; None: as `live.display` says.

        Raises:
            Closed: the pipeline has failed.
        """
        self._admit(source, display)
        for _, sink in self._sinks:
            sink.expect(source.name)
        for name, sink in self._isolated(sinks):
            self.pipeline.add_sink(name, sink)
            self._sinks.append((name, sink))
        self.pipeline.add_source(_reader_name(source), self._frames_of(source))

    def remove(self, names: Collection[str]) -> list[Sink[Frame]]:
        """End sources of the running pipeline, and their outputs after their last frames. It logs what they have shown.

        Args:
            names: their names.

        Returns:
            The outputs, which are closed.
        """
        sources = [source for source in self.sources if source.name in names]
        for source in sources:
            source.close()
        for source in sources:
            self.pipeline.join(_reader_name(source))
            while not self._is_delivered(source.name) and not self.pipeline.failed:
                time.sleep(DRAIN_POLL_S)
        ended = [(name, sink) for name, sink in self._sinks if _source_of_sink(sink) in names]
        for name, sink in ended:
            self.pipeline.end_sink(name)
            self._sinks.remove((name, sink))
        for source in sources:
            self._markers.forget(source.name)
            log.info(describe(self._status_of(source)))
            self.sources.remove(source)
            self.clips.pop(source.name, None)
            for group in (self._in_step, self._pass_through, self._clean):
                group.discard(source.name)
        return [sink.sink for _, sink in ended]

    def forget(self, name: str) -> None:
        """Release what sinks keep of a source that was removed.

        Args:
            name: its name.
        """
        for _, sink in self._sinks:
            sink.forget(name)

    def _is_delivered(self, name: str) -> bool:
        """Whether all frames of a source that has ended were shown or dropped."""
        passed = sum(self._meter.shown_by_origin(name).values()) + sum(self._dropped(name).values())
        return passed == self._received[name]

    def outputs(self) -> list[Sink[Frame]]:
        """The present sinks."""
        return [each.sink for _, each in list(self._sinks)]

    def recordings(self) -> list[RollingRecording]:
        """The present recordings."""
        return [sink for sink in self.outputs() if isinstance(sink, RollingRecording)]

    def recording_of(self, source: str) -> RollingRecording | None:
        """The present recording of a source.

        Args:
            source: its name.
        """
        return next((recording for recording in self.recordings() if recording.source == source), None)

    def run(self, poll: Callable[[], None], every: float = POLL_S) -> None:
        """Run until every source has ended, or `poll` raises. KeyboardInterrupt means that the user ended the run.

        What is logged, once each: sources for which the machine is too slow, sources that have sent nothing after
        SILENCE_S, signals that are lost or return, and outputs that fail or work again.

        Args:
            poll: called in the calling thread.
            every: approximate time between two calls in seconds.
        """
        cv2.setNumThreads(1)  # stages and sources have threads already
        changes = LiveChanges(self.sources)

        def poll_all() -> None:
            self._report_silence()
            self._count_recent()
            self._give_back_memory()
            changes.look({each.name: each.problem for each in self.sinks() if each.problem != CONNECTING})
            poll()

        with self._workers:
            if self._background is None:
                self.pipeline.run(poll_all, every)
            else:
                with in_background("background-inference", self._run_background, self._pictures.end):
                    self.pipeline.run(poll_all, every)

    def _give_back_memory(self) -> None:
        """Give freed memory back to the system, now and then: sources come and go for hours."""
        if time.monotonic() >= self._memory_due:
            self._memory_due = time.monotonic() + MEMORY_S
            give_back_free_memory()

    def _report_silence(self) -> None:
        """Log one line for each source that has sent nothing for a while, once."""
        for source in list(self.sources):
            if time.monotonic() < self._silent_from.get(source.name, float("inf")):
                continue
            del self._silent_from[source.name]
            if not source.signal.there and not source.format and not source.signal.ended:
                reason = source.signal.problem
                log.warning(
                    f"{source.name}: nothing has arrived yet ({reason}). polypstream keeps trying. Ctrl-C stops it."
                )

    def _frames_of(self, source: LiveSource) -> Iterator[Frame]:
        """Frames of a source. An error ends this source only, and is reported in its signal.

        If another source had its name before, their numbers and times go on, as after a signal that was lost.
        """
        before = self._ends.get(source.name)
        try:
            for frame in source.frames() if before is None else before.continued(source.frames()):
                self._received[source.name] += frame.has_signal
                self._ends[source.name] = _End(frame.index, frame.seconds, frame.arrived)
                yield frame
        except Exception as error:  # whatever a library raises
            source.signal.there, source.signal.problem = False, words_of(error)
        except GeneratorExit:  # the pipeline stopped before the source ended by itself
            source.signal.stop()
            raise

    def _run_background(self) -> None:
        assert self._background is not None
        try:
            self._background.run()
        except Exception as error:  # the video continues without markers and says so
            self._background_problem = f"inference ended: {words_of(error)}"

    def close(self) -> None:
        """End the sources."""
        for source in list(self.sources):
            source.close()

    def mark(self, source: str, kind: MarkKind, text: str = "") -> Mark | None:
        """Set a mark at the newest frame of a source that is shown.

        Args:
            source: name of the source.
            kind: what happened.
            text: words of the user.

        Returns:
            The mark; None if no frame was shown yet.
        """
        seconds = self._meter.newest.get(source)
        if seconds is None:
            return None
        mark = Mark(kind, seconds, text)
        self.marks.add(source, mark)
        return mark

    def failed_sources(self) -> list[str]:
        """Sources that were given up, one line each."""
        return [f"{each.name}: {each.signal.problem}" for each in list(self.sources) if each.signal.given_up]

    def failed_sinks(self) -> list[str]:
        """Problems of sinks that have failed for good, one line each."""
        return [sink.problem for _, sink in list(self._sinks) if sink.problem]

    def sinks(self) -> list[SinkStatus]:
        """State of each sink."""
        return [_status_of_sink(name, sink) for name, sink in list(self._sinks)]

    def sink_problems(self) -> list[str]:
        """Current problems of sinks, such as a push without a receiver, one line each."""
        return [f"{sink.name}: {sink.problem}" for sink in self.sinks() if sink.problem]

    def status(self) -> list[Status]:
        """State of each source."""
        return [self._status_of(source) for source in list(self.sources)]

    def _dropped(self, source: str) -> dict[str, int]:
        """Numbers of frames of a source that were not shown, by reason."""
        return {"overtaken": self.pipeline.dropped[source], "too_old": self._staleness.dropped[source]}

    def _count_recent(self) -> None:
        """Note the numbers of frames of each source, and log if the model is too slow for them."""
        unseen = self._background.dropped + self._pictures.dropped if self._background else Counter[Hashable]()
        for name, recent in list(self._recent.items()):
            skipped = sum(self._dropped(name).values()) + unseen[name]
            recent.add(time.monotonic(), self._received[name], skipped)

    def _unrecorded(self, source: LiveSource) -> int:
        """Number of frames that the recordings of a source were too slow for."""
        dropped = self.pipeline.dropped_by_sinks
        names = [recording_name(source, clean) for clean in (False, True)]
        return sum(dropped[name][source.name] for name in names if name in dropped)

    def _status_of(self, source: LiveSource) -> Status:
        latest = self._meter.latest(source.name)
        ages = [age for _, _, age in latest if age is not None]
        passed = latest[-1][0] - latest[0][0] if len(latest) > 1 else 0.0
        origins = self._meter.shown_by_origin(source.name)
        return Status(
            source=source.name,
            signal=source.signal.there,
            ended=source.signal.ended,
            problem="; ".join(filter(None, (source.signal.problem, self._fail_safe.problem, self._background_problem))),
            losses=source.signal.losses,
            frames_in=self._received[source.name],
            shown=sum(origins.values()),
            findings_of=origins,
            dropped=self._dropped(source.name),
            unrecorded=self._unrecorded(source),
            recent=self._recent[source.name].latest,
            warning=self._recent[source.name].warning,
            latency_ms=percentiles_of([latency for _, latency, _ in latest]) if latest else None,
            markers_age_ms=percentiles_of(ages) if ages else None,
            shown_per_second=(len(latest) - 1) / passed if passed else 0.0,
        )


@dataclass(frozen=True, slots=True)
class _End:
    """The last frame of a source.

    Attributes:
        index: its number.
        seconds: its time.
        arrived: when it arrived, of time.monotonic.
    """

    index: int
    seconds: float
    arrived: float

    def continued(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Move the numbers and times of the frames of another source behind this frame."""
        number = pts = None
        for frame in frames:
            if number is None or pts is None:
                number = self.index + 1 - frame.index
                pts = round((self.seconds + frame.arrived - self.arrived - frame.seconds) / frame.time_base)
            frame.index, frame.pts = frame.index + number, frame.pts + pts
            frame.in_memory().pts = frame.pts
            yield frame


def _reader_name(source: LiveSource) -> str:
    return f"read {source.name}"


def _source_of_sink(isolated: IsolatedSink) -> str:
    """Return the name of the source of a sink; empty if it takes all of them."""
    return isolated.sink.source if isinstance(isolated.sink, ReportingSink) else ""


def _status_of_sink(name: str, isolated: IsolatedSink) -> SinkStatus:
    sink = isolated.sink
    doing, problem = (sink.doing, sink.problem) if isinstance(sink, ReportingSink) else ("", "")
    return SinkStatus(name, _source_of_sink(isolated), doing, isolated.problem or problem)


def _source_of(frame: Frame) -> str:
    return frame.source


def keys_of(live: Live, windows: Windows) -> dict[str, Callable[[], None]]:
    """Functions for the keys of a window: o overlay, h tint or heat map, r recording, s snapshot, c clip, 1 to 5 marks.

    Args:
        live: the pipeline. r pauses and resumes all of its recordings. c saves a clip of each of its sources that is
            kept. 1 to 5 set a mark for each source.
        windows: windows that s saves.
    """

    def switch_overlay() -> None:
        live.overlay.shown = not live.overlay.shown

    def switch_style() -> None:
        live.overlay.style = "tint" if live.overlay.style == "heatmap" else "heatmap"

    def switch_recording() -> None:
        for recording in live.recordings():
            recording.on = not recording.on

    def save_clips() -> None:
        for clips in live.clips.values():
            clips.ask()

    def set_marks(kind: MarkKind) -> None:
        for source in live.sources:
            if (mark := live.mark(source.name, kind)) is not None:
                log.info(f"{source.name}: {mark.title} at {clock(mark.seconds)}")

    return {
        **{str(number): partial(set_marks, kind) for number, kind in enumerate(TITLES, 1)},
        "o": switch_overlay,
        "h": switch_style,
        "r": switch_recording,
        "s": windows.save_snapshots,
        "c": save_clips,
    }
