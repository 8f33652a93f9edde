"""`polypstream process`: a recording in, a folder of results out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polypstream.core.config import Settings
from polypstream.core.files import write_atomically
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.pipeline import Pipeline, Sink
from polypstream.core.protocols import Source
from polypstream.errors import DataError, OutputError, PolypstreamError, SourceError
from polypstream.inference.model_card import NOTICE
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.report import write_report
from polypstream.jobs.setup import Stages, choose_field_of_view, make_stages
from polypstream.media.video import AnnotatedVideo, MaskVideo, check_frames
from polypstream.sinks.findings import SNAPSHOTS, FindingsFile
from polypstream.sinks.tables import FramesTable
from polypstream.sources.deidentified import Deidentified
from polypstream.sources.open import open_source, stem_of

OnProgress = Callable[[int, int | None], None]
# Told how far things have moved, in some measure.
OnActivity = Callable[[object], None]
# Folders of `polypstream masks` among a run's results begin so.
ANNOTATIONS = "annotations-"
RESULTS = ("annotated.mp4", "frames.csv", "findings.json", "summary.json", "report.html", "masks.mkv")


@dataclass(slots=True)
class ProcessResult:
    """One recording's results.

    Attributes:
        name: of the recording, for people.
        folder: where they are.
        frames: written to annotated.mp4.
        seconds: wall time.
        notes: what a user should know, one phrase each.
        damage: what was wrong with the recording, likewise.
    """

    name: str
    folder: Path
    frames: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """What is wrong with the results, for people; nothing if they are whole."""
        if not self.damage:
            return ""
        rest = f"The {self.frames} frames that could be read are in {self.folder}"
        return f"{self.name}: damaged: {'; '.join(self.damage)}. {rest}"


def claim_folder(uri: str, name: str | None, taken: dict[str, str]) -> None:
    """See that no two recordings of one call write to the same folder.

    Args:
        uri: the recording that is next.
        name: that it gets in place of its own, if any.
        taken: the recordings before it, by the name of their folders; this one is added.

    Raises:
        OutputError: the folder is taken.
    """
    folder = (name or stem_of(uri)).casefold()  # some file systems do not tell A from a
    if folder in taken:
        raise OutputError(f"{uri}: its results would overwrite those of {taken[folder]}; give it a call of its own")
    taken[folder] = uri


def process(
    uri: str,
    output: Path,
    segmenter: Segmenter,
    settings: Settings,
    masks: bool = False,
    overwrite: bool = False,
    name: str | None = None,
    on_progress: OnProgress = lambda *_: None,
    title: str | None = None,
    on_activity: OnActivity = lambda _: None,
) -> ProcessResult:
    """Annotate one recording into `output`/<stem>/.

    Args:
        uri: path of a recording, or a demo's address.
        output: folder of all results.
        segmenter: shared by the recordings of one call.
        settings: of the run.
        masks: write masks.mkv too.
        overwrite: replace results that exist.
        name: for the results of a recording that is de-identified, in place of its own.
        on_progress: told the frames done and the frames expected (None: unknown), a few times a second.
        title: what the recording is called in its results and in errors; its path without it.
        on_activity: told how far things have moved, a few times a second, also when no frame is added.

    Returns:
        The run; where the recording was damaged, of what could be read.

    Raises:
        PolypstreamError: nothing could be done, or the results are not whole; what was written stays playable.
        KeyboardInterrupt: likewise; there is a report of what was done.
    """
    try:
        return _process(uri, output, segmenter, settings, masks, overwrite, name, on_progress, title, on_activity)
    except PolypstreamError:
        raise
    except Exception as error:  # whatever FFmpeg or another library raises is about this recording
        raise SourceError(f"{title or uri}: cannot be processed ({_words_of(error)})") from error


def _words_of(error: Exception) -> str:
    """What a library says, in one line that tells which kind of error it is."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _process(
    uri: str,
    output: Path,
    segmenter: Segmenter,
    settings: Settings,
    masks: bool,
    overwrite: bool,
    name: str | None,
    on_progress: OnProgress,
    title: str | None,
    on_activity: OnActivity,
) -> ProcessResult:
    source: Source = open_source(uri, on_progress)
    try:
        source.name = title or source.name
        view, recording = choose_field_of_view(source, settings), source.path
        if settings.deidentify.enabled:
            source = Deidentified(source, view, settings, name)
        folder = prepare_folder(output / source.stem, recording, overwrite, settings.deidentify.enabled)
        try:
            run = RecordingPipeline(source, view, folder, segmenter, settings, masks).run(on_progress, on_activity)
        except KeyboardInterrupt:
            with suppress(DataError):  # where not a frame was done there is nothing to report
                write_report(folder)
            raise
        write_report(run.folder)
        return run
    finally:
        source.close()


def prepare_folder(folder: Path, recording: Path | None, overwrite: bool, deidentified: bool) -> Path:
    """Make the results' folder, without touching a file that the user has not given up.

    Raises:
        OutputError: results exist and may not be replaced, or the folder cannot be written; or it holds annotations
            of an earlier run, whose pictures would lie among de-identified results.
    """
    try:
        existing = [folder / name for name in RESULTS if (folder / name).exists()]
        existing += (folder / SNAPSHOTS).glob("track-*.jpg")
        existing += folder.glob("dicom/track-*.dcm")
        if recording and any(path.samefile(recording) for path in existing):
            raise OutputError(f"{recording}: is itself in the folder of its results; choose another --output")
        if existing and not overwrite:
            raise OutputError(f"{folder}: holds results already; give --overwrite to replace them")
        annotations = next(folder.glob(f"{ANNOTATIONS}*"), None)
        if annotations and deidentified:
            raise OutputError(f"{annotations}: has pictures of an earlier run; move it away, or delete it")
        folder.mkdir(parents=True, exist_ok=True)
        for path in existing:
            path.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder


