"""`polypstream process`: annotates a recording and writes a folder of results."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from polypstream.core.config import Settings
from polypstream.core.files import write_atomically
from polypstream.core.formatting import counted
from polypstream.core.frame import Frame
from polypstream.core.geometry import FieldOfView
from polypstream.core.notice import NOTICE
from polypstream.core.pipeline import Pipeline, Sink
from polypstream.core.protocols import OnProgress, Source
from polypstream.core.time_range import TimeRange
from polypstream.core.watchdog import STALL_TIMEOUT_S
from polypstream.errors import OutputError, PolypstreamError, ResultsExist, SourceError
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.report import write_report
from polypstream.jobs.reviews import REVIEWS
from polypstream.jobs.setup import Stages, choose_field_of_view, decode_on_gpu, make_stages, restricted
from polypstream.media.gop_copy import CopyCounts, open_copying
from polypstream.media.video import AnnotatedVideo, MaskVideo, check_frames
from polypstream.sinks.findings import POLYPS, SNAPSHOTS, FindingsFile
from polypstream.sinks.tables import FramesTable
from polypstream.sources.open import open_source, stem_of
from polypstream.stages.gpu_field_of_view import GpuViewCropper

log = logging.getLogger(__name__)
# Called with some value that changes whenever the processing makes progress.
OnActivity = Callable[[object], None]
# Prefix of the folders that `polypstream masks` writes among a run's results.
ANNOTATIONS = "annotations-"
# The annotated video. A run with `output.video.codec: none` has none.
VIDEO = "annotated.mp4"
# Files that a run writes.
RESULTS = (
    *(VIDEO, "frames.csv", "findings.json", POLYPS, "summary.json", "report.html", "masks.mkv"),
    *(f"{SNAPSHOTS}/track-*.jpg", "dicom/track-*.dcm", "masks/*.png", "annotated/*.jpg"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A recording to process.

    Attributes:
        uri: path of a recording, or a demo's address.
        output: folder for the results of all recordings.
        masks: write masks.mkv too.
        overwrite: replace existing results.
        name: name of the folder of results: of a set of images, or of a de-identified recording in place of its own.
        title: name of the recording in its results and in error messages; None: its path.
        images: the images to process, each by itself; empty: `uri` is a recording.
        times: range of the recording to process; None: all of it.
    """

    uri: str
    output: Path
    masks: bool = False
    overwrite: bool = False
    name: str | None = None
    title: str | None = None
    images: tuple[Path, ...] = ()
    times: TimeRange | None = None


@dataclass(slots=True)
class ProcessResult:
    """Results of one recording.

    Attributes:
        name: name of the recording for the user.
        folder: folder of the results.
        frames: number of frames of the results.
        seconds: wall time.
        notes: information for the user, one phrase each.
        damage: damage found in the recording, one phrase each.
        polyps: number of tracks; of a set of images, number of findings.
        first_s, last_s: time of the first and the last frame that show one, in seconds; None: no frame does.
        images_with_polyps: number of images with findings; None: it is a recording.
    """

    name: str
    folder: Path
    frames: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    polyps: int = 0
    first_s: float | None = None
    last_s: float | None = None
    images_with_polyps: int | None = None

    @property
    def problem(self) -> str:
        """What is wrong with the results, for the user; empty if they are complete."""
        if not self.damage:
            return ""
        kind = "frame" if self.images_with_polyps is None else "image"
        rest = f"{counted(self.frames, kind)} could be read; the results are in {self.folder}"
        return f"{self.name}: damaged: {'; '.join(self.damage)}. {rest}"


def claim_folder(uri: str, name: str | None, taken: dict[str, str]) -> None:
    """Check that no two recordings of one call write to the same folder.

    Args:
        uri: the next recording.
        name: name that replaces its own, if any.
        taken: earlier recordings, by the name of their folder. The next recording is added.

    Raises:
        OutputError: an earlier recording has the folder.
        SourceError: a demo's address is wrong.
    """
    folder = (name or stem_of(uri)).casefold()  # some file systems ignore case
    if folder in taken:
        raise OutputError(
            f"{taken[folder]} and {uri}: the results of both would be in the same folder, {name or stem_of(uri)}. "
            "Process one of them into another output folder, or rename its file"
        )
    taken[folder] = uri


