"""Processing a recording in independent parts: where to cut it, and how to process one part."""

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
from polypstream.jobs.process import Job, OnActivity, ProcessResult, RecordingPipeline
from polypstream.jobs.setup import Stages, choose_field_of_view, decode_on_gpu, make_stages
from polypstream.sources.deidentified import Deidentified
from polypstream.sources.open import open_source
from polypstream.sources.recording import Recording

# Seconds before a part that its stages process too. The tracker remembers slightly less.
OVERLAP_S = 2.5
# A digest is computed of all frames in this last time of a part in seconds: the last frame is one of them.
DIGEST_SPAN_S = 1.0
BEGIN, END, TRACKS = "begin.npz", "end.npz", "tracks.json"
BOUNDARY_FILES = (BEGIN, END)


class CannotJoin(PolypstreamError):
    """The parts of a recording do not fit together. It can only be processed as a whole."""


class Part(NamedTuple):
    """A part of a recording.

    Attributes:
        number: number of the part, from 0.
        start: pts of its first frame, a keyframe; None: the beginning of the recording.
        end: pts of the first frame behind it; None: the end of the recording.
    """

    number: int
    start: int | None
    end: int | None


class Plan(NamedTuple):
    """How a recording is processed in parts.

    Attributes:
        view: field of view of the recording: left, top, width, height in pixels.
        cuts: pts of the keyframes at which it is cut.
    """

    view: tuple[int, int, int, int]
    cuts: tuple[int, ...]

    @property
    def parts(self) -> list[Part]:
        """The parts, one more than there are cuts."""
        places = [None, *self.cuts, None]
        return [Part(number, places[number], places[number + 1]) for number in range(len(places) - 1)]


def plan_parts(source: Source, settings: Settings, seconds: float) -> Plan | None:
    """Plan how to cut a recording into parts.

    Args:
        source: the recording.
        settings: settings of the run.
        seconds: approximate length of a part in seconds; 0: do not cut.

    Returns:
        The plan; None: process the recording as a whole.
    """
    if settings.inference.every > 1:
        return None  # which frames the model sees depends on their numbers in the recording
    cuts = source.key_frames(seconds) if seconds and isinstance(source, Recording) and source.path else []
    if not cuts:
        return None
    view = choose_field_of_view(source, settings)
    return Plan((view.x, view.y, view.width, view.height), tuple(cuts))


