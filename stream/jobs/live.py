"""`polypstream live`: sources as they come, shown with their markers, recorded, sent on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from polypstream.core.addresses import NAME, redacted, split_name
from polypstream.core.config import Settings
from polypstream.core.formatting import words_of
from polypstream.core.frame import Frame
from polypstream.core.pipeline import POLL_S, Channel, Pipeline, Sink, Stage, in_background
from polypstream.core.protocols import LiveSource
from polypstream.errors import SettingsError, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.sinks.push import Push
from polypstream.sinks.rolling import RollingRecording
from polypstream.sinks.window import Windows
from polypstream.sources.live import open_live
from polypstream.stages.findings import FindingsTracker, choose_rules
from polypstream.stages.live import (
    BackgroundInferenceFeed,
    FailSafe,
    IsolatedSink,
    LatencyMeter,
    LatestMarkers,
    LiveViewCropper,
    PerSource,
    SkipInvalid,
    StalenessFilter,
)
from polypstream.stages.overlay import Overlay
from polypstream.stages.smoothing import TemporalSmoother
from polypstream.stages.status_overlay import StatusOverlay

# Nothing waits that need not: one frame of each source before each stage.
QUEUE = 1
PERCENTILES = (50, 95, 99, 100)


@dataclass(frozen=True, slots=True)
class Status:
    """How a source is doing.

    Attributes:
        source: its name.
        signal: pictures are coming; else `problem` says why not.
        ended: there are no more to come.
        problem: of the source or of inference, for people; or nothing.
        losses: how often the source went away.
        frames_in, shown: counted since the start.
        dropped: frames not shown, by reason; once nothing is on its way, frames_in is the sum of these and `shown`.
        unrecorded: frames that were shown, but that its recording had no time for.
        delay_ms: of the latest frames, from arrival to the sinks: median, 95th and 99th percentile, longest.
        markers_age_ms: of the latest frames with markers, from the arrival of the frame that these were found in until
            they were drawn, likewise; in-step it is the delay up to there.
        shown_per_second: of the latest frames.
    """

    source: str
    signal: bool
    ended: bool
    problem: str
    losses: int
    frames_in: int
    shown: int
    dropped: dict[str, int]
    unrecorded: int
    delay_ms: tuple[float, ...] | None
    markers_age_ms: tuple[float, ...] | None
    shown_per_second: float


@runtime_checkable
class ReportingSink(Protocol):
    """A sink that reports what it is doing.

    Attributes:
        doing: for people, such as what is recorded where.
        problem: why it does not, for people; or nothing.
    """

    @property
    def doing(self) -> str: ...

    problem: str


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """What a sink is doing.

    Attributes:
        name: of the sink.
        doing: for people, of those that have something to tell, such as what is recorded where.
        problem: what it has to complain of; or nothing.
    """

    name: str
    doing: str
    problem: str


NamedStages = list[tuple[str, Stage[Frame], int]]


def describe(status: Status) -> str:
    """One line for people."""
    drops = ", ".join(f"{count} {reason}" for reason, count in status.dropped.items() if count)
    delay = "" if status.delay_ms is None else f", delay {status.delay_ms[0]:.0f} ms (99 %: {status.delay_ms[2]:.0f})"
    state = "ended" if status.ended else "signal" if status.signal else "no signal"
    return (
        f"{status.source}: {state}"
        + (f" ({status.problem})" if status.problem else "")
        + f", {status.frames_in} frames in, {status.shown} shown at {status.shown_per_second:.1f} per second"
        + (f", dropped: {drops}" if drops else "")
        + (f", not recorded: {status.unrecorded}" if status.unrecorded else "")
        + delay
        + (f", lost {status.losses} times" if status.losses else "")
    )


def open_sources(texts: Sequence[str], settings: Settings) -> list[LiveSource]:
    """The sources that a user names, each `ADDRESS` or `NAME=ADDRESS`.

    Raises:
        SourceError: one cannot be opened, or two are called the same.
    """
    sources: dict[str, LiveSource] = {}
    for text in texts:
        name, uri = split_name(text)
        if name in sources:
            raise SourceError(f"{name}: two sources are called the same; write NAME=ADDRESS")
        sources[name] = open_live(name, uri, settings.live)
    return list(sources.values())


def recordings_of(path: Path, sources: Sequence[LiveSource], settings: Settings) -> list[tuple[str, RollingRecording]]:
    """A sink for each source that records it: in `path`, or if there are several in files with their names.

    Raises:
        OutputError: a file exists already.
        SettingsError: there are several, and one has no name that a file could have.
    """
    nameless = [source.name for source in sources if not NAME.fullmatch(source.name)]
    if nameless and len(sources) > 1:
        raise SettingsError(f"--record: {nameless[0]} needs a name for its file; write NAME=ADDRESS")
    sinks = []
    for source in sources:
        own = path if len(sources) == 1 else path.with_stem(f"{path.stem}-{source.name}")
        sinks.append((_recording(source), RollingRecording(own, source, settings.output)))
    return sinks


def pushes_of(texts: Sequence[str], sources: Sequence[LiveSource], settings: Settings) -> list[tuple[str, Sink[Frame]]]:
    """A sink for each `URL` or `NAME=URL` that sends the source of that name there.

    Raises:
        SettingsError: there is no such source or no such way to send.
    """
    sinks: list[tuple[str, Sink[Frame]]] = []
    for text in texts:
        name, url = split_name(text)
        if url == text and len(sources) == 1:
            name = sources[0].name
        named = [source for source in sources if source.name == name]
        if not named:
            raise SettingsError(f"--push {redacted(url)}: write NAME=URL with the name of a source")
        sinks.append((f"push {len(sinks) + 1}", Push(url, named[0], settings.output.video, settings.live.longest_wait)))
    return sinks


class Live:
    """Sources, stages and sinks at work.

    Args:
        sources: each with a name of its own.
        segmenter: shared by them.
        settings: of the run.
        sinks: name and sink of each.

    Raises:
        SettingsError: they ask for what only recordings have.

    Attributes:
        overlay: what draws the markers; it can be switched off and on.
    """

    def __init__(
        self,
        sources: Sequence[LiveSource],
        segmenter: Segmenter,
        settings: Settings,
        sinks: Sequence[tuple[str, Sink[Frame]]],
    ) -> None:
        if settings.deidentify.enabled:
            raise SettingsError("deidentify.enabled: is for recordings; live pictures are not de-identified")
        self.sources = sources
        self._fail_safe, self._staleness, self._meter = (
            FailSafe(segmenter),
            StalenessFilter(settings.live.max_staleness),
            LatencyMeter(),
        )
        card, overlay, findings = segmenter.card, settings.overlay, settings.findings
        rules = choose_rules(findings, card.threshold, card.peak)
        self.overlay = Overlay(overlay.style, overlay.opacity, overlay.contour)
        stages: NamedStages = [
            ("crop", SkipInvalid(PerSource(lambda: LiveViewCropper(segmenter.size, settings))), 1),
            ("segment", SkipInvalid(self._fail_safe), segmenter.batch_size),
            *([("smooth", SkipInvalid(PerSource(TemporalSmoother)), 1)] if findings.steady else []),
            ("findings", SkipInvalid(PerSource(lambda: FindingsTracker(rules, findings.steady))), 1),
        ]
        drawing: NamedStages = [
            ("overlay", SkipInvalid(self.overlay), 1),
            ("signs", StatusOverlay(), 1),
            ("fresh", self._staleness, 1),
            ("meter", self._meter, 1),
        ]
        self._background: Pipeline[Frame] | None = None
        self._background_problem = ""
        if settings.live.display == "pass-through":
            self._pictures = Channel[Frame](QUEUE, _source_of)
            markers = LatestMarkers(settings.live.max_staleness)
            pictures = [("pictures", iter(self._pictures))]
            self._background = Pipeline(pictures, stages, [("markers", markers)], QUEUE, _source_of)
            stages = [("markers", SkipInvalid(markers), 1)]
            sinks = [*sinks, ("aside", BackgroundInferenceFeed(self._pictures, markers))]
        incoming = [(_reading(source), _alone(source)) for source in sources]
        self._sinks = [(name, IsolatedSink(sink)) for name, sink in sinks]
        self.pipeline = Pipeline(incoming, [*stages, *drawing], self._sinks, QUEUE, _source_of, self.close)

    def run(self, poll: Callable[[], None], every: float = POLL_S) -> None:
        """Until every source has ended or `poll`, called about so often, raises; KeyboardInterrupt is a user's end."""
        if self._background is None:
            self.pipeline.run(poll, every)
        else:
            with in_background("aside", self._look_background, self._pictures.end):
                self.pipeline.run(poll, every)

    def _look_background(self) -> None:
        assert self._background is not None
        try:
            self._background.run()
        except Exception as error:  # the picture goes on without markers, and says so
            self._background_problem = f"inference ended: {words_of(error)}"

    def close(self) -> None:
        """Let the sources end."""
        for source in self.sources:
            source.close()

    def failed_sinks(self) -> list[str]:
        """What went wrong in sinks, one line each."""
        return [sink.problem for _, sink in self._sinks if sink.problem]

    def sinks(self) -> list[SinkStatus]:
        """What each sink is doing."""
        return [_status_of_sink(name, sink) for name, sink in self._sinks]

    def sink_problems(self) -> list[str]:
        """What sinks have to complain of now, such as a push that finds nobody, one line each."""
        return [f"{sink.name}: {sink.problem}" for sink in self.sinks() if sink.problem]

    def status(self) -> list[Status]:
        """How each source is doing."""
        return [self._status_of(source) for source in self.sources]

    def _status_of(self, source: LiveSource) -> Status:
        latest = self._meter.latest(source.name)
        ages = [age for _, _, age in latest if age is not None]
        passed = latest[-1][0] - latest[0][0] if len(latest) > 1 else 0.0
        return Status(
            source=source.name,
            signal=source.signal.there,
            ended=source.signal.ended,
            problem="; ".join(filter(None, (source.signal.problem, self._fail_safe.problem, self._background_problem))),
            losses=source.signal.losses,
            frames_in=self.pipeline.work[_reading(source)].items,
            shown=self._meter.shown[source.name],
            dropped={"newer": self.pipeline.dropped[source.name], "stale": self._staleness.dropped[source.name]},
            unrecorded=self.pipeline.dropped_by_sinks.get(_recording(source), Counter[Hashable]())[source.name],
            delay_ms=percentiles_of([delay for _, delay, _ in latest]) if latest else None,
            markers_age_ms=percentiles_of(ages) if ages else None,
            shown_per_second=(len(latest) - 1) / passed if passed else 0.0,
        )