def process(
    job: Job,
    segmenter: Segmenter,
    settings: Settings,
    on_progress: OnProgress = lambda *_: None,
    on_activity: OnActivity = lambda _: None,
) -> ProcessResult:
    """Annotate one recording into `job.output`/<stem>/.

    Args:
        job: the recording, and where and what to write.
        segmenter: runs the model; may be shared by several recordings.
        settings: settings of the run.
        on_progress: called as on_progress(done, total) with frame counts, a few times per second; total is None if
            unknown.
        on_activity: called a few times per second with a value that changes while there is progress, even if no frame
            is finished.

    Returns:
        The results. Those of a damaged recording cover the frames that could be read.

    Raises:
        PolypstreamError: there are no results, or they are not complete; files that were written are playable.
        KeyboardInterrupt: the user interrupted; the report covers the frames that are done.
    """
    try:
        return _process(job, segmenter, settings, on_progress, on_activity)
    except PolypstreamError:
        raise
    except Exception as error:  # whatever a library raises is caused by this recording
        raise SourceError(f"{job.title or job.uri}: cannot be processed ({_describe_error(error)})") from error


def _describe_error(error: Exception) -> str:
    """One line with the type and the message of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _process(
    job: Job, segmenter: Segmenter, settings: Settings, on_progress: OnProgress, on_activity: OnActivity
) -> ProcessResult:
    source: Source = open_source(job.uri, on_progress)
    try:
        source.name = job.title or source.name
        view, recording = choose_field_of_view(source, settings), source.path
        gpu = decode_on_gpu(source, segmenter, settings)
        source = restricted(source, view, settings, job.name, job.times, on_activity)
        folder = prepare_folder(job.output / source.stem, recording, job.overwrite, settings.deidentify.enabled)
        pipeline = RecordingPipeline(
            source,
            view,
            folder,
            segmenter,
            settings,
            job.masks,
            make_stages(view, segmenter, settings, gpu),
            times=job.times,
            packets_from=source.path,
        )
        return pipeline.run(on_progress, on_activity, report=True)
    finally:
        source.close()


def prepare_folder(folder: Path, recording: Path | None, overwrite: bool, deidentified: bool) -> Path:
    """Create the folder for results, and remove existing results if they may be replaced.

    Args:
        folder: the folder.
        recording: file of the recording, which must not be removed; None: there is none.
        overwrite: existing results may be replaced.
        deidentified: the new results are de-identified.

    Returns:
        The folder.

    Raises:
        ResultsExist: finished results exist and may not be replaced, or another run may be writing to the folder.
        OutputError: it cannot be written. Also if the new results are de-identified and the folder holds annotations of
            an earlier run, whose images are not; and if readers have reviewed the earlier results.
    """
    try:
        existing = [each for pattern in RESULTS for each in folder.glob(pattern)]
        if recording and any(path.samefile(recording) for path in existing):
            raise OutputError(f"{recording}: is itself in the folder of its results; choose another output folder")
        if existing and not overwrite:
            _check_unfinished(folder, existing)
        if existing and (folder / REVIEWS).is_file():
            raise OutputError(
                f"{folder / REVIEWS}: has what readers decided about the earlier results; choose another output "
                "folder, or move it away"
            )
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
        folder: folder for the results.
        segmenter, settings: as for `process`.
        masks: write masks.mkv too.
        stages: stages for the frames, as `make_stages` makes them.
        frames: frames of the part; None: all frames of the source.
        origin: pts at which the time of the part's annotated.mp4 begins.
        times: range of the recording that `source` yields; None: all of it.
        packets_from: the recording's file, if its packets may be copied.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(
        self,
        source: Source,
        view: FieldOfView,
        folder: Path,
        segmenter: Segmenter,
        settings: Settings,
        masks: bool,
        stages: Stages,
        frames: Iterator[Frame] | None = None,
        origin: int | None = None,
        times: TimeRange | None = None,
        packets_from: Path | None = None,
    ) -> None:
        self.source, self.view, self.folder, self.segmenter, self.settings = source, view, folder, segmenter, settings
        self._masks, self._times = masks, times
        if times is not None:
            origin = round(source.format.start / source.format.time_base)
        self.video: AnnotatedVideo | None = None
        self._about = head_of_results(source.name, segmenter, settings, times)
        video = settings.output.video
        packets_from = None if video.codec == "none" else packets_from
        self.copying, self._why_none = open_copying(packets_from, source.format, video, source.shifts, origin)
        self._stages = stages
        sinks = self._open_sinks(masks, origin)
        self.pipeline = Pipeline([("decode", frames or source.frames())], [*stages], sinks, full_batches=True)

    def _open_sinks(self, masks: bool, origin: int | None) -> list[tuple[str, Sink[Frame]]]:
        folder, pictures = self.folder, self.source.format
        # The first file: `_check_unfinished` knows by it, and by the lack of a summary, that a run did not end.
        sinks: list[tuple[str, Sink[Frame]]] = [("table", FramesTable(folder / "frames.csv"))]
        try:
            if self.settings.output.video.codec != "none":
                self.video = AnnotatedVideo(
                    folder / VIDEO,
                    pictures,
                    self.source.path,
                    self.settings.output.video,
                    origin,
                    self.source.shifts,
                    self.copying,
                )
                self.video.queue_size = self._stages.ahead(pictures.rate)
                sinks.append(("encode", self.video))
            self.findings = FindingsFile(folder, self._about)
            sinks.append(("findings file", self.findings))
            if masks:
                sinks.append(("masks", MaskVideo(folder / "masks.mkv", pictures)))
        except BaseException:
            for _, sink in sinks:
                sink.close()
            raise
        return sinks

    def run(
        self, on_progress: OnProgress, on_activity: OnActivity = lambda _: None, report: bool = False
    ) -> ProcessResult:
        """Process all frames, check the files, and write the summary. The summary is also written after an error.

        The summary is the last file: results with a summary without a problem are finished, also if the process is
        killed, or the disk is full.

        Args:
            on_progress, on_activity: as for `process`.
            report: write report.html, also if the user interrupts.

        Raises:
            PolypstreamError: the results are not complete, for another reason than damage of the recording.
        """
        log.debug("%s: %s, %s", self.source.name, self.source.format, self.view)
        started = time.monotonic()
        problem: BaseException | None = None

        def report_progress() -> None:
            packets = self.video.packets if self.video else 0
            on_activity((sum(work.items for work in self.pipeline.work.values()), packets))
            on_progress(self._frames_out, self.source.expected_frames)

        try:
            self.pipeline.run(report_progress)
            self._check_files(on_activity)
        except BaseException as error:
            problem = error
        notes = [*self.source.notes, *(self.video.notes if self.video else [])]
        damage = [*self.source.damage, *(self.video.damage if self.video else [])]
        run = ProcessResult(
            self.source.name,
            self.folder,
            self._frames_out,
            time.monotonic() - started,
            notes,
            damage,
            **self.findings.found,
        )
        log.debug("%s: %d frames in %.1f s, encoded by %s", run.name, run.frames, run.seconds, self._encoder)
        summary = self._summary(run, problem)
        if report and (problem is None or isinstance(problem, KeyboardInterrupt)):
            try:
                write_report(self.folder, summary=summary)
            except PolypstreamError as error:  # an interrupted run may have no frame to report
                problem = problem or error
                summary = self._summary(run, problem)
        try:
            write_summary(self.folder, summary)
        except OutputError:
            if problem is None:
                raise
        if problem is not None:
            raise problem
        return run

    @property
    def _frames_out(self) -> int:
        """Number of frames written so far: to annotated.mp4 or, if there is none, to frames.csv."""
        return self.video.frames if self.video else self.pipeline.work["table"].items

    @property
    def _encoder(self) -> str | None:
        """FFmpeg's name of the encoder; None: there is no annotated.mp4."""
        return self.video.encoder if self.video else None

    @property
    def _decoded_on_gpu(self) -> int:
        """Number of frames that a GPU decoded."""
        crop = self._stages.crop
        return crop.on_gpu if isinstance(crop, GpuViewCropper) else 0

    def _check_files(self, on_activity: OnActivity) -> None:
        """Check that the written files can be read back.

        Raises:
            OutputError: one cannot be read, or has another number of frames.
        """
        for name in [*([VIDEO] if self.video else []), *(["masks.mkv"] if self._masks else [])]:
            check_frames(self.folder / name, self._frames_out, on_activity)

    def _unmarked(self) -> dict[str, Any] | None:
        """How many groups of pictures were copied and encoded; None: there is no video."""
        if self.video is None:
            return None
        counts = self.copying.counts if self.copying else CopyCounts(encoded_frames=self.video.frames)
        return {
            "copied_gops": counts.copied_gops,
            "copied_frames": counts.copied_frames,
            "encoded_gops": counts.encoded_gops if self.copying else None,
            "encoded_frames": counts.encoded_frames,
            "why_none": self._why_none or counts.why_none,
        }

    def _summary(self, run: ProcessResult, problem: BaseException | None) -> dict[str, Any]:
        """Content of summary.json."""
        reason = (str(problem) or type(problem).__name__) if problem else None
        if isinstance(problem, KeyboardInterrupt):
            reason = "interrupted"
        if reason and self.settings.deidentify.enabled:
            reason = reason.replace(str(self.folder), self.folder.name)
        return {
            **self._about,
            "complete": problem is None and not run.damage,
            "problem": reason,
            "damage": run.damage,
            "notes": [*self.segmenter.notes, *run.notes],
            "provider": self.segmenter.provider,
            "decoded_on_gpu": self._decoded_on_gpu,
            "encoder": self._encoder,
            "unmarked": self._unmarked(),
            "field_of_view": [self.view.x, self.view.y, self.view.width, self.view.height],
            "picture_size": [self.source.format.width, self.source.format.height],
            "frames_in": self.pipeline.work["decode"].items,
            "frames_out": run.frames,
            **self.findings.found,
            "wall_seconds": round(run.seconds, 3),
            "frames_per_second": round(run.frames / run.seconds, 2),
            "seconds_per_stage": {name: round(work.seconds, 3) for name, work in self.pipeline.work.items()},
            "notice": NOTICE,
        }


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read summary.json.

    Args:
        folder: folder of the results.

    Returns:
        Its content; None: there is none, or it cannot be read.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def holds_results(folder: Path) -> bool:
    """Whether a folder has results of polypstream: those of a recording, or of a set of images.

    Args:
        folder: the folder.
    """
    return "polypstream" in (read_summary(folder) or {})