class RecordingPipeline:
    """The pipeline of one recording, or of a part of one.

    Args:
        source: the recording.
        view: its field of view.
        folder: for the results.
        segmenter, settings, masks: as for `process`.
        frames: of the part; all of the source's without it.
        stages: that the part's frames go through, as `make_stages` makes them; fresh ones without it.
        origin: pts at which the time of the part's annotated.mp4 begins.
    """

    def __init__(
        self,
        source: Source,
        view: FieldOfView,
        folder: Path,
        segmenter: Segmenter,
        settings: Settings,
        masks: bool,
        frames: Iterator[Frame] | None = None,
        stages: Stages | None = None,
        origin: int = 0,
    ) -> None:
        self.source, self.view, self.folder, self.segmenter, self.settings = source, view, folder, segmenter, settings
        self._masks = masks
        sinks = self._open_sinks(masks, origin)
        stages = make_stages(view, segmenter, settings) if stages is None else stages
        self.pipeline = Pipeline([("decode", frames or source.frames())], [*stages], sinks)

    def _open_sinks(self, masks: bool, origin: int) -> list[tuple[str, Sink[Frame]]]:
        folder, pictures = self.folder, self.source.format
        self.video = AnnotatedVideo(
            folder / "annotated.mp4",
            pictures,
            self.source.path,
            self.settings.output.video,
            origin,
            self.source.shifts,
        )
        sinks: list[tuple[str, Sink[Frame]]] = [("encode", self.video)]
        try:
            sinks.append(("table", FramesTable(folder / "frames.csv")))
            self.findings = FindingsFile(folder, self._about())
            sinks.append(("findings", self.findings))
            if masks:
                sinks.append(("masks", MaskVideo(folder / "masks.mkv", pictures)))
        except BaseException:
            for _, sink in sinks:
                sink.close()
            raise
        return sinks

    def run(self, on_progress: OnProgress, on_activity: OnActivity = lambda _: None) -> ProcessResult:
        """Everything but the report; the summary is written whatever happens.

        Raises:
            PolypstreamError: the results are not whole, for another reason than the recording's damage.
        """
        started = time.monotonic()
        problem: BaseException | None = None

        def tell() -> None:
            on_activity((sum(work.items for work in self.pipeline.work.values()), self.video.packets))
            on_progress(self.video.frames, self.source.expected_frames)

        try:
            self.pipeline.run(tell)
            self._check_files(on_activity)
        except BaseException as error:
            problem = error
        notes = [*self.source.notes, *self.video.notes]
        damage = [*self.source.damage, *self.video.damage]
        run = ProcessResult(self.source.name, self.folder, self.video.frames, time.monotonic() - started, notes, damage)
        self._write_summary(run, problem)
        if problem is not None:
            raise problem
        return run

    def _check_files(self, on_activity: OnActivity) -> None:
        """See that what was written can be read back.

        Raises:
            OutputError: it cannot.
        """
        check_frames(self.folder / "annotated.mp4", self.video.frames, on_activity)
        if self._masks:
            check_frames(self.folder / "masks.mkv", self.video.frames, on_activity)

    def _about(self) -> dict[str, Any]:
        """What the results are of, and made with."""
        settings = self.settings.model_dump(mode="json")
        settings["inference"]["model"] = self._may_stand(settings["inference"]["model"])
        file = self._may_stand(str(self.segmenter.model))
        return {
            "input": self.source.name,
            "model": {"file": file, **self.segmenter.card.model_dump(mode="json")},
            "settings": settings,
            "polypstream": version("polypstream"),
        }

    def _may_stand(self, text: str) -> str:
        """A path as it may stand in the results: folders are often named after people."""
        return Path(text).name if self.settings.deidentify.enabled else text

    def _write_summary(self, run: ProcessResult, problem: BaseException | None) -> None:
        said = (str(problem) or type(problem).__name__) if problem else None
        if isinstance(problem, KeyboardInterrupt):
            said = "interrupted"
        if said and self.settings.deidentify.enabled:
            said = said.replace(str(self.folder), self.folder.name)
        summary: dict[str, Any] = {
            **self._about(),
            "complete": problem is None and not run.damage,
            "problem": said,
            "damage": run.damage,
            "notes": [*self.segmenter.notes, *run.notes],
            "provider": self.segmenter.provider,
            "encoder": self.video.encoder,
            "field_of_view": [self.view.x, self.view.y, self.view.width, self.view.height],
            "picture_size": [self.source.format.width, self.source.format.height],
            "frames_in": self.pipeline.work["decode"].items,
            "frames_out": run.frames,
            "wall_seconds": round(run.seconds, 3),
            "frames_per_second": round(run.frames / run.seconds, 2),
            "seconds_per_stage": {name: round(work.seconds, 3) for name, work in self.pipeline.work.items()},
            "notice": NOTICE,
        }
        try:
            write_summary(self.folder, summary)
        except OutputError:
            if problem is None:
                raise


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with write_atomically(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