def _status_of_sink(name: str, isolated: IsolatedSink) -> SinkStatus:
    sink = isolated.sink
    doing, problem = (sink.doing, sink.problem) if isinstance(sink, ReportingSink) else ("", "")
    return SinkStatus(name, doing, isolated.problem or problem)


def _alone(source: LiveSource) -> Iterator[Frame]:
    """Frames of a source that fails alone: the others go on, and what went wrong is told."""
    try:
        yield from source.frames()
    except Exception as error:  # whatever a library raises
        source.signal.there, source.signal.problem = False, words_of(error)


def percentiles_of(seconds: Sequence[float]) -> tuple[float, ...]:
    """Median, 95th and 99th percentile and longest of some times, in milliseconds."""
    return tuple(float(value) for value in np.percentile(np.array(seconds) * 1000, PERCENTILES))


def _source_of(frame: Frame) -> str:
    return frame.source


def _reading(source: LiveSource) -> str:
    """What the thread is called that reads a source; no stage is called so."""
    return f"read {source.name}"


def _recording(source: LiveSource) -> str:
    """What the sink is called that records it."""
    return f"record {source.name}"


def keys_of(live: Live, recordings: Sequence[RollingRecording], windows: Windows) -> dict[str, Callable[[], None]]:
    """What the keys of a window do: o overlay, h tint or heat map, r recording, s snapshot."""

    def switch_overlay() -> None:
        live.overlay.shown = not live.overlay.shown

    def switch_style() -> None:
        live.overlay.style = "tint" if live.overlay.style == "heatmap" else "heatmap"

    def switch_recording() -> None:
        for recording in recordings:
            recording.on = not recording.on

    return {"o": switch_overlay, "h": switch_style, "r": switch_recording, "s": windows.save_snapshots}
