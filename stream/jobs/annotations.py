"""`polypstream masks`: findings of finished runs as pre-annotations for annotation tools."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av import VideoFrame

from polypstream.core.files import write_csv, writing
from polypstream.core.notice import NOTICE
from polypstream.core.orientation import Orientation
from polypstream.core.protocols import OnProgress
from polypstream.errors import DataError, OutputError, PolypstreamError, SettingsError
from polypstream.jobs.annotation_formats import FORMATS, TRAIN, VALIDATION, Annotated, RecordingInSet, Writer
from polypstream.jobs.annotation_inputs import Finished, find_finished
from polypstream.jobs.image_results import images_of, load_stills
from polypstream.jobs.process import ANNOTATIONS, read_summary
from polypstream.jobs.results import (
    Outline,
    Run,
    best_outlines,
    frames_again,
    load_run,
    open_again,
    shown_until,
)
from polypstream.jobs.reviewed import load_reviewed, merge, reviewed_frames
from polypstream.jobs.reviews import Review, ReviewStore
from polypstream.jobs.uncertain import choose_uncertain
from polypstream.media.scaling import shown
from polypstream.sinks.findings import OUTLINE_TOLERANCE_PX

log = logging.getLogger(__name__)
JPEG_QUALITY = 95
# A frame that is early by at most this many seconds counts as on time.
EARLY_S = 1e-4
# Describes the origin of the annotations. Only folders with this file may be replaced.
ABOUT = "about.json"
# One row for each finding: whether a reader has reviewed it. Not every format has a place for that.
MARKS = "reviewed.csv"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames are annotated.

    Attributes:
        every: seconds between annotated frames; 0: every frame. A track that no such frame shows is annotated in the
            frame that shows it best.
        only_findings: leave out frames that show no finding.
        only_reviewed: leave out frames whose findings a reader has not all reviewed.
        uncertain: annotate this many frames, those from whose correction a network learns most; 0: as `every` says.
    """

    every: float = 0.0
    only_findings: bool = False
    only_reviewed: bool = False
    uncertain: int = 0

    def frames_of(self, run: Run, review: Review) -> set[int]:
        """Numbers of the frames of a run to annotate.

        Args:
            run: the run, as `process` wrote it.
            review: what its readers stored.
        """
        merged = merge(run, review)
        if self.uncertain:
            chosen = {each.frame for each in choose_uncertain(run, self.uncertain)}
        else:
            sampled = _sampled(run.frames["pts_s"].tolist(), self.every)
            chosen = sampled | _unseen(merged, sampled)
        if self.only_reviewed:
            chosen &= reviewed_frames(run, review)
        return chosen & merged.outlines().keys() if self.only_findings else chosen


@dataclass(slots=True)
class AnnotatedRecording:
    """A recording, or a set of images, of a data set of annotations.

    Attributes:
        name: its name in the data set, with which the names of its images begin.
        split: `train` or `val`; empty: the data set is not split.
        first_track: number of its track 1 in the data set.
        pictures: number of annotated frames.
        findings: number of findings in them.
        reviewed: number of these that a reader has drawn or accepted.
    """

    name: str
    split: str
    first_track: int
    pictures: int = 0
    findings: int = 0
    reviewed: int = 0

    def add(self, outlines: Sequence[Outline]) -> None:
        """Count an annotated frame.

        Args:
            outlines: outlines of its findings.
        """
        self.pictures += 1
        self.findings += len(outlines)
        self.reviewed += sum(outline.reviewed for outline in outlines)


@dataclass(frozen=True, slots=True)
class _Input:
    """A run, and its entry in the data set.

    Attributes:
        run: the run, and what it is of.
        frames: number of its frames or images.
        entry: its entry.
    """

    run: Finished
    frames: int
    entry: AnnotatedRecording


