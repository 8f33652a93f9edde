"""A recording in parts, each of which can be processed by itself: where to cut it, and one part's run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polypstream.archive.boundary import Boundary, digest_of, load_boundary, restore_state, save_boundary, state_of
from polypstream.core.config import Settings
from polypstream.core.files import writing
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.protocols import Source
from polypstream.errors import PolypstreamError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.process import OnActivity, ProcessResult, RecordingPipeline
from polypstream.jobs.setup import Stages, choose_field_of_view, make_stages
from polypstream.sources.deidentified import Deidentified
from polypstream.sources.open import open_source
from polypstream.sources.recording import Recording

# The stages of a part see so much of what is before it, in seconds: a little more than a tracker remembers.
OVERLAP_S = 2.5
# The last picture of a part is one of the last that come in so many seconds.
DIGESTED_S = 1.0
BEGIN, END, TRACKS = "begin.npz", "end.npz", "tracks.json"
BOUNDARY_FILES = (BEGIN, END)


class CannotJoin(PolypstreamError):
    """The parts of a recording do not fit together; it can only be processed as a whole."""


class Part(NamedTuple):
    """A span of a recording.

    Attributes:
        number: from 0.
        start: pts of its first frame, a key frame; None: the recording's first.
        end: pts of the first frame that does not belong to it; None: all do to the last.
    """

    number: int
    start: int | None
    end: int | None


class Plan(NamedTuple):
    """How a recording is processed in parts.

    Attributes:
        view: its field of view: left, top, width, height.
        cuts: pts of the key frames at which it is cut.
    """

    view: tuple[int, int, int, int]
    cuts: tuple[int, ...]

    @property
    def parts(self) -> list[Part]:
        """One more than there are cuts."""
        places = [None, *self.cuts, None]
        return [Part(number, places[number], places[number + 1]) for number in range(len(places) - 1)]


def plan_parts(source: Source, settings: Settings, seconds: float) -> Plan | None:
    """Where to cut a recording into parts of about so many seconds; None: it is processed as a whole."""
    cuts = source.key_frames(seconds) if seconds and isinstance(source, Recording) and source.path else []
    if not cuts:
        return None
    view = choose_field_of_view(source, settings)
    return Plan((view.x, view.y, view.width, view.height), tuple(cuts))


class PartOfRecording:
    """The pictures of a part and a few before it; a Source itself, without sound."""

    def __init__(self, recording: Recording, part: Part) -> None:
        self._recording, self._part = recording, part
        self.name, self.stem, self.format = recording.name, recording.stem, recording.format
        self.shifts, self.damage, self.notes = recording.shifts, recording.damage, recording.notes
        self.path: Path | None = None
        self.expected_frames: int | None = None

    def frames(self) -> Iterator[Frame]:
        """Those of the part, and those OVERLAP_S before it; fewer where the recording begins."""
        before = round(OVERLAP_S / self.format.time_base)
        start = self._part.start
        if start is not None:
            first = round(self.format.start / self.format.time_base)
            start = max(first, start - before)
        return self._recording.frames(start, self._part.end)

    def thumbnails(self) -> list[np.ndarray]:
        """The whole recording's: a part has the same field of view."""
        return self._recording.thumbnails()

    def close(self) -> None:
        """Close the recording."""
        self._recording.close()


def process_part(
    path: Path,
    title: str,
    plan: Plan,
    part: Part,
    folder: Path,
    before: Path | None,
    segmenter: Segmenter,
    settings: Settings,
    masks: bool,
    on_activity: OnActivity = lambda _: None,
) -> ProcessResult:
    """Annotate one part of a recording into a folder, from which `join_parts` takes it.

    Args:
        path: of the recording.
        title: what it is called in its results.
        plan: of the recording.
        part: of the plan.
        folder: for the results, empty.
        before: results of the part before, where they are true; its stages' memory is then taken over. Without it the
            memory is that of the overlap alone, and remains to be compared.
        segmenter, settings, masks, on_activity: as for `process`.

    Raises:
        CannotJoin: the pictures cannot be had without those before them.
        PolypstreamError: as by `process`.
    """
    recording = open_source(str(path))
    try:
        assert isinstance(recording, Recording)
        recording.name = title
        view = FieldOfView(*plan.view)
        source: Source = PartOfRecording(recording, part)
        if settings.deidentify.enabled:
            source = Deidentified(source, view, settings, since=part.start)
        stages = make_stages(view, segmenter, settings)
        frames: Iterator[Frame] = source.frames()
        if part.start is not None:
            true = load_boundary(before / END) if before else None
            frames = _enter(frames, part.start, stages, true, folder)
        ending = _Ending(frames, part.end, 1 / recording.format.time_base)
        job = RecordingPipeline(source, view, folder, segmenter, settings, masks, iter(ending), stages, part.start or 0)
        run = job.run(lambda *_: None, on_activity)
        if recording.was_mended:
            raise CannotJoin("its times or pictures had to be mended, which goes on from one part to the next")
        if part.end is not None:
            save_boundary(Boundary(*ending.last(), *state_of(stages)), folder / END)
        with writing(folder / TRACKS):
            (folder / TRACKS).write_text(json.dumps(job.findings.exact_tracks()))
        return run
    finally:
        recording.close()


def _enter(frames: Iterator[Frame], start: int, stages: Stages, true: Boundary | None, folder: Path) -> Iterator[Frame]:
    """Let the stages see, or be reminded of, what is before a part; the part's own frames."""
    last: Frame | None = None
    digest = 0
    for frame in frames:
        if frame.pts >= start:
            break
        last, digest = frame, digest_of(frame)
        for _, stage, _ in stages.analysis if true is None else ():
            stage([frame])
    else:
        raise CannotJoin(f"no picture can be decoded from pts {start} on")
    if last is None or frame.pts != start or (true and (last.pts, digest) != (true.pts, true.digest)):
        raise CannotJoin(f"the pictures from pts {start} on are not those of the whole recording")
    if true is not None:
        restore_state(stages, true)
    save_boundary(Boundary(last.pts, digest, *state_of(stages)), folder / BEGIN)
    return chain([frame], frames)


class _Ending:
    """Frames numbered from 0; pts and pixels of the last one are kept, since later stages draw on them."""

    def __init__(self, frames: Iterator[Frame], end: int | None, second: Fraction) -> None:
        self._frames, self._end = frames, end
        self._from = None if end is None else end - round(DIGESTED_S * second)
        self._last: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Frame]:
        for index, frame in enumerate(self._frames):
            frame.index = index
            if self._from is not None and frame.pts >= self._from:
                self._last = frame.pts, digest_of(frame)
            yield frame

    def last(self) -> tuple[int, int]:
        """pts and digest of the last one."""
        if self._last is None:
            raise CannotJoin(f"there is no picture in the last second before pts {self._end}")
        return self._last