def _check_unfinished(folder: Path, existing: Sequence[Path]) -> None:
    """Check that the results in a folder are those of a run that was interrupted or failed. They may be replaced.

    Args:
        folder: folder of the results.
        existing: the results.

    Raises:
        ResultsExist: they are finished, or another run may be writing them.
    """
    summary = read_summary(folder)
    if summary is not None and summary.get("problem"):
        return
    if summary is not None or not (folder / "frames.csv").is_file():
        raise ResultsExist(f"{folder}: holds results already")
    # A killed run leaves no summary. A running one writes at least once in this time, or its watchdog ends it.
    if time.time() - max(path.stat().st_mtime for path in existing) < STALL_TIMEOUT_S:
        raise ResultsExist(
            f"{folder}: was written less than a minute ago, perhaps by a run that goes on, so wait a minute"
        )


def read_result(folder: Path) -> ProcessResult | None:
    """Read what an earlier run found.

    Args:
        folder: folder of the results.

    Returns:
        The result; None: there is none, or it is unfinished.
    """
    summary = read_summary(folder)
    if summary is None or summary.get("problem"):
        return None
    return ProcessResult(
        str(summary.get("input", folder.name)),
        folder,
        summary.get("frames_out", 0),
        summary.get("wall_seconds", 0.0),
        damage=summary.get("damage", []),
        polyps=summary.get("polyps", 0),
        first_s=summary.get("first_s"),
        last_s=summary.get("last_s"),
        images_with_polyps=summary.get("images_with_polyps"),
    )