def write_annotations(
    arguments: Sequence[str],
    results: Sequence[Path],
    name: str,
    output: Path | None = None,
    selection: Selection | None = None,
    validation: float | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_problem: Callable[[PolypstreamError], None] | None = None,
) -> tuple[Path, list[AnnotatedRecording]]:
    """Write the findings of finished runs, and the images, as one data set in the format of an annotation tool.

    The findings of a recording are those that its readers have left (`merge`), with their corrections.

    Args:
        arguments: what was processed, as for `process`: recordings, images, folders, patterns, addresses of demos. Or
            folders of runs, or folders that hold some.
        results: where the runs of the former are: the folder that was given to `process --output`, or the folder of the
            run. One for all recordings, or one for each.
        name: format, a key of FORMATS.
        output: folder to write; None: annotations-<name>/ in the folder of the run, or beside the folders of the runs
            if there are several.
        selection: which frames are annotated; None: all.
        validation: fraction of the recordings that goes into the validation split, 0..1. Each recording is in one split
            only, and each set of images. None: the format's default.
        overwrite: replace the output of an earlier call.
        on_progress: called as on_progress(done, total) with numbers of frames and images.
        on_problem: called with the DataError or SourceError of each input that is left out. None: the first one is
            raised.

    Returns:
        The folder, and the recordings and sets of images in the data set.

    Raises:
        DataError: a run is missing, or is not a run of its recording.
        SourceError: a recording cannot be read, or an argument names nothing.
        SettingsError: the arguments do not fit together.
        OutputError: the folder cannot be written, or is not empty and may not be replaced.
    """
    problems: list[PolypstreamError] = []
    inputs = _inputs_of(find_finished(arguments, results, problems.append), problems.append)
    if on_problem is not None and inputs:
        for problem in problems:
            on_problem(problem)
    elif problems:
        raise type(problems[0])("; ".join(map(str, problems)))
    _assign_splits([each.entry for each in inputs], name, validation)
    target, total, done = output or _default_target(inputs, name), sum(each.frames for each in inputs), 0
    with _replacing(target, overwrite) as folder:
        writer, origins = _Marked(FORMATS[name](folder), folder), list[dict[str, Any]]()
        for each in inputs:

            def on_frame(frames: int, _: int | None, before: int = done) -> None:
                on_progress(before + frames, total)

            write = _write_images if each.run.images else _write_recording
            about = write(each, selection or Selection(), writer, target, on_frame)
            origins.append({**asdict(each.entry), **about})
            done += each.frames
        about = {"notice": NOTICE, "format": name, "outline_tolerance_px": OUTLINE_TOLERANCE_PX, "recordings": origins}
        with writing(target):
            writer.close()
            (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return target, [each.entry for each in inputs]


class _Marked:
    """Passes annotations on to a writer, and writes which of them a reader has reviewed into reviewed.csv.

    Args:
        writer: of the format.
        folder: folder of the data set.
    """

    def __init__(self, writer: Writer, folder: Path) -> None:
        self.shown, self.begin = writer.shown, writer.begin
        self._writer, self._path = writer, folder / MARKS
        self._rows: list[dict[str, object]] = []

    def write(self, picture: Annotated) -> None:
        """Add an image."""
        self._writer.write(picture)
        for outline in picture.outlines:
            row = {"image": picture.name, "track": outline.track_id, "reviewed": int(outline.reviewed)}
            self._rows.append(row)

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
        write_csv(self._path, ("image", "track", "reviewed"), self._rows)


def _inputs_of(runs: Sequence[Finished], on_problem: Callable[[PolypstreamError], None]) -> list[_Input]:
    """Make the entries of the data set.

    Args:
        runs: the runs.
        on_problem: called with a DataError for each run that is missing or cannot be read.

    Raises:
        DataError: two recordings have the same run.
    """
    inputs: list[_Input] = []
    first_track = 1
    for run in runs:
        try:
            frames, tracks = _size_of(run)
        except DataError as error:
            on_problem(error)
            continue
        for other in inputs:
            if run.folder.samefile(other.run.folder):
                raise DataError(
                    f"{run.uri} and {other.run.uri}: both have their results in {run.folder}; give --results once for "
                    "each recording"
                )
        name = _unique_name(run.folder.resolve().name, {other.entry.name for other in inputs})
        inputs.append(_Input(run, frames, AnnotatedRecording(name, "", first_track)))
        first_track += tracks
    return inputs


def _size_of(run: Finished) -> tuple[int, int]:
    """Number of frames or images of a run, and the largest number of a track."""
    summary = read_summary(run.folder) or {}
    if summary.get("problem"):
        log.warning(f"{run.folder}: the run is not complete ({summary['problem']}); what it did not reach has no masks")
    if run.images:
        stills = merge(load_stills(run.folder), ReviewStore(run.folder).read())
        return len(images_of(stills, run.images)), max((track.track_id for track in stills.tracks), default=0)
    loaded = load_reviewed(run.folder)
    return len(loaded.frames["pts_s"]), max((track.track_id for track in loaded.tracks), default=0)


def _unique_name(name: str, taken: Iterable[str]) -> str:
    """The name, or the name with a number. Folders are not added to it: they are often named after people."""
    folded = {each.casefold() for each in taken}  # some file systems ignore case
    candidates = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(candidate for candidate in candidates if candidate.casefold() not in folded)


def _assign_splits(entries: Sequence[AnnotatedRecording], name: str, validation: float | None) -> None:
    """Set the split of each recording. The choice depends on the names only, not on their order.

    Raises:
        SettingsError: the format has no splits, or there is only one recording.
    """
    if validation and not FORMATS[name].has_splits:
        with_splits = " and ".join(each for each, writer in FORMATS.items() if writer.has_splits)
        raise SettingsError(f"--validation: {name} has no validation split; {with_splits} have one")
    if validation and len(entries) < 2:
        raise SettingsError("--validation: give two or more recordings; all frames of a recording are in one split")
    if validation is None:
        validation = FORMATS[name].default_validation if len(entries) > 1 else 0.0
    if not validation:
        return
    chosen = min(max(1, round(validation * len(entries))), len(entries) - 1)
    by_hash = sorted(entries, key=lambda entry: hashlib.sha256(entry.name.encode("utf-8", "surrogateescape")).digest())
    for place, entry in enumerate(by_hash):
        entry.split = VALIDATION if place < chosen else TRAIN


def _default_target(inputs: Sequence[_Input], name: str) -> Path:
    if len(inputs) == 1:
        return inputs[0].run.folder / f"{ANNOTATIONS}{name}"
    parents = {each.run.folder.parent for each in inputs}
    if len(parents) > 1:
        raise SettingsError("--output: give a folder for the annotations, because there are several folders of results")
    return parents.pop() / f"{ANNOTATIONS}{name}"


def _write_recording(
    each: _Input, selection: Selection, writer: _Marked, target: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Write the images and annotations of one recording, and count them in its entry. Return the head of its run."""
    entry, review = each.entry, ReviewStore(each.run.folder).read()
    original = load_run(each.run.folder)
    run, chosen = merge(original, review), selection.frames_of(original, review)
    stretches = shown_until(run)
    with closing(open_again(run, each.run.uri)) as source:
        orientation = writer.shown(source.format.orientation)
        encode, size = _jpeg_encoder(orientation), orientation.size(*run.picture_size)
        with writing(target):
            images = writer.begin(RecordingInSet(entry.name, size, each.frames, entry.split))
        for frame, outlines in frames_again(run, source, on_progress):
            if frame.index not in chosen:
                continue
            name_of_files = f"{entry.name}_{frame.index:06d}"
            displayed = _renumbered([outline.shown(orientation, *run.picture_size) for outline in outlines], entry)
            ends = [stretches[outline.track_id, frame.index] for outline in outlines]
            with writing(target):
                if images:
                    (images / f"{name_of_files}.jpg").write_bytes(encode(frame.in_memory()))
                writer.write(Annotated(name_of_files, size, frame.index, displayed, ends))
            entry.add(outlines)
    return run.about


def _write_images(
    each: _Input, selection: Selection, writer: _Marked, target: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Write the images and annotations of a set of images, and count them in its entry. Return the head of its run."""
    entry, review, original = each.entry, ReviewStore(each.run.folder).read(), load_stills(each.run.folder)
    images = images_of(merge(original, review), each.run.images)
    left_out = set(range(len(original.names))) - reviewed_frames(original, review) if selection.only_reviewed else set()
    with writing(target):
        folder = writer.begin(RecordingInSet(entry.name, None, each.frames, entry.split))
    for number, image in enumerate(images):
        if image.frame not in left_out and (image.outlines or not selection.only_findings):
            # The set of a single image has the name of this image.
            name = entry.name if len(images) == 1 else f"{entry.name}_{image.name}"
            outlines, rgb = _renumbered(image.outlines, entry), image.load()
            with writing(target):
                if folder:
                    (folder / f"{name}.jpg").write_bytes(_jpeg(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)))
                writer.write(Annotated(name, image.size, number, outlines, [number] * len(outlines)))
            entry.add(outlines)
        on_progress(number + 1, each.frames)
    return original.about


def _renumbered(outlines: Sequence[Outline], entry: AnnotatedRecording) -> list[Outline]:
    """The outlines with the numbers that their tracks have in the data set."""
    return [outline._replace(track_id=outline.track_id + entry.first_track - 1) for outline in outlines]


def _sampled(times: Sequence[float], every: float) -> set[int]:
    """Numbers of the first frame in each interval of `every` seconds; 0: of all frames."""
    numbers = [int((time - times[0] + EARLY_S) / every) if every else index for index, time in enumerate(times)]
    return {index for index, (before, number) in enumerate(pairwise([-1, *numbers])) if number > before}


def _unseen(run: Run, chosen: Collection[int]) -> set[int]:
    """For each track that none of the chosen frames shows, the number of the frame that shows it best."""
    seen = {outline.track_id for frame, outlines in run.outlines().items() if frame in chosen for outline in outlines}
    best = best_outlines(run)
    return {frame for frame, outlines in best.items() if any(outline.track_id not in seen for outline in outlines)}


def _jpeg_encoder(orientation: Orientation) -> Callable[[VideoFrame], bytes]:
    """Make a function that encodes frames as JPEG, of any size, also an odd one."""
    scale = shown("bgr24", orientation)

    def encode(picture: VideoFrame) -> bytes:
        return _jpeg(scale(picture).to_ndarray())

    return encode


def _jpeg(bgr: np.ndarray) -> bytes:
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(jpeg)


@contextmanager
def _replacing(target: Path, overwrite: bool) -> Iterator[Path]:
    """Folder to write into. It becomes `target` after success, and is removed after an error.

    Raises:
        OutputError: `target` is not empty and may not be replaced, or it cannot be created.
    """
    with writing(target):
        present = target.exists() and any(target.iterdir())
        if present and not (target / ABOUT).is_file():
            raise OutputError(f"{target}: holds something that is not of `polypstream masks`; choose another --output")
        if present and not overwrite:
            raise OutputError(f"{target}: holds annotations already; give --overwrite to replace them")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield folder
        with writing(target):
            folder.chmod(target.parent.stat().st_mode)
            shutil.rmtree(target, ignore_errors=True)
            folder.replace(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