class PartOfRecording:
    """A Source that yields the frames of a part and a few before it, without sound.

    Args:
        recording: the recording.
        part: the part.
    """

    def __init__(self, recording: Recording, part: Part) -> None:
        self._recording, self._part = recording, part
        self.name, self.stem, self.format = recording.name, recording.stem, recording.format
        self.shifts, self.damage, self.notes = recording.shifts, recording.damage, recording.notes
        self.path: Path | None = None
        self.expected_frames: int | None = None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames of the part, and those in the OVERLAP_S before it, as far as the recording has them."""
        before = round(OVERLAP_S / self.format.time_base)
        start = self._part.start
        if start is not None:
            first = round(self.format.start / self.format.time_base)
            start = max(first, start - before)
        return self._recording.frames(start, self._part.end)

    def thumbnails(self) -> list[np.ndarray]:
        """Thumbnails of the whole recording, since a part has the same field of view."""
        return self._recording.thumbnails()

    def close(self) -> None:
        """Close the recording."""
        self._recording.close()


def process_part(
    job: Job,
    plan: Plan,
    part: Part,
    before: Path | None,
    segmenter: Segmenter,
    settings: Settings,
    on_activity: OnActivity = lambda _: None,
) -> ProcessResult:
    """Annotate one part of a recording, for `join_parts`.

    Args:
        job: the recording; `output` is the empty folder for the results of the part, `title` its name in them.
        plan: plan of the recording.
        part: part of the plan.
        before: verified results of the part before. The stages continue from their state. None: the stages see only the
            overlap, and their state must be compared later.
        segmenter, settings, on_activity: as for `process`.

    Returns:
        The results.

    Raises:
        CannotJoin: the frames cannot be decoded without those before them.
        PolypstreamError: as by `process`.
    """
    folder, recording = job.output, open_source(job.uri)
    try:
        assert isinstance(recording, Recording)
        recording.name = job.title or recording.name
        view = FieldOfView(*plan.view)
        gpu = decode_on_gpu(recording, segmenter, settings)
        source: Source = PartOfRecording(recording, part)
        if settings.deidentify.enabled:
            source = Deidentified(source, view, settings, job.name, part.start)
        stages = make_stages(view, segmenter, settings, gpu)
        frames: Iterator[Frame] = source.frames()
        if part.start is not None:
            end_before = load_boundary(before / END) if before else None
            frames = _prepare_stages(frames, part.start, stages, end_before, folder)
        part_frames = _PartFrames(frames, part.end, 1 / recording.format.time_base)
        pipeline = RecordingPipeline(
            source,
            view,
            folder,
            segmenter,
            settings,
            job.masks,
            stages,
            iter(part_frames),
            part.start or 0,
            packets_from=None if settings.deidentify.enabled else recording.path,
        )
        run = pipeline.run(lambda *_: None, on_activity)
        if recording.was_corrected:
            raise CannotJoin("its timestamps or frames were corrected, and a correction affects the parts that follow")
        if part.end is not None:
            save_boundary(Boundary(*part_frames.last(), *state_of(stages)), folder / END)
        with writing(folder / TRACKS):
            (folder / TRACKS).write_text(json.dumps(pipeline.findings.exact_tracks()))
        return run
    finally:
        recording.close()


def _prepare_stages(
    frames: Iterator[Frame], start: int, stages: Stages, end_before: Boundary | None, folder: Path
) -> Iterator[Frame]:
    """Bring the stages into the state before a part, and return the frames of the part.

    Args:
        frames: frames from the overlap on.
        start: pts of the part's first frame.
        stages: new stages.
        end_before: state at the end of the part before; None: process the overlap instead.
        folder: folder for the boundary file.
    """
    last: Frame | None = None
    digest = 0
    for frame in frames:
        if frame.pts >= start:
            break
        last, digest = frame, digest_of(frame)
        for _, stage, _ in stages.analysis if end_before is None else ():
            stage([frame])
    else:
        raise CannotJoin(f"no picture can be decoded from pts {start} on")
    if last is None or frame.pts != start or (end_before and (last.pts, digest) != (end_before.pts, end_before.digest)):
        raise CannotJoin(f"the pictures from pts {start} on are not those of the whole recording")
    if end_before is not None:
        restore_state(stages, end_before)
    save_boundary(Boundary(last.pts, digest, *state_of(stages)), folder / BEGIN)
    return chain([frame], frames)


class _PartFrames:
    """The frames of a part, numbered from 0. Keeps pts and digest of the last frame, before later stages draw on it.

    Args:
        frames: the frames.
        end: pts of the first frame behind the part; None: the end of the recording.
        units_per_second: number of pts units per second.
    """

    def __init__(self, frames: Iterator[Frame], end: int | None, units_per_second: Fraction) -> None:
        self._frames, self._end = frames, end
        self._from = None if end is None else end - round(DIGEST_SPAN_S * units_per_second)
        self._last: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Frame]:
        for index, frame in enumerate(self._frames):
            frame.index = index
            if self._from is not None and frame.pts >= self._from:
                self._last = frame.pts, digest_of(frame)
            yield frame

    def last(self) -> tuple[int, int]:
        """pts and digest of the last frame.

        Raises:
            CannotJoin: there is no frame in the last second.
        """
        if self._last is None:
            raise CannotJoin(f"there is no picture in the last second before pts {self._end}")
        return self._last