def has_frames(folder: Path) -> bool:
    """Whether a run has finished at least one frame or image, also if it was interrupted.

    Args:
        folder: folder of its results.
    """
    try:
        with (folder / "frames.csv").open() as table:
            return len(list(islice(table, 2))) > 1
    except (OSError, ValueError):
        return False


def is_of_range(folder: Path, times: TimeRange | None) -> bool:
    """Whether the results of an earlier run are of a range of the recording.

    Args:
        folder: folder of the results.
        times: the range; None: all of it.
    """
    return bool((read_summary(folder) or {}).get("range") == (times.as_json() if times else None))


def differences(folder: Path, job: Job, settings: Settings) -> list[str]:
    """Say in what the results of an earlier run differ from those that a job would write.

    Args:
        folder: folder of the results.
        job: what would be processed.
        settings: settings of the job.

    Returns:
        A phrase for each difference, such as "without masks.mkv". Execution providers, threads and folders of model
        files do not count.
    """
    summary = read_summary(folder) or {}
    found = []
    if job.masks and not job.images and not (folder / "masks.mkv").is_file():
        found.append("without masks.mkv")
    if job.images and summary.get("frames_in") != len(job.images):
        found.append(f"of {counted(summary.get('frames_in', 0), 'image')} instead of {len(job.images)}")
    if not is_of_range(folder, job.times):
        found.append("of another range of the recording" if "range" in summary else "of the whole recording")
    now = dict(_values(settings.model_dump(mode="json")))
    before = now | dict(_values(summary.get("settings", {})))
    if changed := [key for key in now if before[key] != now[key]]:
        found.append(f"with {'another' if len(changed) == 1 else 'other values of'} {', '.join(changed)}")
    return found


def _values(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values that change the results, by key."""
    for name in ("view", "findings", "overlay", "output", "deidentify"):
        yield from _leaves(name, settings.get(name, {}))
    inference = settings.get("inference", {})
    if "model" in inference:
        yield "inference.model", Path(inference["model"]).name
    if "every" in inference:
        yield "inference.every", inference["every"]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, below in value.items():
        yield from _leaves(f"{key}.{name}", below)


def head_of_results(
    name: str, segmenter: Segmenter, settings: Settings, times: TimeRange | None = None
) -> dict[str, Any]:
    """Recording, model, settings and version: the head of findings.json and summary.json.

    Args:
        name: name of the recording, or of the set of images.
        segmenter: runs the model.
        settings: settings of the run.
        times: range of the recording that was processed; None: all of it.
    """

    def without_folders(text: str) -> str:
        """A path, reduced to its file name if the results are de-identified: folders are often named after people."""
        return Path(text).name if settings.deidentify.enabled else text

    written = settings.model_dump(mode="json")
    written["inference"]["model"] = without_folders(written["inference"]["model"])
    return {
        "input": name,
        **({} if times is None else {"range": times.as_json()}),
        "model": {"file": without_folders(str(segmenter.model)), **segmenter.card.model_dump(mode="json")},
        "settings": written,
        "polypstream": version("polypstream"),
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, completely or not at all.

    Args:
        folder: folder of the results.
        summary: content of the file.

    Raises:
        OutputError: it cannot be written.
    """
    with write_atomically(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
